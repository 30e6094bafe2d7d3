"""Histories at rest: only new days are computed, and a stored day is what computing it alone would give."""

from __future__ import annotations

import logging
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from ml import store
from ml.config import load_params
from ml.data import landed, rows
from ml.data.schema import arrow_schema
from ml.features import days, inputs
from ml.features.definitions import load_module

FAR = datetime(2014, 2, 1)
LAST = date(2013, 2, 20)


@pytest.fixture
def root(workspace: Path) -> Path:
    """Seven weeks of landed days."""
    for table in load_params().tables:
        land(table, date(2013, 1, 1), LAST)
    return landed.raw_folder()


def land(table: str, first: date, last: date) -> None:
    spec = load_params().tables[table]
    for k in range((last - first).days + 1 if spec.event_time else 1):
        day = datetime.combine(first + timedelta(days=k), datetime.min.time())
        read = rows.live_rows(table, day, day + timedelta(days=1), FAR)
        plain = read.select(list(spec.columns)).cast(arrow_schema(spec))
        landed.write_rows(plain, landed.raw_file(table, day.date().isoformat()))


def computed(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == days.__name__]
    caplog.clear()
    return found


def test_histories__compute_only_days_that_are_new(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, days.__name__)
    params = load_params()
    begin = datetime(2013, 2, 10)
    first = days.histories(params, inputs.landed(root, date(2013, 2, 18)), begin, datetime(2013, 2, 18, 23))
    assert computed(caplog) == ["computing history, days 2013-01-13 to 2013-02-18"]
    again = days.histories(params, inputs.landed(root, date(2013, 2, 18)), begin, datetime(2013, 2, 18, 23))
    assert computed(caplog) == []
    assert all(again[name].equals(first[name]) for name in first)
    days.histories(params, inputs.landed(root, date(2013, 2, 19)), begin, datetime(2013, 2, 19, 23))
    assert computed(caplog) == ["computing history, days 2013-02-19 to 2013-02-19"]


def test_histories__of_a_day_that_was_landed_again_are_computed_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, days.__name__)
    params, source = load_params(), inputs.landed(root, LAST)
    days.histories(params, source, datetime(2013, 2, 20), datetime(2013, 2, 20, 23))
    computed(caplog)
    path = landed.raw_file("weather", "2013-02-18")
    landed.write_rows(landed.read_rows(path).slice(3), path)
    days.histories(params, source, datetime(2013, 2, 20), datetime(2013, 2, 20, 23))
    assert computed(caplog) == ["computing history, days 2013-02-18 to 2013-02-20"]


def test_histories__computed_day_by_day_equal_those_computed_at_once(root: Path, workspace: Path) -> None:
    params, source = load_params(), inputs.landed(root, LAST)
    begin, end = datetime(2013, 2, 14), datetime(2013, 2, 20, 23)
    at_once = days.histories(params, source, begin, end)
    assert sum(len(table) for table in at_once.values()) > 50_000
    for path in (workspace / "var" / "store" / "keys").iterdir():
        path.unlink()
    for k in range(60):
        day = datetime(2013, 1, 1) + timedelta(days=k)
        if day <= end:
            days.histories(params, source, max(day, begin), max(day, begin))
    by_day = days.histories(params, source, begin, end)
    assert {name: by_day[name].equals(at_once[name]) for name in at_once} == dict.fromkeys(at_once, True)


def test_histories__after_the_landed_days_come_from_the_reader(root: Path) -> None:
    params = load_params()
    tick = datetime(2013, 2, 20, 15)
    whole = days.histories(params, inputs.landed(root, LAST), tick, tick)
    live = inputs.landed_and_live(params, root, date(2013, 2, 19), tick)
    tail = days.histories(params, live, tick, tick)
    for view in load_module(params).views:
        until = whole[view.name].filter(pa.compute.less_equal(whole[view.name]["moment"], pa.scalar(tick)))
        assert tail[view.name].equals(until), view.name


def test_pack__that_is_gone_from_the_store_is_computed_again(root: Path, workspace: Path) -> None:
    params, source = load_params(), inputs.landed(root, LAST)
    first = days.histories(params, source, datetime(2013, 2, 20), datetime(2013, 2, 20, 23))
    for path in (workspace / "var" / "store").rglob("*"):
        if path.is_file() and path.parent.name != "keys":
            path.unlink()
    assert not store.exists("0" * 64)
    again = days.histories(params, source, datetime(2013, 2, 20), datetime(2013, 2, 20, 23))
    assert all(again[name].equals(first[name]) for name in first)
