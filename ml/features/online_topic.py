"""The online store as a Kafka topic: a record holds all values of a tick, and whoever reads keeps the newest tick in memory.

So a read asks nobody, and goes on when the brokers are gone; the tick's age then says how old the values are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from ml import brokers
from ml.errors import EvergreenError
from ml.features.online import Key, Payload, StoreDownError

KEY = b"evergreen:features"
"""Of every record, so that a compacted topic keeps the newest; all are in partition 0, so that their order is one."""
BACK = 5
"""Records before the end where a reader begins: of writers at the same moment, the last one may have had an older tick."""
PATIENCE = 10.0
"""Seconds that a first read waits for the values."""
SENDING = 30.0
"""Seconds that the brokers have to take a tick."""
IDLE = 0.2
AGAIN = 1.0
"""Seconds between two attempts to reach them."""

logger = logging.getLogger(__name__)


class TopicStore:
    """Values at one tick, by a topic.

    Args:
        topic: its name; where the brokers are, says ``EVERGREEN_KAFKA``.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._now: tuple[datetime | None, Mapping[str, Mapping[str, Payload]]] = (None, {})
        self._offset = 0
        """Of the next record that is read."""
        self._problem: StoreDownError | None = None
        self._moved = threading.Condition()
        self._loaded = False
        self._follower: threading.Thread | None = None
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._producer: Producer | None = None

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Payload]]) -> int:
        """Returns when the brokers have the tick, and this object reads it.

        Raises:
            StoreDownError: they do not take it.
        """
        with self._writing:
            self._load()
            if (stored := self._now[0]) is not None and stored > tick:
                return 0
            self._reach(self._send(orjson.dumps({"tick": tick, "views": views})) + 1)
        return sum(len(keyed) for keyed in views.values())

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        self._load()
        tick, views = self._now
        return tick, {key: values for key in keys if (values := views.get(key[0], {}).get(key[1])) is not None}

    def sizes(self) -> dict[str, tuple[int, int]]:
        self._load()
        return {
            view: (len(keyed), sum(len(key) + len(orjson.dumps(values)) for key, values in keyed.items()))
            for view, keyed in self._now[1].items()
        }

    def close(self) -> None:
        """Ends the reading; what was read stays."""
        self._closing.set()
        if self._follower is not None:
            self._follower.join()

    def _load(self) -> None:
        """Waits until what the topic holds has been read, the first time."""
        with self._moved:
            if self._follower is None:
                self._follower = threading.Thread(target=self._follow, name="online-features-topic", daemon=True)
                self._follower.start()
            self._moved.wait_for(lambda: self._loaded or self._problem is not None, PATIENCE)
            if not self._loaded:
                raise self._problem or self._down("nothing was read in time")

    def _reach(self, offset: int) -> None:
        with self._moved:
            if not self._moved.wait_for(lambda: self._offset >= offset, SENDING):
                raise self._down("a tick was written, and cannot be read")

    def _send(self, value: bytes) -> int:
        """The offset of the record when the brokers have it."""
        answered: list[tuple[KafkaError | None, Any]] = []
        self._producer = self._producer or brokers.producer(**{"compression.type": "zstd"})
        try:
            self._producer.produce(self.topic, value, KEY, 0, on_delivery=lambda *answer: answered.append(answer))
            self._producer.flush(SENDING)
        except KafkaException as error:  # it is larger than the client may send
            raise self._down(f"a tick of {len(value):,} bytes: {error.args[0].str()}") from None
        if not answered:
            self._producer.purge()
            self._producer.flush(AGAIN)
            raise self._down(f"the brokers took no tick in {SENDING:.0f} s")
        failed, message = answered[0]
        if failed is not None:
            raise self._down(f"a tick of {len(value):,} bytes: {failed.str()}")
        return int(message.offset())

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow_once()
            except (EvergreenError, KafkaException) as error:
                with self._moved:
                    if self._problem is None:
                        logger.warning("online features: topic %s: %s", self.topic, error)
                    self._problem = self._down(str(error))
                    self._moved.notify_all()
                self._closing.wait(AGAIN)

    def _follow_once(self) -> None:
        """Reads from near the end, until it is to end.

        Raises:
            StreamError, KafkaException: the topic cannot be read.
        """
        consumer = brokers.consumer("evergreen-online-features")  # a name is asked for; it commits nothing
        try:
            brokers.partitions(consumer, self.topic)
            low, high = brokers.ends(consumer, self.topic, 0)
            first = max(low, high - BACK)
            consumer.assign([TopicPartition(self.topic, 0, first)])
            self._at(first, high)
            while not self._closing.is_set():
                message: Any = consumer.poll(IDLE)
                if message is None:
                    continue
                if (failed := message.error()) is not None:
                    raise KafkaException(failed)
                self._take(message.offset(), message.value())
                self._at(message.offset() + 1, high)
        finally:
            consumer.close()

    def _take(self, offset: int, value: bytes | None) -> None:
        try:
            found = orjson.loads(value or b"null")
            tick, views = datetime.fromisoformat(found["tick"]), found["views"]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("online features: topic %s: record %d is no tick, and is left out: %r", self.topic, offset, error)
            return
        if self._now[0] is None or tick >= self._now[0]:
            self._now = tick, views

    def _at(self, offset: int, high: int) -> None:
        with self._moved:
            self._offset, self._problem = offset, None
            self._loaded = self._loaded or offset >= high
            self._moved.notify_all()

    def _down(self, why: str) -> StoreDownError:
        return StoreDownError(f"online store: topic {self.topic!r}: {why}", "see EVERGREEN_KAFKA and EVERGREEN_ONLINE")
