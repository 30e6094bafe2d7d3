"""Validation folds of the search: matrices built once, and what one recipe loses on them, pruned on the way.

A fit is one thread: each worker is a process of its own, and sums in another order would give another model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb

from ml.config import Params
from ml.features.definitions import Feature
from ml.metrics import losses
from ml.refs import Recipe, Window
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import enough, labelled
from ml.training.models import Linear, lightgbm_module, settings_of

Thresholds = Sequence[Sequence[float]]
"""By fold, by checkpoint: a trial whose best loss until there is above it is stopped. Infinity never stops."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe did on the folds.

    `loss` is the mean over all validation rows, None when pruned; `rounds` the median of the folds' best. `days` gives (sum of
    losses, rows) of each validation day. `curves` holds, by fold, the best loss until each checkpoint and at the fold's end, as
    the mean with the folds before (so that one fold's luck does not end a trial).
    """

    loss: float | None
    rounds: int
    cpu_seconds: float
    days: dict[str, tuple[float, int]]
    curves: list[list[float]]


@dataclass(frozen=True)
class Fold:
    """One fold's rows; each family's own form of them is made on first use, and kept."""

    X_fit: np.ndarray
    y_fit: np.ndarray
    X_validation: np.ndarray
    y_validation: np.ndarray
    days: np.ndarray
    params: Params

    @cached_property
    def xgboost(self) -> tuple[xgb.QuantileDMatrix, xgb.QuantileDMatrix]:
        """Quantised (fit, validation); the validation rows are cut at the fit rows' quantiles."""
        bins = int(self.params.train.xgboost.get("max_bin", 256))
        fit = xgb.QuantileDMatrix(self.X_fit, self.y_fit, max_bin=bins, nthread=1)
        return fit, xgb.QuantileDMatrix(self.X_validation, self.y_validation, ref=fit, max_bin=bins, nthread=1)

    @cached_property
    def lightgbm(self) -> tuple[Any, Any]:
        """Binned (fit, validation). Trials differ in leaf sizes, so no feature may be filtered by one trial's."""
        lightgbm, bins = lightgbm_module(), self.params.train.lightgbm.get("max_bin", 255)
        settings = {"max_bin": bins, "verbosity": -1, "feature_pre_filter": False, "num_threads": 1}
        fit = lightgbm.Dataset(self.X_fit, self.y_fit, params=settings, free_raw_data=False)
        return fit, lightgbm.Dataset(self.X_validation, self.y_validation, reference=fit, free_raw_data=False)


@dataclass(frozen=True)
class Folds:
    """All folds of a plan."""

    folds: list[Fold]
    params: Params

    def evaluate(self, recipe: Recipe, thresholds: Thresholds | None = None) -> Outcome:
        """Fits the recipe on each fold with early stopping, until it is done or above a threshold."""
        began = time.process_time()
        days: dict[str, tuple[float, int]] = {}
        curves: list[list[float]] = []
        rounds: list[int] = []
        ends: list[float] = []
        for k, fold in enumerate(self.folds):
            limits = thresholds[k] if thresholds else ()
            watch = Watch(self.params.tune.checkpoint, limits, ends, k == len(self.folds) - 1)
            answers, best = _fit(fold, recipe, watch)
            curves.append(watch.curve)
            ends.append(watch.best)
            rounds.append(best)
            if watch.pruned:
                return Outcome(None, int(np.median(rounds)), time.process_time() - began, {}, curves)
            days |= _by_day(fold, losses(self.params.problem.task, fold.y_validation, answers), days)
        total, rows = (sum(each) for each in zip(*days.values(), strict=True))
        return Outcome(total / rows, int(np.median(rounds)), time.process_time() - began, days, curves)


def build(table: pd.DataFrame, folds: Sequence[tuple[Window, Window]], features: Sequence[Feature], params: Params) -> Folds:
    """Encodes each fold's rows: the newest `tune.rows` of its fit days, and its validation days.

    Raises:
        NotEnoughDataError: a fold has too few labelled rows.
    """
    built = []
    for fit_window, validation_window in folds:
        fit_rows, validation = labelled(table, fit_window).tail(params.tune.rows), labelled(table, validation_window)
        enough(len(fit_rows), min(params.train.min_rows, params.tune.rows), f"fold {fit_window}")
        enough(len(validation), 1, f"validation fold {validation_window}")
        y_fit, y_validation = fit_rows["label"].to_numpy(), validation["label"].to_numpy()
        encoding = fit_encoding(features, fit_rows, y_fit, len(params.problem.classes))
        days = validation["event_time"].dt.date.astype(str).to_numpy()
        built.append(Fold(encode(encoding, fit_rows), y_fit, encode(encoding, validation), y_validation, days, params))
    return Folds(built, params)


class Watch(xgb.callback.TrainingCallback):
    """Looks at a fit's validation loss at checkpoints, for either library: notes the best until then, and says when to stop.

    `before` are the losses of the folds before, at their ends. At the end of the `last` nothing is judged: all is spent.
    """

    def __init__(self, every: int, thresholds: Sequence[float], before: Sequence[float], last: bool) -> None:
        super().__init__()
        self.every, self.thresholds, self.before, self.last = every, thresholds, before, last
        self.best, self.pruned, self.curve = float("inf"), False, list[float]()

    def see(self, rounds: int, loss: float) -> bool:
        """Whether to stop after so many rounds, the last having this loss."""
        self.best = min(self.best, loss)
        if rounds % self.every == 0:
            self._note(judged=True)
        return self.pruned

    def close(self, max_rounds: int) -> None:
        """The fold's end: a fit that stopped early has its best at the checkpoints it did not reach, and at the end."""
        while not self.pruned and len(self.curve) < max_rounds // self.every + 1:
            self._note(judged=not self.last)

    def _note(self, judged: bool) -> None:
        at = len(self.curve)
        self.curve.append(float(np.mean([*self.before, self.best])))
        self.pruned = judged and at < len(self.thresholds) and self.curve[-1] > self.thresholds[at]

    def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        """XGBoost's hook."""
        (history,) = evals_log["validation"].values()
        return self.see(epoch + 1, float(history[-1]))

    def lightgbm(self, environment: Any) -> None:
        """LightGBM's hook."""
        seen = environment.evaluation_result_list
        if self.see(environment.iteration + 1, float(seen[0][2])):
            raise lightgbm_module().callback.EarlyStopException(environment.iteration, seen)


def _fit(fold: Fold, recipe: Recipe, watch: Watch) -> tuple[np.ndarray, int]:
    """Answers on the validation rows at the best round, and that round's number."""
    params = fold.params
    task, train = params.problem.task, params.train
    integers = params.tune.integers(recipe.family)
    settings = settings_of(recipe.family, task, len(params.problem.classes), train, recipe.params, integers, 1)
    if recipe.family == "linear":
        answers = Linear.fit(fold.X_fit, fold.y_fit, settings, 1, task).predict(fold.X_validation)
        watch.see(0, float(losses(task, fold.y_validation, answers).mean()))
        return answers, 1
    if recipe.family == "xgboost":
        fit, validation = fold.xgboost
        booster = xgb.train(
            settings, fit, train.max_rounds, evals=[(validation, "validation")], verbose_eval=False,
            callbacks=[xgb.callback.EarlyStopping(rounds=train.early_stopping_rounds), watch],
        )  # fmt: skip
        watch.close(train.max_rounds)
        best = booster.best_iteration + 1
        if watch.pruned:
            return np.empty(0), best
        return np.asarray(booster.predict(validation, iteration_range=(0, best)), dtype=np.float64), best
    fit, validation = fold.lightgbm
    stopping = lightgbm_module().early_stopping(train.early_stopping_rounds, verbose=False)
    booster = lightgbm_module().train(
        settings, fit, train.max_rounds, valid_sets=[validation], valid_names=["validation"], callbacks=[stopping, watch.lightgbm]
    )
    watch.close(train.max_rounds)
    best = booster.best_iteration or train.max_rounds
    if watch.pruned:
        return np.empty(0), best
    return np.asarray(booster.predict(fold.X_validation, num_iteration=best), dtype=np.float64), best


def _by_day(fold: Fold, each: np.ndarray, before: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """(sum, rows) of each of the fold's days, on top of what other folds had on that day."""
    names, day_of = np.unique(fold.days, return_inverse=True)
    sums, counts = np.bincount(day_of, weights=each), np.bincount(day_of)
    made = {}
    for name, total, rows in zip(names, sums, counts, strict=True):
        already = before.get(str(name), (0.0, 0))
        made[str(name)] = (already[0] + float(total), already[1] + int(rows))
    return made
