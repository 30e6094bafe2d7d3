"""Metric functions: thin names over scikit-learn, with one NaN rule.

Arrays have shape (n,). A missing value in any argument is an error: a metric over silently dropped rows is another metric.
"""

from __future__ import annotations

import numpy as np
from sklearn import metrics as sk

CLIP = 1e-6
"""Probabilities are clipped to [CLIP, 1 - CLIP] before a logarithm is taken."""


def log_losses(y_true: np.ndarray, y_proba: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each row, in nats; 0 is perfect, ln 2 ≈ 0.693 a coin.

    >>> log_losses(np.array([1.0, 0.0]), np.array([0.5, 0.5])).round(3).tolist()
    [0.693, 0.693]
    """
    _check(y_true, y_proba)
    p = np.clip(y_proba.astype(np.float64), CLIP, 1 - CLIP)
    return -np.where(y_true == 1, np.log(p), np.log1p(-p))


def log_loss(y_true: np.ndarray, y_proba: np.ndarray) -> float:
    """Mean of `log_losses`; lower is better."""
    return float(log_losses(y_true, y_proba).mean())


def auc(y_true: np.ndarray, y_proba: np.ndarray) -> float:
    """Area under the ROC curve, 0–1, higher is better; NaN when only one class is present (it is undefined then).

    >>> auc(np.array([0, 1, 1]), np.array([0.1, 0.4, 0.3]))
    1.0
    """
    _check(y_true, y_proba)
    return float(sk.roc_auc_score(y_true, y_proba)) if len(np.unique(y_true)) == 2 else float("nan")


def brier(y_true: np.ndarray, y_proba: np.ndarray) -> float:
    """Mean squared difference of probability and label, 0–1, lower is better (Brier 1950)."""
    _check(y_true, y_proba)
    return float(np.mean((y_proba - y_true) ** 2))


def average_precision(y_true: np.ndarray, y_proba: np.ndarray) -> float:
    """Area under the precision-recall curve, 0–1, higher is better; NaN without a positive."""
    _check(y_true, y_proba)
    return float(sk.average_precision_score(y_true, y_proba)) if y_true.any() else float("nan")


def summary(y_true: np.ndarray, y_proba: np.ndarray) -> dict[str, float]:
    """All of the above, with the share of positives."""
    return {
        "auc": auc(y_true, y_proba),
        "log_loss": log_loss(y_true, y_proba),
        "brier": brier(y_true, y_proba),
        "average_precision": average_precision(y_true, y_proba),
        "positives": float(np.mean(y_true)),
    }


def _check(y_true: np.ndarray, y_proba: np.ndarray) -> None:
    if y_true.shape != y_proba.shape or y_true.ndim != 1 or len(y_true) == 0:
        raise ValueError(f"y_true and y_proba must have one shape (n,), n > 0, but got {y_true.shape} and {y_proba.shape}")
    if np.isnan(y_true).any() or np.isnan(y_proba).any():
        raise ValueError(f"NaN in y_true ({np.isnan(y_true).sum()} rows) or y_proba ({np.isnan(y_proba).sum()} rows)")
