"""The fit by several workers, with what `ml.training.fit.fit_model` makes beside the trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ml import store
from ml.config import Params
from ml.features.definitions import Feature
from ml.refs import FeatureSetRef, Recipe, Window
from ml.settings import settings
from ml.training.encoding import encode
from ml.training.fit import Fitted, fit_model, member_settings
from ml.training.models import Linear, XGBoost
from ml.training.rows import rows_of
from ml.training.spread import run
from ml.training.spread.job import Job
from ml.training.spread.survey import shared_out, survey


@dataclass(frozen=True)
class Made:
    """A fit. `rows`: those it learned from, or a sample of so many as one process may hold; `cpu_seconds`: of other processes."""

    fitted: Fitted
    rows: pd.DataFrame
    workers: int = 1
    cpu_seconds: float = 0.0


def workers_for(recipe: Recipe) -> int:
    """How many workers fit it: EVERGREEN_TRAIN_WORKERS for XGBoost's trees, one for any other family."""
    return settings().train_workers if recipe.family == "xgboost" else 1


def fit(
    features: FeatureSetRef, window: Window, declared: Sequence[Feature], params: Params, recipe: Recipe, rounds: int
) -> Made:
    """A recipe fitted by as many workers as are set.

    Raises:
        NotEnoughDataError, EvergreenError: as `fit_model`.
        EvergreenError: a worker failed; see `ml.training.spread.run`.
    """
    if (workers := workers_for(recipe)) == 1:
        rows = rows_of(features, window)
        return Made(fit_model(rows, window, declared, params, recipe, rounds), rows)
    store.verify(features.digest)  # once for all: workers read parts of it only
    found, task = survey(features.digest, window, declared, params), params.problem.task
    shares, sample = shared_out(features.digest, window, found.learned.rows, workers)
    job = Job(
        features=features.digest,
        window=window,
        shares=shares,
        encoding=store.put(found.encoding.model_dump_json().encode()),
        settings=member_settings(params, recipe),
        rounds=rounds,
    )
    outcomes = run(job, settings().engine, settings().engine_address)
    linear = Linear.fit(encode(found.encoding, sample), sample["label"].to_numpy(), {"seed": params.train.seed}, 0, task)
    fitted = Fitted(
        members=tuple(XGBoost.load(store.get(digest), task) for digest in outcomes[0].boosters),
        encoding=found.encoding,
        climatology=found.climatology,
        linear=linear,
        learned=found.learned,
    )
    return Made(fitted, sample, workers, sum(outcome.cpu_seconds for outcome in outcomes))


def learned_rows(features: FeatureSetRef, window: Window, rows: int, workers: int) -> pd.DataFrame:
    """The rows that a model of so many workers learned from, as `fit` gave them; there are `rows` in the window."""
    return rows_of(features, window) if workers == 1 else shared_out(features.digest, window, rows, 1)[1]
