"""Climatology: the simplest model, which every other must beat. (The linear one is a family: `ml.training.models.Linear`.)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ml.training.climatology import Climatology, Rate, group_key


def fit_climatology(by: Sequence[str], X: pd.DataFrame, y_true: np.ndarray, classes: int = 0) -> Climatology:
    """Rates by group of the rows of `X` (n rows), labels (n,) without NaN; by class, when there are `classes` of them."""
    targets = np.stack([y_true == k for k in range(classes)], axis=1) if classes else y_true[:, None]
    means = pd.DataFrame(targets).astype(float).groupby(keys_of(by, X)).mean()
    return climatology_of(by, means, targets.mean(axis=0))


def climatology_of(by: Sequence[str], means: pd.DataFrame, overall: np.ndarray) -> Climatology:
    """Rates from means by key (a column for each class, or one), and the mean of all rows."""
    rates = {str(key): _rate(row) for key, row in zip(means.index, means.to_numpy(), strict=True)}
    return Climatology(by=list(by), rates=rates, overall=_rate(overall))


def predict_climatology(climatology: Climatology, X: pd.DataFrame) -> np.ndarray:
    """Answers, shape (n,) or (n, classes)."""
    return np.array([climatology.rates.get(key, climatology.overall) for key in keys_of(climatology.by, X)])


def _rate(means: np.ndarray) -> Rate:
    return float(means[0]) if len(means) == 1 else [float(mean) for mean in means]


def keys_of(by: Sequence[str], X: pd.DataFrame) -> list[str]:
    """The group of each row."""
    return [group_key(values) for values in zip(*(X[c].tolist() for c in by), strict=True)]
