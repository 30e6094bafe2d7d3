"""Corrections, late rows and late outcomes, one at a time; and what happens to files, notes and people's attention."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from ml.config import load_params
from ml.data.landed import notes, publish, raw_file, raw_folder, read_rows, write_rows
from ml.data.landing import staged
from ml.data.rows import problem_rows, table_rows, table_versions
from ml.data.validation import validate, validate_rows
from ml.errors import ConfigError
from ml.settings import settings
from tests.conftest import forget
from tests.data.conftest import ALL_KNOWN, Delivery, contents, land_days
from tests.data.kinds import DAY, EVER, FIRST, HOUR, Row, answer, delivered, publish_rows

NOON, NIGHT, NEXT = FIRST + 12 * HOUR, FIRST + 26 * HOUR, FIRST + 50 * HOUR


def booking(hour: int = 9, price: int = 1, late: int | None = 1, after: int | None = 2, **other: Any) -> Row:
    """One that is made at `hour`, and resolved `after` hours later."""
    moment = FIRST + hour * HOUR
    resolved = None if after is None else moment + after * HOUR
    return {"id": "a", "moment": moment, "price": price, "resolved": resolved, "late": late, **other}


def land(rows: list[Row], as_of: datetime, table: str = "bookings") -> dict[int, str]:
    return publish_rows(table, delivered(table, rows, as_of), as_of)


def outcome(as_of: datetime, table: str = "bookings") -> list[tuple[int | None, datetime | None]]:
    return [(row["late"], row["known_at"]) for row in answer(table, 0, as_of).to_pylist()]


def versions(table: str = "bookings", as_of: datetime = EVER) -> list[Row]:
    return table_versions(raw_folder(), table, FIRST, FIRST + DAY, as_of).to_pylist()


def history(column: str = "late", table: str = "bookings") -> list[tuple[datetime, int | None]]:
    return [(version["known_at"], version[column]) for version in versions(table)]


def test_correction__counts_from_its_landing(tables: Path) -> None:
    land([booking(late=1)], NIGHT)
    assert land([booking(late=0)], NEXT) == {0: "landed"}
    own = FIRST + 11 * HOUR
    assert outcome(NIGHT) == outcome(NEXT - timedelta(microseconds=1)) == [(1, own)]
    assert outcome(NEXT) == [(0, NEXT)]
    assert history() == [(own, 1), (NEXT, 0)]
    assert versions(as_of=NIGHT) == versions()[:1]


def test_correction_of_a_correction__and_back_again(tables: Path) -> None:
    for number, late in enumerate([1, 0, 2, 1]):
        land([booking(late=late)], NIGHT + number * DAY)
    assert history() == [(FIRST + 11 * HOUR, 1), (NIGHT + DAY, 0), (NIGHT + 2 * DAY, 2), (NIGHT + 3 * DAY, 1)]
    assert [outcome(NIGHT + number * DAY)[0][0] for number in range(4)] == [1, 0, 2, 1]


def test_correction_to_nothing__takes_the_outcome_back(tables: Path) -> None:
    land([booking(late=1)], NIGHT)
    land([booking(late=None, after=None)], NEXT)
    assert outcome(NIGHT) == [(1, FIRST + 11 * HOUR)]
    assert outcome(NEXT) == [(None, None)], "an outcome that is not there is not known: training asks no label of it"
    assert history() == [(FIRST + 11 * HOUR, 1), (NEXT, None)], "but that it is not there is known"
    land([booking(late=2, after=60)], NEXT + DAY)  # and then it comes, by its own account after the landing before
    assert history() == [(FIRST + 11 * HOUR, 1), (NEXT, None), (FIRST + 69 * HOUR, 2)]
    assert outcome(NEXT) == [(None, None)]


def test_late_row__is_not_there_before_its_landing(tables: Path) -> None:
    land([booking()], NIGHT)
    land([booking(), booking(id="b")], NEXT)
    assert [row["id"] for row in answer("bookings", 0, NIGHT).to_pylist()] == ["a"]
    assert outcome(NEXT) == [(1, FIRST + 11 * HOUR), (1, NEXT)]


def test_new_row__of_after_the_landing_before_is_believed(tables: Path) -> None:
    land([booking()], NOON)
    land([booking(), booking(id="b", hour=13), booking(id="c", hour=14, after=None, late=None)], NIGHT)
    assert history() == [(FIRST + 11 * HOUR, 1), (FIRST + 15 * HOUR, 1)], "no later than by its own account"
    assert [row["id"] for row in answer("bookings", 0, NOON).to_pylist()] == ["a"], "at noon nobody had heard of the others"
    assert [row["id"] for row in answer("bookings", 0, NIGHT).to_pylist()] == ["a", "b", "c"]


def test_outcome_in_time__adds_no_version(tables: Path) -> None:
    land([booking(after=20)], NIGHT)
    land([booking(after=20)], NEXT)
    assert read_rows(raw_file("bookings", "2024-01-01")).num_rows == 1
    assert "recorded_at" not in read_rows(raw_file("bookings", "2024-01-01")).column_names
    assert history() == [(FIRST + 29 * HOUR, 1)]


@pytest.mark.parametrize(("table", "filled"), [("bookings", booking(late=1)), ("loans", booking(late=1))])
def test_outcome_that_the_source_lacked__counts_from_its_landing(tables: Path, table: str, filled: Row) -> None:
    land([filled | {"late": None, "resolved": None}], NIGHT, table)
    land([filled], NEXT, table)
    assert outcome(NIGHT, table)[0][0] is None
    assert len(answer(table, 0, NIGHT)) == 1, "the row was there"
    assert outcome(NEXT, table) == [(1, NEXT)]


def test_version__that_was_superseded_before_it_was_known_is_never_known(tables: Path) -> None:
    loan = booking(hour=22)  # a loan is known at 28:00
    land([loan | {"price": 1}], NIGHT, "loans")
    land([loan | {"price": 2, "late": 2}], NIGHT + HOUR, "loans")
    assert history("price", "loans") == [(FIRST + 28 * HOUR, 2)]


def test_observation__corrected_and_late(tables: Path) -> None:
    land([booking(price=1)], NIGHT, "readings")
    land([booking(price=2), booking(id="b"), booking(id="c", after=30)], NEXT, "readings")
    assert history("price", "readings") == [(FIRST + 11 * HOUR, 1), (NEXT, 2), (NEXT, 1), (FIRST + 39 * HOUR, 1)]
    assert [row["id"] for row in answer("readings", 0, FIRST + 40 * HOUR).to_pylist()] == ["a", "c"]


def test_row_that_the_source_no_longer_has__is_kept_with_one_warning(tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    land([booking(), booking(id="b"), booking(hour=30), booking(hour=30, id="b")], NEXT)
    before = contents()
    land([booking(), booking(hour=30)], NEXT + DAY)
    assert contents() == before
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "table 'bookings': the source no longer has rows that were landed (1 of 2024-01-01, 1 of 2024-01-02); they are kept"
    ]


def test_copies_of_a_key__leave_the_first_one(tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    land([booking(price=2), booking(price=1), booking(price=1)], NIGHT)
    before = contents()
    assert [row["price"] for row in answer("bookings", 0, NIGHT).to_pylist()] == [1]
    assert "rows share their key with another (2 of 2024-01-01); one of each is landed" in caplog.text
    assert land([booking(price=1), booking(price=2)], NEXT) == {0: "unchanged"}
    assert contents() == before


def test_same_landing_again__leaves_the_file_alone_with_its_versions(tables: Path) -> None:
    land([booking(late=1), booking(id="b")], NIGHT)
    land([booking(late=0), booking(id="b")], NEXT)
    path, before = raw_file("bookings", "2024-01-01"), contents()
    changed = path.stat().st_mtime_ns
    assert land([booking(id="b"), booking(late=0)], NEXT) == {0: "unchanged"}
    assert land([booking(late=0), booking(id="b")], NEXT + DAY) == {0: "unchanged"}
    assert (contents(), path.stat().st_mtime_ns) == (before, changed)
    assert land([booking(late=5)], NIGHT) == {0: "stale"}
    assert contents() == before
    assert "coming" not in json.dumps(notes())


def test_landing_of_the_same_moment__replaces_what_it_brought(tables: Path) -> None:
    land([booking(late=1)], NIGHT)
    land([booking(late=0)], NEXT)
    land([booking(late=2)], NEXT)
    assert history() == [(FIRST + 11 * HOUR, 1), (NEXT, 2)]


def test_retry_after_a_kill__ends_as_if_there_had_been_none(tables: Path) -> None:
    first, second = [booking(late=1)], [booking(late=0), booking(id="b", after=20)]
    land(first, NIGHT)
    noted = (settings().data / "landed.json").read_text()
    land(second, NEXT)
    whole, (one,) = contents(), [json.loads(noted)["bookings"]]
    one["2024-01-01"]["coming"] = NEXT.isoformat()  # killed after the rename, before it was noted
    (settings().data / "landed.json").write_text(json.dumps({"bookings": one}))
    assert land(second, NEXT) == {0: "unchanged"}
    assert contents() == whole


def test_landing_after_a_killed_one__knows_how_new_the_file_may_be(tables: Path) -> None:
    land([booking(late=1, after=20)], NIGHT)  # not known yet
    noted = json.loads((settings().data / "landed.json").read_text())
    land([booking(late=1, after=20)], NEXT)
    noted["bookings"]["2024-01-01"]["coming"] = NEXT.isoformat()
    (settings().data / "landed.json").write_text(json.dumps(noted))
    seen = outcome(NEXT)
    assert land([booking(late=2, after=20)], NIGHT + HOUR) == {0: "stale"}, "the file may be newer than that"
    land([booking(late=2, after=20)], NEXT + DAY)
    assert outcome(NEXT) == seen == [(1, FIRST + 29 * HOUR)]
    assert outcome(NEXT + DAY) == [(2, NEXT + DAY)]


def test_column_that_was_declared_since__is_no_correction(tables: Path) -> None:
    land([booking(), booking(id="b")], NIGHT)
    path = raw_file("bookings", "2024-01-01")
    write_rows(read_rows(path).drop_columns(["price"]), path)  # as it was landed before `price` was declared
    land([booking(), booking(id="b", late=0)], NEXT)
    rows = read_rows(path).to_pylist()
    assert [(r["id"], r["price"], r["late"], r["recorded_at"]) for r in rows] == [
        ("a", 1, 1, None),
        ("b", None, 1, None),
        ("b", 1, 0, NEXT),
    ]


def test_landed_file__that_cannot_be_read_is_replaced(tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    land([booking()], NIGHT)
    raw_file("bookings", "2024-01-01").write_bytes(b"not Parquet")
    assert land([booking(late=0)], NEXT) == {0: "landed"}
    assert outcome(NEXT) == [(0, FIRST + 11 * HOUR)]
    assert "cannot be read, and is replaced" in caplog.text


def test_versions__of_the_problem_have_its_columns_and_an_order(tables: Path) -> None:
    land([booking(id="b", late=1), booking(id="a", late=2)], NIGHT)
    land([booking(id="b", late=2), booking(id="a", late=1)], NEXT)
    found = table_versions(raw_folder(), "bookings", FIRST, FIRST + DAY, EVER)
    assert found.schema == problem_rows(raw_folder(), FIRST, FIRST + DAY, EVER).schema
    assert [(v["id"], v["label"]) for v in found.to_pylist()] == [("a", 0.0), ("a", 1.0), ("b", 1.0), ("b", 0.0)]
    assert found["entity_id"].to_pylist()[0] == "a-20240101T0900"
    assert "recorded_at" not in found.column_names


@pytest.mark.parametrize("table", ["bookings", "loans", "readings", "plans"])
def test_versions__of_nothing_and_of_files_without_corrections(tables: Path, table: str) -> None:
    none = table_versions(raw_folder(), table, FIRST, FIRST + DAY, EVER)
    assert none.num_rows == 0
    land([booking(), booking(id="b", after=None, late=None)], NIGHT, table)
    found, rows = table_versions(raw_folder(), table, FIRST, FIRST + DAY, EVER), answer(table, 0, EVER)
    assert found.schema == none.schema == rows.schema
    assert found.equals(rows.filter(pc.is_valid(rows["known_at"])))


def test_recorded_at__may_not_be_declared(tables: Path) -> None:
    params = yaml.safe_load((tables / "params.yaml").read_text())
    params["tables"]["plans"]["columns"]["recorded_at"] = "timestamp"
    (tables / "params.yaml").write_text(yaml.safe_dump(params))
    forget()
    with pytest.raises(ConfigError, match=r"tables\.plans.*a column may not be named 'recorded_at'"):
        load_params()


def test_table_without_time__each_file_is_a_version(delivery: Delivery) -> None:
    for day, seats in enumerate([None, 11, 22]):
        delivery.edit("planes", 0, lambda rows, seats=seats: rows.assign(seats=rows.seats if seats is None else seats))
        landing = land_days(day)
        publish(staged(landing), landing.as_of)
    start = datetime(2013, 1, 1)
    found = table_versions(raw_folder(), "planes", start, start, ALL_KNOWN)
    one = found.filter(pc.equal(found["tailnum"], "N10156")).to_pylist()
    assert [(v["known_at"], v["seats"]) for v in one] == [(None, 55), (datetime(2013, 1, 4), 11), (datetime(2013, 1, 5), 22)]
    assert found.filter(pc.is_valid(found["event_time"])).num_rows == 0
    middle = table_versions(raw_folder(), "planes", start, start, datetime(2013, 1, 4, 23))
    assert set(middle["known_at"].to_pylist()) == {None, datetime(2013, 1, 4)}
    before = table_versions(raw_folder(), "planes", start, start, datetime(2012, 1, 1))
    assert set(before["known_at"].to_pylist()) == {None}, "the oldest is known as ever"
    assert set(table_rows(raw_folder(), "planes", start, start, datetime(2013, 1, 4))["seats"].to_pylist()) == {11}


def test_table_without_time__landed_in_the_middle_of_a_day_is_seen_after_it(delivery: Delivery) -> None:
    validate(land_days(0))
    delivery.edit("planes", 0, lambda rows: rows.assign(seats=899))
    validate(land_days(1, as_of=datetime(2013, 1, 3, 12)))
    seen = [
        set(table_rows(raw_folder(), "planes", FIRST, FIRST, moment)["seats"].to_pylist()) == {899}
        for moment in (datetime(2013, 1, 3, 6), datetime(2013, 1, 3, 23), datetime(2013, 1, 4))
    ]
    assert seen == [False, False, True]


def test_table_without_time__landed_long_after_is_not_seen_in_between(delivery: Delivery) -> None:
    validate(land_days(0))
    delivery.edit("planes", 0, lambda rows: rows.assign(seats=899))
    validate(land_days(1, as_of=datetime(2013, 3, 1, 2)))
    assert 899 not in table_rows(raw_folder(), "planes", FIRST, FIRST, datetime(2013, 2, 1))["seats"].to_pylist()
    assert set(table_rows(raw_folder(), "planes", FIRST, FIRST, datetime(2013, 3, 1, 2))["seats"].to_pylist()) == {899}


def test_corrected_delay__from_the_source_to_the_training_rows(delivery: Delivery) -> None:
    validate(land_days(0))
    first_night, day = datetime(2013, 1, 3, 2), datetime(2013, 1, 2)
    before = problem_rows(raw_folder(), day, day + DAY, first_night)
    row = before.filter(pc.equal(before["label"], 0.0)).to_pylist()[0]

    def later(rows: pd.DataFrame) -> pd.DataFrame:
        mine = (rows.carrier == row["carrier"]) & (rows.flight == row["flight"]) & (rows.time_hour == row["time_hour"])
        return rows.assign(arr_delay=rows.arr_delay.mask(mine, 60.0))

    delivery.edit("flights", 0, later)
    second = land_days(1)
    validate(second)
    assert problem_rows(raw_folder(), day, day + DAY, first_night).equals(before)
    now = problem_rows(raw_folder(), day, day + DAY, second.as_of)
    (corrected,) = now.filter(pc.equal(now["entity_id"], row["entity_id"])).to_pylist()
    assert (corrected["label"], corrected["arr_delay"], corrected["known_at"]) == (1.0, 60.0, second.as_of)
    assert len(now) == len(before), "one row per key"
    found = table_versions(raw_folder(), "flights", day, day + DAY, ALL_KNOWN)
    mine = found.filter(pc.equal(found["entity_id"], row["entity_id"])).to_pylist()
    assert [(v["known_at"], v["label"]) for v in mine] == [(row["known_at"], 0.0), (second.as_of, 1.0)]
    validate_rows("training", {"flights": now.to_pandas()}, "corrected")
    assert isinstance(now, pa.Table) and "recorded_at" not in now.column_names
