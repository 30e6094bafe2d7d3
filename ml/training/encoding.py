"""From typed features to the matrix that a model sees. The same tables go into the ONNX graph, so nothing is encoded twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from ml.features.definitions import Feature

SMOOTHING = 50.0
"""Rows of the overall rate that are added to each category (additive smoothing)."""


class Encoding(BaseModel):
    """How features become columns, in this order: numeric as they are, cyclic as (sine, cosine), text as the smoothed label rate.

    `numeric` and `text` are the graph's inputs in order; a feature with a period in `periods` is cyclic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numeric: list[str]
    text: list[str]
    periods: dict[str, int]
    rates: dict[str, dict[str, float]]
    prior: float

    @property
    def columns(self) -> list[str]:
        made = []
        for name in self.numeric:
            made += [f"{name}_sin", f"{name}_cos"] if name in self.periods else [name]
        return made + self.text


def fit_encoding(features: Sequence[Feature], X: pd.DataFrame, y_true: np.ndarray) -> Encoding:
    """Learns the label rate of each category.

    Args:
        features: the declared features.
        X: one column per feature, shape (n, features).
        y_true: labels 0/1, shape (n,), no NaN.
    """
    prior = float(np.float32(y_true.mean()))
    text = [f.name for f in features if f.kind == "text"]
    rates = {}
    for name in text:
        grouped = pd.Series(y_true).groupby(X[name].to_numpy()).agg(["sum", "count"])  # missing text is no category
        smoothed = (grouped["sum"] + SMOOTHING * prior) / (grouped["count"] + SMOOTHING)
        rates[name] = {str(category): float(np.float32(rate)) for category, rate in smoothed.items()}
    return Encoding(
        numeric=[f.name for f in features if f.kind != "text"],
        text=text,
        periods={f.name: f.period for f in features if f.kind == "cyclic"},
        rates=rates,
        prior=prior,
    )


def cycle(period: int) -> np.ndarray:
    """Sine and cosine of ``0 … period-1``: float32, shape (period, 2). Looked up, never computed twice, so that bits agree."""
    angle = 2 * np.pi * np.arange(period) / period
    return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def encode(encoding: Encoding, X: pd.DataFrame) -> np.ndarray:
    """float32, shape (n, len(encoding.columns)). Missing numbers stay NaN; unknown or missing text becomes the overall rate."""
    columns = []
    for name in encoding.numeric:
        values = X[name].to_numpy(np.float32)
        if name in encoding.periods:
            columns += list(cycle(encoding.periods[name])[values.astype(np.int64)].T)
        else:
            columns.append(values)
    for name in encoding.text:
        columns.append(X[name].map(encoding.rates[name]).fillna(encoding.prior).to_numpy(np.float32))
    return np.stack(columns, axis=1) if columns else np.empty((len(X), 0), np.float32)
