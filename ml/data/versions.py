"""The second time of landed data: which version of a row a landing brought, so that what was answered before stays answerable.

A row's own account of when it became known (`known_at`) is believed unless a landing contradicts it: what an earlier landing
would have shown and did not, or showed otherwise, counts from the landing that brought it. A file with such rows has one more
column, ``recorded_at``: from when the version counts; NULL: as ever. Its keys may have several rows. Files without such rows,
which are nearly all, do not have the column, and cost their readers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ml.config import RECORDED, Table
from ml.data.asof import TIMES, event_sql, order, own_time_sql, run, visible_sql
from ml.data.query import literal, parquet, quoted

SQL_TYPES = {"string": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN", "timestamp": "TIMESTAMP"}


@dataclass(frozen=True)
class Merged:
    """What a landed file is to hold."""

    rows: pa.Table
    """Declared columns, and ``recorded_at`` where any is set. Ordered by key, then version, then all columns."""
    recorded: int = 0
    """Versions that this landing added: corrections and late rows."""
    withdrawn: int = 0
    """Keys that the source no longer has; they are kept."""
    copies: int = 0
    """Staged rows that share their key with another; one of each is landed, the first by its columns."""


def has_versions(path: Path) -> bool:
    """Whether the file has ``recorded_at``. From its last bytes: opening each of a hundred files as Parquet is not cheap."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(-8, 2)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, 2)
            named = RECORDED.encode() in file.read(length)
    except OSError:  # not Parquet: whoever reads it will say so
        return False
    return named and RECORDED in pq.read_schema(path).names


def rows_sql(spec: Table, files: Iterable[Path], as_of: datetime) -> str:
    """A FROM item: of each key the newest version recorded by `as_of`, with ``recorded_at``."""
    newest = f"QUALIFY row_number() OVER (PARTITION BY {_key(spec)} ORDER BY {RECORDED} DESC NULLS LAST) = 1"

    def chosen(versioned: str) -> str:
        return f"SELECT * FROM {versioned} {_recorded_by(as_of)} {newest}"

    return _from(spec, files, chosen, lambda plain: f"SELECT * FROM {plain}")


def versions_sql(spec: Table, files: Iterable[Path], as_of: datetime, start: datetime, end: datetime) -> str:
    """A statement for every version of the interval that was known at `as_of`, with ``event_time`` and its own ``known_at``.

    A version is known from its own account's moment, or from when it was recorded, if that is later; and only if no newer one was
    recorded by then. One that takes an outcome back, and brings none yet, says so (``outcomes`` NULL) from when it was recorded.
    """
    at = f"greatest(__at, {RECORDED})"
    chain = f"PARTITION BY {_key(spec)} ORDER BY {RECORDED} NULLS FIRST"
    timed = f"*, {event_sql(spec)} AS __event, {own_time_sql(spec)} AS __at"

    def chained(versioned: str) -> str:
        followed = f"SELECT {timed}, lead({RECORDED}) OVER ({chain}) AS __next FROM {versioned} {_recorded_by(as_of)}"
        earlier = f"bool_or({in_time}) OVER ({chain} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        return f"SELECT *, coalesce({earlier}, FALSE) AS __corrects FROM ({followed})"

    def single(plain: str) -> str:
        return f"SELECT {timed}, CAST(NULL AS TIMESTAMP) AS __next, FALSE AS __corrects FROM {plain}"

    in_time = f"__at IS NOT NULL AND (__next IS NULL OR {at} < __next)"
    found = _from(spec, files, chained, single)
    within = f"__event >= {literal(start)} AND __event < {literal(end)}"
    shown = [quoted(c) for c in spec.columns if c not in TIMES]
    statement = (
        f"SELECT {', '.join(shown)}, __event AS event_time, {at} AS known_at FROM found "
        f"WHERE {within} AND {in_time} AND {at} <= {literal(as_of)}"
    )
    if spec.outcomes and spec.known_at:
        taken = [f"NULL AS {quoted(c)}" if c in spec.outcomes else quoted(c) for c in spec.columns if c not in TIMES]
        statement += (
            f" UNION ALL SELECT {', '.join(taken)}, __event, {RECORDED} FROM found "
            f"WHERE {within} AND __corrects AND (__at IS NULL OR __at > {RECORDED})"
        )
    return f"WITH found AS (SELECT * FROM {found}) {statement}"


def merge(table: str, spec: Table, staged: pa.Table, landed: pa.Table | None, before: datetime, as_of: datetime) -> Merged:
    """Brings a landing's rows of one day together with what was landed of it before.

    Args:
        staged: declared columns, as known at `as_of`, in the order of `ml.data.asof.order`.
        landed: what the file holds; columns that were declared since may be absent. None: nothing was landed.
        before: the knowledge in `landed`, not after `as_of`.

    Returns:
        Rows that answer for any moment up to `before` as `landed` does, and for `as_of` as `staged` does (and with the rows that
        the source no longer has).
    """
    given, copies = staged, staged.num_rows - staged.group_by(spec.key).aggregate([]).num_rows
    if copies:
        one_of_each = f"QUALIFY row_number() OVER (PARTITION BY {_key(spec)} ORDER BY {order(spec)}) = 1"
        given = run(table, spec, f"SELECT * FROM staged {one_of_each} ORDER BY {order(spec)}", {"staged": staged})
    if landed is None:
        return Merged(given, copies=copies)
    held = _as_declared(table, spec, landed)
    found = run(table, spec, _merge_sql(spec, set(landed.column_names), before, as_of), {"given": given, "held": held})
    withdrawn = sum(found["__withdrawn"].to_pylist())
    recorded = found[RECORDED]
    fresh = sum(found["__fresh"].to_pylist())
    rows = found.select([*spec.columns, RECORDED] if recorded.null_count < len(recorded) else list(spec.columns))
    return Merged(rows, fresh, withdrawn, copies)


def _merge_sql(spec: Table, compared: set[str], before: datetime, as_of: datetime) -> str:
    seen, now = visible_sql(spec, before, "__at"), literal(as_of)
    hidden = {*spec.outcomes, "known_at"}
    differences = []
    for column in (c for c in spec.columns if c in compared and c not in spec.key):
        new, old = f"n.{quoted(column)}", f"c.{quoted(column)}"
        if column in hidden:
            new, old = f"CASE WHEN n.__seen THEN {new} END", f"CASE WHEN c.__seen THEN {old} END"
        differences.append(f"{new} IS DISTINCT FROM {old}")
    same_key = " AND ".join(f"n.{quoted(c)} IS NOT DISTINCT FROM c.{quoted(c)}" for c in spec.key)
    if spec.outcomes and spec.known_at:  # such a row is shown before its outcome is known
        late = f"CASE WHEN n.__at > {literal(before)} AND n.__at <= {now} THEN n.__at ELSE {now} END"
    else:
        late = f"CASE WHEN n.__seen THEN {now} END"
    timed = f"SELECT *, {own_time_sql(spec)} AS __at"
    newest = f"row_number() OVER (PARTITION BY {_key(spec)} ORDER BY {RECORDED} DESC NULLS LAST) = 1"
    mine, theirs = (", ".join(f"{a}.{quoted(c)}" for c in spec.columns) for a in ("n", "c"))
    # A version that this very moment's landing brought before is replaced: of two landings as of one moment the last counts.
    return f"""
        WITH n AS (SELECT *, {seen} AS __seen FROM ({timed} FROM given)),
        c AS (SELECT *, {seen} AS __seen FROM ({timed}, {newest} AS __newest FROM held)),
        pairs AS (
            SELECT {mine}, c.{RECORDED} AS __old, c.__newest IS NOT NULL AS __met,
                   c.__newest IS NOT NULL AND ({" OR ".join(differences) or "FALSE"}) AS __differs, {late} AS __late
            FROM n LEFT JOIN c ON c.__newest AND {same_key})
        SELECT {_columns(spec)}, CASE WHEN NOT __met THEN __late WHEN __differs THEN {now} ELSE __old END AS {RECORDED},
               FALSE AS __withdrawn, CASE WHEN NOT __met THEN __late IS NOT NULL ELSE __differs END AS __fresh FROM pairs
        UNION ALL
        SELECT {theirs}, c.{RECORDED}, c.__newest AND n.__met IS NULL, FALSE
        FROM c LEFT JOIN pairs n ON c.__newest AND {same_key}
        WHERE NOT coalesce(c.__newest AND n.__met AND (NOT n.__differs OR c.{RECORDED} = {now}), FALSE)
        ORDER BY {_key(spec)}, {RECORDED} NULLS FIRST, {order(spec)}"""


def _as_declared(table: str, spec: Table, landed: pa.Table) -> pa.Table:
    """A landed file's rows in today's declared columns, one per key and version; what is not there, or does not fit, is NULL."""
    there = set(landed.column_names)
    columns = [
        f"TRY_CAST({quoted(c) if c in there else 'NULL'} AS {SQL_TYPES[declared]}) AS {quoted(c)}"
        for c, declared in spec.columns.items()
    ]
    recorded = RECORDED if RECORDED in there else f"CAST(NULL AS TIMESTAMP) AS {RECORDED}"
    one_of_each = f"QUALIFY row_number() OVER (PARTITION BY {_key(spec)}, {RECORDED} ORDER BY {order(spec)}) = 1"
    declared = f"SELECT {', '.join(columns)}, {recorded} FROM landed"
    return run(table, spec, f"SELECT * FROM ({declared}) {one_of_each}", {"landed": landed})


def _from(spec: Table, files: Iterable[Path], versioned: Callable[[str], str], plain: Callable[[str], str]) -> str:
    """A FROM item over files of both sorts: each sort is read by its own statement, over declared columns and ``recorded_at``."""
    sorts: dict[bool, list[Path]] = {}
    for path in files:
        sorts.setdefault(has_versions(path), []).append(path)
    parts = []
    for recorded, paths in sorted(sorts.items()):
        column = RECORDED if recorded else f"CAST(NULL AS TIMESTAMP) AS {RECORDED}"
        parts.append((versioned if recorded else plain)(f"(SELECT {_columns(spec)}, {column} FROM {parquet(paths)})"))
    return f"({' UNION ALL '.join(parts)})"


def _recorded_by(as_of: datetime) -> str:
    return f"WHERE ({RECORDED} IS NULL OR {RECORDED} <= {literal(as_of)})"


def _columns(spec: Table) -> str:
    return ", ".join(quoted(c) for c in spec.columns)


def _key(spec: Table) -> str:
    return ", ".join(quoted(c) for c in spec.key)
