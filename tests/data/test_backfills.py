"""Days that are landed long after, several at a time, in any order: the bytes are the same, and work as of then finds them."""

from __future__ import annotations

import shutil
import threading
from datetime import date, datetime, timedelta
from itertools import permutations

import pytest

from ml.data.landed import notes, publish, raw_folder
from ml.data.landing import land, staged
from ml.data.snapshots import find, snapshot
from ml.refs import LandingRef, SnapshotRef
from ml.settings import settings
from tests.data.conftest import Delivery, contents, days, land_days, night_after


def backfilled(day: int) -> LandingRef:
    return land(days(day), night_after(days(day)), beside_others=True)


def published(landing: LandingRef) -> dict[str, dict[str, str]]:
    return {table: dict(outcomes) for table, outcomes in publish(staged(landing), landing.as_of).items()}


def timed() -> dict[str, bytes]:
    """Landed files of tables with time; one without is named after the landing that brought it first."""
    return {name: content for name, content in contents().items() if not name.startswith("planes")}


@pytest.fixture
def night_by_night(delivery: Delivery) -> dict[str, bytes]:
    """What three nights land, one after the other; taken away again."""
    for day in range(3):
        published(land_days(day))
    found = timed()
    shutil.rmtree(settings().data)
    return found


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_backfill__in_any_order_gives_the_bytes_of_nights(order: tuple[int, ...], night_by_night: dict[str, bytes]) -> None:
    for day in order:
        published(backfilled(day))
    assert timed() == night_by_night


def test_backfill__of_which_two_began_before_either_was_published(night_by_night: dict[str, bytes]) -> None:
    for landing in [backfilled(day) for day in (1, 0, 2)]:
        published(landing)
    assert timed() == night_by_night


def test_backfill__at_the_same_time_gives_the_bytes_of_nights(night_by_night: dict[str, bytes]) -> None:
    workers = [threading.Thread(target=lambda day=day: published(backfilled(day))) for day in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert timed() == night_by_night


def test_backfill__twice_changes_no_byte_and_no_note(delivery: Delivery) -> None:
    for day in (2, 0, 1):
        published(backfilled(day))
    before, noted = contents(), notes()
    for day in range(3):
        outcomes = published(backfilled(day))
        assert {outcome for table in outcomes.values() for outcome in table.values()} <= {"unchanged", "stale"}
    assert (contents(), notes()) == (before, noted)


def version_of(day: int, landing: LandingRef) -> SnapshotRef:
    publish(staged(landing), landing.as_of)
    return snapshot(landing.as_of)


def test_find__a_day_that_was_landed_after_later_ones_is_found_by_work_as_of_then(delivery: Delivery) -> None:
    first, third = version_of(0, land_days(0)), version_of(2, land_days(2))
    assert find(night_after(days(1))) == third, "the version of the first night lacks the day before"
    second = version_of(1, backfilled(1))
    assert second.as_of == third.as_of, "it holds what the third night knew"
    assert find(night_after(days(1))) == second
    assert find(night_after(days(0))) == first


def test_find__of_versions_of_equal_age_the_last_which_has_most_days(delivery: Delivery) -> None:
    version_of(3, land_days(3))
    version_of(0, backfilled(0))
    last = version_of(1, backfilled(1))
    assert find(night_after(days(1))) == last


def test_find__a_version_without_a_hole_before_an_older_one_with_one(delivery: Delivery) -> None:
    version_of(0, land_days(0))
    version_of(2, land_days(2))  # the second day is a hole
    published(land_days(3))
    whole = version_of(1, backfilled(1))
    assert (whole.first_day, whole.last_day) == (date(2013, 1, 2), date(2013, 1, 5))
    assert find(night_after(days(1))) == whole


def test_find__in_the_hours_before_the_landing_is_the_version_of_the_night_before(delivery: Delivery) -> None:
    first, _ = version_of(0, land_days(0)), version_of(1, land_days(1))
    assert find(night_after(days(1)) - timedelta(hours=1)) == first
    assert find(datetime(2013, 1, 4, 2)) != first
    assert raw_folder().is_dir()
