"""What readers of landed data see, and when."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.data.landed import publish, raw_file, raw_folder
from ml.data.landing import staged
from ml.data.rows import live_rows, problem_rows, table_rows
from tests.data.conftest import ALL_KNOWN, Delivery, land_days

START, END = datetime(2013, 1, 2), datetime(2013, 1, 6)
OUTCOMES = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


@pytest.fixture
def landed(delivery: Delivery) -> Delivery:
    """All four days, landed when everything was known."""
    landing = land_days(0, 4, as_of=ALL_KNOWN)
    publish(staged(landing), landing.as_of)
    return delivery


def test_problem_rows__have_name_times_and_label(landed: Delivery) -> None:
    rows = problem_rows(raw_folder(), START, END, ALL_KNOWN)
    one = rows.filter(pc.equal(rows["entity_id"], "UA-1545-EWR-20130102T1016")).to_pylist() or rows.slice(0, 1).to_pylist()
    first = one[0]
    assert first["entity_id"] == f"{first['carrier']}-{first['flight']}-{first['origin']}-{first['event_time']:%Y%m%dT%H%M}"
    assert first["event_time"] == first["time_hour"] + timedelta(minutes=first["minute"])
    assert first["prediction_time"] == first["event_time"] - timedelta(hours=2)
    assert rows.schema.field("label").type == pa.float64()
    known = rows.filter(pc.is_valid(rows["arr_delay"])).to_pylist()
    assert all(row["label"] == float(row["arr_delay"] >= 15) for row in known)
    assert all(row["known_at"] == row["event_time"] + timedelta(minutes=row["dep_delay"] + row["air_time"]) for row in known)


def test_problem_rows__interval_and_order(landed: Delivery) -> None:
    start, end = START + timedelta(hours=13), START + timedelta(hours=37)
    rows = problem_rows(raw_folder(), start, end, ALL_KNOWN)
    times = rows["event_time"].to_pylist()
    whole = problem_rows(raw_folder(), START, END, ALL_KNOWN)["event_time"].to_pylist()
    assert len(times) == sum(start <= t < end for t in whole) > 0
    names = list(zip(times, rows["entity_id"].to_pylist(), strict=True))
    assert names == sorted(names)
    assert len(set(names)) == len(names)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hours=st.integers(0, 120))
def test_problem_rows__show_nothing_that_was_not_known(landed: Delivery, hours: int) -> None:
    as_of = START + timedelta(hours=hours)
    truth = problem_rows(raw_folder(), START, END, ALL_KNOWN)
    seen = problem_rows(raw_folder(), START, END, as_of)
    assert seen["entity_id"].equals(truth["entity_id"]), "what is scheduled is known"
    late = pc.fill_null(pc.greater(truth["known_at"], pa.scalar(as_of, pa.timestamp("us"))), True)
    for column in [*OUTCOMES, "known_at", "label"]:
        assert seen.filter(late)[column].null_count == pc.sum(late).as_py(), column
        assert seen.filter(pc.invert(late))[column].equals(truth.filter(pc.invert(late))[column]), column


def test_table_rows__of_a_table_without_outcomes_end_at_as_of(landed: Delivery) -> None:
    as_of = START + timedelta(hours=30, minutes=30)
    rows = table_rows(raw_folder(), "weather", START, END, as_of)
    assert max(rows["event_time"].to_pylist()) == START + timedelta(hours=30)
    assert rows["known_at"].equals(rows["event_time"])


def test_table_rows__without_time_are_those_of_the_newest_file_there_by_then(landed: Delivery) -> None:
    first = table_rows(raw_folder(), "planes", START, END, ALL_KNOWN)
    (old,) = (raw_folder() / "planes").glob("*.parquet")
    old.rename(raw_file("planes", "2013-01-02"))
    pq.write_table(pq.read_table(raw_file("planes", "2013-01-02")).slice(0, 5), raw_file("planes", "2013-01-04"))
    assert table_rows(raw_folder(), "planes", START, END, datetime(2013, 1, 5)).num_rows == 5
    assert table_rows(raw_folder(), "planes", START, END, datetime(2013, 1, 4, 23)).equals(first), "learned when its day was over"
    assert table_rows(raw_folder(), "planes", START, END, datetime(2012, 12, 1)).equals(first), "before all files: the oldest"


def test_table_rows__open_only_the_files_of_the_interval(landed: Delivery) -> None:
    raw_file("flights", "2013-01-05").write_bytes(b"not parquet")
    end = datetime(2013, 1, 5)
    assert problem_rows(raw_folder(), START, end, ALL_KNOWN).num_rows > 2000
    with pytest.raises(Exception, match="2013-01-05"):
        problem_rows(raw_folder(), START, end + timedelta(minutes=1), ALL_KNOWN)


def test_rows__of_days_that_were_never_landed_are_none_of_the_same_shape(landed: Delivery) -> None:
    empty = problem_rows(raw_folder(), datetime(2013, 5, 1), datetime(2013, 5, 2), ALL_KNOWN)
    assert empty.num_rows == 0
    assert empty.schema == problem_rows(raw_folder(), START, END, ALL_KNOWN).schema


@pytest.mark.parametrize("table", ["flights", "weather", "planes"])
def test_live_rows__are_the_rows_that_landing_gives(landed: Delivery, table: str) -> None:
    as_of = datetime(2013, 1, 3, 18, 20)
    live = live_rows(table, START, END, as_of)
    assert live.num_rows > 0
    assert live.equals(table_rows(raw_folder(), table, START, END, as_of))
