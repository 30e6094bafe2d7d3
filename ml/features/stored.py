"""Feature sets at rest: computed once per data version, feature code, window and moment."""

from __future__ import annotations

import hashlib
import io
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from ml import store
from ml.config import load_params
from ml.data import rows
from ml.features import inputs, offline
from ml.features.definitions import code_digest
from ml.refs import FeatureSetRef, Window


def build(root: Path, snapshot: str, window: Window, as_of: datetime) -> FeatureSetRef:
    """Features of every row of the window as known at `as_of`, unless they are in the store already.

    Args:
        root: the restored snapshot.
        snapshot: its digest.
    """
    params = load_params()
    code = code_digest(params)
    key = "features-" + hashlib.sha256(f"{snapshot}/{code}/{window}/{as_of}".encode()).hexdigest()
    digest = store.recall(key)
    if digest is None:
        start, end = inputs.midnight(window.start), inputs.midnight(window.end)
        history = inputs.history(params, start, end, inputs.landed(root, as_of))
        table = offline.compute(params, rows.problem_rows(root, start, end, as_of), history, as_of)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        digest = store.put(buffer.getvalue())
        store.remember(key, digest)
    count = pq.read_metadata(io.BytesIO(store.get(digest))).num_rows
    return FeatureSetRef(digest=digest, rows=count, snapshot=snapshot, code=code, window=window, as_of=as_of)


def read(features: FeatureSetRef) -> pd.DataFrame:
    """The rows of a feature set: identity columns, ``tick``, one column per feature."""
    table: pd.DataFrame = pq.read_table(io.BytesIO(store.get(features.digest))).to_pandas()
    return table
