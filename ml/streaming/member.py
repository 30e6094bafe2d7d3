"""A member of the stream's group: reads records, has them answered, and commits an offset when the brokers have the answer.

All but the answers' models happens on one thread, rebalances too: between two batches every record that was read has its answer
on the way, so that giving a partition up means waiting for acknowledgements, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ml import brokers
from ml.brokers import StreamError
from ml.serving.service import NotReadyError, Service
from ml.settings import settings
from ml.streaming.answers import Answer, DeadLetter, Outcome, answers
from ml.streaming.gauges import Gauges, LagWatch, serve
from ml.streaming.progress import Progress, Taken
from ml.streaming.records import PROBLEM, REASON, Record
from ml.streaming.takeover import Outputs

BATCH, BATCH_BYTES = 128, 256 << 10
"""Records, and bytes of their values, that are answered together at most."""
MOST_WAITING = 4096
"""Records without an acknowledgement at which reading pauses; it goes on at half of that."""
COMMIT_SECONDS = 1.0
IDLE_SECONDS = 0.05
GRACE_SECONDS = 10.0
"""How long a stop, or giving a partition up, waits for acknowledgements."""

logger = logging.getLogger(__name__)


class Member:
    """Reads until `stop` is called.

    Args:
        service: started by `run`, stopped at its end.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._names, self._group = service, brokers.topics(), settings().kafka_group
        self._gauges = Gauges(service.telemetry.registry)
        self._parts: dict[int, Progress] = {}
        self._batch: list[Record] = []
        self._stopping = self._paused = False
        self._failure: StreamError | None = None
        self._committed_at = 0.0
        self._stop_by = math.inf

    def stop(self) -> None:
        """What was read is finished and committed, then `run` returns. May be called by a signal handler."""
        self._stopping, self._stop_by = True, time.monotonic() + GRACE_SECONDS

    def run(self) -> None:
        """Joins the group and answers.

        Raises:
            StreamError: topics do not fit, or the brokers refuse for good.
        """
        here = settings()
        static = {"group.instance.id": here.kafka_member} if here.kafka_member else {}
        self._producer = brokers.producer()
        brokers.checked(self._producer, self._names)
        self._consumer: Consumer = brokers.consumer(
            self._group, **{"partition.assignment.strategy": "cooperative-sticky", "on_commit": self._on_commit} | static
        )
        self._outputs = Outputs(self._names, self._group)
        self._loop = uvloop.new_event_loop()
        end_metrics = serve(self._service.telemetry.registry, here.host, here.stream_port, "EVERGREEN_STREAM_PORT")
        self._service.start(self._loop)
        lag = LagWatch(lambda: {p: each.done for p, each in list(self._parts.items())}, self._outputs.behind, self._gauges.lag)
        try:
            self._consumer.subscribe(
                [self._names.requests], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            logger.info("reading %s as a member of group %s", self._names.requests, self._group)
            while not self._stopping:
                self._pass()
        except KafkaException as error:
            raise StreamError(
                f"Kafka at {here.kafka}: {error.args[0].str()}", "look at the brokers' health, then start again"
            ) from error
        finally:
            lag.stop()
            self._consumer.close()  # gives the partitions up: see _on_revoke
            self._outputs.close()
            self._service.stop()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
            end_metrics()
            logger.info("left group %s", self._group)

    def _pass(self) -> None:
        """One batch, if there is one and it can be answered."""
        self._producer.poll(0)
        self._check()
        self._commit_when_due()
        self._pause_or_go_on()
        self._read()
        if self._batch:
            self._answer_batch()
        else:
            self._loop.run_until_complete(asyncio.sleep(0))  # what other threads have asked of the loop
        self._gauges.waiting.set(self._waiting())

    def _waiting(self) -> int:
        return sum(each.waiting for each in self._parts.values())

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _pause_or_go_on(self) -> None:
        crowded = self._waiting() >= (MOST_WAITING // 2 if self._paused else MOST_WAITING)
        wanted = crowded or not self._ready()
        if wanted != self._paused:
            self._paused = wanted
            self._gauges.paused.set(wanted)
            logger.warning("%s", _why(crowded, self._service.problem) if wanted else "reading goes on")
            self._hold(self._parts)

    def _hold(self, partitions: Any) -> None:
        held = [TopicPartition(self._names.requests, partition) for partition in partitions]
        (self._consumer.pause if self._paused else self._consumer.resume)(held)

    def _ready(self) -> bool:
        try:
            self._service.team()
        except NotReadyError:
            return False
        return True

    def _read(self) -> None:
        """Fills the batch with what has arrived; waits a moment for the first record. Rebalances happen in here."""
        self._batch, size, patience = [], 0, IDLE_SECONDS
        while len(self._batch) < BATCH and size < BATCH_BYTES:
            message = self._consumer.poll(patience)
            if message is None:
                return
            if (error := message.error()) is not None:
                brokers.complain(error)
                continue
            record = Record.of(message)
            self._batch.append(record)
            size += len(record.value or b"")
            patience = 0

    def _answer_batch(self) -> None:
        taken: list[tuple[Record, Taken]] = []
        for record in self._batch:
            if (each := self._parts[record.at.partition].take(record.at.offset)) is not None:
                taken.append((record, each))
            else:
                self._gauges.repeated.inc()
        self._batch = []
        found = self._loop.run_until_complete(answers(self._service, [record for record, _ in taken], lambda: self._stopping))
        for (record, each), outcome in zip(taken, found, strict=True):
            if outcome is not None:
                self._send(record, each, outcome)

    def _send(self, record: Record, taken: Taken, outcome: Outcome) -> None:
        progress = self._parts[record.at.partition]
        headers: Any = record.marked(self._group)
        key: bytes | None
        value: bytes | None
        if isinstance(outcome, Answer):
            topic, key, value = self._names.predictions, outcome.message_id.encode(), outcome.value
        else:
            assert isinstance(outcome, DeadLetter)
            topic, key, value = self._names.dead_letters, record.key, record.value
            headers += [(REASON, outcome.reason.encode()), (PROBLEM, outcome.problem.encode())]

        def delivered(error: KafkaError | None, message: Any) -> None:
            if self._parts.get(record.at.partition) is not progress:
                return  # it is another member's now
            if error is None:
                progress.acknowledge(taken, (topic, message.offset()))
                self._count(record, outcome)
            else:
                self._refused(record, taken, outcome, error)

        while True:
            try:
                self._producer.produce(topic, value, key, record.at.partition, headers=headers, on_delivery=delivered)
                return
            except BufferError:  # the brokers are slower than we are
                self._producer.poll(IDLE_SECONDS)
                self._check()
                if time.monotonic() > self._stop_by:  # it is read again by whoever comes next
                    return
            except KafkaException as error:
                self._refused(record, taken, outcome, error.args[0])
                return

    def _refused(self, record: Record, taken: Taken, outcome: Outcome, error: KafkaError) -> None:
        """The brokers do not take an answer or a dead letter, and never will."""
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and isinstance(outcome, Answer):
            self._send(record, taken, DeadLetter("too-large", f"the answer has {len(outcome.value):,} bytes: {error.str()}"))
        elif self._failure is None:
            where = "a prediction" if isinstance(outcome, Answer) else "a dead letter"
            cure = "see that the topic exists, may be written to, and takes records a little larger than the requests'"
            self._failure = StreamError(f"{where} of {record.at} was refused: {error.str()}", cure)

    def _count(self, record: Record, outcome: Outcome) -> None:
        if isinstance(outcome, DeadLetter):
            self._gauges.dead.labels(outcome.reason).inc()
        else:
            self._gauges.answered.inc()
        if record.timestamp:
            self._gauges.seconds.observe(max(time.time() - record.timestamp / 1000, 0))

    # Offsets

    def _commit_when_due(self) -> None:
        if time.monotonic() >= self._committed_at + COMMIT_SECONDS:
            self._committed_at = time.monotonic()
            if due := self._due(self._parts):
                self._consumer.commit(offsets=due, asynchronous=True)

    def _due(self, partitions: Any) -> list[TopicPartition]:
        due = []
        for partition in partitions:
            progress = self._parts[partition]
            if progress.done != progress.committed:
                due.append(self._offset(partition))
                progress.committed = progress.done
        return due

    def _offset(self, partition: int) -> TopicPartition:
        progress = self._parts[partition]
        return TopicPartition(self._names.requests, partition, progress.done, metadata=progress.metadata())

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        error = error or next((each.error for each in partitions if each.error is not None), None)
        self._gauges.commits.labels("failed" if error else "done").inc()
        if error is not None:  # again at the next turn; who comes before that finds the answers in the outputs
            logger.info("offsets were not committed: %s", error.str())  # as in every rebalance
            for each in self._parts.values():
                each.committed = -1

    def _commit_now(self, due: list[TopicPartition]) -> None:
        try:
            self._consumer.commit(offsets=due, asynchronous=False)
        except KafkaException as error:
            self._on_commit(error.args[0], [])

    # Rebalances: called by the client's poll and close, on our thread

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        if assigned:
            found, fresh = self._outputs.progress(consumer.committed(assigned, timeout=brokers.SECONDS))
            self._parts |= found
            if fresh:  # from here on there are bookmarks, before the first answer
                self._commit_now([self._offset(partition) for partition in fresh])
            logger.info("took over partitions %s", sorted(found))
        consumer.incremental_assign(
            [TopicPartition(each.topic, each.partition, self._parts[each.partition].done) for each in assigned]
        )
        if self._paused:
            self._hold(each.partition for each in assigned)
        self._gauges.partitions.set(len(self._parts))

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        leaving = {each.partition for each in revoked}
        self._batch = [record for record in self._batch if record.at.partition not in leaving]
        deadline = time.monotonic() + GRACE_SECONDS
        while self._failure is None and any(self._parts[p].waiting for p in leaving) and time.monotonic() < deadline:
            self._producer.poll(IDLE_SECONDS)
        if left := sum(self._parts[p].waiting for p in leaving):
            logger.warning("%d records are given up without an acknowledgement; who takes them over will look for it", left)
        if due := self._due(leaving):
            self._commit_now(due)
        self._forget(leaving)
        consumer.incremental_unassign(revoked)

    def _on_lost(self, _: Consumer, lost: list[TopicPartition]) -> None:
        """Others may have them already: what is not on its way is left to them."""
        leaving = {each.partition for each in lost}
        logger.warning("lost partitions %s: this member was silent for too long", sorted(leaving))
        self._batch = [record for record in self._batch if record.at.partition not in leaving]
        self._forget(leaving)
        if not self._parts:
            self._producer.purge(in_queue=True, in_flight=False, blocking=False)

    def _forget(self, leaving: set[int]) -> None:
        for partition in leaving:
            self._parts.pop(partition, None)
        self._gauges.partitions.set(len(self._parts))


def _why(crowded: bool, problem: str) -> str:
    return "reading pauses: the brokers take answers too slowly" if crowded else f"reading pauses: {problem or 'no model'}"
