"""A broken day breaks the check that is meant for it, and a real one breaks none: holidays, storms and all of the shipped year."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ml.config import Health, Table, load_params
from ml.data import rows
from ml.errors import ConfigError
from ml.monitoring import health
from ml.monitoring.health import AnswerFacts, DayFacts
from ml.refs import Check
from tests.conftest import forget

SPEC = Table(
    source={"kind": "csv"}, event_time="at", known_at="at", outcomes=["delay"], key=["id"],
    columns={"id": "int", "at": "timestamp", "place": "string", "size": "float", "delay": "float"},
)  # fmt: skip
PARAMS = load_params().monitoring.health
MONDAY = date(2013, 7, 8)
YEAR = [date(2013, 1, 1) + timedelta(days=i) for i in range(365)]


def made(n: int = 200, day: date = MONDAY, seed: int = 1) -> pa.Table:
    draw = np.random.default_rng(seed + day.toordinal())
    start = datetime.combine(day, datetime.min.time())
    at = [start + timedelta(seconds=86400 * i / max(n, 1)) for i in range(n)]
    return pa.table({
        "id": pa.array(range(n), pa.int64()), "at": pa.array(at, pa.timestamp("us")), "place": pa.array(draw.choice(["A", "B"], n).tolist(), pa.string()),
        "size": draw.uniform(10, 20, n), "delay": pa.array(np.where(draw.random(n) < 0.05, np.nan, draw.normal(0, 30, n)), from_pandas=True),
        "event_time": pa.array(at, pa.timestamp("us")),
    })  # fmt: skip


def of(found: pa.Table, day: date = MONDAY, hours: float = 2) -> DayFacts:
    landed_at = datetime.combine(day, datetime.min.time()) + timedelta(days=1, hours=hours)
    return health.facts(found, SPEC, table="things", day=day, landed_at=landed_at)


PAST = [of(made(200, day), day) for day in (MONDAY - timedelta(days=i) for i in range(28, 0, -1))]


def checked(today: DayFacts | None, past: list[DayFacts] = PAST, hours: float = 5, params: Health = PARAMS) -> dict[str, Check]:
    as_of = datetime.combine(MONDAY, datetime.min.time()) + timedelta(days=1, hours=hours)
    return {check.name: check for check in health.landed_checks("things", MONDAY, today, past, SPEC, as_of, params)}


def failed(today: DayFacts | None, past: list[DayFacts] = PAST, hours: float = 5) -> list[str]:
    return health.broken(list(checked(today, past, hours).values()))


def column(found: pa.Table, name: str, values: object) -> pa.Table:
    return found.set_column(found.column_names.index(name), name, values)


# ---- facts


def test_facts__by_hand() -> None:
    found = pa.table({
        "id": pa.array([1, 2, 2], pa.int64()), "at": pa.array([datetime(2013, 7, 8, 1)] * 3, pa.timestamp("us")), "place": ["A", None, "B"],
        "size": [1.0, float("nan"), 3.0], "delay": pa.array([None, None, None], pa.float64()), "other": [1, 2, 3],
        "event_time": pa.array([datetime(2013, 7, 8, hour) for hour in (5, 7, 6)], pa.timestamp("us")),
    })  # fmt: skip
    got = of(found)
    assert (got.rows, got.duplicates, got.newest) == (3, 1, datetime(2013, 7, 8, 7))
    assert got.missing == {"id": 0, "at": 0, "place": 1, "size": 1, "delay": 3}
    assert got.types == {"id": "int64", "at": "timestamp[us]", "place": "string", "size": "double", "delay": "double"}
    # known sizes are 1 and 3: half of the percentiles are the one, half the other; the key is no measure, delay has no value
    assert list(got.grids) == ["size"] and sorted(set(got.grids["size"])) == [1.0, 3.0] and len(got.grids["size"]) == 101


def test_facts__come_back_from_json_the_same() -> None:
    assert DayFacts.model_validate_json(PAST[0].model_dump_json()) == PAST[0]
    assert len(PAST[0].model_dump_json()) < 8_000


def test_facts__of_no_rows() -> None:
    got = of(made(0))
    assert (got.rows, got.newest, got.duplicates, got.grids) == (0, None, 0, {})
    assert failed(got) == ["things.volume"]


def test_answer_facts__by_hand() -> None:
    answers = pd.DataFrame(
        {
            "flags": [[], ["fallback_timeout"], []],
            "features": ['{"x": 1, "y": null}', '{"x": NaN, "y": null}', '{"x": 2, "y": "a"}'],
        }
    )
    assert health.answer_facts(MONDAY, 4, answers) == AnswerFacts(
        day=MONDAY, due=4, answers=3, flagged=1, missing={"x": 1, "y": 2}
    )


# ---- a landed day


def test_landed__a_usual_day_is_sound() -> None:
    found = checked(of(made()))
    assert [name.split(".")[1] for name in found] == ["freshness", "volume", "schema", "nulls", "duplicates", "range"]
    assert all(check.passed and check.value is not None and check.n == 200 for check in found.values())


@pytest.mark.parametrize(
    ("broken", "wanted", "told"),
    [
        pytest.param(lambda t: t.slice(0, 100), ["volume"], "100 rows, 50% of the 200 usual on a Monday (median of 4), the last at 11:52", id="half"),
        pytest.param(lambda t: pa.concat_tables([t, t]), ["volume", "duplicates"], "400 rows, 200%", id="doubled"),
        pytest.param(lambda t: column(t, "size", pa.nulls(200, pa.float64())), ["nulls"], "size missing in 100%, usually at most 0.0%", id="empty"),
        pytest.param(lambda t: column(t, "delay", pa.nulls(200, pa.float64())), ["nulls"], "delay missing in 100%", id="empty outcome"),
        pytest.param(lambda t: column(t, "size", pc.multiply(t["size"], 60)), ["range"], "size: 100% of rows outside", id="unit"),
        pytest.param(lambda t: column(t, "size", pc.subtract(t["size"], 60)), ["range"], "size: 100% of rows outside", id="shifted down"),
        pytest.param(lambda t: t.drop_columns(["place"]), ["schema"], "place is not there", id="no column"),
        pytest.param(lambda t: column(t, "size", pc.cast(t["size"], pa.string())), ["schema"], "size is string, not double", id="type"),
    ],
)  # fmt: skip
def test_landed__what_is_broken_is_named(broken: Callable[[pa.Table], pa.Table], wanted: list[str], told: str) -> None:
    today = of(broken(made()))
    assert failed(today) == [f"things.{name}" for name in wanted]
    assert told in checked(today)[f"things.{wanted[0]}"].detail


def test_freshness__missing_late_and_not_due() -> None:
    assert failed(None) == ["things.freshness"]
    (late,) = checked(None).values()
    assert (late.value, late.threshold) == (5.0, PARAMS.due_hours)
    assert late.detail == f"not landed 5.0 h after its end, due after {PARAMS.due_hours:g} h; the newest day is 2013-07-07"
    assert failed(None, hours=3) == []
    came = checked(of(made(), hours=30))["things.freshness"]
    assert came.passed and came.value == 30 and f"{30 - PARAMS.due_hours:.1f} h late" in came.detail


def test_freshness__a_weekday_that_never_lands_is_not_missed() -> None:
    working = [facts for facts in PAST if facts.day.weekday() != MONDAY.weekday()]
    assert failed(None, working) == []
    assert failed(None, working[-3:]) == ["things.freshness"]  # three days of history say nothing about Mondays


def test_landed__too_little_history_passes_and_says_so() -> None:
    for past in ([], PAST[-6:]):
        found = checked(of(made(50)), past)
        assert not health.broken(list(found.values()))
        for name in ("volume", "nulls", "range"):
            assert found[f"things.{name}"].detail.startswith("too little history")


def test_landed__only_recent_weeks_of_the_past_count() -> None:
    old = [facts.model_copy(update={"day": facts.day - timedelta(weeks=10)}) for facts in PAST]
    later = [facts.model_copy(update={"day": facts.day + timedelta(weeks=10)}) for facts in PAST]
    assert "too little history" in checked(of(made()), old + later)["things.volume"].detail


@pytest.mark.parametrize("shift", [800, -800])
def test_landed__one_broken_day_in_the_past_does_not_hide_the_next(shift: float) -> None:
    wrong = column(made(), "size", pc.add(made()["size"], shift))
    past = [*PAST[:-3], of(wrong, MONDAY - timedelta(days=3)), *PAST[-2:]]
    assert failed(of(wrong), past) == ["things.range"]
    empty = column(made(), "size", pa.nulls(200, pa.float64()))
    past = [*PAST[:-3], of(empty, MONDAY - timedelta(days=3)), *PAST[-2:]]
    assert failed(of(empty), past) == ["things.nulls"]


def test_landed__an_outcome_may_be_missing_on_a_day_of_cancellations() -> None:
    half = pa.array([None if i % 2 else float(i) for i in range(200)], pa.float64())
    assert failed(of(column(made(), "delay", half))) == []
    assert failed(of(column(made(), "size", pc.add(pc.multiply(half, 0), 15)))) == ["things.nulls"]


def test_broken__advisory_checks_do_not_freeze() -> None:
    found = list(checked(of(made(100))).values())
    assert health.broken(found) == ["things.volume"]
    assert health.broken(found, ["things.volume"]) == []


# ---- answers


def answered(n: int = 180, flagged: int = 2, x: int = 9, due: int = 200, day: date = MONDAY) -> AnswerFacts:
    return AnswerFacts(day=day, due=due, answers=n, flagged=flagged, missing={"x": x, "y": n // 2})


ANSWERED = [answered(day=MONDAY - timedelta(days=i)) for i in range(1, 29)]


@pytest.mark.parametrize(
    ("today", "wanted"),
    [
        pytest.param(answered(), [], id="usual"),
        pytest.param(answered(80, 0), ["volume"], id="outage"),
        pytest.param(answered(0, 0, 0), ["volume"], id="none"),
        pytest.param(answered(flagged=60), ["flagged"], id="degraded"),
        pytest.param(answered(x=180), ["missing"], id="feature gone"),
        pytest.param(answered(0, 0, 0, due=0), [], id="nothing due"),
    ],
)
def test_answers__what_is_broken_is_named(today: AnswerFacts, wanted: list[str]) -> None:
    assert health.broken(health.answer_checks(today, ANSWERED, PARAMS)) == [f"answers.{name}" for name in wanted]


def test_answers__who_is_asked_for_a_tenth_of_the_rows_is_held_against_that() -> None:
    seldom = [answered(20, 0, 1, day=facts.day) for facts in ANSWERED]
    assert health.broken(health.answer_checks(answered(20, 0, 1), seldom, PARAMS)) == []
    assert health.broken(health.answer_checks(answered(5, 0, 0), seldom, PARAMS)) == ["answers.volume"]


def test_answers__days_without_any_are_no_past() -> None:
    none = [answered(0, 0, 0, day=facts.day) for facts in ANSWERED[:20]]
    checks = health.answer_checks(answered(), [*none, *ANSWERED[20:]], PARAMS)
    assert [check.detail[:18] for check in checks if check.name != "answers.flagged"] == ["too little history"] * 2


def test_answers__a_feature_of_a_new_model_is_not_judged_before_it_has_a_past() -> None:
    today = AnswerFacts(day=MONDAY, due=200, answers=180, flagged=0, missing={"x": 9, "new": 170})
    assert health.broken(health.answer_checks(today, ANSWERED, PARAMS)) == []


def test_health__impossible_params_are_refused(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("    min_weeks: 2 ", "    min_weeks: 9 "))
    with pytest.raises(ConfigError, match=r"min_weeks ≤ weeks must hold, but got \(9, 4\)"):
        load_params(tmp_path / "params.yaml")


# ---- the shipped year


@pytest.fixture(scope="module")
def year(parsed_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[date, pa.Table]]]:
    """Rows of each day by table, as the landing of the next night sees them."""
    home = tmp_path_factory.mktemp("year")
    (home / "cache").symlink_to(parsed_sources)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_VAR", str(home))
        forget()
        start, end = (datetime.combine(day, datetime.min.time()) for day in (YEAR[0], YEAR[-1] + timedelta(days=1)))
        yield {table: by_day(rows.live_rows(table, start, end, end + timedelta(days=9))) for table in ("flights", "weather")}
    forget()


def by_day(found: pa.Table) -> dict[date, pa.Table]:
    days = pc.cast(found["event_time"], pa.date32()).to_numpy()  # in the order of event time
    edges = np.searchsorted(days, np.array([*YEAR, YEAR[-1] + timedelta(days=1)], "datetime64[D]"))
    return {day: as_landed(found.slice(edges[i], edges[i + 1] - edges[i]), day) for i, day in enumerate(YEAR)}


def as_landed(found: pa.Table, day: date) -> pa.Table:
    """Without the outcomes of those that were still in the air at two in the morning."""
    if "dep_delay" not in found.column_names:
        return found
    moment = pa.scalar(datetime.combine(day, datetime.min.time()) + timedelta(days=1, hours=2), pa.timestamp("us"))
    known = pc.fill_null(pc.less_equal(found["known_at"], moment), False)
    for name in load_params().tables["flights"].outcomes:
        found = column(found, name, pc.if_else(known, found[name], pa.scalar(None, found[name].type)))
    return found


def made_facts(table: str, found: pa.Table, day: date) -> DayFacts:
    spec = load_params().tables[table]
    landed_at = datetime.combine(day, datetime.min.time()) + timedelta(days=1, hours=2)
    return health.facts(found, spec, table=table, day=day, landed_at=landed_at)


@pytest.fixture(scope="module")
def known(year: dict[str, dict[date, pa.Table]]) -> dict[str, dict[date, DayFacts]]:
    return {table: {day: made_facts(table, found, day) for day, found in days.items()} for table, days in year.items()}


def breaks(table: str, day: date, today: DayFacts | None, known: dict[str, dict[date, DayFacts]]) -> list[str]:
    as_of = datetime.combine(day, datetime.min.time()) + timedelta(days=1, hours=5)
    earlier = [facts for at, facts in known[table].items() if at < day]
    return health.broken(health.landed_checks(table, day, today, earlier, load_params().tables[table], as_of, PARAMS))


@pytest.mark.parametrize("table", ["flights", "weather"])
def test_shipped_year__no_day_is_called_broken(table: str, known: dict[str, dict[date, DayFacts]]) -> None:
    found = {day: names for day in YEAR if (names := breaks(table, day, known[table][day], known))}
    assert found == ({date(2013, 12, 31): ["weather.volume"]} if table == "weather" else {})  # whose rows the source does lack


PLANTED: dict[str, tuple[str, str, Callable[[pa.Table], pa.Table | None]]] = {
    "half a day missing": ("flights", "volume", lambda t: t.slice(0, len(t) // 2)),
    "day missing": ("flights", "freshness", lambda t: None),
    "day twice": ("flights", "duplicates", lambda t: pa.concat_tables([t, t])),
    "tail numbers gone": ("flights", "nulls", lambda t: column(t, "tailnum", pa.nulls(len(t), pa.string()))),
    "delays gone": ("flights", "nulls", lambda t: column(t, "dep_delay", pa.nulls(len(t), pa.float64()))),
    "delays in seconds": ("flights", "range", lambda t: column(t, "dep_delay", pc.multiply(t["dep_delay"], 60.0))),
    "air time in seconds": ("flights", "range", lambda t: column(t, "air_time", pc.multiply(t["air_time"], 60.0))),
    "temperatures gone": ("weather", "nulls", lambda t: column(t, "temp", pa.nulls(len(t), pa.float64()))),
    "pressure in pascal": ("weather", "range", lambda t: column(t, "pressure", pc.multiply(t["pressure"], 100.0))),
    "half of the weather": ("weather", "volume", lambda t: t.slice(0, len(t) // 2)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_shipped_year__a_planted_break_is_found(name: str, year: dict[str, dict[date, pa.Table]], known: dict[str, dict[date, DayFacts]]) -> None:  # fmt: skip
    table, check, plant = PLANTED[name]
    days = YEAR[35::11]
    missed = []
    for day in days:
        wrong = plant(year[table][day])
        today = None if wrong is None else made_facts(table, wrong, day)
        if f"{table}.{check}" not in breaks(table, day, today, known):
            missed.append(day)
    assert missed == [], f"{len(missed)} of {len(days)}"
