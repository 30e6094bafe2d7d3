"""A job of batch scoring: real bundle, feature rows as `features` makes them, in Parquet files of several row groups."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml import store
from ml.batch import job as jobs
from ml.batch.job import Job, Part
from ml.config import load_params
from ml.features.definitions import load_module
from tests.sample_bundle import sample_bundle
from tests.sample_models import made_up

AS_OF = datetime(2013, 4, 18, 4)


def feature_rows(n: int, seed: int = 1) -> pa.Table:
    """Made-up rows with missing numbers and texts, huge and tiny numbers, and texts that no model knows."""
    module = load_module(load_params())
    table = made_up(module.features, n, seed).drop(columns=["label", "event_time"])
    draw = np.random.default_rng(seed)
    plain = [feature.name for feature in module.features if feature.kind == "numeric"]
    for i, name in enumerate(plain):
        table.loc[draw.random(n) < 0.01, name] = (1e30, 5e-324, 1e-7, 2.0**53, -0.0)[i % 5]
    for name in module.text:
        table.loc[draw.random(n) < 0.05, name] = None
        table.loc[draw.random(n) < 0.05, name] = 'Zürich "ZRH" \\ \n'
    times = pa.array(np.datetime64("2013-04-18T00:00", "us") + draw.integers(0, 86_400, n).astype("timedelta64[s]"))
    columns = {"entity_id": pa.array([f"UA-{seed}-{i}" for i in range(n)])}
    columns |= dict.fromkeys(("event_time", "prediction_time", "tick"), times)
    made = pa.Table.from_pandas(table, preserve_index=False)
    return pa.table(columns | {name: made[name] for name in made.column_names})


@pytest.fixture
def make_job(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """A job of three partitions: rows from two files by URL, rows from the store by digest, no rows. Tasks are small."""
    monkeypatch.setattr(jobs, "TASK_ROWS", 700)

    def make(folder: str = "out", rows: int = 2500, bias: float = 0.0) -> Job:
        paths = [str(workspace / f"in-{i}.parquet") for i in range(2)]
        for i, path in enumerate(paths):
            pq.write_table(feature_rows(rows, seed=i), path, row_group_size=300)
        held = workspace / "held.parquet"
        pq.write_table(feature_rows(100, seed=7), held)
        inputs = (paths, [store.put(held.read_bytes())], [])
        parts = [Part(inputs=list(given), output=f"{workspace}/{folder}/day-{i}.parquet") for i, given in enumerate(inputs)]
        return Job(bundle=store.put(sample_bundle(bias)), version="3", name="late", as_of=AS_OF, parts=parts)

    return make
