"""A prediction log that goes to a Kafka topic; ``evergreen stream collect`` makes files of it (`ml.streaming.collect`)."""

from __future__ import annotations

import errno
import logging
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException

from ml import brokers

GRACE_SECONDS = 10.0
"""How long an end waits for the brokers."""
MOST = brokers.QUEUE // 2
"""Lines on their way, at which others wait."""

logger = logging.getLogger(__name__)


class LogTopic:
    """Sends each line as a record, keyed by entity; the brokers have it, or it is counted.

    Args:
        topic: its name; any number of partitions.

    Raises:
        ConfigError: nothing says where the brokers are.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._producer = brokers.producer(**{"linger.ms": 20, "compression.type": "zstd"})
        self._written = self._lost = 0

    def start(self) -> None:
        """Nothing is left of others."""

    def write(self, lines: list[bytes]) -> None:
        """Hands over all of them, or none.

        Raises:
            OSError: the brokers are slower than the answers, or away.
        """
        self._producer.poll(0)
        if len(self._producer) > MOST:
            raise OSError(errno.EAGAIN, f"the brokers have not taken {len(self._producer):,} entries of topic {self._topic!r}")
        for line in lines:
            key = orjson.loads(line)["entity_id"].encode()
            try:
                self._producer.produce(self._topic, line.rstrip(b"\n"), key, on_delivery=self._delivered)
            except (BufferError, KafkaException) as error:  # by its bytes: half the queue's records were free
                self._failed(error)

    def settled(self) -> tuple[int, int]:
        found = self._written, self._lost
        self._written = self._lost = 0
        return found

    def flushed(self) -> None:
        """Hears what the brokers have by now."""
        self._producer.poll(0)

    def close(self) -> None:
        """Waits for the brokers, for `GRACE_SECONDS`."""
        if left := self._producer.flush(GRACE_SECONDS):
            self._lost += left
            logger.error("prediction log: the brokers have not taken the last %d entries", left)

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is None:
            self._written += 1
        else:
            self._failed(error)

    def _failed(self, error: object) -> None:
        if not self._lost:
            logger.error("prediction log: topic %r refuses entries: %s", self._topic, error)
        self._lost += 1
