"""The model of one training run: what the search chose, fitted on the whole train window, and the simple models beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xgboost as xgb

from ml.config import Params
from ml.errors import NotEnoughDataError
from ml.features.definitions import Feature
from ml.refs import Window
from ml.training import baseline, booster
from ml.training.climatology import Climatology
from ml.training.encoding import Encoding, encode, fit_encoding
from ml.training.tuning import Winner


@dataclass(frozen=True)
class Fitted:
    """Everything that `fit_model` learned."""

    booster: xgb.Booster
    encoding: Encoding
    climatology: Climatology
    logistic: baseline.Logistic


def labelled(table: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Rows of the window's days that have a label, in their order."""
    inside = (table["event_time"] >= pd.Timestamp(window.start)) & (table["event_time"] < pd.Timestamp(window.end))
    return table[inside & table["label"].notna()]


def fold_objective(
    table: pd.DataFrame, folds: Sequence[tuple[Window, Window]], features: Sequence[Feature], params: Params
) -> Callable[[Mapping[str, float]], tuple[float, int]]:
    """Builds each fold's matrices once; the returned function gives (mean validation log-loss, median rounds) of some
    settings.
    """
    built = []
    for fit_window, validation_window in folds:
        fit_rows = labelled(table, fit_window).tail(params.tune.rows)
        validation = labelled(table, validation_window)
        _enough(len(fit_rows), min(params.train.min_rows, params.tune.rows), f"fold {fit_window}")
        _enough(len(validation), 1, f"validation fold {validation_window}")
        y_fit, y_validation = fit_rows["label"].to_numpy(), validation["label"].to_numpy()
        encoding = fit_encoding(features, fit_rows, y_fit)
        built.append(
            booster.Fold.build(encode(encoding, fit_rows), y_fit, encode(encoding, validation), y_validation, params.train)
        )
    integers = {name for name, d in params.tune.space.items() if d.int}

    def objective(chosen: Mapping[str, float]) -> tuple[float, int]:
        # Each worker is a task of its own, so one thread each; the number is fixed, as sums in another order differ.
        parameters = booster.settings(params.train, chosen, integers, threads=1)
        outcomes = [booster.fit_stopped(fold, parameters, params.train) for fold in built]
        return float(np.mean([loss for loss, _ in outcomes])), int(np.median([rounds for _, rounds in outcomes]))

    return objective


def fit_model(table: pd.DataFrame, window: Window, features: Sequence[Feature], params: Params, winner: Winner) -> Fitted:
    """Fits the winner's settings and rounds, climatology and logistic regression on the same rows.

    Raises:
        NotEnoughDataError: fewer labelled rows than `train.min_rows`, or only one class among them.
    """
    rows = labelled(table, window)
    _enough(len(rows), params.train.min_rows, f"train window {window}")
    y_true = rows["label"].to_numpy()
    if len(np.unique(y_true)) < 2:
        raise NotEnoughDataError(
            f"all {len(rows):,} labels of {window} are {y_true[0]:g}", "check problem.label, or widen train.window_days"
        )
    encoding = fit_encoding(features, rows, y_true)
    matrix = encode(encoding, rows)
    integers = {name for name, d in params.tune.space.items() if d.int}
    parameters = booster.settings(params.train, winner.params, integers, params.train.threads)
    return Fitted(
        booster=booster.fit_rounds(matrix, y_true, parameters, winner.rounds),
        encoding=encoding,
        climatology=baseline.fit_climatology(params.baseline.climatology, rows, y_true),
        logistic=baseline.fit_logistic(matrix, y_true, params.train.seed),
    )


def _enough(found: int, wanted: int, where: str) -> None:
    if found < wanted:
        raise NotEnoughDataError(
            f"{where} has {found:,} labelled rows, at least {wanted:,} are wanted",
            "land more days before as_of, or lower train.min_rows",
        )
