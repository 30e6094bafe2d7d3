"""History features at a tick: the one implementation that training, batch scoring and the online store share.

Both functions answer for *points*, a table with the entity's columns and ``tick``; only rows with ``known_at <= tick`` count.
"""

from __future__ import annotations

import pyarrow as pa

from ml.data.query import query
from ml.features.definitions import Latest, Recent, View


def values_at(view: View, points: pa.Table, table: pa.Table) -> pa.Table:
    """The view's columns for each point.

    Args:
        view: what to compute.
        points: columns of ``view.entity`` and ``tick`` (timestamp, UTC); duplicates and missing entities allowed.
        table: rows with ``view.entity``, ``known_at``, ``event_time`` and the columns that the view reads; rows whose
        ``known_at`` is
            missing are not known and never count.

    Returns:
        One row per point in the order of `points`: ``view.columns`` (float64, missing where nothing was known).
    """
    numbered = points.select([*view.entity, "tick"]).append_column("_row", pa.array(range(len(points)), pa.int64()))
    found = query(_recent(view) if isinstance(view, Recent) else _latest(view), points=numbered, rows=table)
    return found.select(list(view.columns))


def _recent(view: Recent) -> str:
    """Running integer sums per entity and moment; a window is the difference of two as-of reads, hence exact."""
    keys = ", ".join(view.entity)
    present = " AND ".join(f"{c} IS NOT NULL" for c in view.entity)
    same = " AND ".join(f"p.{c} = {{a}}.{c}" for c in view.entity)
    joins, columns = [], []
    for alias, shift in [("now", 0), *((f"h{h}", h) for h in view.hours)]:
        joins.append(
            f"ASOF LEFT JOIN running {alias} ON {same.format(a=alias)} AND p.tick - to_hours({shift}) >= {alias}.known_at"
        )
    for h in view.hours:
        count, late, total = (f"(coalesce(now.{c}, 0) - coalesce(h{h}.{c}, 0))" for c in ("n", "late", "total"))
        columns += [
            f"{count}::DOUBLE AS {view.name}_count_{h}h",
            f"CASE WHEN {count} > 0 THEN {late}::DOUBLE / {count} END AS {view.name}_rate_{h}h",
            f"CASE WHEN {count} > 0 THEN {total}::DOUBLE / {count} END AS {view.name}_mean_{h}h",
        ]
    return f"""
        WITH moments AS (
            SELECT {keys}, known_at, count(*) AS n, sum(label::BIGINT) AS late, sum({view.value}::BIGINT) AS total
            FROM rows WHERE known_at IS NOT NULL AND label IS NOT NULL AND {present} GROUP BY ALL),
        running AS (
            SELECT {keys}, known_at, sum(n) OVER w AS n, sum(late) OVER w AS late, sum(total) OVER w AS total
            FROM moments WINDOW w AS (PARTITION BY {keys} ORDER BY known_at))
        SELECT p._row, {", ".join(columns)} FROM points p {" ".join(joins)} ORDER BY p._row"""


def _latest(view: Latest) -> str:
    """The newest known row; among rows known at the same moment the newest event, then the smallest values, so never chance."""
    keys = ", ".join(view.entity)
    same = " AND ".join(f"p.{c} = r.{c}" for c in view.entity)
    present = " AND ".join(f"{c} IS NOT NULL" for c in view.entity)
    values = ", ".join(view.values)
    if view.max_age_hours is None:
        order, by_time, moment, fresh = values, keys, "", "true"
        join = f"LEFT JOIN newest r ON {same}"
    else:
        order, by_time, moment = f"event_time DESC, {values}", f"{keys}, known_at", ", known_at"
        present += " AND known_at IS NOT NULL"
        fresh = f"p.tick - r.known_at <= to_hours({view.max_age_hours})"
        join = f"ASOF LEFT JOIN newest r ON {same} AND p.tick >= r.known_at"
    columns = [f"CASE WHEN {fresh} THEN r.{v}::DOUBLE END AS {view.name}_{v}" for v in view.values]
    if view.max_age_hours is not None:
        columns.append(f"CASE WHEN {fresh} THEN date_diff('second', r.known_at, p.tick) / 3600.0 END AS {view.name}_age")
    return f"""
        WITH newest AS (
            SELECT {keys}{moment}, {values} FROM rows WHERE {present}
            QUALIFY row_number() OVER (PARTITION BY {by_time} ORDER BY {order}) = 1)
        SELECT p._row, {", ".join(columns)} FROM points p {join} ORDER BY p._row"""
