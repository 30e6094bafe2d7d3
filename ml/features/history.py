"""History of views: from versions of rows to the moments at which a view's values changed, and from there to values at a tick.

A *history* of a view is a table of changes: ``entity`` (key, text), ``moment`` (from when the values hold: knowledge time, never
event time), and ``view.stored``. The last change at or before a tick is the value at that tick. Training joins histories as of
ticks; the online store holds the last change at its own tick; so they cannot differ.
"""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from ml.config import Params
from ml.data.query import literal, query, quoted
from ml.features.definitions import Entity, Latest, Recent, View, source_table

EPOCH = datetime(2000, 1, 1)


def key_sql(entity: Entity) -> str:
    """The entity's key: ``UA|1545``; NULL when a part is missing, which is no entity."""
    return " || '|' || ".join(f"CAST({quoted(c)} AS VARCHAR)" for c in entity.columns)


def changes(params: Params, view: View, versions: pa.Table, start: datetime, end: datetime) -> pa.Table:
    """The view's history with ``start <= moment < end``; the same rows whatever longer interval it is computed for.

    Args:
        versions: rows of the view's table as `ml.data.rows.table_versions` gives them: each version with its own ``known_at``.
            They must reach back, by event time, `features.outcome_hours` and the view's horizon before `start`.
        start: naive UTC; ignored, like `end`, for a table without time, whose history is short.

    Returns:
        ``entity``, ``moment``, ``view.stored`` (float64), ordered by moment, then entity.
    """
    table = source_table(view, params.problem.table)
    known = _known(params, view, table)
    if isinstance(view, Recent):
        body = _recent(view, known, params.features.tick_minutes)
    else:
        body = _static(view) if view.max_age_hours is None else _latest(view, known)
    within = "" if isinstance(view, Latest) and view.max_age_hours is None else _within(start, end)
    columns = ", ".join(f"{c}::DOUBLE AS {c}" for c in view.stored)
    return query(f"SELECT entity, moment, {columns} FROM ({body}) {within} ORDER BY moment, entity", rows=versions)


def values_at(view: View, points: pa.Table, relation: str, **tables: pa.Table) -> pa.Table:
    """The stored values at each point: the last change at or before its tick.

    Args:
        points: ``tick`` (timestamp) and one column named like the view's entity (key); duplicates and missing keys are allowed.
        relation: the history, as a FROM item: the name of one of `tables`, or a table function.

    Returns:
        ``view.stored`` (float64; missing where nothing was known), one row per point, in the order of `points`.
    """
    wanted = pa.table(
        {"entity": points[view.entity.name], "tick": points["tick"], "_row": pa.array(range(len(points)), pa.int64())}
    )
    columns = ", ".join(f"h.{c}" for c in view.stored)
    found = query(
        f"SELECT p._row, {columns} FROM points p ASOF LEFT JOIN {relation} h ON p.entity = h.entity AND p.tick >= h.moment "
        "ORDER BY p._row",
        points=wanted,
        **tables,
    )
    return found.select(list(view.stored))


def last_values(view: View, history: pa.Table, tick: datetime) -> dict[str, dict[str, float | None]]:
    """By entity key, the values at one tick; entities of which nothing is known any more are left out."""
    columns, empty = ", ".join(view.stored), _is_empty(view)
    newest = query(
        f"SELECT entity, {columns} FROM (SELECT * FROM history WHERE moment <= {literal(tick)} "
        f"QUALIFY row_number() OVER (PARTITION BY entity ORDER BY moment DESC) = 1) WHERE NOT ({empty}) ORDER BY entity",
        history=history,
    )
    keys = newest["entity"].to_pylist()
    return dict(zip(keys, newest.select(list(view.stored)).to_pylist(), strict=True))


def keys_of(entities: list[Entity], rows: pa.Table) -> pa.Table:
    """One text column per entity: the key that each row has, in the order of rows."""
    if not entities:
        return pa.table({"_none": pa.nulls(len(rows))})
    needed = list(dict.fromkeys(c for entity in entities for c in entity.columns))
    columns = ", ".join(f"{key_sql(entity)} AS {quoted(entity.name)}" for entity in entities)
    return query(f"SELECT {columns} FROM rows", rows=rows.select(needed))


def _within(start: datetime, end: datetime) -> str:
    return f"WHERE moment >= {literal(start)} AND moment < {literal(end)}"


def _is_empty(view: View) -> str:
    if isinstance(view, Recent):
        return " AND ".join(f"{c} = 0" for c in view.counts)
    return " AND ".join(f"{c} IS NULL" for c in view.stored)


def _known(params: Params, view: View, table: str) -> str:
    """Versions that count, one per key and moment: when the row first became known, and when the version was superseded.

    Equal copies and versions of the same moment leave one, chosen by content, so never by chance.
    """
    spec = params.tables[table]
    key = ", ".join(quoted(c) for c in spec.key)
    outcome = f"label IS NOT NULL AND {quoted(view.value)} IS NOT NULL" if isinstance(view, Recent) else "TRUE"
    values = [view.value, "label"] if isinstance(view, Recent) else list(view.values)
    order = ", ".join(quoted(c) for c in dict.fromkeys([*values, *view.entity.columns, "event_time"]))
    chosen = ", ".join(quoted(c) for c in dict.fromkeys(values))
    return f"""
        SELECT *, lead(known_at) OVER of_key AS until,
               min(CASE WHEN counts THEN known_at END) OVER (PARTITION BY {key}) AS first_known
        FROM (SELECT {key}, {key_sql(view.entity)} AS entity, event_time, known_at, {chosen}, {outcome} AS counts
              FROM rows WHERE known_at IS NOT NULL
              QUALIFY row_number() OVER (PARTITION BY {key}, known_at ORDER BY {order}) = 1)
        WINDOW of_key AS (PARTITION BY {key} ORDER BY known_at)
        QUALIFY counts AND entity IS NOT NULL AND first_known - event_time <= to_hours({params.features.outcome_hours})"""


def _recent(view: Recent, known: str, tick_minutes: int) -> str:
    """Each version adds itself when it becomes known, and takes itself back when it is superseded or leaves the window.

    A running sum over an entity's own changes, of integers, hence exact. A moment at which changes cancel out is kept: so each
    window with outcomes in it has a row in it, and a reader need not look further back than the longest.
    """

    def ceiled(moment: str) -> str:
        tick = f"to_minutes({tick_minutes})"
        return f"time_bucket({tick}, {moment} + {tick} - to_microseconds(1), {literal(EPOCH)})"

    def each(form: str) -> str:
        return ", ".join(form.format(h=h, x=x) for h in view.hours for x in ("n", "late", "total"))

    spans = " UNION ALL ".join(
        f"SELECT entity, {h} AS h, label::BIGINT AS late, {quoted(view.value)}::BIGINT AS total, known_at AS a, "
        f"least(until, first_known + to_hours({h})) AS b FROM known"
        for h in view.hours
    )
    values = []
    for h in view.hours:
        values += [
            f"n{h} AS {view.name}_count_{h}h",
            f"CASE WHEN n{h} > 0 THEN late{h}::DOUBLE / n{h} END AS {view.name}_rate_{h}h",
            f"CASE WHEN n{h} > 0 THEN total{h}::DOUBLE / n{h} END AS {view.name}_mean_{h}h",
        ]
    return f"""
        WITH known AS ({known}), spans AS ({spans}),
        turns AS (
            SELECT entity, {ceiled("a")} AS moment, h, 1 AS n, late, total FROM spans WHERE a < b
            UNION ALL SELECT entity, {ceiled("b")}, h, -1, -late, -total FROM spans WHERE a < b),
        net AS (
            SELECT entity, moment, {each("coalesce(sum({x}) FILTER (h = {h}), 0) AS {x}{h}")} FROM turns GROUP BY ALL),
        running AS (
            SELECT entity, moment, {each("sum({x}{h}) OVER w AS {x}{h}")} FROM net
            WINDOW w AS (PARTITION BY entity ORDER BY moment))
        SELECT entity, moment, {", ".join(values)} FROM running"""


def _latest(view: Latest, known: str) -> str:
    """Among the versions that hold at a moment the one of the newest event, then the one known first, then the smallest values.

    A running maximum; where an entity had a version superseded it looks at every version that holds at each moment instead.
    """
    packed = ", ".join(f"{quoted(v)} := {quoted(v)}" for v in (*view.values, "first_known"))
    rank = f"row(event_time, -epoch_us(first_known), {', '.join(_descending(v) for v in view.values)})"
    stored = [f"(chosen).{quoted(v)} AS {view.name}_{v}" for v in view.values]
    stored.append(f"epoch_us((chosen).first_known - {literal(EPOCH)}) / 1e6 AS {view.since}")
    return f"""
        WITH known AS ({known}),
        ranked AS (SELECT entity, known_at, until, {rank} AS rank, struct_pack({packed}) AS chosen FROM known),
        superseded AS (SELECT DISTINCT entity FROM known WHERE until IS NOT NULL),
        plain AS (
            SELECT entity, known_at AS moment, arg_max(chosen, rank) OVER (PARTITION BY entity ORDER BY known_at) AS chosen
            FROM ranked WHERE entity NOT IN (FROM superseded)
            QUALIFY row_number() OVER (PARTITION BY entity, known_at) = 1),
        moments AS (
            SELECT entity, known_at AS moment FROM ranked WHERE entity IN (FROM superseded)
            UNION SELECT entity, until FROM ranked WHERE until IS NOT NULL),
        looked AS (
            SELECT m.entity, m.moment, arg_max(r.chosen, r.rank) AS chosen
            FROM moments m LEFT JOIN ranked r
            ON r.entity = m.entity AND r.known_at <= m.moment AND (r.until IS NULL OR m.moment < r.until) GROUP BY ALL)
        SELECT entity, moment, {", ".join(stored)} FROM (FROM plain UNION ALL FROM looked)"""


def _descending(column: str) -> str:
    """Ranks smaller values higher, and missing ones lowest."""
    return f"coalesce(-{quoted(column)}::DOUBLE, '-infinity'::DOUBLE)"


def _static(view: Latest) -> str:
    """Each landed file is a version of the whole table: what a later one lacks is known no more."""
    values = ", ".join(quoted(v) for v in view.values)
    stored = ", ".join(f"r.{quoted(v)} AS {view.name}_{v}" for v in view.values)
    return f"""
        WITH given AS (
            SELECT {key_sql(view.entity)} AS entity, coalesce(known_at, {literal(EPOCH)}) AS moment, {values} FROM rows
            QUALIFY entity IS NOT NULL AND row_number() OVER (PARTITION BY entity, moment ORDER BY {values}) = 1),
        points AS (FROM (SELECT DISTINCT entity FROM given), (SELECT DISTINCT moment FROM given))
        SELECT p.entity, p.moment, {stored} FROM points p LEFT JOIN given r ON r.entity = p.entity AND r.moment = p.moment"""
