"""The yardstick: what a small model knows that was fitted this morning. It is cheap, always fresh, and never served.

On a hard day (a storm, a strike) every model loses much; one that has become old loses more than a fresh one. So the champion's
loss is read beside the yardstick's on the same rows (`ml.monitoring.harm`). It need not be good: how much it differs from the
champion is taken from the champion's holdout. It must be the same thing every day: fixed settings, fixed number of days.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml import store
from ml.config import Params
from ml.errors import NotEnoughDataError
from ml.features.definitions import code_digest, load_module
from ml.features.inputs import midnight
from ml.refs import Window
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import check_labels, enough
from ml.training.models import XGBoost, settings_of

SHAPE: dict[str, float] = {"max_depth": 4, "learning_rate": 0.2, "min_child_weight": 20, "colsample_bytree": 0.7, "reg_lambda": 3}
"""Few shallow trees; not tuned, so that the yardstick of one day is that of any other."""
INTEGERS = {"max_depth"}
THREADS = 1
"""So few and shallow trees gain little from more, and lose much where cores are busy; several days may be done side by side."""


def needed(day: date, params: Params) -> Window:
    """The days whose rows `answers` needs: the ones it learns from, and `day` itself."""
    oldest = _newest(midnight(day), params) - timedelta(days=params.monitoring.harm.fresh_days)
    return Window(start=oldest.date(), end=day + timedelta(days=1))


def answers(table: pd.DataFrame, day: date, known: datetime, params: Params) -> np.ndarray:
    """The yardstick's answers to the rows of a day, in their order: shape (n,), or (n, classes) for a multiclass task.

    It learns from rows whose event lies in the `fresh_days` before ``known - train.embargo_hours``, and whose outcome was known
    at `known`. (Younger rows with an outcome are those that ended early; they are not like the others.)

    Args:
        table: feature rows with ``event_time``, ``known_at``, ``label``; of other days too.
        known: UTC, usually the midnight at which the day began.

    Raises:
        NotEnoughDataError: fewer than `train.min_rows` rows to learn from, or labels that do not vary.
    """
    end = _newest(known, params)
    start = end - timedelta(days=params.monitoring.harm.fresh_days)
    past = table[
        table["label"].notna() & (table["event_time"] >= start) & (table["event_time"] < end) & (table["known_at"] <= known)
    ]
    enough(len(past), params.train.min_rows, f"the yardstick of {day} ({start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M})")
    y_true, task, classes = past["label"].to_numpy(float), params.problem.task, len(params.problem.classes)
    if len(np.unique(y_true)) < 2:
        raise NotEnoughDataError(f"all {len(past):,} labels before {day} are {y_true[0]:g}", "raise monitoring.harm.fresh_days")
    check_labels(y_true, params)
    encoding = fit_encoding(load_module(params).learned, past, y_true, classes)
    settings = settings_of("xgboost", task, classes, params.train, SHAPE, INTEGERS, THREADS)
    model = XGBoost.fit(encode(encoding, past), y_true, settings, params.monitoring.harm.fresh_rounds, task)
    return model.predict(encode(encoding, _of(table, day)))


def remembered(day: date, version: str, read: Callable[[Window], pd.DataFrame], params: Params) -> pd.Series:
    """The yardstick's answers of a day by entity id, fitted once for each day, data version and parameters.

    Args:
        version: names the data that `read` reads, for instance the digest of the snapshot of the night on which the day matured.
        read: from days to their feature rows (``entity_id`` and what `answers` takes); not called when they are remembered.

    Returns:
        Series ``fresh``, its index ``entity_id``.
    """
    key = _key(day, version, params)
    digest = store.recall(key)
    if digest is None:
        table = read(needed(day, params))
        found = answers(table, day, midnight(day), params)
        made = pa.table({"entity_id": _of(table, day)["entity_id"].to_numpy(object), "fresh": list(found)})
        buffer = io.BytesIO()
        pq.write_table(made, buffer)
        digest = store.put(buffer.getvalue())
        store.remember(key, digest)
    return pq.read_table(io.BytesIO(store.get(digest))).to_pandas().set_index("entity_id")["fresh"]


def _newest(known: datetime, params: Params) -> datetime:
    return known - timedelta(hours=params.train.embargo_hours)


def _of(table: pd.DataFrame, day: date) -> pd.DataFrame:
    start = pd.Timestamp(day)
    return table[(table["event_time"] >= start) & (table["event_time"] < start + pd.Timedelta(days=1))]


def _key(day: date, version: str, params: Params) -> str:
    """Everything that the answers follow from."""
    harm = params.monitoring.harm
    told = [
        str(day),
        version,
        code_digest(params),
        params.train.digest(),
        f"{harm.fresh_days} {harm.fresh_rounds}",
        json.dumps(SHAPE),
    ]
    return "fresh-" + hashlib.sha256("/".join(told).encode()).hexdigest()
