"""Feature sets at rest: computed once per data version, feature code, window and moment."""

from __future__ import annotations

import hashlib
import io
import tempfile
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml import store
from ml.config import Params, load_params
from ml.data import rows
from ml.features import days, inputs, offline
from ml.features.definitions import code_digest, load_module
from ml.refs import FeatureSetRef, SnapshotRef, Window
from ml.settings import settings


def build(root: Path, snapshot: SnapshotRef, window: Window, as_of: datetime) -> FeatureSetRef:
    """Features of every row of the window as known at `as_of`, unless they are in the store already.

    Args:
        root: the restored snapshot.
    """
    params = load_params()
    code = code_digest(params)
    key = "features-" + hashlib.sha256(f"{snapshot.digest}/{code}/{window}/{as_of}".encode()).hexdigest()
    digest = store.recall(key)
    if digest is None:
        start, end = inputs.midnight(window.start), inputs.midnight(window.end)
        made = compute(params, rows.problem_rows(root, start, end, as_of), inputs.landed(root, snapshot.last_day), as_of)
        buffer = io.BytesIO()
        pq.write_table(made, buffer)
        digest = store.put(buffer.getvalue())
        store.remember(key, digest)
    count = pq.read_metadata(io.BytesIO(store.get(digest))).num_rows
    return FeatureSetRef(digest=digest, rows=count, snapshot=snapshot.digest, code=code, window=window, as_of=as_of)


def compute(params: Params, wanted: pa.Table, source: inputs.Inputs, as_of: datetime) -> pa.Table:
    """`offline.compute` over the histories that `wanted`, rows of the problem, need; joined by Feast."""
    views = load_module(params).views
    if not views or not len(wanted):
        nothing = pa.table({c: pa.array([], pa.float64()) for view in views for c in view.stored})
        return offline.compute(params, wanted, lambda points: nothing, as_of)
    from ml.features import repository  # Feast takes seconds to import, and a problem without history needs none

    moments = offline.ticks(wanted["prediction_time"], as_of, params.features.tick_minutes).to_pylist()
    with tempfile.TemporaryDirectory(dir=settings().var, prefix="histories-") as folder:
        found = days.histories(params, source, min(moments), max(moments))
        repository.write_histories(params, found, Path(folder))
        return offline.compute(params, wanted, repository.lookup(params, Path(folder)), as_of)


def read(features: FeatureSetRef) -> pd.DataFrame:
    """The rows of a feature set: identity columns, ``tick``, one column per feature."""
    table: pd.DataFrame = pq.read_table(io.BytesIO(store.get(features.digest))).to_pandas()
    return table
