"""From typed features to the matrix that a model sees. The same tables go into the ONNX graph, so nothing is encoded twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from ml.features.definitions import Feature

SMOOTHING = 50.0
"""Rows of the overall rate that are added to each category (additive smoothing)."""
LARGEST = np.finfo(np.float32).max

BASE = "(base)"
"""The column of contributions that no feature has; brackets, so that it cannot be a feature's name."""


class Encoding(BaseModel):
    """How features become columns, in this order: numeric as they are, cyclic as (sine, cosine), text as the smoothed label rate.

    `numeric` and `text` are the graph's inputs in order; a feature with a period in `periods` is cyclic. Text becomes one
    column: the mean of the label; or, for a multiclass label, one for each class. `rates` has an entry per such column,
    `priors` what unknown and missing text gets: one number, or one for each class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numeric: list[str]
    text: list[str]
    periods: dict[str, int]
    rates: dict[str, dict[str, float]]
    priors: list[float]

    @property
    def columns(self) -> list[str]:
        made = []
        for name in self.numeric:
            made += [f"{name}_sin", f"{name}_cos"] if name in self.periods else [name]
        return made + [column for name in self.text for column in self.text_columns(name)]

    @property
    def origins(self) -> list[str]:
        """The feature that each column is made from."""
        made = []
        for name in self.numeric:
            made += [name, name] if name in self.periods else [name]
        return made + [name for name in self.text for _ in self.priors]

    def text_columns(self, name: str) -> list[str]:
        """The columns of a text feature, in the order of `priors`."""
        return [name] if len(self.priors) == 1 else [f"{name}_{k}" for k in range(len(self.priors))]


def fit_encoding(features: Sequence[Feature], X: pd.DataFrame, y_true: np.ndarray, classes: int = 0) -> Encoding:
    """Learns the label's mean in each category.

    Args:
        features: the declared features.
        X: one column per feature, shape (n, features).
        y_true: labels, shape (n,), no NaN.
        classes: of a multiclass label 0 … classes-1; then the share of each class is learned instead.
    """
    targets = [y_true == k for k in range(classes)] if classes else [y_true]
    priors = [float(np.float32(target.mean())) for target in targets]
    names = [f.name for f in features if f.kind == "text"]
    return encoding_of(features, priors, {name: sums_by(X[name].to_numpy(), targets) for name in names})


def sums_by(keys: np.ndarray, targets: Sequence[np.ndarray]) -> pd.DataFrame:
    """By key: the sum of each target, in columns 0, 1, …, and the number of ``rows``; a missing key is none.

    Such sums of parts of a table can be added up.
    """
    columns: dict[int | str, np.ndarray] = {k: np.asarray(target, float) for k, target in enumerate(targets)}
    columns["rows"] = np.ones(len(keys))
    return pd.DataFrame(columns).groupby(keys).sum()


def encoding_of(features: Sequence[Feature], priors: list[float], sums: Mapping[str, pd.DataFrame]) -> Encoding:
    """The encoding by what `sums_by` found for each text feature."""
    encoding = Encoding(
        numeric=[f.name for f in features if f.kind != "text"],
        text=[f.name for f in features if f.kind == "text"],
        periods={f.name: f.period for f in features if f.kind == "cyclic"},
        rates={},
        priors=priors,
    )
    rates = {}
    for name in encoding.text:
        found = sums[name]
        for k, column in enumerate(encoding.text_columns(name)):
            smoothed = (found[k] + SMOOTHING * priors[k]) / (found["rows"] + SMOOTHING)
            rates[column] = {str(category): float(np.float32(rate)) for category, rate in smoothed.items()}
    return encoding.model_copy(update={"rates": rates})


def cycle(period: int) -> np.ndarray:
    """Sine and cosine of ``0 … period-1``: float32, shape (period, 2). Looked up, never computed twice, so that bits agree."""
    angle = 2 * np.pi * np.arange(period) / period
    return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def encode(encoding: Encoding, X: pd.DataFrame) -> np.ndarray:
    """float32, shape (n, len(encoding.columns)). Missing numbers stay NaN; infinite ones become the largest float32; unknown
    or missing text becomes the prior.
    """
    columns = []
    for name in encoding.numeric:
        values = X[name].to_numpy(np.float32)
        if name in encoding.periods:
            columns += list(cycle(encoding.periods[name])[values.astype(np.int64)].T)
        else:
            columns.append(
                np.clip(values, -LARGEST, LARGEST)
            )  # XGBoost refuses infinities; trees and clipped scales treat both alike
    for name in encoding.text:
        for column, prior in zip(encoding.text_columns(name), encoding.priors, strict=True):
            columns.append(X[name].map(encoding.rates[column]).fillna(prior).to_numpy(np.float32))
    return np.stack(columns, axis=1) if columns else np.empty((len(X), 0), np.float32)
