"""Expected metrics of answers without labels, and where the realised ones will lie: the arithmetic of `ml.monitoring.estimate`.

Every metric here is a function of a few sums over the rows whose label is 1. So labels that are known, expected ones and drawn
ones go through the same function.

Source: Kivimäki, Białek, Kuberski and Nurminen 2025, Performance Estimation in Binary Classification Using Calibrated
Confidence, arXiv:2505.05295. Ours are the intervals: rows of one day share what made the whole day better or worse than answered,
and labels of earlier days tell by how much days do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import special, stats

from ml import config, metrics
from ml.metrics import Scoring
from ml.refs import Ref

STEPS = 15
"""Of Newton's method, at most one unit of log-odds each."""
_SHARES = metrics.SHARES | {"true_positives", "false_positives", "false_negatives", "true_negatives"}


@dataclass(frozen=True)
class Answers:
    """A model's answers: probabilities of 1, shape (n,), and the day of each row, shape (n,), any comparable type."""

    y_proba: np.ndarray
    days: np.ndarray

    def __post_init__(self) -> None:
        if self.y_proba.shape != self.days.shape or self.y_proba.ndim != 1:
            raise ValueError(f"y_proba and days must have one shape (n,), but got {self.y_proba.shape}, {self.days.shape}")
        if not ((self.y_proba >= 0) & (self.y_proba <= 1)).all():
            raise ValueError("probabilities must lie in [0, 1], without NaN")


@dataclass(frozen=True)
class Labelled(Answers):
    """Answers whose labels, 0 or 1, shape (n,), are there."""

    y_true: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.y_true.shape != self.days.shape or not np.isin(self.y_true, (0, 1)).all():
            raise ValueError(f"y_true must be 0 or 1 for each of {len(self.days)} rows, but has shape {self.y_true.shape}")

    def __getitem__(self, chosen: np.ndarray) -> Self:
        """The chosen rows, by a mask of shape (n,)."""
        return type(self)(self.y_proba[chosen], self.days[chosen], self.y_true[chosen])

    def __add__(self, later: Labelled) -> Labelled:
        return Labelled(*(np.concatenate(pair) for pair in zip(self._arrays, later._arrays, strict=True)))

    def newest(self, days: int) -> Self:
        """Rows of the last `days` days that are there."""
        return self[np.isin(self.days, np.unique(self.days)[-days:])]

    @property
    def varies(self) -> bool:
        return 0 < self.y_true.sum() < len(self.y_true)

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.y_proba, self.days, self.y_true


class Figure(Ref):
    """An expected value, and where the realised one will lie with the wanted confidence; None: undefined, or not to be told."""

    value: float | None
    low: float | None = None
    high: float | None = None


def realised(labelled: Labelled, scoring: Scoring) -> dict[str, float]:
    """The metrics of `Estimate`, from labels; NaN where undefined (AUC of one class, precision without an alarm)."""
    terms = _Terms.of(labelled.y_proba, scoring.threshold)
    found = terms.metrics(labelled.y_true.astype(np.float64) @ terms.columns, 0.0, scoring)
    return {name: float(value) for name, value in found.items()}


def expected(y_proba: np.ndarray, chance: np.ndarray, scoring: Scoring) -> dict[str, float]:
    """Expected metrics of answers if each label is 1 with probability `chance`, independently.

    Sums over rows are exact. Ratios are of expected parts: AUC is the expected number of pairs in the right order over the
    expected number of pairs of a positive and a negative, in which no row is paired with itself.

    Args:
        y_proba: what was answered, shape (n,); it orders rows and is what the loss is of.
        chance: shape (n,); the answers themselves, or what they were recalibrated to.

    >>> expected(np.array([0.5, 0.5]), np.array([0.5, 0.5]), Scoring())["auc"]
    0.5
    """
    terms = _Terms.of(y_proba, scoring.threshold)
    found = terms.metrics(chance @ terms.columns, float((chance * (1 - chance)).sum()), scoring)
    return {name: float(value) for name, value in found.items()}


def recalibrated(y_proba: np.ndarray, intercept: float, slope: float) -> np.ndarray:
    """Answers with ``intercept + slope · log-odds`` as their log-odds, shape (n,)."""
    return np.asarray(special.expit(intercept + slope * _log_odds(y_proba)))


def recalibration(labelled: Labelled) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of the label on the answer's log-odds; both classes must be there.

    Newton's method by hand: for two numbers it takes a twentieth of scikit-learn's time, and each estimate needs four. With
    labels that the answers separate there is no best slope; it ends at a large one.
    """
    x, found = _log_odds(labelled.y_proba), np.array([0.0, 1.0])
    for _ in range(STEPS):
        p = special.expit(found[0] + found[1] * x)
        weight, missed = p * (1 - p), labelled.y_true - p
        curve = np.array([[weight.sum(), weight @ x], [weight @ x, weight @ x**2]]) + 1e-6 * np.eye(2)
        found = found + np.clip(np.linalg.solve(curve, [missed.sum(), missed @ x]), -1, 1)
    return float(found[0]), float(found[1])


def forecast(answers: Answers, known: Labelled, scoring: Scoring, params: config.Estimate, seed: int) -> dict[str, Figure]:
    """Expected metrics and their intervals, from labelled rows of earlier days (both classes); no checks.

    An interval is of what labels will say on these very rows. It has three parts, each drawn anew `resamples` times: which
    labelled days we happened to have; for each day to come, how far it lies as a whole above or below its answers; each label.
    With fewer than two labelled days there is none.
    """
    line = recalibration(known)
    chance = recalibrated(answers.y_proba, *line)
    values = expected(answers.y_proba, chance, scoring)
    shocks = _shocks(known, recalibrated(known.y_proba, *line), params.confidence)
    if len(shocks.level) < 2:
        return {name: Figure(value=finite(value)) for name, value in values.items()}
    drawn = _drawn(answers, chance, shocks, scoring, params.resamples, seed)
    tail, found = (1 - params.confidence) / 2, {}
    for name, value in values.items():
        # shocks pull the average draw a little towards chance, the recalibration has them already: the spread is what is wanted
        offsets = drawn[name][~np.isnan(drawn[name])]
        offsets = offsets - offsets.mean() if len(offsets) else np.full(1, np.nan)
        low, high = value + np.quantile(offsets, [tail, 1 - tail])
        low, high = np.clip([low, high], 0, 1 if name in _SHARES else np.inf)
        found[name] = Figure(value=finite(value), low=finite(low), high=finite(high))
    return found


# ---- arithmetic


@dataclass(frozen=True)
class _Terms:
    """All metrics are functions of a few sums over the rows whose label is 1: `columns`, shape (n, 5), and of constants."""

    columns: np.ndarray
    """1, log-loss and Brier score of label 1 less those of 0, decision, midrank."""
    log_loss: float
    """Sum if all labels were 0."""
    brier: float
    said: float

    @classmethod
    def of(cls, y_proba: np.ndarray, threshold: float) -> Self:
        p = np.clip(y_proba.astype(np.float64), metrics.CLIP, 1 - metrics.CLIP)
        said = (y_proba >= threshold).astype(np.float64)
        columns = [np.ones(len(p)), np.log1p(-p) - np.log(p), 1 - 2 * y_proba, said, stats.rankdata(y_proba)]
        return cls(np.column_stack(columns), float(-np.log1p(-p).sum()), float((y_proba**2).sum()), float(said.sum()))

    def metrics(self, sums: np.ndarray, variance: float, scoring: Scoring) -> dict[str, np.ndarray]:
        """Metrics by name, each of the shape of ``sums[..., 0]``.

        Args:
            sums: shape (…, 5): `columns` summed over the positive rows, or their expected sums.
            variance: of the number of positives; 0 for known labels.
        """
        n, positives = len(self.columns), sums[..., 0]
        hits, squares = sums[..., 3], positives**2 + variance  # E[P²]
        alarms, misses = self.said - hits, positives - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            # Mann-Whitney by ranks: won = Σ rank - P(P + 1)/2, of P(n - P) pairs
            auc = (sums[..., 4] - (squares + positives) / 2) / (n * positives - squares)
            precision, recall = hits / np.float64(self.said), hits / positives
        return {
            "auc": auc,
            "log_loss": (self.log_loss + sums[..., 1]) / n,
            "brier": (self.brier + sums[..., 2]) / n,
            "accuracy": 1 - (alarms + misses) / n,
            "precision": precision,
            "recall": recall,
            "positives": positives / n,
            "cost": (scoring.false_alarm_cost * alarms + scoring.miss_cost * misses) / n,
            "true_positives": hits / n,
            "false_positives": alarms / n,
            "false_negatives": misses / n,
            "true_negatives": 1 - (hits + alarms + misses) / n,
        }


@dataclass(frozen=True)
class _Shocks:
    """How labelled days lay, each as a whole, off what was recalibrated: log-odds `margin` came out as
    ``margin + level + tilt · (margin - centre)``; `level` and `tilt`, shape (days,).
    """

    level: np.ndarray
    tilt: np.ndarray
    centre: float

    def drawn(self, margin: np.ndarray, block_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Log-odds of rows of other days, each hit by a day that is drawn from a drawn set of labelled days: shape (n,)."""
        k = len(self.level)
        hit = rng.integers(0, k, k)[rng.integers(0, k, int(block_of.max()) + 1)][block_of]
        return np.asarray(margin + self.level[hit] + self.tilt[hit] * (margin - self.centre))


def _shocks(known: Labelled, chance: np.ndarray, confidence: float) -> _Shocks:
    """Each day's shock is the most likely one, under a standard normal prior that keeps a day of one class finite.

    Their spread is that of days plus the noise of few rows, which is taken off; and it is estimated from few days, for which it
    is widened, as Student's t is wider than the normal (Hesterberg 2015, see `ml.significance`).

    Args:
        chance: the recalibrated probabilities of the labelled rows.
    """
    blocks, block_of = np.unique(known.days, return_inverse=True)
    k, margin = len(blocks), _log_odds(chance)
    x = margin - margin.mean()
    shocks, noise = np.zeros((2, k)), np.zeros((2, k))
    for _ in range(STEPS):
        p = special.expit(margin + shocks[0][block_of] + shocks[1][block_of] * x)
        weight, missed = p * (1 - p), known.y_true - p
        level, mixed, tilt = (np.bincount(block_of, weight * x**power) for power in (0, 1, 2))
        slope = np.stack([np.bincount(block_of, missed), np.bincount(block_of, missed * x)]) - shocks
        inverse = np.stack([tilt + 1, level + 1]) / ((level + 1) * (tilt + 1) - mixed**2)
        cross = mixed / ((level + 1) * (tilt + 1) - mixed**2)
        shocks = shocks + np.clip(inverse * slope - cross * slope[::-1], -1, 1)
        noise = inverse
    if k < 2:
        return _Shocks(shocks[0], shocks[1], float(margin.mean()))
    end = (1 + confidence) / 2
    wider = float(stats.t.ppf(end, k - 1) / stats.norm.ppf(end)) * math.sqrt(k / (k - 1))
    real = np.sqrt(np.maximum(0, 1 - noise.mean(axis=1) / np.maximum(shocks.var(axis=1), 1e-12)))
    level, tilt = shocks * real[:, None] * wider
    return _Shocks(level, tilt, float(margin.mean()))


def _drawn(
    answers: Answers, chance: np.ndarray, shocks: _Shocks, scoring: Scoring, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Metrics of drawn labels, each of shape (resamples,)."""
    rng, terms = np.random.default_rng(seed), _Terms.of(answers.y_proba, scoring.threshold)
    _, block_of = np.unique(answers.days, return_inverse=True)
    margin, sums = _log_odds(chance), np.empty((resamples, terms.columns.shape[1]))
    for i in range(resamples):
        labels = rng.random(len(margin)) < special.expit(shocks.drawn(margin, block_of, rng))
        sums[i] = terms.columns[labels].sum(axis=0)
    return terms.metrics(sums, 0.0, scoring)


def _log_odds(y_proba: np.ndarray) -> np.ndarray:
    return np.asarray(special.logit(np.clip(y_proba.astype(np.float64), metrics.CLIP, 1 - metrics.CLIP)))


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
