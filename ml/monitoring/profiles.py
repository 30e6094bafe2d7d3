"""Reference profiles: what a model's inputs and answers looked like when it was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

BINS = 10
GRID = 200


class NumericProfile(BaseModel):
    """Counts of the reference in bins of (about) equal count, and its quantiles.

    `edges` are the inner bin edges (strictly increasing; bin i holds ``edges[i-1] < x <= edges[i]``), `counts` has one more
    entry. `quantiles` are the values at ``(i + ½) / GRID``: a sample that stands for the reference in a KS test. `missing`
    counts NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: list[float]
    counts: list[int]
    missing: int
    quantiles: list[float]


class TextProfile(BaseModel):
    """Counts by category; `missing` counts missing values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: dict[str, int]
    missing: int


class Profile(BaseModel):
    """Profiles by feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    numeric: dict[str, NumericProfile]
    text: dict[str, TextProfile]


def build_profile(numeric: Sequence[str], text: Sequence[str], X: pd.DataFrame) -> Profile:
    """Profiles the columns of `X` (n rows)."""
    numeric_profiles = {}
    for name in numeric:
        values = X[name].to_numpy(float)
        known = values[~np.isnan(values)]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.array([])
        grid = np.quantile(known, (np.arange(GRID) + 0.5) / GRID) if len(known) else np.array([])
        counts = bin_counts(known, edges)
        numeric_profiles[name] = NumericProfile(
            edges=edges.tolist(), counts=counts.tolist(), missing=len(values) - len(known), quantiles=grid.tolist()
        )
    text_profiles = {
        name: TextProfile(counts={str(k): int(v) for k, v in X[name].value_counts().items()}, missing=int(X[name].isna().sum()))
        for name in text
    }
    return Profile(rows=len(X), numeric=numeric_profiles, text=text_profiles)


def bin_counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts per bin, shape (len(edges) + 1,); `values` without NaN."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
