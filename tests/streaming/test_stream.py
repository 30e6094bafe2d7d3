"""The stream as a process, against librdkafka's mock cluster on real sockets: Kafka itself is not to be had here.

What the mock lacks is told in `ops.kafka_mock`.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ml import brokers
from ml.features.online import open_store
from ml.settings import settings
from ops.stream_scene import Flow, Reader, eventually
from tests.sample_bundle import REQUEST, fresh_features
from tests.serving.conftest import Serve, serve  # noqa: F401  # a fixture
from tests.streaming.conftest import Start, deploy

pytestmark = pytest.mark.e2e


def test_stream__records_of_all_kinds__answers_equal_those_of_the_service_the_rest_are_dead_letters(
    kafka: Path,
    start: Start,
    serve: Serve,  # noqa: F811
) -> None:
    names = brokers.topics()
    member = start()
    eventually(lambda: member.metric("evergreen_stream_paused"), "it waits for a model")
    fresh_features(open_store(settings().online))
    deploy()
    good = {
        "one": REQUEST,
        "stranger": REQUEST | {"tailnum": "N0", "carrier": "ZZ"},
        "many": [REQUEST | {"flight": number} for number in range(3)],
    }
    bad = {"field": REQUEST | {"flight": "x"}, "more": REQUEST | {"weather": 1}, "text": "{"}
    producer = brokers.producer()
    for name, body in (good | bad).items():
        value = body if isinstance(body, str) else json.dumps(body)
        producer.produce(names.requests, value, b"key", 1, headers={"message-id": name, "trace": "t1"})
    producer.produce(names.requests, None, b"key", 1, headers={"message-id": "empty"})
    producer.produce(names.requests, json.dumps(REQUEST), b"key", 1, headers={"message-id": "x" * 65})
    producer.produce(names.requests, json.dumps(REQUEST), b"key", 2)
    producer.flush(10)
    with Reader(*names.outputs) as reader, serve() as client:
        eventually(lambda: len(reader.seen) == 9, "nine outputs")
        answered, dead = reader.by_id(names.predictions), reader.by_id(names.dead_letters)
        assert set(answered) == {*good, f"{names.requests}-2-0"}
        eventually(lambda: client.get("/readyz").status_code == 200, "the service is ready")
        for name, body in good.items():
            (seen,) = answered[name]
            assert json.loads(seen.value or b"") == client.post("/predict", json=body, headers={"x-request-id": name}).json()
            assert (seen.key, seen.partition, seen.headers["trace"]) == (name.encode(), 1, b"t1")
        assert json.loads(answered["one"][0].value or b"")["flags"] == []
        for name, body in bad.items():
            (seen,) = dead[name]
            value = body if isinstance(body, str) else json.dumps(body)
            assert (seen.key, seen.value, seen.headers["trace"]) == (b"key", value.encode(), b"t1")
            assert seen.headers["evergreen-reason"] == b"invalid"
            refused = client.post("/predict", content=value).json()["detail"]
            assert json.loads(seen.headers["evergreen-problem"]) == refused
        assert dead["empty"][0].headers["evergreen-reason"] == b"no-value"
        assert dead["x" * 65][0].headers["evergreen-reason"] == b"message-id"
        places = [
            (each.headers["evergreen-partition"], each.headers["evergreen-offset"]) for each in reader.seen if each.partition == 1
        ]
        assert sorted(places) == [(b"1", str(offset).encode()) for offset in range(8)]
    assert member.metric("evergreen_stream_answered_total") == 4
    assert member.metric("evergreen_stream_dead_letters_total") == 5
    assert member.metric("evergreen_predictions_total") == 6
    assert member.terminate() == 0


def test_stream__sigterm_under_load_and_a_second_member__nothing_lost_or_answered_twice(start: Start) -> None:
    names = brokers.topics()
    fresh_features(open_store(settings().online))
    deploy()
    first = start("first")
    eventually(lambda: first.metric("evergreen_stream_partitions") == 4, "the first has all partitions")
    with Reader(*names.outputs) as reader:
        with Flow(names.requests, [json.dumps(REQUEST).encode()], 200) as flow:
            eventually(lambda: len(reader.seen) > 50, "answers")
            second = start("second")
            eventually(lambda: second.metric("evergreen_stream_partitions") == 2, "the second has its half")
            eventually(lambda: second.metric("evergreen_stream_answered_total") > 20, "the second answers")
            assert first.metric("evergreen_stream_partitions") == 2
            assert first.terminate(signal.SIGINT) == 0
            eventually(lambda: second.metric("evergreen_stream_partitions") == 4, "the second has all")
        eventually(lambda: set(flow.sent) <= set(reader.by_id(*names.outputs)), "all are answered")
        eventually(lambda: second.metric("evergreen_stream_lag") == 0, "no lag")
        assert second.terminate() == 0
        assert [name for name, seen in reader.by_id(*names.outputs).items() if len(seen) != 1] == []
    client = brokers.consumer(settings().kafka_group)
    committed = client.committed([brokers.TopicPartition(names.requests, p) for p in range(4)], timeout=10)
    assert [each.offset for each in committed] == [brokers.ends(client, names.requests, p)[1] for p in range(4)]
    client.close()
