"""The online store: whole ticks, no going back, honest flags."""

from __future__ import annotations

import sqlite3
import threading
from datetime import datetime
from pathlib import Path

import pytest

from ml.config import load_params
from ml.features.online import Assembler, OnlineStore, floor_to_tick

REQUEST = {
    "carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "hour": 9, "minute": 15,
    "time_hour": datetime(2013, 4, 18, 13), "sched_dep_time": 915, "sched_arr_time": 1030,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> OnlineStore:
    return OnlineStore(tmp_path / "online.db")


def test_write__refuses_an_older_tick(store: OnlineStore) -> None:
    assert store.write(datetime(2013, 4, 18, 10), {"v": {"k": {"x": 1.0}}}) == 1
    assert store.write(datetime(2013, 4, 18, 9), {"v": {"k": {"x": 2.0}}}) == 0
    assert store.read([("v", "k")]) == (datetime(2013, 4, 18, 10), {("v", "k"): {"x": 1.0}})


def test_write__forgets_entities_that_are_gone(store: OnlineStore) -> None:
    store.write(datetime(2013, 4, 18, 10), {"v": {"a": {"x": 1.0}, "b": {"x": 2.0}}})
    store.write(datetime(2013, 4, 18, 11), {"v": {"b": {"x": 3.0}}})
    assert store.read([("v", "a"), ("v", "b")])[1] == {("v", "b"): {"x": 3.0}}


def test_read__never_sees_half_a_tick(store: OnlineStore) -> None:
    def views(value: float) -> dict:
        return {"v": {str(k): {"x": value} for k in range(300)}}

    store.write(datetime(2013, 4, 18, 0), views(0.0))
    mixed: list[set[float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            tick, found = store.read([("v", str(k)) for k in range(300)])
            values = {v["x"] for v in found.values()}
            if tick is None or values != {float(tick.hour)}:
                mixed.append(values)

    reader = threading.Thread(target=look)
    reader.start()
    for hour in range(1, 20):
        store.write(datetime(2013, 4, 18, hour), views(float(hour)))
    stop.set()
    reader.join()
    assert mixed == []


def test_assemble__flags_a_store_that_was_never_written(store: OnlineStore) -> None:
    made = Assembler(load_params()).assemble(store, [REQUEST])
    assert made.flags == [["features_missing"]]
    assert made.features[0]["origin_count_24h"] == 0.0
    assert made.features[0]["origin_rate_24h"] is None
    assert made.entity_ids == ["UA-1-EWR-20130418T1315"]


@pytest.mark.parametrize(("tick", "flags"), [(10, ["features_stale"]), (11, []), (12, [])], ids=["stale", "due", "later"])
def test_assemble__flags_a_stale_tick(store: OnlineStore, tick: int, flags: list[str]) -> None:
    store.write(datetime(2013, 4, 18, tick), {})  # prediction time 11:15, so the tick of 11:00 is due
    assert Assembler(load_params()).assemble(store, [REQUEST]).flags == [flags]


def test_assemble__answers_from_defaults_when_the_store_is_broken(store: OnlineStore) -> None:
    store.path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        store.read([("v", "k")])
    assert Assembler(load_params()).assemble(store, [REQUEST]).flags == [["features_missing"]]


def test_floor_to_tick__of_a_quarter() -> None:
    assert floor_to_tick(datetime(2013, 4, 18, 9, 59, 59), 15) == datetime(2013, 4, 18, 9, 45)
