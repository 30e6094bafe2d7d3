"""Small real models of each family, fitted on made-up rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pandas as pd

from ml.config import FamilyName, Params, Task, load_params
from ml.features.definitions import Feature, load_module
from ml.packaging.artifacts import dump
from ml.packaging.graph import export
from ml.refs import Recipe, Window
from ml.training.fit import Fitted, fit_model
from tests.sample_bundle import sample_bundle

FEATURES = [Feature("x", "a number"), Feature("hour", "an hour", "cyclic", period=24), Feature("place", "a place", "text")]
PLACES = ["EWR", "UA", "IAH"]
WHOLE = Window(start=date(2013, 1, 1), end=date(2013, 1, 31))


def made_up(features: Sequence[Feature], rows: int = 2000, seed: int = 1) -> pd.DataFrame:
    """30 days; the label depends on the first number and on which texts are EWR. Some numbers are missing."""
    draw = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for feature in features:
        if feature.kind == "text":
            columns[feature.name] = draw.choice(PLACES, rows)
        elif feature.kind == "cyclic":
            columns[feature.name] = draw.integers(0, feature.period, rows).astype(float)
        else:
            columns[feature.name] = np.where(draw.random(rows) < 0.05, np.nan, draw.normal(size=rows))
    number = next(f.name for f in features if f.kind == "numeric")
    texts = [columns[f.name] == "EWR" for f in features if f.kind == "text"]
    margin = 2 * np.nan_to_num(columns[number]) + np.sum(texts, axis=0)
    label = (draw.random(rows) < 1 / (1 + np.exp(-margin))) * 1.0
    times = pd.Timestamp("2013-01-01") + pd.to_timedelta(np.sort(draw.integers(0, 30 * 24, rows)), unit="h")
    return pd.DataFrame(columns | {"label": label, "event_time": times})


def small_params(task: Task = "binary", ensemble: int = 1, climatology: Sequence[str] = ("place",)) -> Params:
    """The shipped parameters, for a model that fits in a test."""
    params = load_params()
    classes = ["a", "b", "c"] if task == "multiclass" else []
    return params.model_copy(
        update={
            "train": params.train.model_copy(update={"min_rows": 50, "threads": 1, "ensemble": ensemble}),
            "problem": params.problem.model_copy(update={"task": task, "classes": classes}),
            "baseline": params.baseline.model_copy(update={"climatology": list(climatology)}),
        }
    )


def fitted(
    family: FamilyName = "xgboost", task: Task = "binary", ensemble: int = 1, seed: int = 1, table: pd.DataFrame | None = None
) -> Fitted:
    """A model of `FEATURES`; 20 rounds of depth 3 that see four rows of five, so that members of an ensemble differ."""
    rows = made_up(FEATURES, seed=seed) if table is None else table
    if task == "multiclass":
        rows = rows.assign(label=rows["label"] + (rows["x"] > 1))
    if task == "regression":
        rows = rows.assign(label=rows["label"] * 10 + rows["hour"])
    sampling = {"xgboost": {"subsample": 0.8}, "lightgbm": {"bagging_fraction": 0.8}, "linear": {}}[family]
    depth = {} if family == "linear" else {"max_depth": 3, "learning_rate": 0.3}
    return fit_model(rows, WHOLE, FEATURES, small_params(task, ensemble), Recipe(family=family, params=depth | sampling), 20)


def served(family: FamilyName = "xgboost") -> Fitted:
    """A model of the shipped problem's features, which a service can compute."""
    learned = load_module(load_params()).learned
    recipe = Recipe(family=family, params={} if family == "linear" else {"max_depth": 3})
    return fit_model(made_up(learned), WHOLE, learned, small_params(climatology=("origin",)), recipe, 20)


def explained_bundle(model: Fitted) -> bytes:
    """A bundle of `served` with its explainer."""
    return sample_bundle(model=export(model), explainer=dump(model))
