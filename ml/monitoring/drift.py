"""Drift of one feature: how far a current window is from the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ml.monitoring.profiles import NumericProfile, Profile, TextProfile, bin_counts

FLOOR = 1e-4
"""Share that an empty bin counts as, so that PSI stays finite."""


@dataclass(frozen=True)
class FeatureDrift:
    """`psi` ≥ 0, unbounded; `ks` 0–1 and its p-value for numeric features, None for text. `missing`: share of the current
    window.
    """

    name: str
    psi: float
    ks: float | None
    ks_p: float | None
    missing: float
    n: int


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of two count vectors of one shape (bins,); symmetric, 0 = same shares.

    ``Σ (c - r) · ln(c / r)`` over shares r, c; an empty bin counts as FLOOR. Rule of thumb: < 0.1 stable, > 0.2 shifted
    (Siddiqi 2006,
    Credit Risk Scorecards). NaN when either vector is empty or sums to 0.

    >>> round(psi(np.array([50, 50]), np.array([60, 40])), 4)
    0.0405
    """
    if reference.sum() == 0 or current.sum() == 0:
        return float("nan")
    r, c = (np.maximum(x / x.sum(), FLOOR) for x in (reference, current))
    return float(((c - r) * np.log(c / r)).sum())


def feature_drift(profile: Profile, X: pd.DataFrame) -> list[FeatureDrift]:
    """Drift of every profiled feature of `X` (n rows), largest PSI first; a missing value is a bin of its own.

    A feature that `X` lacks counts as missing in every row.
    """
    X = X.reindex(columns=[*profile.numeric, *profile.text])
    drifts = [_numeric(name, p, X[name].to_numpy(float)) for name, p in profile.numeric.items()]
    drifts += [_text(name, p, X[name]) for name, p in profile.text.items()]
    return sorted(drifts, key=lambda d: -np.nan_to_num(d.psi, nan=np.inf))


def _numeric(name: str, profile: NumericProfile, values: np.ndarray) -> FeatureDrift:
    known = values[~np.isnan(values)]
    reference = np.array([*profile.counts, profile.missing])
    current = np.append(bin_counts(known, np.array(profile.edges)), len(values) - len(known))
    if len(known) and profile.quantiles:
        ks, p = stats.ks_2samp(np.array(profile.quantiles), known, method="asymp")
    else:
        ks, p = float("nan"), float("nan")
    return FeatureDrift(name, psi(reference, current), float(ks), float(p), 1 - len(known) / max(len(values), 1), len(values))


def _text(name: str, profile: TextProfile, values: pd.Series) -> FeatureDrift:
    counts = values.value_counts()
    known = list(profile.counts)
    unseen = int(counts.drop(labels=[k for k in known if k in counts.index]).sum())
    reference = np.array([*profile.counts.values(), 0, profile.missing])
    current = np.array([*(int(counts.get(k, 0)) for k in known), unseen, int(values.isna().sum())])
    return FeatureDrift(name, psi(reference, current), None, None, float(values.isna().mean()), len(values))
