"""What histories and batch scoring read: landed rows, and the source for what is not landed."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from ml.config import load_params
from ml.data import landed, rows
from ml.features import inputs
from tests.features.test_days import land

LAST = date(2013, 1, 3)
AS_OF = datetime(2013, 1, 5, 4)


@pytest.fixture
def root(workspace: Path) -> Path:
    for table in load_params().tables:
        land(table, date(2013, 1, 1), LAST)
    return landed.raw_folder()


def test_landed__reads_nothing_that_was_not_landed(root: Path) -> None:
    source = inputs.landed(root, LAST)
    assert source.landed_until == datetime(2013, 1, 4)
    read = source.read("flights", datetime(2013, 1, 1), AS_OF)
    assert max(read["event_time"].to_pylist()) < source.landed_until
    assert read["known_at"].null_count == 0


def test_landed_and_live__reads_the_newest_landed_day_and_later_from_the_source(root: Path) -> None:
    path = landed.raw_file("flights", "2013-01-03")
    landed.write_rows(landed.read_rows(path).slice(0, 0), path)  # were it read, its rows would be missing
    source = inputs.landed_and_live(load_params(), root, LAST, AS_OF)
    read = source.read("flights", datetime(2013, 1, 1), AS_OF)
    expected = rows.live_rows("flights", datetime(2013, 1, 1), AS_OF, AS_OF)
    known = {name for name, at in zip(expected["entity_id"].to_pylist(), expected["known_at"].to_pylist(), strict=True) if at}
    assert {n for n, at in zip(read["entity_id"].to_pylist(), read["known_at"].to_pylist(), strict=True) if at} == known


def test_to_score__takes_landed_rows_and_then_the_sources(root: Path) -> None:
    start, end = datetime(2013, 1, 3), datetime(2013, 1, 6)
    found = inputs.to_score(load_params(), root, LAST, start, end, AS_OF)
    expected = rows.live_rows("flights", start, end, AS_OF)
    assert found["entity_id"].to_pylist() == expected["entity_id"].to_pylist()
    only = inputs.to_score(load_params(), root, LAST, start, start + timedelta(days=1), AS_OF)
    assert len(only) == sum(at < start + timedelta(days=1) for at in expected["event_time"].to_pylist())
