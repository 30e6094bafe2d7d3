"""XGBoost on encoded matrices: seeded, single-purpose, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xgboost as xgb

from ml.config import Train


@dataclass(frozen=True)
class Fold:
    """Matrices of one tuning fold, quantised once and used by every trial."""

    fit: xgb.QuantileDMatrix
    validation: xgb.QuantileDMatrix
    y_validation: np.ndarray

    @classmethod
    def build(
        cls, X_fit: np.ndarray, y_fit: np.ndarray, X_validation: np.ndarray, y_validation: np.ndarray, params: Train
    ) -> Fold:
        bins = int(params.xgboost.get("max_bin", 256))
        fit = xgb.QuantileDMatrix(X_fit, y_fit, max_bin=bins, nthread=params.threads)
        validation = xgb.QuantileDMatrix(X_validation, y_validation, ref=fit, max_bin=bins, nthread=params.threads)
        return cls(fit, validation, y_validation)


def settings(params: Train, chosen: Mapping[str, float], integers: set[str], threads: int) -> dict[str, object]:
    """All of XGBoost's parameters: fixed ones, chosen ones, seed and threads."""
    tuned = {name: int(value) if name in integers else value for name, value in chosen.items()}
    base = {"objective": "binary:logistic", "eval_metric": "logloss", "seed": params.seed, "nthread": threads}
    return {**base, **params.xgboost, **tuned}


def fit_stopped(fold: Fold, parameters: Mapping[str, object], params: Train) -> tuple[float, int]:
    """Fits with early stopping on the fold's validation days.

    Returns:
        Best validation log-loss (nats) and the number of rounds at which it was reached.
    """
    booster = xgb.train(
        dict(parameters),
        fold.fit,
        params.max_rounds,
        evals=[(fold.validation, "validation")],
        early_stopping_rounds=params.early_stopping_rounds,
        verbose_eval=False,
    )
    return float(booster.best_score), booster.best_iteration + 1


def fit_rounds(X: np.ndarray, y_true: np.ndarray, parameters: Mapping[str, object], rounds: int) -> xgb.Booster:
    """Fits a fixed number of rounds on everything it is given: float32 (n, columns), labels (n,)."""
    bins = int(str(parameters.get("max_bin", 256)))
    matrix = xgb.QuantileDMatrix(X, y_true, max_bin=bins, nthread=int(str(parameters["nthread"])))
    return xgb.train(dict(parameters), matrix, rounds, verbose_eval=False)
