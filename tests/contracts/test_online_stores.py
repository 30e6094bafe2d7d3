"""What every online store does, whatever is beneath it: SQLite, a real redis-server, a topic of librdkafka's mock cluster."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import redis

from ml import brokers
from ml.features import online_topic
from ml.features.online import OnlineStore, RedisStore, StoreDownError, open_store
from ml.features.online_topic import TopicStore
from ops import kafka_mock
from tests.conftest import forget
from tests.redis_server import RedisServer

_numbers = itertools.count()

OpenTopic = Callable[[], TopicStore]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with kafka_mock.running(tmp_path_factory.mktemp("kafka")) as variables:
        yield variables


@pytest.fixture
def topic(cluster: dict[str, str], workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenTopic]:
    """Opens stores of one topic, each with a memory of its own, as in processes of their own."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(online_topic, "PATIENCE", 60.0)  # on a busy machine
    forget()
    name, opened = f"features-{next(_numbers)}", []
    brokers.partitions(brokers.producer(), name)  # which makes it

    def one() -> TopicStore:
        made = open_store(f"kafka://{name}")
        assert isinstance(made, TopicStore)
        opened.append(made)
        return made

    yield one
    for made in opened:
        made.close()


@pytest.fixture(params=["sqlite", "redis", "topic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OnlineStore:
    if request.param == "sqlite":
        return open_store(str(tmp_path / "online.db"))
    if request.param == "topic":
        return request.getfixturevalue("topic")()  # type: ignore[no-any-return]
    return open_store(request.getfixturevalue("redis_server").url)


def test_read__of_a_store_that_was_never_written(store: OnlineStore) -> None:
    assert store.read([("v", "k")]) == (None, {})
    assert store.sizes() == {}


def test_write__refuses_an_older_tick(store: OnlineStore) -> None:
    assert store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}}) == 1
    assert store.write(datetime(2013, 4, 18, 9), {"v": {"k": {"x": 2.0}}}) == 0
    assert store.read([("v", "k")]) == (datetime(2013, 4, 18, 10), {("v", "k"): {"x": 1.0}})


def test_write__of_the_same_tick_again_replaces_it(store: OnlineStore) -> None:
    store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}})
    assert store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 2.0}}}) == 1
    assert store.read([("v", "k")])[1] == {("v", "k"): {"x": 2.0}}


def test_write__forgets_entities_that_are_gone(store: OnlineStore) -> None:
    store.write(datetime(2013, 4, 18, 10), {"v": {"a": {"x": 1.0}, "b": {"x": 2.0}}})
    store.write(datetime(2013, 4, 18, 11), {"v": {"b": {"x": 3.0}}})
    assert store.read([("v", "a"), ("v", "b")])[1] == {("v", "b"): {"x": 3.0}}


def test_values__come_back_to_the_last_bit(store: OnlineStore) -> None:
    values = {"third": 1 / 3, "sum": 0.1 + 0.2, "tiny": 5e-324, "huge": 1.7976931348623157e308, "none": None}
    store.write(datetime(2013, 4, 18, 10), {"view": {"UA|1545": values, "é|☃\u0001": values}})
    assert store.read([("view", "UA|1545"), ("view", "é|☃\u0001")])[1] == dict.fromkeys(
        [("view", "UA|1545"), ("view", "é|☃\u0001")], values
    )


def test_read__never_sees_half_a_tick(store: OnlineStore) -> None:
    def views(value: float) -> dict:
        return {"v": {str(k): {"x": value} for k in range(3000)}}

    store.write(datetime(2013, 4, 18, 0), views(0.0))
    mixed: list[set[float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            with contextlib.suppress(StoreDownError):  # a busy machine may be slower than the store's patience
                tick, found = store.read([("v", str(k)) for k in range(0, 3000, 10)])
                values = {v["x"] for v in found.values()}
                if tick is None or values != {float(tick.hour)} or len(found) != 300:
                    mixed.append(values)

    reader = threading.Thread(target=look)
    reader.start()
    for hour in range(1, 20):
        store.write(datetime(2013, 4, 18, hour), views(float(hour)))
    stop.set()
    reader.join()
    assert mixed == []


def test_write__by_many_at_once_leaves_the_newest_tick(store: OnlineStore) -> None:
    def put(hour: int) -> None:
        store.write(datetime(2013, 4, 18, hour), {"v": {str(k): {"x": float(hour)} for k in range(50)}})

    writers = [threading.Thread(target=put, args=(hour,)) for hour in (3, 7, 1, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    tick, found = store.read([("v", str(k)) for k in range(50)])
    assert tick == datetime(2013, 4, 18, 7)
    assert {v["x"] for v in found.values()} == {7.0}


def test_sizes__count_entities_and_bytes_by_view(store: OnlineStore) -> None:
    store.write(datetime(2013, 4, 18, 10), {"v": {"a": {"x": 1.0}, "b": {"x": 2.0}}, "w": {"a": {"x": 1.0}}})
    assert {view: entities for view, (entities, _) in store.sizes().items()} == {"v": 2, "w": 1}
    assert store.sizes()["v"] in {(2, 2 * len(text)) for text in ('a{"x": 1.0}', 'a{"x":1.0}')}


def test_redis__that_is_killed_is_reported_at_once_and_is_read_again_when_it_is_back(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)
    assert isinstance(store, RedisStore)
    store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}})
    redis_server.stop(signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(StoreDownError):
            store.read([("v", "k")])
    redis_server.start()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(StoreDownError):
            assert store.read([("v", "k")]) == (datetime(2013, 4, 18, 10), {("v", "k"): {"x": 1.0}})
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_redis__leaves_nothing_half_written(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)
    store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}})
    store.write(datetime(2013, 4, 18, 9), {"v": {"k": {"x": 1.0}}})
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    assert client.keys("*") == ["evergreen:features"]
    assert client.ttl("evergreen:features") == -1


def test_sqlite__that_is_no_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    with pytest.raises(StoreDownError, match=r"online\.db"):
        open_store(str(path)).read([("v", "k")])


def test_sqlite__that_is_deleted_and_made_again_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    store = open_store(str(path))
    store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}})
    assert store.read([("v", "k")])[1]
    for file in tmp_path.glob("online.db*"):
        file.unlink()
    assert store.read([("v", "k")]) == (None, {})
    store.write(datetime(2013, 4, 18, 11), {"v": {"k": {"x": 2.0}}})
    assert store.read([("v", "k")])[1] == {("v", "k"): {"x": 2.0}}


TICK = datetime(2013, 4, 18, 10)


def arrives(store: TopicStore, expected: object) -> None:
    deadline = time.monotonic() + 60
    while store.read([("v", "k")]) != expected:
        assert time.monotonic() < deadline, store.read([("v", "k")])
        time.sleep(0.02)


def test_topic__what_one_writes_others_read__those_of_later_too(topic: OpenTopic) -> None:
    writer, reader = topic(), topic()
    assert reader.read([("v", "k")]) == (None, {})
    for hour in range(20):
        writer.write(TICK.replace(hour=hour), {"v": {"k": {"x": float(hour)}}})
    newest = (TICK.replace(hour=19), {("v", "k"): {"x": 19.0}})
    arrives(reader, newest)
    assert topic().read([("v", "k")]) == newest


def test_topic__an_older_tick_behind_a_newer_one__is_not_read(topic: OpenTopic) -> None:
    first, second = topic(), topic()
    assert second.read([]) == (None, {})
    second._load = lambda: None  # type: ignore[method-assign]  # it looks, and then the other one is faster
    first.write(TICK, {"v": {"k": {"x": 1.0}}})
    second._now = (None, {})
    second.write(TICK.replace(hour=9), {"v": {"k": {"x": 2.0}}})
    expected = (TICK, {("v", "k"): {"x": 1.0}})
    arrives(first, expected)
    assert topic().read([("v", "k")]) == expected


def test_topic__brokers_gone__what_was_read_is_read_on_and_nothing_can_be_written(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(online_topic, "SENDING", 1.0)
    with kafka_mock.running(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()
        brokers.partitions(brokers.producer(), "features")
        store = TopicStore("features")
        store.write(TICK, {"v": {"k": {"x": 1.0}}})
    with pytest.raises(StoreDownError, match="the brokers took no tick"):
        store.write(TICK.replace(hour=11), {"v": {"k": {"x": 2.0}}})
    assert store.read([("v", "k")]) == (TICK, {("v", "k"): {"x": 1.0}})
    late = TopicStore("features")
    monkeypatch.setattr(online_topic, "PATIENCE", 0.5)
    with pytest.raises(StoreDownError, match="topic 'features'"):
        late.read([("v", "k")])
    for each in (store, late):
        each.close()


def test_topic__something_else_is_in_it__said_and_left_out(topic: OpenTopic, caplog: pytest.LogCaptureFixture) -> None:
    writer = topic()
    writer.write(TICK, {"v": {"k": {"x": 1.0}}})
    with caplog.at_level(logging.WARNING):
        for value in (b"not ours", b"[]", b'{"tick": "noon", "views": {}}'):
            writer._reach(writer._send(value) + 1)
    assert writer.read([("v", "k")]) == (TICK, {("v", "k"): {"x": 1.0}})
    assert caplog.text.count("is no tick, and is left out") == 3
    writer.write(TICK.replace(hour=11), {"v": {"k": {"x": 2.0}}})
    assert writer.read([("v", "k")])[1] == {("v", "k"): {"x": 2.0}}
