"""The simple models that XGBoost must beat: climatology (rate by a few features) and logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression

from ml.training.climatology import Climatology, group_key


def fit_climatology(by: Sequence[str], X: pd.DataFrame, y_true: np.ndarray) -> Climatology:
    """Rates by group of rows of `X` (n rows), labels (n,) without NaN."""
    rates = pd.Series(y_true).groupby(_keys(by, X)).mean()
    return Climatology(by=list(by), rates={str(k): float(v) for k, v in rates.items()}, overall=float(y_true.mean()))


def predict_climatology(climatology: Climatology, X: pd.DataFrame) -> np.ndarray:
    """Probabilities, shape (n,)."""
    return np.array([climatology.rates.get(key, climatology.overall) for key in _keys(climatology.by, X)])


def _keys(by: Sequence[str], X: pd.DataFrame) -> list[str]:
    return [group_key(values) for values in zip(*(X[c].tolist() for c in by), strict=True)]


class Logistic(BaseModel):
    """Logistic regression on the encoded matrix: missing → median, standardised, clipped at ±5 standard deviations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    medians: list[float]
    means: list[float]
    scales: list[float]
    weights: list[float]
    intercept: float

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Probabilities, shape (n,), for an encoded matrix (n, columns)."""
        logits = _standardise(matrix, self.medians, self.means, self.scales) @ np.array(self.weights) + self.intercept
        return 1 / (1 + np.exp(-logits))


def fit_logistic(matrix: np.ndarray, y_true: np.ndarray, seed: int) -> Logistic:
    """Fits on an encoded matrix (n, columns) and labels (n,); a column without any value counts as 0."""
    seen = ~np.isnan(matrix).all(axis=0)
    medians = np.zeros(matrix.shape[1])
    medians[seen] = np.nanmedian(matrix[:, seen], axis=0)
    filled = np.where(np.isnan(matrix), medians, matrix).astype(np.float64)
    means, scales = filled.mean(axis=0), filled.std(axis=0)
    scales[scales == 0] = 1.0
    model = LogisticRegression(max_iter=500, random_state=seed)
    model.fit(_standardise(matrix, medians, means, scales), y_true)
    return Logistic(medians=medians.tolist(), means=means.tolist(), scales=scales.tolist(), weights=model.coef_[0].tolist(),
                    intercept=float(model.intercept_[0]))  # fmt: skip


def _standardise(matrix: np.ndarray, medians: object, means: object, scales: object) -> np.ndarray:
    filled = np.where(np.isnan(matrix), np.asarray(medians), matrix)
    return np.clip((filled - np.asarray(means)) / np.asarray(scales), -5, 5)
