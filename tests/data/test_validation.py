"""Great Expectations over staged days and over rows in memory; real suites, real results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from ml.config import load_params
from ml.data import validation
from ml.data.landed import landed_days, raw_file, read_rows
from ml.data.landing import quarantine_folder
from ml.data.rows import live_rows
from ml.data.validation import data_docs, stored, validate, validate_rows
from ml.errors import ConfigError, DataQualityError, NotFoundError
from ml.settings import settings
from tests.data.conftest import ALL_KNOWN, Delivery, contents, land_days

DECLARED = Path("great_expectations")


def rows_of_first_day(table: str = "flights", as_of: datetime = ALL_KNOWN) -> pd.DataFrame:
    return live_rows(table, datetime(2013, 1, 2), datetime(2013, 1, 3), as_of).to_pandas()


def first(count: int, **values: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of the first `count` rows."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        changed = rows.copy()
        for column, value in values.items():
            changed[column] = changed[column].astype(object)
            changed.iloc[:count, changed.columns.get_loc(column)] = value  # type: ignore[index]
        return changed

    return change


def test_validate__publishes_good_days(delivery: Delivery) -> None:
    landing = land_days(0, 2)
    ref = validate(landing)
    assert ref.rows == landing.rows
    assert ref.checks == sum(
        len(json.loads((DECLARED / "expectations" / f"{t}.json").read_text())["expectations"]) for t in ref.rows
    )
    assert landed_days("flights") == landed_days("weather") == ["2013-01-02", "2013-01-03"]
    assert (ref.checkpoint, ref.run_name) == ("landing", landing.key)
    assert stored("landing", landing.key) == ref
    assert not (settings().data / "quarantine").exists()


def test_validate__twice_has_the_same_effect(delivery: Delivery) -> None:
    landing = land_days(0)
    first_time, before = validate(landing), contents()
    assert validate(landing) == first_time
    assert contents() == before


def test_few_bad_rows__go_to_quarantine_and_the_rest_is_published(delivery: Delivery) -> None:
    delivery.edit("flights", 0, first(2, origin="XXX"))
    landing = land_days(0)
    with pytest.raises(DataQualityError, match=r"column 'origin': 'values to be in set .* broken by 2 rows, e\.g\. "):
        validate(landing)
    kept = read_rows(raw_file("flights", "2013-01-02")).to_pandas()
    folder = quarantine_folder("flights", landing.key)
    refused = read_rows(folder / "2013-01-02.parquet").to_pandas()
    assert len(kept) == landing.rows["flights"] - 2
    assert set(kept.origin) == {"EWR", "JFK", "LGA"}
    assert list(refused.origin) == ["XXX", "XXX"]
    assert refused.broken_rules.str.startswith("origin: values to be in set").all()
    (reason,) = json.loads((folder / "reasons.json").read_text())
    assert (reason["column"], reason["count"], len(reason["rows"])) == ("origin", 2, 2)
    assert landed_days("weather") == ["2013-01-02"], "other tables are not held up"
    ref = stored("landing", landing.key)
    assert ref.rows["flights"] == len(kept)


def test_few_bad_rows__again_has_the_same_effect(delivery: Delivery) -> None:
    delivery.edit("flights", 0, first(2, origin="XXX"))
    landing = land_days(0)
    messages, states = [], []
    for _ in range(2):
        with pytest.raises(DataQualityError) as caught:
            validate(landing)
        messages.append(str(caught.value))
        states.append((contents(), contents(settings().data / "quarantine")))
    assert messages[0] == messages[1]
    assert states[0] == states[1]


def test_few_bad_rows__in_a_table_without_time_make_no_new_file_each_night(delivery: Delivery) -> None:
    delivery.edit("planes", 0, first(1, seats=0))
    for day in (0, 1):
        with pytest.raises(DataQualityError, match="table 'planes', column 'seats'"):
            validate(land_days(day))
    assert landed_days("planes") == ["2013-01-02"]


def test_many_bad_rows__put_their_day_in_quarantine_whole(delivery: Delivery) -> None:
    delivery.edit("flights", 1, lambda rows: first(len(rows) // 10, minute=75)(rows))  # 10 % > landing.max_bad_row_share
    landing = land_days(0, 3)
    with pytest.raises(DataQualityError, match="'minute'"):
        validate(landing)
    assert landed_days("flights") == ["2013-01-02", "2013-01-04"]
    refused = read_rows(quarantine_folder("flights", landing.key) / "2013-01-03.parquet").to_pandas()
    assert (refused.minute == 75).mean() == pytest.approx(0.1, abs=0.01)
    assert set(refused[refused.minute != 75].broken_rules) == {""}, "good rows of a bad day have no reason of their own"


def test_equal_copies__leave_one_and_conflicting_ones_leave_none(delivery: Delivery) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([rows, rows.iloc[[0]], rows.iloc[[1]].assign(distance=11.0)])

    before = rows_of_first_day()
    delivery.edit("flights", 0, change)
    landing = land_days(0, as_of=ALL_KNOWN)
    with pytest.raises(DataQualityError, match=r"compound columns to be unique .* broken by 3 rows"):
        validate(landing)  # one copy too many, and two rows of which nobody knows which is right
    kept = read_rows(raw_file("flights", "2013-01-02"))
    assert kept.num_rows == len(before) - 1


def test_rule_about_the_whole_table__puts_all_its_days_in_quarantine(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = _own_copy(monkeypatch, settings().var / "declared")
    suite = {
        "name": "weather",
        "expectations": [{"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 10_000}}],
    }
    (declared / "expectations" / "weather.json").write_text(json.dumps(suite))
    with pytest.raises(DataQualityError, match=r"table 'weather': 'table row count .*observed 144' broken by 144 rows"):
        validate(land_days(0, 2))
    assert landed_days("weather") == []
    assert landed_days("flights") == ["2013-01-02", "2013-01-03"]


def test_rule_over_a_column_that_is_not_there__fails(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = _own_copy(monkeypatch, settings().var / "declared")
    suite = {"name": "planes", "expectations": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "wings"}}]}
    (declared / "expectations" / "planes.json").write_text(json.dumps(suite))
    with pytest.raises(DataQualityError, match=r"table 'planes', column 'wings': .*does not exist"):
        validate(land_days(0))


def test_warning__keeps_the_row_and_is_reported(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    delivery.edit("weather", 0, first(1, wind_speed=1048.36))
    landing = land_days(0)
    ref = validate(landing)
    assert ref.rows["weather"] == read_rows(raw_file("weather", "2013-01-02")).num_rows == landing.rows["weather"]
    assert "table 'weather', column 'wind_speed'" in caplog.text
    (broken,) = json.loads(Path(ref.results_uri).read_text())["broken"]
    assert (broken["column"], broken["severity"]) == ("wind_speed", "warning")


def test_training_rows__must_have_what_the_label_is_made_of(workspace: Path) -> None:
    rows = rows_of_first_day()
    assert validate_rows("training", {"flights": rows}, "good").rows == {"flights": len(rows)}
    matured = rows.index[rows.known_at.notna()][:2]
    rows.loc[matured, "arr_delay"] = None
    with pytest.raises(
        DataQualityError, match=r"'arr_delay': 'values to not be null' broken by 2 rows, e\.g\. \w\w-\d+-\w{3}-2013"
    ):
        validate_rows("training", {"flights": rows}, "bad")


def test_training_rows__that_have_not_matured_may_lack_it(workspace: Path) -> None:
    rows = rows_of_first_day(as_of=datetime(2013, 1, 2, 23))
    assert 0 < rows.label.isna().sum() < len(rows) / 2
    validate_rows("training", {"flights": rows}, "maturing")


def test_serving_rows__may_not_know_the_outcome(workspace: Path) -> None:
    outcomes = load_params().tables["flights"].outcomes
    unknown = rows_of_first_day(as_of=datetime(2013, 1, 2))
    validate_rows("serving", {"flights": unknown}, "null")
    validate_rows("serving", {"flights": unknown.drop(columns=outcomes)}, "absent")
    with pytest.raises(DataQualityError, match="'values to be null'"):
        validate_rows("serving", {"flights": rows_of_first_day()}, "leak")


def test_checkpoint__that_is_not_there(workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"nights\.json; there are: landing, serving, training"):
        validate_rows("nights", {"flights": rows_of_first_day()}, "x")
    with pytest.raises(ConfigError, match="checkpoint 'serving' has no suite for table 'weather'"):
        validate_rows("serving", {"weather": rows_of_first_day("weather")}, "x")
    with pytest.raises(NotFoundError, match="no results of checkpoint 'landing', run 'never'"):
        stored("landing", "never")


def test_data_docs__show_good_and_bad_runs_and_the_declared_files_stay(delivery: Delivery) -> None:
    declared = {path: path.read_bytes() for path in DECLARED.rglob("*") if path.is_file()}
    good = validate(land_days(0))
    index = data_docs(good)
    delivery.edit("flights", 1, first(2, origin="XXX"))
    landing = land_days(1)
    with pytest.raises(DataQualityError):
        validate(landing)
    assert data_docs(stored("landing", landing.key)) == index
    assert json.loads(Path(good.results_uri).read_text())["data_docs"] == index
    pages = [str(path) for path in Path(index).parent.rglob("*.html")]
    assert "XXX" in next(Path(p).read_text() for p in pages if landing.key in p and "/flights/" in p)
    assert sum(good.run_name in page for page in pages) == 3, "a page for each table"
    assert good.run_name in Path(index).read_text()
    assert {path: path.read_bytes() for path in DECLARED.rglob("*") if path.is_file()} == declared


def test_suites__name_only_declared_columns_and_are_used() -> None:
    added = {"entity_id", "event_time", "prediction_time", "known_at", "label"}
    used = set()
    for path in (DECLARED / "checkpoints").glob("*.json"):
        for table, suite in json.loads(path.read_text())["suites"].items():
            used.add(suite)
            allowed = set(load_params().tables[table].columns) | (added if path.stem != "landing" else set())
            for expectation in json.loads((DECLARED / "expectations" / f"{suite}.json").read_text())["expectations"]:
                kwargs = expectation["kwargs"]
                named = {kwargs.get(k) for k in ("column", "column_A", "column_B")} | set(kwargs.get("column_list", []))
                assert named - {None} <= allowed, expectation
    assert used == {path.stem for path in (DECLARED / "expectations").glob("*.json")}


def test_suites__hold_for_the_whole_real_year(workspace: Path) -> None:
    for table in ("weather", "planes"):
        rows = live_rows(table, datetime(2013, 1, 1), datetime(2014, 1, 2), ALL_KNOWN).to_pandas()
        validate_rows("landing", {table: rows}, f"year-{table}")
    flights = live_rows("flights", datetime(2013, 1, 1), datetime(2014, 1, 2), datetime(2014, 1, 9)).to_pandas()
    assert len(flights) == 336_776
    validate_rows("landing", {"flights": flights}, "year-flights")


def _own_copy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    shutil.copytree(DECLARED, folder)
    monkeypatch.setattr(validation, "DECLARED", folder)
    return folder
