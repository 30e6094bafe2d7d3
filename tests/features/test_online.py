"""Features of requests: honest flags, values filled by the declared rule, and what the store does not hold."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from ml.config import load_params
from ml.features.assembly import Assembler, floor_to_tick
from ml.features.online import SQLiteStore

REQUEST = {
    "carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "hour": 9, "minute": 15,
    "time_hour": datetime(2013, 4, 18, 13), "sched_dep_time": 915, "sched_arr_time": 1030,
}  # fmt: skip
DUE = datetime(2013, 4, 18, 11)  # prediction time 11:15
HELD = {
    "weather": {"EWR": {"weather_temp": 50.0, "weather_since": (DUE - datetime(2000, 1, 1)).total_seconds() - 3600}},
    "origin": {"EWR": {"origin_count_24h": 7.0, "origin_rate_24h": 0.5}},
    "number": {"UA|1": {"number_count_672h": 20.0}},
}


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "online.db")


def test_assemble__flags_a_store_that_was_never_written(store: SQLiteStore) -> None:
    made = Assembler(load_params()).assemble(store, [REQUEST])
    assert made.flags == [["features_missing"]]
    assert made.features[0]["origin_count_24h"] == 0.0
    assert made.features[0]["origin_rate_24h"] is None
    assert made.entity_ids == ["UA-1-EWR-20130418T1315"]
    assert set(made.filled.values()) == {1}


@pytest.mark.parametrize(
    ("tick", "flags"),
    [(10, ["features_stale"]), (11, []), (12, ["features_ahead"])],
    ids=["stale", "due", "ahead"],
)
def test_assemble__flags_a_tick_that_is_not_the_due_one(store: SQLiteStore, tick: int, flags: list[str]) -> None:
    store.write(datetime(2013, 4, 18, tick), {})
    assert Assembler(load_params()).assemble(store, [REQUEST]).flags == [flags]


@pytest.mark.parametrize(
    ("behind", "weather", "origin", "number", "flag"),
    [
        (6, 50.0, 7.0, 20.0, "features_stale"),
        (7, None, 7.0, 20.0, "features_expired"),  # weather may lag 6 hours
        (24, None, 7.0, 20.0, "features_expired"),
        (25, None, 0.0, 20.0, "features_expired"),  # origin 24
        (49, None, 0.0, 0.0, "features_expired"),  # number 48
    ],
)
def test_assemble__fills_a_view_whose_store_lags_more_than_it_may(
    store: SQLiteStore, behind: int, weather: float | None, origin: float, number: float, flag: str
) -> None:
    since = {
        "weather_since": (DUE - datetime(2000, 1, 1)).total_seconds() - 3600
    }  # an hour old at the due tick, so never too old
    store.write(
        datetime.fromtimestamp(DUE.timestamp() - behind * 3600), HELD | {"weather": {"EWR": {"weather_temp": 50.0} | since}}
    )
    made = Assembler(load_params()).assemble(store, [REQUEST])
    features = made.features[0]
    assert (features["weather_temp"], features["origin_count_24h"], features["number_count_672h"]) == (weather, origin, number)
    assert made.flags == [[flag]]
    assert (made.filled["weather"], made.filled["origin"], made.filled["number"]) == (weather is None, origin == 0, number == 0)


def test_assemble__drops_an_observation_that_is_too_old_at_the_due_tick(store: SQLiteStore) -> None:
    long_ago = {"weather_temp": 50.0, "weather_since": (DUE - datetime(2000, 1, 1)).total_seconds() - 6 * 3600 - 1}
    store.write(DUE, {"weather": {"EWR": long_ago}})
    made = Assembler(load_params()).assemble(store, [REQUEST])
    assert (made.features[0]["weather_temp"], made.features[0]["weather_age"], made.flags) == (None, None, [[]])


def test_assemble__answers_from_defaults_when_the_store_is_broken(store: SQLiteStore) -> None:
    store.path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    made = Assembler(load_params()).assemble(store, [REQUEST])
    assert made.flags == [["features_missing"]]
    assert made.features[0]["origin_count_24h"] == 0.0


def test_assemble__of_an_entity_with_a_missing_part_finds_nothing(store: SQLiteStore) -> None:
    store.write(DUE, {"plane": {"": {"plane_seats": 99.0}, "None": {"plane_seats": 98.0}}})
    made = Assembler(load_params()).assemble(store, [REQUEST | {"tailnum": None}])
    assert made.features[0]["seats"] is None


def test_assemble__reads_the_store_once_for_all_rows_and_views(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(DUE, HELD)
    reads = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda keys: reads.append(len(keys)) or read(keys))
    Assembler(load_params()).assemble(store, [REQUEST, REQUEST | {"origin": "JFK"}])
    assert reads == [9 + 3]  # JFK shares aircraft (3), carrier, destination and number with EWR


def test_floor_to_tick__of_a_quarter() -> None:
    assert floor_to_tick(datetime(2013, 4, 18, 9, 59, 59), 15) == datetime(2013, 4, 18, 9, 45)
