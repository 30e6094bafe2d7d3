"""What a member finds when it takes a partition over. Against the mock cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from ml import brokers
from ml.streaming.records import Place, Record
from ml.streaming.takeover import Outputs

pytestmark = pytest.mark.e2e


def put(topic: str, offsets: list[int], group: str = "ours", partition: int = 1) -> None:
    """Outputs of these records."""
    names, producer = brokers.topics(), brokers.producer()
    for offset in offsets:
        headers = Record(Place(names.requests, partition, offset), None, None, [], 0).marked(group)
        producer.produce(topic, b"", b"", partition, headers=headers)
    assert producer.flush(30) == 0


def committed(offset: int, **bookmarks: int) -> TopicPartition:
    names = brokers.topics()
    told = {names.predictions: bookmarks["answers"], names.dead_letters: bookmarks["dead"]} if bookmarks else {}
    return TopicPartition(names.requests, 1, offset, metadata=json.dumps(told) if told else "by hand")


def test_progress__outputs_after_the_bookmarks__are_not_answered_again(kafka: Path) -> None:
    names = brokers.topics()
    put(names.predictions, [3, 4, 6, 8])
    put(names.predictions, [7], group="theirs")
    put(names.dead_letters, [5])
    outputs = Outputs(names, "ours")
    found, fresh = outputs.progress([committed(4, answers=1, dead=0)])
    part = found[1]
    taken = {offset: part.take(offset) is not None for offset in range(4, 10)}
    assert taken == {4: False, 5: False, 6: False, 7: True, 8: False, 9: True}
    assert (part.done, fresh) == (7, [])
    found, _ = outputs.progress([committed(9, answers=5, dead=1)])  # the ends: there is nothing to read
    assert found[1].take(9) is not None
    outputs.close()


@pytest.mark.parametrize("offset", [-1001, 2], ids=["never", "by-hand"])
def test_progress__a_commit_without_bookmarks__begins_there_and_asks_for_a_commit(kafka: Path, offset: int) -> None:
    names = brokers.topics()
    put(names.predictions, [2, 3])
    put(names.requests, [0, 1, 2, 3])
    outputs = Outputs(names, "ours")
    found, fresh = outputs.progress([committed(offset)])
    outputs.close()
    start = max(offset, 0)
    assert (found[1].done, fresh) == (start, [1])
    assert found[1].take(start) is not None
    assert json.loads(found[1].metadata()) == {names.predictions: 2, names.dead_letters: 0}


def test_checked__an_output_with_fewer_partitions__says_so(kafka: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, client = brokers.topics(), brokers.producer()
    assert brokers.checked(client, names) == 4
    monkeypatch.setattr(
        brokers, "partitions", lambda _, topic: 3 if topic == names.dead_letters else 4
    )  # the mock makes all with four
    with pytest.raises(brokers.StreamError, match="has 3 partitions"):
        brokers.checked(client, names)
