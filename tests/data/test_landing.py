"""Landing and publishing, on real days."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ml.config import load_params
from ml.data.landed import landed_days, locked, notes, publish, raw_file, raw_folder, read_rows
from ml.data.landing import land, staged
from ml.data.rows import table_rows
from ml.refs import LandingRef, Window
from ml.settings import settings
from tests.data.conftest import ALL_KNOWN, FIRST, Delivery, contents, land_days

OUTCOMES = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


def published(landing: LandingRef) -> dict[str, dict[str, str]]:
    return {table: dict(outcomes) for table, outcomes in publish(staged(landing), landing.as_of).items()}


def test_land__writes_one_file_per_table_and_day(delivery: Delivery) -> None:
    landing = land_days(0, 2)
    assert {table: list(files) for table, files in staged(landing).items()} == {
        "flights": ["2013-01-02", "2013-01-03"],
        "weather": ["2013-01-02", "2013-01-03"],
        "planes": ["2013-01-03"],
    }
    source = sum(pq.read_metadata(delivery.file("flights", day)).num_rows for day in (0, 1))
    assert landing.rows["flights"] == source
    assert read_rows(staged(landing)["flights"]["2013-01-02"]).num_rows == pq.read_metadata(delivery.file("flights", 0)).num_rows


def test_land__same_delivery_gives_the_same_bytes(delivery: Delivery) -> None:
    first = land_days(0)
    published(first)
    before, times = contents(), {p: p.stat().st_mtime_ns for p in raw_folder().rglob("*.parquet")}
    delivery.edit("flights", 0, lambda rows: rows.sample(frac=1, random_state=1))  # the order of delivery means nothing
    again = land_days(0)
    assert {o for outcomes in published(again).values() for o in outcomes.values()} == {"unchanged"}
    assert contents() == before
    assert {p: p.stat().st_mtime_ns for p in raw_folder().rglob("*.parquet")} == times, "unchanged files are not touched"


def test_land__hides_outcomes_that_were_not_known(delivery: Delivery) -> None:
    as_of = datetime(2013, 1, 3, 2)
    rows = read_rows(staged(land_days(0, as_of=as_of))["flights"]["2013-01-02"]).to_pandas()
    truth = pq.read_table(delivery.file("flights", 0)).to_pandas()
    arrival = truth.time_hour + pd.to_timedelta(truth.minute + truth.dep_delay + truth.air_time, unit="m")
    assert rows.arr_delay.notna().sum() == (arrival <= as_of).sum()
    assert 0 < (arrival > as_of).sum() < len(truth), "the case is in the data"
    hidden = rows[rows.arr_delay.isna()]
    assert hidden[OUTCOMES].isna().all(axis=None)
    assert rows[["carrier", "sched_dep_time", "distance"]].notna().all(axis=None), "the schedule is known"


def test_lookback__brings_late_outcomes_where_the_day_was_landed(delivery: Delivery) -> None:
    published(land_days(0))
    before = read_rows(raw_file("flights", "2013-01-02")).column("arr_delay").null_count
    second = land_days(1)
    assert published(second)["flights"] == {"2013-01-02": "landed", "2013-01-03": "landed"}
    after = read_rows(raw_file("flights", "2013-01-02")).column("arr_delay").null_count
    never = pq.read_table(delivery.file("flights", 0)).column("arr_delay").null_count
    assert before > after == never


def test_lookback__leaves_days_alone_that_were_never_landed(delivery: Delivery) -> None:
    assert list(staged(land_days(2))["flights"]) == ["2013-01-04"]


def test_table_without_time__is_landed_again_only_when_it_changed(delivery: Delivery) -> None:
    published(land_days(0))
    assert "planes" not in staged(land_days(1))
    delivery.edit("planes", 0, lambda rows: rows.assign(seats=rows.seats + (rows.tailnum == "N10156")))
    third = land_days(2)
    published(third)
    assert landed_days("planes") == ["2013-01-02", "2013-01-04"]
    old, new = (table_rows(raw_folder(), "planes", ALL_KNOWN, ALL_KNOWN, datetime(2013, 1, day)) for day in (3, 5))
    assert new.num_rows == old.num_rows
    assert not new.equals(old)


def test_older_landing__does_not_undo_a_newer_one(delivery: Delivery) -> None:
    late = land_days(0, as_of=datetime(2013, 1, 3, 2))
    published(land_days(0, as_of=ALL_KNOWN))
    before = contents()
    assert published(late)["flights"] == {"2013-01-02": "stale"}
    assert contents() == before
    assert notes()["flights"]["2013-01-02"]["as_of"] == ALL_KNOWN.isoformat()


def test_publish__twice_and_after_a_kill_half_way(delivery: Delivery) -> None:
    landing = land_days(0, 2)
    files = staged(landing)
    publish({"flights": {"2013-01-02": files["flights"]["2013-01-02"]}}, landing.as_of)
    (settings().data / "landed.json").unlink()  # killed after the rename, before the note
    published(landing)
    assert {"2013-01-02", "2013-01-03"} <= set(notes()["flights"])
    assert {o for outcomes in published(landing).values() for o in outcomes.values()} == {"unchanged"}


def test_staging__of_long_ago_is_swept(delivery: Delivery) -> None:
    old = settings().data / "staging" / ".half-made"
    old.mkdir(parents=True)
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    land_days(0)
    assert not old.exists()


def test_publish__gives_a_reader_the_old_file_or_the_new_one(delivery: Delivery) -> None:
    published(land_days(0))
    path = raw_file("flights", "2013-01-02")
    before = path.read_bytes()
    with path.open("rb") as reading:
        published(land_days(0, as_of=ALL_KNOWN))
        assert reading.read() == before, "the file that is being read does not change under its reader"
    assert path.read_bytes() != before


def test_publish__waits_for_who_holds_the_folder(delivery: Delivery) -> None:
    landing = land_days(0)
    waiting = threading.Thread(target=published, args=[landing])
    with locked():
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert contents() == {}
    waiting.join(60)
    assert landed_days("flights") == ["2013-01-02"]


PUBLISHER = textwrap.dedent("""
    import sys
    from datetime import date, datetime
    from ml.data.landed import publish
    from ml.data.landing import land, staged
    from ml.refs import Window
    start, end, as_of = date.fromisoformat(sys.argv[1]), date.fromisoformat(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
    print("go", flush=True)
    for _ in range(int(sys.argv[4])):
        landing = land(Window(start=start, end=end), as_of)
        publish(staged(landing), landing.as_of)
""")


def publisher(start: date, end: date, as_of: datetime, times: int = 1) -> subprocess.Popen[str]:
    """A real process that lands and publishes; returns when its imports are done."""
    arguments = [str(start), str(end), as_of.isoformat(), str(times)]
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER, *arguments], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def assert_whole() -> None:
    """Every landed and every staged file can be read, and nothing else lies among them."""
    for path in [*raw_folder().rglob("*"), *(settings().data / "staging").glob("[!.]*/*/*")]:
        if path.is_file() and not path.name.startswith("."):
            assert read_rows(path).num_rows > 0
    assert not [p for p in raw_folder().rglob("*") if p.is_file() and p.suffix != ".parquet"]
    assert not list(raw_folder().rglob(".*"))
    landings = {path.name.split("_")[0] for path in (settings().data / "staging").glob("[!.]*")}
    assert landings <= {"2013-01-01", "2013-01-02", "2013-01-03"}, "what is half made is hidden"


def test_overlapping_landings__at_once(delivery: Delivery) -> None:
    early, late = datetime(2013, 1, 3, 2), ALL_KNOWN
    running = [
        publisher(FIRST, FIRST + timedelta(days=3), early, 6),
        publisher(FIRST + timedelta(days=1), FIRST + timedelta(days=4), late, 6),
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert_whole()
    assert landed_days("flights") == ["2013-01-02", "2013-01-03", "2013-01-04", "2013-01-05"]
    for day in (1, 2):
        landed = read_rows(raw_file("flights", str(FIRST + timedelta(days=day))))
        delivered = pq.read_table(delivery.file("flights", day))
        assert landed.column("arr_delay").null_count == delivered.column("arr_delay").null_count, "the newer knowledge stays"
    noted = json.loads((settings().data / "landed.json").read_text())["flights"]
    assert {noted[f"2013-01-0{day}"]["as_of"] for day in (3, 4, 5)} == {late.isoformat()}


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3])
def test_kill__in_the_middle_leaves_nothing_half_written(workspace: Path, seconds: float) -> None:
    end = date(2013, 3, 1)
    process = publisher(date(2013, 1, 1), end, datetime(2013, 3, 1, 2))
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_whole()
    landing = land(Window(start=date(2013, 1, 1), end=end), datetime(2013, 3, 1, 2))
    publish(staged(landing), landing.as_of)
    assert_whole()
    assert len(landed_days(load_params().problem.table)) == 59
