"""Feature rows for many rows at once: training sets and batch scoring."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa

from ml.config import Params
from ml.data.query import literal, query
from ml.errors import EvergreenError
from ml.features.definitions import Recent, View, load_module
from ml.features.history import values_at

IDENTITY = ("entity_id", "event_time", "prediction_time", "known_at", "label")


def source_table(view: View, problem_table: str) -> str:
    """The table that a view reads: outcomes live in the problem's own."""
    return problem_table if isinstance(view, Recent) else view.table


def ticks(prediction_times: pa.ChunkedArray, as_of: datetime, tick_minutes: int) -> pa.Array:
    """The last tick at or before prediction time, and never after `as_of`: timestamps, UTC."""
    known = f"least(t, {literal(as_of)})"
    sql = f"SELECT time_bucket(to_minutes({tick_minutes}), {known}, TIMESTAMP '2000-01-01') AS tick FROM moments"
    return query(sql, moments=pa.table({"t": prediction_times}))["tick"].combine_chunks()


def compute(params: Params, rows: pa.Table, tables: Mapping[str, pa.Table], as_of: datetime) -> pa.Table:
    """Features of `rows`, each as known at the last tick before its own prediction time (never after `as_of`).

    Args:
        params: names the feature module, the problem's table and the tick.
        rows: rows to predict: raw columns, ``entity_id``, ``event_time``, ``prediction_time``, ``known_at``, ``label``.
        tables: by name, the history that views read, with ``event_time`` and ``known_at``; it must reach
            the module's ``horizon_hours`` back from the first tick.
        as_of: what became known later is not used.

    Returns:
        Identity columns, ``tick``, then one column per feature (float64 or string) in the module's order.

    Raises:
        EvergreenError: a feature function does not return the declared features.
    """
    module, problem_table = load_module(params), params.problem.table
    spec = params.tables[problem_table]
    raw_columns = [c for c in spec.columns if c not in spec.outcomes]
    points = rows.append_column("tick", ticks(rows["prediction_time"], as_of, params.features.tick_minutes))
    columns = {name: points[name] for name in (*IDENTITY, "tick")}
    looked_up: dict[str, pa.ChunkedArray] = {}
    for view in module.views:
        found = values_at(view, points, tables[source_table(view, problem_table)])
        looked_up |= {name: found[name] for name in view.columns}
    reads = pa.table({name: looked_up[name] for name in module.reads}).to_pylist() if module.reads else [{}] * len(rows)
    raw = rows.select([*raw_columns, "event_time"]).to_pylist()
    computed = [module.request(row, known) for row, known in zip(raw, reads, strict=True)]
    declared = {f.name for f in module.requested}
    if computed and set(computed[0]) != declared:
        odd = sorted(set(computed[0]) ^ declared)
        raise EvergreenError(f"features declared and computed differ in {odd}", "make FEATURES and the request function agree")
    for feature in module.features:
        kind = pa.string() if feature.kind == "text" else pa.float64()
        own = feature.name in declared
        columns[feature.name] = pa.array([v[feature.name] for v in computed], kind) if own else looked_up[feature.name]
    return pa.table(columns)
