"""The online store goes away or turns slow while requests come in: answers go on, in time, flagged where values lack."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import pytest

from ml.features.assembly import Known
from ml.features.online import Key, Payload, SQLiteStore, StoreDownError, open_store
from ml.serving import hot
from ml.serving.hot import HotFeatures
from ml.settings import settings
from tests.conftest import forget
from tests.redis_server import RedisServer
from tests.sample_bundle import REQUEST, fresh_features, sample_bundle, stored
from tests.serving.conftest import Serve, eventually, serves
from tests.serving.test_app import deploy, recorded

TICK = datetime(2013, 4, 18, 8)


def other(number: int) -> dict[str, object]:
    """A row of an aircraft that nobody has asked about."""
    return REQUEST | {"tailnum": f"N{number}"}


def test_redis__killed_in_mid_traffic_and_started_again(
    serve: Serve, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_ONLINE", redis_server.url)
    forget()
    archive = sample_bundle()
    deploy(stored(archive, "1"))
    fresh_features(open_store(redis_server.url))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        held = client.post("/predict", json=REQUEST).json()
        assert (held["flags"], client.post("/predict", json=other(0)).json()["flags"]) == ([], [])
        redis_server.stop(signal.SIGKILL)
        eventually(lambda: client.get("/metadata").json()["feature_store_problem"])
        for number in range(1, 20):
            known, unknown = (client.post("/predict", json=row).json() for row in (REQUEST, other(number)))
            assert (known["flags"], known["probability"]) == ([], held["probability"])  # the tick's values are in memory
            assert (unknown["flags"], unknown["probability"]) == (["features_missing"], recorded(archive))
        filled = client.get("/metrics").text
        redis_server.start()
        eventually(lambda: client.get("/metadata").json()["feature_store_problem"] is None)
        fresh_features(open_store(redis_server.url))
        eventually(lambda: client.post("/predict", json=other(99)).json()["flags"] == [])
    assert 'evergreen_features_filled_total{view="plane"} 19.0' in filled


class Scripted:
    """A store that does as it is told."""

    def __init__(self) -> None:
        self.tick: datetime | None = TICK
        self.values: dict[Key, Payload] = {("plane", "N14228"): {"plane_year": 1999.0}}
        self.go_on = threading.Event()
        self.go_on.set()
        self.down = False

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        self.go_on.wait(10)
        if self.down:
            raise StoreDownError("gone", "")
        return self.tick, {key: self.values[key] for key in keys if key in self.values}

    def write(self, *_: object) -> NoReturn:
        raise AssertionError("only read is asked for")

    sizes = write


def _read(features: HotFeatures, key: Key) -> datetime | None:
    arrived: list[datetime | None] = []
    features.read([key], lambda known: arrived.append(known.tick))
    eventually(lambda: arrived)
    return arrived[0]


def _held(features: HotFeatures, key: Key) -> Known:
    found = features.lookup([key])
    assert found is not None
    return found


def test_hot__asked_twice__read_once_and_again_when_the_tick_moves() -> None:
    scripted, key = Scripted(), ("plane", "N14228")
    features = HotFeatures(scripted, 0.5)
    features.start()
    try:
        assert features.lookup([key]) is None
        assert _read(features, key) == TICK
        known = features.lookup([key, None])
        assert known is not None
        assert (known.tick, known.found[key]) == (TICK, {"plane_year": 1999.0})
        scripted.values[key], scripted.tick = {"plane_year": 2001.0}, TICK.replace(hour=9)
        eventually(lambda: features.known.tick == scripted.tick)
        assert features.lookup([("plane", "N1")]) is None
        _read(features, key)
        assert _held(features, key).found[key] == {"plane_year": 2001.0}
    finally:
        features.stop()


def test_hot__values_mended_within_a_tick__read_again_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "LIFETIME", 1.0)
    monkeypatch.setattr(hot, "WATCH_SECONDS", 0.1)
    keys: list[Key] = [("plane", f"N{number}") for number in range(1000)]
    scripted, read_at_once = Scripted(), []
    scripted.values = {key: {"plane_year": 1999.0} for key in keys}
    features = HotFeatures(scripted, 0.5)
    features.start()
    try:
        arrived: list[datetime | None] = []
        features.read(keys, lambda known: arrived.append(known.tick))
        eventually(lambda: arrived)
        scripted.values = {key: {"plane_year": 2001.0} for key in keys}
        read = scripted.read
        monkeypatch.setattr(scripted, "read", lambda asked: (read_at_once.append(len(asked)), read(asked))[1])
        eventually(lambda: all(features.known.found[key] == {"plane_year": 2001.0} for key in keys))
    finally:
        features.stop()
    assert max(read_at_once) < len(keys)


def test_hot__store_gone__what_was_read_still_answers_and_nobody_waits() -> None:
    scripted, key = Scripted(), ("plane", "N14228")
    features = HotFeatures(scripted, 0.5)
    features.start()
    try:
        _read(features, key)
        scripted.tick = None  # its file was removed
        eventually(lambda: not features.trusted)
        assert _held(features, key).tick == TICK
        assert _held(features, ("plane", "N1")).tick is None
        scripted.tick = TICK
        eventually(lambda: features.trusted)
        assert features.lookup([("plane", "N1")]) is None
    finally:
        features.stop()


def test_predict__slow_store__defaults_in_time_and_values_again_when_it_is_quick(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = sample_bundle()
    deploy(stored(archive, "1"))
    fresh_features(SQLiteStore(Path(settings().online)))
    go_on = threading.Event()
    go_on.set()
    read = SQLiteStore.read
    monkeypatch.setattr(SQLiteStore, "read", lambda self, keys: (go_on.wait(20), read(self, keys))[1])
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        assert client.post("/predict", json=REQUEST).json()["flags"] == []
        go_on.clear()
        try:
            began = time.monotonic()
            slow = [client.post("/predict", json=other(number)).json() for number in range(20)]
            assert time.monotonic() - began < 15  # the store takes 20 s
            assert {(tuple(a["flags"]), a["probability"]) for a in slow} == {(("features_missing",), recorded(archive))}
            assert client.post("/predict", json=REQUEST).json()["flags"] == []
        finally:
            go_on.set()
        eventually(lambda: client.post("/predict", json=other(99)).json()["flags"] == [])
