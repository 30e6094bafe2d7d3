"""Feature rows for many rows at once: training sets and batch scoring."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa

from ml.config import Params
from ml.data.query import literal, query
from ml.features.assembly import finish, raw_arrays
from ml.features.definitions import load_module
from ml.features.history import keys_of

IDENTITY = ("entity_id", "event_time", "prediction_time", "known_at", "label")

Lookup = Callable[[pa.Table], pa.Table]
"""Points (a key column per entity, ``tick``) → the stored columns of every view, one row per point, in their order."""


def ticks(prediction_times: pa.ChunkedArray, as_of: datetime, tick_minutes: int) -> pa.Array:
    """The last tick at or before prediction time, and never after `as_of`: timestamps, UTC."""
    known = f"least(t, {literal(as_of)})"
    sql = f"SELECT time_bucket(to_minutes({tick_minutes}), {known}, TIMESTAMP '2000-01-01') AS tick FROM moments"
    return query(sql, moments=pa.table({"t": prediction_times}))["tick"].combine_chunks()


def compute(params: Params, rows: pa.Table, lookup: Lookup, as_of: datetime) -> pa.Table:
    """Features of `rows`, each as known at the last tick before its own prediction time (never after `as_of`).

    Args:
        params: names the feature module, the problem's table and the tick.
        rows: rows to predict: raw columns, ``entity_id``, ``event_time``, ``prediction_time``, ``known_at``, ``label``.
        lookup: finds the values of history at a tick.
        as_of: what became known later is not used.

    Returns:
        Identity columns, ``tick``, then one column per feature (float64 or string) in the module's order.

    Raises:
        EvergreenError: a feature function does not return the declared features.
    """
    module = load_module(params)
    tick = ticks(rows["prediction_time"], as_of, params.features.tick_minutes)
    points = keys_of(module.entities, rows).append_column("tick", tick)
    found = lookup(points) if module.views else pa.table({})
    stored = np.array([found[name].to_numpy() for name in module.stored], dtype=float).reshape(len(module.stored), len(rows))
    due = tick.to_numpy(zero_copy_only=False).astype("datetime64[us]")
    numbers, texts = finish(module, raw_arrays(params, rows), stored, due)
    made = dict(zip((*module.numbers, *module.texts), (*numbers, *texts), strict=True))
    columns = {name: rows[name] for name in IDENTITY} | {"tick": tick}
    return pa.table(columns | {f.name: _arrow(made[f.name]) for f in module.features})


def _arrow(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.string() if values.dtype == object else pa.float64(), from_pandas=True)
