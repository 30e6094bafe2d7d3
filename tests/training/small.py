"""A search small enough for a test: parameters, rows, folds."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd

from ml.config import Params, load_params
from ml.features.definitions import Feature
from ml.refs import Window

FEATURES = [Feature("x", "a number"), Feature("hour", "an hour", "cyclic", period=24), Feature("place", "a place", "text")]
FOLDS = [
    (Window(start=date(2013, 1, 1), end=date(2013, 1, 12)), Window(start=date(2013, 1, 13), end=date(2013, 1, 19))),
    (Window(start=date(2013, 1, 1), end=date(2013, 1, 19)), Window(start=date(2013, 1, 20), end=date(2013, 1, 26))),
]


def small(**tune: object) -> Params:
    """The shipped parameters, on a table that fits in a test."""
    params = load_params()
    train = {"min_rows": 50, "max_rounds": 20, "early_stopping_rounds": 5, "threads": 1}
    changed = {"trials": 9, "startup": 3, "generation": 2, "rows": 2000, "checkpoint": 5, **tune}
    return params.model_copy(
        update={"train": params.train.model_copy(update=train), "tune": params.tune.model_copy(update=changed)}
    )


def table(curved: float = 3.0, rows: int = 3000) -> pd.DataFrame:
    """30 days from 1 January; the label depends on place and, as no line can say, on the square of x."""
    draw = np.random.default_rng(1)
    x, place = draw.normal(size=rows), draw.choice(["A", "B", "C"], rows)
    p = 1 / (1 + np.exp(-(curved * (x**2 - 1) + (place == "B"))))
    made = pd.DataFrame({"x": x, "hour": draw.integers(0, 24, rows).astype(float), "place": place})
    made["label"] = (draw.random(rows) < p) * 1.0
    made["event_time"] = pd.Timestamp("2013-01-01") + pd.to_timedelta(np.sort(draw.integers(0, 30 * 24, rows)), unit="h")
    made.loc[::50, "label"] = np.nan
    return made


def with_second(**tune: object) -> Params:
    return small(second="lightgbm", **{"second_trials": 2, **tune})
