"""What was known at a moment: one SQL view of a table that all readers share, so that none can see more than another.

A row's `outcomes` are NULL until its `known_at`; a row whose `known_at` cannot be computed has outcomes that are not known.
A table without outcomes is an observation: before its `known_at` the whole row is invisible.
"""

from __future__ import annotations

from datetime import datetime

import duckdb
import pyarrow as pa

from ml.config import RECORDED, Table
from ml.data.query import literal, query, quoted
from ml.errors import ConfigError, SourceError

TIMES = ("event_time", "known_at")


def in_interval(table: str, spec: Table, start: datetime, end: datetime, relation: str, **tables: pa.Table) -> pa.Table:
    """Declared columns of the rows whose event time is in [start, end), in an order that depends on nothing but the rows.

    Args:
        relation: what to select from: the name of one of `tables`, or a table function.
        start: naive UTC, included. Ignored, like `end`, when the table has no event time.
    """
    columns = ", ".join(quoted(c) for c in spec.columns)
    event = event_sql(spec)
    where = f"WHERE {event} >= {literal(start)} AND {event} < {literal(end)}" if spec.event_time else ""
    return run(table, spec, f"SELECT {columns} FROM {relation} {where} ORDER BY {order(spec)}", tables)


def known_sql(
    spec: Table, as_of: datetime, start: datetime | None, end: datetime | None, relation: str, recorded: bool = False
) -> str:
    """A statement for the rows of the interval as they were known at `as_of`, unordered.

    Adds ``event_time`` and ``known_at`` (NULL: not known) to the declared columns. No interval: all rows.

    Args:
        recorded: the relation has ``recorded_at``, not after `as_of`: nothing of a row is known before it.
    """
    event = event_sql(spec)
    visible = visible_sql(spec, as_of, "__at")
    known_at = f"greatest(__at, {RECORDED})" if recorded else "__at"
    columns = [
        f"CASE WHEN {visible} THEN {quoted(c)} END AS {quoted(c)}" if c in spec.outcomes else quoted(c)
        for c in spec.columns
        if c not in TIMES
    ]
    conditions = [visible] if not spec.outcomes else []
    if start is not None and end is not None and spec.event_time:
        conditions.append(f"__event >= {literal(start)} AND __event < {literal(end)}")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    inner = f"SELECT *, {event} AS __event, {own_time_sql(spec)} AS __at FROM {relation}"
    columns += ["__event AS event_time", f"CASE WHEN {visible} THEN {known_at} END AS known_at"]
    return f"SELECT {', '.join(columns)} FROM ({inner}) {where}"


def order(spec: Table) -> str:
    """Key first, then every other column, so that equal content has one order."""
    rest = [c for c in spec.columns if c not in spec.key and c not in TIMES]
    return ", ".join(quoted(c) for c in [*spec.key, *rest])


def must_have_time(table: str, spec: Table, rows: pa.Table, where: str) -> None:
    """A row without event time belongs to no day, and would be lost without a word.

    Raises:
        SourceError: there is one; names up to three by their key.
    """
    if spec.event_time is None:
        return
    key = ", ".join(quoted(c) for c in spec.key)
    lost = run(table, spec, f"SELECT {key} FROM rows WHERE {event_sql(spec)} IS NULL", {"rows": rows})
    if lost.num_rows:
        shown = "; ".join(str(row) for row in lost.slice(0, 3).to_pylist())
        raise SourceError(
            f"table '{table}' in {where}: event_time ({spec.event_time}) is null in {lost.num_rows:,} rows, e.g. {shown}",
            "mend those rows at the source; a row without a time belongs to no day",
        )


def with_event(table: str, spec: Table, rows: pa.Table) -> pa.Table:
    """The rows with their event time as a column ``__event``, ordered by it."""
    return run(table, spec, f"SELECT *, {event_sql(spec)} AS __event FROM rows ORDER BY __event", {"rows": rows})


def event_sql(spec: Table) -> str:
    """A row's event time."""
    return f"CAST(({spec.event_time}) AS TIMESTAMP)" if spec.event_time else "CAST(NULL AS TIMESTAMP)"


def own_time_sql(spec: Table) -> str:
    """When a row's outcome (in a table without outcomes: the row) was known, by its own account."""
    return f"CAST(({spec.known_at}) AS TIMESTAMP)" if spec.known_at else event_sql(spec)


def visible_sql(spec: Table, as_of: datetime, own_time: str) -> str:
    """Whether it was known at `as_of`, by that account. Without ``known_at`` nothing is ever hidden."""
    return f"coalesce({own_time} <= {literal(as_of)}, FALSE)" if spec.known_at else "TRUE"


def run(table: str, spec: Table, statement: str, tables: dict[str, pa.Table]) -> pa.Table:
    """Runs a statement that holds expressions of params.yaml.

    Raises:
        ConfigError: an expression is not SQL, or names a column that is not there.
    """
    try:
        return query(statement, **tables)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.ConversionException) as error:
        raise ConfigError(
            f"tables.{table}: event_time = {spec.event_time!r} or known_at = {spec.known_at!r} is not SQL over its columns: "
            f"{str(error).splitlines()[0]}",
            f"mend the expression; columns: {', '.join(spec.columns)}",
        ) from None
