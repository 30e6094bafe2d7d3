"""Rows as they were known at a moment, from a landed folder or straight from the source. Feature code reads nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa

from ml.config import Params, load_params
from ml.data import sources
from ml.data.asof import TIMES, known_sql, order, run
from ml.data.landed import there_from
from ml.data.query import literal, parquet, quoted
from ml.data.schema import arrow_schema
from ml.data.versions import rows_sql, versions_sql

PROBLEM = ("entity_id", "event_time", "prediction_time", "known_at", "label")


def problem_rows(root: Path, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Things to predict, whose event time is in [start, end), as they were known at `as_of`.

    Args:
        root: a landed or restored folder: ``<root>/<table>/<YYYY-MM-DD>.parquet``.
        start: naive UTC, included.
        end: naive UTC, not included.
        as_of: naive UTC; an outcome that became known later is NULL.

    Returns:
        The declared columns, and ``entity_id`` (string), ``event_time``, ``prediction_time`` (event time less the lead hours),
        ``known_at`` (NULL while the outcome is not known), ``label`` (float64; NULL while not known, or when there is none).
        Ordered by event time, then entity id. No rows when nothing was landed.
    """
    return table_rows(root, load_params().problem.table, start, end, as_of)


def table_rows(root: Path, table: str, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Rows of any table with event time in [start, end), as known at `as_of`, with ``event_time`` and ``known_at`` added.

    One row per key: the newest version that was recorded by `as_of`. So the answer for a moment stays what it was then, whatever
    corrections and late rows were landed since.

    A table without event time is read whole, from the newest file that was there at `as_of` (from the midnight after its day), or
    else from its oldest; both times are NULL. The problem's table also gets the columns of `problem_rows`.
    """
    params = load_params()
    spec = params.tables[table]
    files = _static_file(root / table, as_of) if spec.event_time is None else _files(root / table, start, end)
    if not files:
        return _empty(params, table)
    statement = known_sql(spec, as_of, start, end, rows_sql(spec, files, as_of), recorded=True)
    return _with_problem(params, table, statement, {})


def table_versions(root: Path, table: str, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Every version of the rows with event time in [start, end) that was known at `as_of`, each with its own ``known_at``.

    The columns of `table_rows`. A version that takes a known outcome back has NULL `outcomes`, from when it was recorded. Ordered
    by event time, key, ``known_at``, then all columns.

    A table without event time: each landed file that was there at `as_of` is a version of the whole table; ``known_at`` is NULL
    for the oldest, and the midnight after its day for later ones.
    """
    params = load_params()
    spec = params.tables[table]
    if spec.event_time is not None:
        files = _files(root / table, start, end)
        statement = versions_sql(spec, files, as_of, start, end) if files else ""
    else:
        files = sorted((root / table).glob("*.parquet"))
        files = [p for p in files if p == files[0] or there_from(p.stem) <= as_of]
        columns = ", ".join(quoted(c) for c in spec.columns if c not in TIMES)
        moments = ["NULL::TIMESTAMP", *(literal(there_from(p.stem)) for p in files[1:])]
        statement = " UNION ALL ".join(
            f"SELECT {columns}, NULL::TIMESTAMP AS event_time, {moment} AS known_at FROM {parquet([path])}"
            for path, moment in zip(files, moments, strict=False)
        )
    if not files:
        return _empty(params, table)
    key = ", ".join(quoted(c) for c in spec.key)
    return _with_problem(params, table, statement, {}, f"event_time, {key}, known_at NULLS FIRST, {order(spec)}")


def live_rows(table: str, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """The same rows as `table_rows`, straight from the source: for the part of today that has not been landed yet.

    They have the declared types, but have passed no validation.
    """
    params = load_params()
    spec = params.tables[table]
    found = sources.open_source(spec).read(table, spec, start, end)
    return _with_problem(params, table, known_sql(spec, as_of, start, end, "rows"), {"rows": found})


def _empty(params: Params, table: str) -> pa.Table:
    """No rows, with the columns that some would have."""
    spec, ever = params.tables[table], datetime.min
    return _with_problem(params, table, known_sql(spec, ever, None, None, "rows"), {"rows": arrow_schema(spec).empty_table()})


def _with_problem(params: Params, table: str, statement: str, tables: dict[str, pa.Table], by: str | None = None) -> pa.Table:
    """Runs a statement for declared columns and times; the problem's table gets its name, prediction time and label too.

    Args:
        by: the order of rows; default event time, then name, then all columns.
    """
    spec, problem = params.tables[table], params.problem
    if table != problem.table:
        return run(table, spec, f"SELECT * FROM ({statement}) ORDER BY {by or f'event_time, {order(spec)}'}", tables)
    parts = " || '-' || ".join(f"coalesce(CAST({quoted(c)} AS VARCHAR), '')" for c in problem.id)
    plain = ", ".join(quoted(c) for c in spec.columns if c not in PROBLEM)
    statement = (
        f"SELECT {plain}, {parts} || '-' || strftime(event_time, '%Y%m%dT%H%M') AS entity_id, event_time, "
        f"event_time - to_seconds({problem.lead_hours * 3600}) AS prediction_time, known_at, "
        f"CAST(({problem.label}) AS DOUBLE) AS label FROM ({statement}) ORDER BY {by or f'event_time, entity_id, {order(spec)}'}"
    )
    return run(table, spec, statement, tables)


def _files(folder: Path, start: datetime, end: datetime) -> list[Path]:
    """Files of the days that [start, end) touches; none is opened."""
    last = (end - timedelta(microseconds=1)).date()
    return sorted(p for p in folder.glob("*.parquet") if start.date().isoformat() <= p.stem <= last.isoformat())


def _static_file(folder: Path, as_of: datetime) -> list[Path]:
    files = sorted(folder.glob("*.parquet"))
    return [p for p in files if there_from(p.stem) <= as_of][-1:] or files[:1]
