"""Replays put records back as they were, once, under the message id of their first answer. Against the mock cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml import brokers
from ml.streaming import replay
from ml.streaming.records import OFFSET, PARTITION, Headers, Place, Record
from ops.stream_scene import Reader, Seen, eventually

pytestmark = pytest.mark.e2e

T0 = datetime(2013, 4, 18, 9)
FAST = 1e6


def at(minute: int) -> datetime:
    return T0.replace(minute=minute)


def put(topic: str, value: bytes, minute: int, headers: Headers, partition: int = 0) -> None:
    producer = brokers.producer()
    stamp = int(at(minute).replace(tzinfo=UTC).timestamp() * 1000)
    producer.produce(topic, value, b"key", partition, timestamp=stamp, headers=headers)
    assert producer.flush(30) == 0


def bury(value: bytes, minute: int, offset: int, reason: str, *headers: tuple[str, bytes]) -> None:
    """A dead letter of partition 2, as a member writes it."""
    names = brokers.topics()
    marked = Record(Place(names.requests, 2, offset), b"key", value, list(headers), 0).marked("group")
    put(names.dead_letters, value, minute, [*marked, ("evergreen-reason", reason.encode())], 2)


def asked(reader: Reader, count: int) -> list[Seen]:
    eventually(lambda: len(reader.seen) >= count, f"{count} records asked again")
    return sorted(reader.seen, key=lambda each: each.value or b"")


def test_dead_letters__twice__each_is_asked_again_once_as_it_was(kafka: Path) -> None:
    bury(b"a", 0, 5, "failed", ("trace", b"t"))
    bury(b"b", 1, 6, "invalid", ("message-id", b"named"))
    assert replay.dead_letters(None, None, None, FAST, "first") == 2
    assert replay.dead_letters(None, None, None, FAST, "second") == 0
    bury(b"c", 2, 7, "invalid")
    assert replay.dead_letters(None, None, None, FAST, "third") == 1
    with Reader(brokers.topics().requests) as reader:
        a, b, c = asked(reader, 3)
    assert (a.message_id, a.key, a.partition) == (f"{brokers.topics().requests}-2-5", b"key", 2)
    assert a.headers == {"trace": b"t", "message-id": a.message_id.encode(), "evergreen-replay": b"first"}
    assert (b.message_id, c.headers["evergreen-replay"]) == ("named", b"third")


def test_dead_letters__of_a_period_and_a_reason__those_alone_even_again(kafka: Path) -> None:
    for minute, reason in enumerate(["failed", "failed", "invalid", "failed"]):
        bury(str(minute).encode(), minute, minute, reason)
    assert replay.dead_letters(at(1), at(3), "failed", FAST, "x") == 1
    assert replay.dead_letters(at(1), at(3), "failed", FAST, "y") == 1
    with Reader(brokers.topics().requests) as reader:
        assert {each.value for each in asked(reader, 2)} == {b"1"}


def test_requests__of_a_period__asked_again_but_replays_are_not(kafka: Path) -> None:
    names = brokers.topics()
    for minute in range(4):
        put(
            names.requests,
            str(minute).encode(),
            minute,
            [("message-id", f"m{minute}".encode()), (PARTITION, b"9"), (OFFSET, b"9")],
        )
    put(names.requests, b"again", 1, [("evergreen-replay", b"old")])
    assert replay.requests(at(1), at(3), FAST, "new") == 2
    with Reader(names.requests) as reader:
        eventually(lambda: len(reader.seen) >= 7, "all")
        fresh = [each for each in reader.seen if each.headers.get("evergreen-replay") == b"new"]
    assert [(each.message_id, each.value) for each in fresh] == [("m1", b"1"), ("m2", b"2")]
    assert PARTITION not in fresh[0].headers
