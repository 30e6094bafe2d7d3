"""Is the data of a day sound? Asked before any drift: what looks like drift may be a file that came half.

A day is held against its own past, of which small facts are kept (`DayFacts`, `AnswerFacts`): made once, remembered, compared in
microseconds. Limits are by degree, so that what really happens (a holiday, a storm that cancels every second flight) passes, and
what a broken feed does (half a day, an empty column, another unit) does not. With too little history a check passes and says so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta
from statistics import median
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ml.config import Health, Table
from ml.data.schema import ARROW
from ml.features.inputs import midnight
from ml.refs import Check, Ref

GRID = np.linspace(0, 1, 101)
NAMED = 3
"""Columns that a check's detail names at most."""


class DayFacts(Ref):
    """What is remembered of one landed day of one table: a few kilobytes, whatever the rows."""

    table: str
    day: date
    landed_at: datetime
    rows: int
    newest: datetime | None
    """Event time of the last row; None without rows, or where the rows have no ``event_time``."""
    types: dict[str, str]
    """Arrow type by declared column, of those that were there."""
    missing: dict[str, int]
    """NULL or NaN by declared column."""
    duplicates: int
    """Rows whose key an earlier row has."""
    grids: dict[str, list[float]]
    """The 0th to 100th percentile of the known values, by numeric column outside the key; columns without any are left out."""


class AnswerFacts(Ref):
    """What is remembered of one day's answers."""

    day: date
    due: int
    """Rows of the problem's table on that day: each could have been asked for."""
    answers: int
    flagged: int
    """Answers with any flag: degraded ones."""
    missing: dict[str, int]
    """Answers without a value, by feature."""


Facts = TypeVar("Facts", DayFacts, AnswerFacts)


# ---- facts: made once per day


def facts(rows: pa.Table, spec: Table, *, table: str, day: date, landed_at: datetime) -> DayFacts:
    """The facts of one landed day.

    Args:
        rows: of that day as known at one moment, one version each (`ml.data.rows.table_rows`), or as they came; columns that are
            not declared are not looked at, except ``event_time``.
        spec: the table's declaration; a table without event time has no days, and no facts.
        landed_at: since when the day is there.
    """
    there = [column for column in spec.columns if column in rows.column_names]
    key = [column for column in spec.key if column in there]
    numeric = [column for column in there if spec.columns[column] in ("int", "float") and column not in spec.key]
    grids = {column: _grid(rows[column]) for column in numeric if _is_number(rows.schema.field(column).type)}
    return DayFacts(
        table=table,
        day=day,
        landed_at=landed_at,
        rows=rows.num_rows,
        newest=pc.max(rows["event_time"]).as_py() if "event_time" in rows.column_names else None,
        types={column: str(rows.schema.field(column).type) for column in there},
        missing={column: _missing(rows[column]) for column in there},
        duplicates=rows.num_rows - rows.group_by(key).aggregate([]).num_rows if key else 0,
        grids={column: grid for column, grid in grids.items() if grid},
    )


def answer_facts(day: date, due: int, answers: pd.DataFrame) -> AnswerFacts:
    """The facts of one day's answers.

    Args:
        due: rows of the problem's table on that day.
        answers: of the prediction log, whoever answered, one per entity: ``flags`` (lists), ``features`` (JSON objects).
    """
    missing: dict[str, int] = {}
    for values in answers["features"]:
        for name, value in json.loads(values).items():
            missing[name] = missing.get(name, 0) + (value is None or value != value)
    flagged = sum(len(flags) > 0 for flags in answers["flags"])
    return AnswerFacts(day=day, due=due, answers=len(answers), flagged=flagged, missing=missing)


# ---- checks


def landed_checks(
    table: str, day: date, today: DayFacts | None, earlier: Sequence[DayFacts], spec: Table, as_of: datetime, params: Health
) -> list[Check]:
    """Freshness, volume, schema, nulls, duplicates and range of a landed day, in this order; names are ``<table>.<check>``.

    Args:
        day: that should be there; today: its facts, None when it did not land. Then only freshness is checked.
        earlier: facts of the same table; those of the `weeks` before `day` are used. Leave days out that were found broken, or
            they become what is usual.
        as_of: the moment of asking, by which a day that is missing may be due.
    """
    past = _recent(day, earlier, params)
    if today is None:
        return [_not_there(table, day, past, as_of, params)]
    return [
        _there(today, params),
        _volume(today, past, params),
        _schema(today, spec),
        _nulls(today, past, spec, params),
        _duplicates(today, params),
        _range(today, past, params),
    ]


def answer_checks(today: AnswerFacts, earlier: Sequence[AnswerFacts], params: Health) -> list[Check]:
    """How many rows were answered, how many answers are flagged, which features were missing: ``answers.<check>``.

    Args:
        earlier: facts of other days; those of the `weeks` before are used.
    """
    past = [facts for facts in _recent(today.day, earlier, params) if facts.due and facts.answers]
    return [_answered(today, past, params), _flagged(today, params), _features(today, past, params)]


def broken(checks: Sequence[Check], advisory: Collection[str] = ()) -> list[str]:
    """Names of failed checks that freeze retrain requests and promotion, in order.

    Args:
        advisory: names that are shown and do not freeze (`monitoring.health.advisory`).
    """
    return [check.name for check in checks if not check.passed and check.name not in advisory]


def _not_there(table: str, day: date, past: list[DayFacts], as_of: datetime, params: Health) -> Check:
    hours = (as_of - _ended(day)).total_seconds() / 3600
    newest = max((facts.day for facts in past), default=None)
    told = f"not landed {hours:.1f} h after its end, due after {params.due_hours:g} h; the newest day is {newest or 'none'}"
    # a table of working days has no Sundays, and that is nothing new
    free = bool(past) and past[0].day <= day - timedelta(weeks=params.min_weeks) and not _same_weekday(day, past)
    if free:
        told = f"no {day:%A} landed in the last {params.weeks} weeks, and none is expected"
    return _check(f"{table}.freshness", free or hours <= params.due_hours, hours, params.due_hours, 0, told)


def _there(today: DayFacts, params: Health) -> Check:
    hours = (today.landed_at - _ended(today.day)).total_seconds() / 3600
    told = f"{today.day} landed {hours:.1f} h after its end"
    # what came late is here now, and can be judged
    told += f": {hours - params.due_hours:.1f} h late" if hours > params.due_hours else ""
    return _check(f"{today.table}.freshness", True, hours, params.due_hours, today.rows, told)


def _volume(today: DayFacts, past: list[DayFacts], params: Health) -> Check:
    name, same = f"{today.table}.volume", _same_weekday(today.day, past)
    if len(same) < params.min_weeks:
        return _little(name, today.rows, len(same), f"earlier {today.day:%A}s", params.min_weeks)
    usual = median(facts.rows for facts in same)
    ratio = today.rows / max(usual, 1)
    told = f"{today.rows:,} rows, {ratio:.0%} of the {usual:,.0f} usual on a {today.day:%A} (median of {len(same)})"
    told += f", the last at {today.newest:%H:%M}" if today.newest else ""
    limit = params.min_volume if ratio < 1 else params.max_volume
    return _check(name, params.min_volume <= ratio <= params.max_volume, ratio, limit, today.rows, told)


def _schema(today: DayFacts, spec: Table) -> Check:
    wrong = []
    for column, declared in spec.columns.items():
        found, wanted = today.types.get(column), str(ARROW[declared])
        if found != wanted:
            wrong.append(f"{column} is {found}, not {wanted}" if found else f"{column} is not there")
    told = _named(wrong) or f"all {len(spec.columns)} declared columns, as declared"
    return _check(f"{today.table}.schema", not wrong, float(len(wrong)), 0.0, today.rows, told)


def _nulls(today: DayFacts, past: list[DayFacts], spec: Table, params: Health) -> Check:
    shares = [{column: n / facts.rows for column, n in facts.missing.items()} for facts in past if facts.rows]
    limits = {
        column: params.max_outcome_null_increase if column in spec.outcomes else params.max_null_increase
        for column in today.missing
    }
    return _more_missing(f"{today.table}.nulls", today.missing, today.rows, shares, limits, params)


def _duplicates(today: DayFacts, params: Health) -> Check:
    share = today.duplicates / max(today.rows, 1)
    told = f"{today.duplicates:,} of {today.rows:,} rows have the key of another"
    return _check(f"{today.table}.duplicates", share <= params.max_duplicates, share, params.max_duplicates, today.rows, told)


def _range(today: DayFacts, past: list[DayFacts], params: Health) -> Check:
    name, limit = f"{today.table}.range", params.max_outside
    if len(past) < 7 * params.min_weeks:
        return _little(name, today.rows, len(past), "earlier days", 7 * params.min_weeks)
    outside = {}
    for column, grid in today.grids.items():
        ends = _ends([facts.grids[column] for facts in past if column in facts.grids], params.range_margin)
        if ends is not None:
            # of all rows: where most values are missing, a single one is a large share of the rest
            there = 1 - today.missing[column] / today.rows
            outside[column] = (there * float(np.mean((np.array(grid) < ends[0]) | (np.array(grid) > ends[1]))), grid, ends)
    worst = sorted(outside, key=lambda column: -outside[column][0])
    told = [
        f"{column}: {share:.0%} of rows outside {ends[0]:.4g} to {ends[1]:.4g}, median {grid[len(grid) // 2]:.4g}"
        for column in worst
        for share, grid, ends in [outside[column]]
        if share > limit
    ]
    share = outside[worst[0]][0] if worst else 0.0
    told_all = _named(told) or f"{len(outside)} numeric columns within what {len(past)} recent days had, widened"
    return _check(name, share <= limit, share, limit, today.rows, told_all)


def _answered(today: AnswerFacts, past: list[AnswerFacts], params: Health) -> Check:
    name = "answers.volume"
    if len(past) < 7 * params.min_weeks:
        return _little(name, today.answers, len(past), "earlier days with answers", 7 * params.min_weeks)
    usual, share = median(facts.answers / facts.due for facts in past), today.answers / max(today.due, 1)
    told = f"{today.answers:,} of {today.due:,} rows answered, {share:.1%}, usually {usual:.1%}"
    ratio = share / usual
    return _check(name, ratio >= params.min_answered or not today.due, ratio, params.min_answered, today.due, told)


def _flagged(today: AnswerFacts, params: Health) -> Check:
    share = today.flagged / max(today.answers, 1)
    told = f"{today.flagged:,} of {today.answers:,} answers are flagged"
    return _check("answers.flagged", share <= params.max_flagged, share, params.max_flagged, today.answers, told)


def _features(today: AnswerFacts, past: list[AnswerFacts], params: Health) -> Check:
    shares = [{name: n / facts.answers for name, n in facts.missing.items()} for facts in past]
    limits = dict.fromkeys(today.missing, params.max_null_increase)
    return _more_missing("answers.missing", today.missing, today.answers, shares, limits, params)


def _more_missing(
    name: str, missing: Mapping[str, int], n: int, past: list[dict[str, float]], limits: Mapping[str, float], params: Health
) -> Check:
    """The share of missing values against the largest but one of earlier days, by column; the worst by its own limit is told.

    Against a large one, since some columns go missing with the weather; but one, since a single day without the column must not
    make the next pass. A column without enough days is not judged.
    """
    wanted = 7 * params.min_weeks
    if len(past) < wanted:
        return _little(name, n, len(past), "earlier days", wanted)
    usual = {column: [shares[column] for shares in past if column in shares] for column in missing}
    known = {column: sorted(shares)[-2] for column, shares in usual.items() if len(shares) >= max(wanted, 2)}
    more = {column: missing[column] / max(n, 1) - known[column] for column in known}
    worst = sorted(more, key=lambda column: limits[column] - more[column])
    told = [
        f"{column} missing in {missing[column] / max(n, 1):.0%}, usually at most {known[column]:.1%}"
        for column in worst
        if more[column] > limits[column]
    ]
    value, limit = (more[worst[0]], limits[worst[0]]) if worst else (0.0, params.max_null_increase)
    said = _named(told) or f"nothing much more missing in {len(known)} columns than on {len(past)} recent days"
    return _check(name, not told, value, limit, n, said)


def _ends(grids: list[list[float]], margin: float) -> tuple[float, float] | None:
    """The range of earlier days, widened on both sides by `margin` of its width; None where there is none.

    The most extreme day at either end is left out: a single broken one must not hide the next.
    """
    if len(grids) < 2:
        return None
    low, high = sorted(grid[0] for grid in grids)[1], sorted(grid[-1] for grid in grids)[-2]
    # a column that never moved has no scale to be outside of
    return (low - margin * (high - low), high + margin * (high - low)) if low < high else None


def _recent(day: date, earlier: Sequence[Facts], params: Health) -> list[Facts]:
    """The facts of the weeks before, oldest first."""
    first = day - timedelta(weeks=params.weeks)
    return sorted((facts for facts in earlier if first <= facts.day < day), key=lambda facts: facts.day)


def _same_weekday(day: date, past: list[DayFacts]) -> list[DayFacts]:
    return [facts for facts in past if facts.day.weekday() == day.weekday()]


def _ended(day: date) -> datetime:
    return midnight(day + timedelta(days=1))


def _little(name: str, n: int, found: int, of: str, wanted: int) -> Check:
    told = f"too little history to judge: {found} {of}, {wanted} wanted"
    return Check(name=name, passed=True, value=float(found), threshold=float(wanted), n=n, detail=told)


def _check(name: str, passed: bool, value: float, threshold: float, n: int, detail: str) -> Check:
    return Check(name=name, passed=passed, value=value, threshold=threshold, n=n, detail=detail)


def _named(problems: list[str]) -> str:
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more


def _grid(values: pa.ChunkedArray) -> list[float]:
    known = values.to_numpy().astype(float)
    known = known[np.isfinite(known)]
    # a percentile that is a value: no average of two may lie where none is
    return np.quantile(known, GRID, method="inverted_cdf").tolist() if len(known) else []


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _missing(values: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0)
