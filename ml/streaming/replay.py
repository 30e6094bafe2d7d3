"""Asking again: records go back to the topic of requests, and the stream answers them like any other.

A replayed record keeps its message id, so that its answer has the key of the first one. It says in a header which replay asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, TopicPartition

from ml import brokers
from ml.brokers import StreamError
from ml.settings import settings
from ml.streaming.records import MESSAGE_ID, REASON, REPLAY, BadRecordError, Record, place_id, source_of

STEP = 500
"""Records after which a replay of dead letters notes how far it is."""


def dead_letters(since: datetime | None, until: datetime | None, reason: str | None, rate: float, name: str) -> int:
    """Asks again what could not be answered; gives how many records that were.

    Args:
        since, until: when they became dead letters, UTC; without both, all that no such replay has looked at yet.
        reason: only those with this reason; the others count as looked at.
        rate: records a second at most.
        name: of the replay, for the header of its records and their answers.
    """
    topic, onward = brokers.topics().dead_letters, since is None and until is None
    group = f"{settings().kafka_group}-replay"
    reader = brokers.consumer(group, **{"enable.partition.eof": True})
    try:
        starts = _committed(reader, topic) if onward else _at(reader, topic, since)

        def wanted(record: Record) -> bool:
            return reason is None or record.header(REASON) == reason.encode()

        def note(offsets: dict[int, int]) -> None:
            if onward and offsets:
                reader.commit(offsets=[TopicPartition(topic, p, offset) for p, offset in offsets.items()], asynchronous=False)

        return _send(_records(reader, starts, since, until), wanted, note, rate, name)
    finally:
        reader.close()


def requests(since: datetime, until: datetime, rate: float, name: str) -> int:
    """Asks again what was asked in a period, whatever became of it; gives how many records that were. Replays are left out.

    Args:
        since, until: the records' timestamps, UTC.
        rate, name: as in `dead_letters`.
    """
    reader = brokers.consumer(f"{settings().kafka_group}-replay", **{"enable.partition.eof": True})
    try:
        found = _records(reader, _at(reader, brokers.topics().requests, since), since, until)
        return _send(found, lambda record: record.header(REPLAY) is None, lambda _: None, rate, name)
    finally:
        reader.close()


def _committed(reader: Consumer, topic: str) -> list[TopicPartition]:
    every = [TopicPartition(topic, partition) for partition in range(brokers.partitions(reader, topic))]
    found = reader.committed(every, timeout=brokers.SECONDS)
    return [
        TopicPartition(topic, each.partition, max(each.offset, brokers.ends(reader, topic, each.partition)[0])) for each in found
    ]


def _at(reader: Consumer, topic: str, since: datetime | None) -> list[TopicPartition]:
    """Where to begin reading what is not older than `since`."""
    wanted = _milliseconds(since) if since is not None else 0
    every = [TopicPartition(topic, partition, wanted) for partition in range(brokers.partitions(reader, topic))]
    found = reader.offsets_for_times(every, timeout=brokers.SECONDS)
    starts = []
    for each in found:  # "the end" is also the answer of brokers that keep no index of times: then all is looked through
        low, _ = brokers.ends(reader, topic, each.partition)
        starts.append(TopicPartition(topic, each.partition, low if each.offset in (OFFSET_END, -1) else max(each.offset, low)))
    return starts


def _records(reader: Consumer, starts: list[TopicPartition], since: datetime | None, until: datetime | None) -> Iterator[Record]:
    """All records of the period from these offsets up to where the topic ends now."""
    high = {each.partition: brokers.ends(reader, each.topic, each.partition)[1] for each in starts}
    unread = {each.partition for each in starts if each.offset < high[each.partition]}
    reader.assign([each for each in starts if each.partition in unread])
    first = _milliseconds(since) if since is not None else -math.inf
    end = _milliseconds(until) if until is not None else math.inf
    while unread:
        message = reader.poll(1.0)
        if message is None:
            continue
        if (error := message.error()) is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                raise StreamError(f"{message.topic()}: {error.str()}", "look at the brokers' health, then replay again")
            unread.discard(message.partition())
            continue
        record = Record.of(message)
        if record.at.offset >= high[record.at.partition] - 1:
            unread.discard(record.at.partition)
        if record.at.offset < high[record.at.partition] and first <= record.timestamp < end:
            yield record


def _send(
    records: Iterator[Record],
    wanted: Callable[[Record], bool],
    note: Callable[[dict[int, int]], None],
    rate: float,
    name: str,
) -> int:
    """Puts records into the topic of requests, and notes how far that is when the brokers have them."""
    producer, topic, sent = brokers.producer(), brokers.topics().requests, 0
    problems: list[KafkaError] = []
    looked_at: dict[int, int] = {}

    def delivered(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            problems.append(error)

    def settle() -> None:
        while producer.flush(brokers.SECONDS) and not problems:
            pass
        if problems:
            raise StreamError(f"topic {topic!r}: {problems[0].str()}", "see that it may be written to, then replay again")
        note(looked_at)

    began = time.monotonic()
    for number, record in enumerate(records, 1):
        if wanted(record):
            time.sleep(max(began + sent / rate - time.monotonic(), 0))
            producer.produce(topic, record.value, record.key, _partition(record), delivered, headers=_headers(record, name))
            producer.poll(0)
            sent += 1
        looked_at[record.at.partition] = record.at.offset + 1
        if number % STEP == 0:
            settle()
    settle()
    return sent


def _partition(record: Record) -> int:
    """That of the record which is asked again."""
    source = source_of(record.headers)
    return source[1].partition if source else record.at.partition


def _headers(record: Record, name: str) -> Any:
    """The producer's headers, the message id that its first answer had, and the replay's name."""
    source = source_of(record.headers)
    try:
        message_id = record.message_id() if source is None or record.header(MESSAGE_ID) is not None else place_id(source[1])
        named: list[tuple[str, bytes | None]] = [(MESSAGE_ID, message_id.encode())]
    except BadRecordError:  # it is refused again, with the same words
        named = [(MESSAGE_ID, record.header(MESSAGE_ID))]
    others = [(header, value) for header, value in record.passed_on() if header != MESSAGE_ID]
    return [*others, *named, (REPLAY, name.encode())]


def _milliseconds(at: datetime) -> int:
    return int(at.replace(tzinfo=UTC).timestamp() * 1000)
