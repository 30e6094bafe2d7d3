"""Histories that are computed ahead: training finds them, landing again makes them anew, and two may do it at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from ml import steps
from ml.data import snapshots
from ml.errors import SnapshotError
from ml.features import days, stored
from ml.refs import Window
from tests.behaviour.chain import landed

AS_OF = datetime(2013, 1, 10, 3)
LANDED = Window(start="2013-01-01", end="2013-01-10")


@pytest.fixture
def home(tmp_path: Path, parsed_sources: Path) -> Iterator[Path]:
    with landed(tmp_path, parsed_sources, {}, LANDED, AS_OF) as home:
        yield home


def computed(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == days.__name__]
    caplog.clear()
    return found


def test_prepare__leaves_nothing_for_training_to_compute(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, days.__name__)
    for day in range(1, 10):
        steps.prepare_days(Window(start=f"2013-01-0{day}", end=f"2013-01-{day + 1:02}"), AS_OF)
    assert computed(caplog) == [f"computing history, days 2013-01-0{day} to 2013-01-0{day}" for day in range(1, 10)]
    version = snapshots.find(AS_OF)
    stored.build(snapshots.restore(version), version, Window(start="2013-01-05", end="2013-01-10"), AS_OF)
    before_landing = [line for line in computed(caplog) if "2013-01" in line]
    assert before_landing == []


def test_prepare__twice_computes_nothing(home: Path) -> None:
    window = Window(start="2013-01-08", end="2013-01-10")
    assert steps.prepare_days(window, AS_OF) == 3, "two days, and the one before, whose outcomes came with them"
    assert steps.prepare_days(window, AS_OF) == 0


def test_prepare__of_a_day_that_is_not_landed_says_what_to_do(home: Path) -> None:
    with pytest.raises(SnapshotError, match=r"2013-01-10\.\.2013-01-10 is not in the data version .*\n.*run `ingest`"):
        steps.prepare_days(Window(start="2013-01-10", end="2013-01-11"), AS_OF)
