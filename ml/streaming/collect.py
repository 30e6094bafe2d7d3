"""``evergreen stream collect``: what services and streams log to a Kafka topic becomes Parquet in ``<var>/predictions/online``.

A file holds the entries of a run of offsets of one partition, and is named by them. The files are the truth of how far it is,
and a commit only saves the next one from looking far: whoever takes a partition over begins behind its last file. So a kill at
any moment loses nothing and writes nothing twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry

from ml import brokers, shared
from ml.brokers import StreamError
from ml.errors import ConfigError
from ml.serving import segments
from ml.serving.segment_files import folder
from ml.settings import settings
from ml.streaming.gauges import CollectorGauges, LagWatch, serve

FILE_SECONDS = 15.0
"""Age of the oldest entry at which a file is written."""
FILE_BYTES = 64 << 20
IDLE_SECONDS = 0.2
_OFFSET = "[0-9]" * 20

logger = logging.getLogger(__name__)


@dataclass
class Part:
    """What was read of a partition, and is in no file."""

    done: int
    """Offset below which all is in files."""
    next: int
    """Offset of the next record."""
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    began: float = 0.0

    def due(self) -> bool:
        return self.size >= FILE_BYTES or (bool(self.lines) and time.monotonic() >= self.began + FILE_SECONDS)


class Collector:
    """A member of the group ``<group>-log``; start as many as there are partitions, anywhere.

    Raises:
        ConfigError: no topic is set.
    """

    def __init__(self) -> None:
        here = settings()
        if not here.kafka_log:
            raise ConfigError("EVERGREEN_KAFKA_LOG is not set", "set it to the topic that the service logs to")
        self._topic, self._group = here.kafka_log, f"{here.kafka_group}-log"
        self._parts: dict[int, Part] = {}
        self._stopping = False
        self._registry = CollectorRegistry()
        self._gauges = CollectorGauges(self._registry)

    def stop(self) -> None:
        """What was read is written and committed, then `run` returns. May be called by a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Joins the group and collects.

        Raises:
            StreamError: the brokers refuse for good, or a file cannot be written; what was read is then read again.
        """
        here = settings()
        self._asking = brokers.consumer(self._group)
        brokers.partitions(self._asking, self._topic)
        self._consumer: Consumer = brokers.consumer(self._group, **{"partition.assignment.strategy": "cooperative-sticky"})
        end_metrics = serve(self._registry, here.host, here.collect_port, "EVERGREEN_COLLECT_PORT")
        lag = LagWatch(lambda: {p: each.done for p, each in list(self._parts.items())}, self._behind, self._gauges.lag)
        try:
            self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            logger.info("collecting %s as a member of group %s", self._topic, self._group)
            while not self._stopping:
                self._read()
                self._gauges.waiting.set(sum(len(part.lines) for part in self._parts.values()))
                self._write(partition for partition, part in self._parts.items() if part.due())
            self._write(self._parts)
        except KafkaException as error:
            raise StreamError(
                f"Kafka at {here.kafka}: {error.args[0].str()}", "look at the brokers' health, then start again"
            ) from error
        except OSError as error:
            raise StreamError(f"{folder()}: {error}", "mend that, then start again: no entry is lost") from error
        finally:
            lag.stop()
            self._consumer.close()
            self._asking.close()
            end_metrics()
            logger.info("left group %s", self._group)

    def _behind(self, partition: int, done: int) -> int:
        return max(brokers.ends(self._asking, self._topic, partition)[1] - done, 0)

    def _read(self) -> None:
        """Takes what has arrived; waits a moment for the first record. Rebalances happen in here."""
        message: Any = self._consumer.poll(IDLE_SECONDS)
        while message is not None and not self._stopping:
            if (error := message.error()) is not None:
                brokers.complain(error)
            elif self._take(self._parts[message.partition()], message):
                return
            message = self._consumer.poll(0)

    def _take(self, part: Part, message: Any) -> bool:
        """Whether the part is due with it."""
        line: bytes = message.value() or b""
        part.began = part.began if part.lines else time.monotonic()
        part.lines.append(line)
        part.size += len(line)
        part.next = message.offset() + 1
        return part.due()

    def _write(self, partitions: Iterable[int]) -> None:
        """A file for each of them that has entries, then the commit."""
        written = [partition for partition in list(partitions) if self._write_one(partition)]
        if not written:
            return
        shared.offer(folder(), "kafka-*.parquet")
        try:
            offsets = [TopicPartition(self._topic, partition, self._parts[partition].done) for partition in written]
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # the files say it, too
            logger.info("offsets were not committed: %s", error.args[0].str())

    def _write_one(self, partition: int) -> bool:
        part = self._parts.get(partition)
        if part is None or not part.lines:
            return False
        if (there := self._collected_to(partition)) > part.done:
            logger.warning("partition %d: another member has collected to offset %d", partition, there)
        else:
            name = f"kafka-{self._topic}-{partition}-{part.done:020d}-{part.next:020d}"
            entries = segments.parsed(b"".join(line + b"\n" for line in part.lines), name)
            folder().mkdir(parents=True, exist_ok=True)
            segments.write(entries.sort_by("event_time"), folder() / f"{name}.parquet")
            self._gauges.collected.inc(len(entries))
            logger.info("partition %d: %d entries, to offset %d", partition, len(entries), part.next)
        self._parts[partition] = Part(part.next, part.next)
        return True

    def _collected_to(self, partition: int) -> int:
        """The offset behind the last file that is here."""
        files = folder().glob(f"kafka-{self._topic}-{partition}-{_OFFSET}-{_OFFSET}.parquet")
        return max((int(path.stem[-20:]) for path in files), default=0)

    # Rebalances: called by the client's poll and close, on our thread

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        if assigned:
            shared.add(folder())
        for each in consumer.committed(assigned, timeout=brokers.SECONDS):
            first = max(
                each.offset, brokers.ends(self._asking, self._topic, each.partition)[0], self._collected_to(each.partition)
            )
            self._parts[each.partition] = Part(first, first)
            logger.info("partition %d: from offset %d", each.partition, first)
        consumer.incremental_assign([TopicPartition(self._topic, e.partition, self._parts[e.partition].next) for e in assigned])

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """What was read and is in no file, the next one reads again."""
        for each in revoked:
            self._parts.pop(each.partition, None)
        consumer.incremental_unassign(revoked)

    def _lost(self, _: Consumer, lost: list[TopicPartition]) -> None:
        for each in lost:
            self._parts.pop(each.partition, None)
