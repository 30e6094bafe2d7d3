"""Rows as they were known at a moment, from a landed folder or straight from the source. Feature code reads nothing else."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ml.config import Params, load_params
from ml.data import sources
from ml.data.asof import known_sql, order, run
from ml.data.query import parquet, quoted
from ml.data.schema import arrow_schema

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

    A table without event time is read whole, from its newest file of a day not after `as_of`, or else from its oldest; both times
    are NULL. The problem's table also gets the columns of `problem_rows`.
    """
    params = load_params()
    static = params.tables[table].event_time is None
    files = _static_file(root / table, as_of.date()) if static else _files(root / table, start, end)
    if not files:
        return _known(params, table, as_of, start, end, "rows", rows=arrow_schema(params.tables[table]).empty_table())
    return _known(params, table, as_of, start, end, parquet(files))


def table_versions(root: Path, table: str, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Every version of the rows with event time in [start, end) that was known at `as_of`, each with its own ``known_at``.

    A table without event time: each landed file is a version of the whole table; ``known_at`` is NULL for the oldest, and the
    midnight after its day for later ones.
    """
    spec = load_params().tables[table]
    if spec.event_time is not None:
        known = table_rows(root, table, start, end, as_of)
        return known.filter(pc.is_valid(known["known_at"]))
    parts = []
    for number, file in enumerate(sorted((root / table).glob("*.parquet"))):
        moment = datetime.combine(date.fromisoformat(file.stem) + timedelta(days=1), datetime.min.time()) if number else None
        if moment is None or moment <= as_of:
            rows = _known(load_params(), table, as_of, start, end, parquet([file]))
            at = rows.schema.get_field_index("known_at")
            parts.append(rows.set_column(at, "known_at", pa.array([moment] * len(rows), pa.timestamp("us"))))
    return pa.concat_tables(parts) if parts else table_rows(root, table, start, end, as_of)


def live_rows(table: str, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """The same rows as `table_rows`, straight from the source: for the part of today that has not been landed yet.

    They have the declared types, but have passed no validation.
    """
    params = load_params()
    spec = params.tables[table]
    return _known(params, table, as_of, start, end, "rows", rows=sources.open_source(spec).read(table, spec, start, end))


def _known(
    params: Params, table: str, as_of: datetime, start: datetime, end: datetime, relation: str, **tables: pa.Table
) -> pa.Table:
    spec, problem = params.tables[table], params.problem
    statement = known_sql(spec, as_of, start, end, relation)
    if table != problem.table:
        return run(table, spec, f"{statement} ORDER BY event_time, {order(spec)}", tables)
    parts = " || '-' || ".join(f"coalesce(CAST({quoted(c)} AS VARCHAR), '')" for c in problem.id)
    plain = ", ".join(quoted(c) for c in spec.columns if c not in PROBLEM)
    statement = (
        f"SELECT {plain}, {parts} || '-' || strftime(event_time, '%Y%m%dT%H%M') AS entity_id, event_time, "
        f"event_time - to_seconds({problem.lead_hours * 3600}) AS prediction_time, known_at, "
        f"CAST(({problem.label}) AS DOUBLE) AS label FROM ({statement}) ORDER BY event_time, entity_id, {order(spec)}"
    )
    return run(table, spec, statement, tables)


def _files(folder: Path, start: datetime, end: datetime) -> list[Path]:
    """Files of the days that [start, end) touches; none is opened."""
    last = (end - timedelta(microseconds=1)).date()
    return sorted(p for p in folder.glob("*.parquet") if start.date().isoformat() <= p.stem <= last.isoformat())


def _static_file(folder: Path, day: date) -> list[Path]:
    files = sorted(folder.glob("*.parquet"))
    return [p for p in files if p.stem <= day.isoformat()][-1:] or files[:1]
