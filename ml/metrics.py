"""Metric functions: thin names over scikit-learn, with one NaN rule, for the three tasks.

Labels have shape (n,). Answers are probabilities of 1, (n,), for ``binary``; probabilities by class, (n, classes), for
``multiclass`` with labels 0 … classes-1; numbers, (n,), for ``regression``. A missing value in any argument is an error: a
metric over silently dropped rows is another metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from ml.config import Task

CLIP = 1e-6
"""Probabilities are clipped to [CLIP, 1 - CLIP] before a logarithm is taken."""
BINS = 15
"""Bins of equal count in `calibration_error`."""
SCORE: dict[Task, str] = {"binary": "auc", "multiclass": "macro_f1", "regression": "r2"}
"""The metric that people look at first, higher is better; decisions go by `losses`."""
LOSS: dict[Task, str] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}
"""The mean of `losses`, by name."""


@dataclass(frozen=True)
class Scoring:
    """What metrics need to know beside labels and answers; costs are in any unit, per row."""

    task: Task = "binary"
    threshold: float = 0.5
    false_alarm_cost: float = 1.0
    miss_cost: float = 1.0
    quantile: float = 0.5


SHARES = {
    "auc",
    "average_precision",
    "brier",
    "f1",
    "macro_f1",
    "accuracy",
    "calibration_error",
    "positives",
    "precision",
    "recall",
}
"""Figures that lie between 0 and 1; all others but R² are not negative."""


def losses(task: Task, y_true: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The loss of each row, shape (n,), lower is better: log-loss in nats, or squared error for regression."""
    if task == "binary":
        return log_losses(y_true, answers)
    _check(y_true, answers)
    if task == "regression":
        return np.asarray((answers - y_true) ** 2)
    picked = answers[np.arange(len(y_true)), y_true.astype(int)]
    return -np.log(np.clip(picked.astype(np.float64), CLIP, 1 - CLIP))


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


def f1(y_true: np.ndarray, y_proba: np.ndarray, threshold: float) -> float:
    """Harmonic mean of precision and recall of the decisions ``y_proba >= threshold``, 0–1, higher is better; 0 without a hit."""
    _check(y_true, y_proba)
    return float(sk.f1_score(y_true == 1, y_proba >= threshold, zero_division=0))


def cost(y_true: np.ndarray, y_proba: np.ndarray, scoring: Scoring) -> float:
    """Mean business cost a row of the decisions, ≥ 0, lower is better: false alarms and misses at their prices.

    >>> cost(np.array([0, 1, 1, 0]), np.array([0.9, 0.1, 0.9, 0.1]), Scoring(false_alarm_cost=1, miss_cost=3))
    1.0
    """
    _check(y_true, y_proba)
    said = y_proba >= scoring.threshold
    prices = np.where(said & (y_true == 0), scoring.false_alarm_cost, np.where(~said & (y_true == 1), scoring.miss_cost, 0.0))
    return float(prices.mean())


def calibration_error(y_true: np.ndarray, y_proba: np.ndarray) -> float:
    """Expected calibration error, 0–1, lower is better: mean |observed share − mean probability| over bins of equal count.

    Source: Naeini, Cooper and Hauskrecht 2015, AAAI; equal counts, because equal widths leave bins nearly empty. With few rows
    (below some hundreds) it is biased upwards.
    """
    _check(y_true, y_proba)
    parts = np.array_split(np.argsort(y_proba, kind="stable"), min(BINS, len(y_true)))
    return float(sum(abs(y_true[p].mean() - y_proba[p].mean()) * len(p) for p in parts) / len(y_true))


def pinball(y_true: np.ndarray, answers: np.ndarray, quantile: float) -> float:
    """Mean pinball loss at `quantile`, ≥ 0, lower is better; at 0.5 half the mean absolute error (Koenker and Bassett 1978).

    >>> pinball(np.array([10.0, 10.0]), np.array([8.0, 12.0]), 0.9)
    1.0
    """
    _check(y_true, answers)
    return float(sk.mean_pinball_loss(y_true, answers, alpha=quantile))


def summary(y_true: np.ndarray, answers: np.ndarray, scoring: Scoring = Scoring()) -> dict[str, float]:  # frozen
    """All metrics of the task. R² is NaN when the label does not vary."""
    _check(y_true, answers)
    if scoring.task == "regression":
        error = answers - y_true
        return {
            "r2": float(1 - (error**2).sum() / ((y_true - y_true.mean()) ** 2).sum()) if np.ptp(y_true) else float("nan"),
            "mse": float((error**2).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "mae": float(np.abs(error).mean()),
            "pinball": pinball(y_true, answers, scoring.quantile),
        }
    if scoring.task == "multiclass":
        said = answers.argmax(axis=1)
        return {
            "macro_f1": float(sk.f1_score(y_true, said, labels=range(answers.shape[1]), average="macro", zero_division=0)),
            "log_loss": float(losses("multiclass", y_true, answers).mean()),
            "accuracy": float(np.mean(said == y_true)),
            "calibration_error": calibration_error((said == y_true).astype(float), answers.max(axis=1)),
        }
    return {
        "auc": auc(y_true, answers),
        "log_loss": log_loss(y_true, answers),
        "brier": brier(y_true, answers),
        "average_precision": average_precision(y_true, answers),
        "f1": f1(y_true, answers, scoring.threshold),
        "calibration_error": calibration_error(y_true, answers),
        "cost": cost(y_true, answers, scoring),
        "positives": float(np.mean(y_true)),
    }


def by_class(y_true: np.ndarray, answers: np.ndarray, scoring: Scoring, names: list[str]) -> list[dict[str, float | str]]:
    """Precision, recall, F1 and number of rows of each class; nothing for regression. 0 where nothing was said or there.

    Args:
        names: of the classes of a multiclass task.
    """
    if scoring.task == "regression":
        return []
    said = answers.argmax(axis=1) if scoring.task == "multiclass" else (answers >= scoring.threshold).astype(int)
    shown = names if scoring.task == "multiclass" else ["0", "1"]
    parts = sk.precision_recall_fscore_support(y_true, said, labels=range(len(shown)), zero_division=0)
    rows = zip(shown, *parts, strict=True)
    return [{"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)} for c, p, r, f, n in rows]


def feature_score(task: Task, y_true: np.ndarray, values: np.ndarray) -> float:
    """How well one column alone tells the label, 0–1: AUC or 1 − AUC, whichever is larger; |Spearman's ρ| for the other tasks.

    Rows where `values` is NaN are left out; 0 when fewer than two are left, or nothing varies. For a multiclass label it is the
    largest over the classes, each against the rest.
    """
    there = ~np.isnan(values)
    y, x = y_true[there], values[there]
    if len(y) < 2 or not np.ptp(x):
        return 0.0
    if task == "regression":
        return float(abs(stats.spearmanr(x, y).statistic)) if np.ptp(y) else 0.0
    areas = [auc((y == c).astype(float), x) for c in (np.unique(y) if task == "multiclass" else [1.0]) if 0 < (y == c).mean() < 1]
    return max((max(area, 1 - area) for area in areas), default=0.0)


def _check(y_true: np.ndarray, answers: np.ndarray) -> None:
    if len(y_true) != len(answers) or y_true.ndim != 1 or answers.ndim not in (1, 2) or len(y_true) == 0:
        raise ValueError(f"y_true and answers must have n rows, n > 0, but got {y_true.shape} and {answers.shape}")
    if np.isnan(y_true).any() or np.isnan(answers).any():
        raise ValueError(f"NaN in y_true ({np.isnan(y_true).sum()} rows) or answers ({np.isnan(answers).sum()} values)")
