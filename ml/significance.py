"""Is a difference more than noise? By whole days, because rows of one day share weather and delays; DeLong beside it.

The whole holdout is resampled; slices, many comparisons on few days, take Student's t. All intervals of the bootstrap are
*expanded percentile* intervals (Hesterberg 2015, The American Statistician 69:371, section 6.1): the plain percentile interval
is too short for few blocks, by about what the normal is narrower than Student's t; reading the bootstrap distribution further
out makes up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

TAIL_SAMPLES = 20
"""So many resamples at least lie beyond each end of an interval; a narrow tail gets more resamples than were asked for."""
MAX_RESAMPLES = 200_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided interval; for differences of losses, negative = the first is better."""

    mean: float
    low: float
    high: float
    rows: int
    days: int

    def verdict(self, margin: float) -> str:
        """``better``: below zero for certain; ``equivalent``: not worse by more than `margin` for certain; else ``worse``,
        which includes "cannot be told". A NaN is ``worse``.

        Source: non-inferiority by a confidence bound (Piaggio et al. 2012, JAMA 308:2594).
        """
        if self.high < 0:
            return "better"
        return "equivalent" if self.high <= margin else "worse"


def paired_by_day(
    first: np.ndarray, second: np.ndarray, days: np.ndarray, confidence: float, resamples: int, seed: int
) -> Interval:
    """Bootstrap interval of ``mean(first - second)`` over rows, resampling days as blocks.

    Method: non-overlapping block bootstrap (Carlstein 1986, Annals of Statistics 14:1171), paired on rows.

    Args:
        first, second: losses of the same rows, shape (n,), no NaN.
        days: the block of each row, shape (n,), any comparable type.
        confidence: of the two-sided interval, e.g. 0.95.
        resamples: at least so many.

    Raises:
        ValueError: shapes differ, NaN, or fewer than two days (a block bootstrap of one block has no spread).
    """
    if not first.shape == second.shape == days.shape or first.ndim != 1:
        raise ValueError(f"first, second, days must have one shape (n,), but got {first.shape}, {second.shape}, {days.shape}")
    difference = first - second
    if np.isnan(difference).any():
        raise ValueError(f"NaN in {int(np.isnan(difference).sum())} of {len(difference)} losses")
    _, block_of = np.unique(days, return_inverse=True)
    return paired_sums(np.bincount(block_of, weights=difference), np.bincount(block_of), confidence, resamples, seed)


def paired_sums(sums: np.ndarray, counts: np.ndarray, confidence: float, resamples: int, seed: int) -> Interval:
    """`paired_by_day` of differences that are summed up by day: sums and numbers of rows, shape (days,)."""
    weights = _draws(len(sums), confidence, resamples, seed)
    means = (weights @ sums) / (weights @ counts)
    low, high = _ends(means, len(sums), confidence)
    return Interval(float(sums.sum() / counts.sum()), low, high, int(counts.sum()), len(sums))


def clustered_by_day(first: np.ndarray, second: np.ndarray, days: np.ndarray, confidence: float) -> Interval:
    """Student's t interval of ``mean(first - second)`` over rows, with days as clusters and one degree of freedom less.

    For few days at a high confidence, as slices have: a resample of k days never leaves the range of their means, so that a
    percentile interval of 2 days is at most a 50 % one. This one is wide instead.

    Source: cluster-robust variance of a mean, (k / (k - 1)) · Σ(residual sum of a cluster)² / n², with t of k - 1 (Cameron and
    Miller 2015, Journal of Human Resources 50:317, equations 10-12 and section VI.D).

    Args:
        first, second: losses of the same rows, shape (n,), no NaN.
        days: the cluster of each row, shape (n,).

    Raises:
        ValueError: fewer than two days.
    """
    _, block_of = np.unique(days, return_inverse=True)
    counts = np.bincount(block_of)
    k, n = len(counts), len(days)
    if k < 2:
        raise ValueError(f"at least two days are needed, but got {k}")
    difference = first - second
    mean = float(difference.mean())
    residuals = np.bincount(block_of, weights=difference - mean)
    half = float(stats.t.ppf((1 + confidence) / 2, k - 1) * math.sqrt(k / (k - 1) * (residuals**2).sum()) / n)
    return Interval(mean, mean - half, mean + half, n, k)


def jackknife_by_day(
    measure: Callable[[np.ndarray], Mapping[str, float]], days: np.ndarray, confidence: float
) -> dict[str, tuple[float, float]]:
    """Intervals of any figures, made by leaving out one day at a time: Student's t with one degree of freedom less than days.

    Source: delete-one-group jackknife, variance (k - 1) / k · Σ(θ₋ᵢ - mean of θ₋)² (Efron and Tibshirani 1993, An Introduction
    to the Bootstrap, chapter 11). It suits smooth figures; for a median or a maximum it is wrong.

    Args:
        measure: from row numbers, shape (m,), to figures by name.
        days: shape (n,).

    Returns:
        (low, high) by name; NaN where a figure is NaN without some day.

    Raises:
        ValueError: fewer than two days.
    """
    blocks, block_of = np.unique(days, return_inverse=True)
    k = len(blocks)
    if k < 2:
        raise ValueError(f"at least two days are needed, but got {k}")
    whole = measure(np.arange(len(days)))
    without = [measure(np.flatnonzero(block_of != block)) for block in range(k)]
    reach, ends = float(stats.t.ppf((1 + confidence) / 2, k - 1)), {}
    for name, value in whole.items():
        left_out = np.array([figures[name] for figures in without])
        half = reach * math.sqrt((k - 1) / k * ((left_out - left_out.mean()) ** 2).sum())
        ends[name] = (value - half, value + half)
    return ends


def auc_by_day(
    y_true: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    days: np.ndarray,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Day-block bootstrap interval of ``auc(first) - auc(second)``; here positive = the first is better.

    The area is a sum over pairs (positive, negative), so one table of pairs won by day and day gives every resample exactly.

    Args:
        y_true: labels 0/1, shape (n,); `first`, `second`: scores, shape (n,); `days`: shape (n,).

    Returns:
        NaN bounds when a class is missing.
    """
    blocks, block_of = np.unique(days, return_inverse=True)
    won = _won(y_true, first, block_of, len(blocks)) - _won(y_true, second, block_of, len(blocks))
    positives = np.bincount(block_of, weights=y_true == 1, minlength=len(blocks))
    negatives = np.bincount(block_of, weights=y_true == 0, minlength=len(blocks))
    weights = _draws(len(blocks), confidence, resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = np.einsum("bi,bi->b", weights @ won, weights) / ((weights @ positives) * (weights @ negatives))
        mean = float(won.sum() / (positives.sum() * negatives.sum()))
    low, high = _ends(areas[~np.isnan(areas)], len(blocks), confidence)
    return Interval(mean, low, high, len(y_true), len(blocks))


def delong(y_true: np.ndarray, first: np.ndarray, second: np.ndarray, confidence: float) -> Interval:
    """DeLong's interval of ``auc(first) - auc(second)`` on the same rows; positive = the first is better.

    It takes rows as independent, which rows of one day are not: it is shown beside the day-block interval and decides nothing.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; by midranks as in Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389. `days` of the answer is 0: no blocks. NaN when a class is missing.
    """
    positive = y_true == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        return Interval(math.nan, math.nan, math.nan, m + n, 0)
    areas, wins, losses = [], [], []
    for scores in (first, second):
        whole = stats.rankdata(scores)
        wins.append((whole[positive] - stats.rankdata(scores[positive])) / n)
        losses.append(1 - (whole[~positive] - stats.rankdata(scores[~positive])) / m)
        areas.append(wins[-1].mean())
    spread = np.var(wins[0] - wins[1], ddof=1) / m + np.var(losses[0] - losses[1], ddof=1) / n
    half, mean = float(stats.norm.ppf((1 + confidence) / 2) * math.sqrt(spread)), float(areas[0] - areas[1])
    return Interval(mean, mean - half, mean + half, m + n, 0)


def paid(confidence: float, comparisons: int) -> float:
    """The confidence of one interval among `comparisons` that share data, so that all hold together with `confidence`.

    Bonferroni's inequality (Dunn 1961, JASA 56:52): ``1 - (1 - confidence) / comparisons``. It holds however they depend.

    >>> round(paid(0.95, 5), 4)
    0.99
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, but got {comparisons}")
    return 1 - (1 - confidence) / comparisons


def _won(y_true: np.ndarray, scores: np.ndarray, block_of: np.ndarray, blocks: int) -> np.ndarray:
    """Pairs that the positives of block i win against the negatives of block j, ties half: shape (blocks, blocks)."""
    positive = y_true == 1
    mine, of = scores[positive], block_of[positive]
    table = np.zeros((blocks, blocks))
    for j in range(blocks):
        theirs = np.sort(scores[~positive & (block_of == j)])
        beaten = (np.searchsorted(theirs, mine, "left") + np.searchsorted(theirs, mine, "right")) / 2
        table[:, j] = np.bincount(of, weights=beaten, minlength=blocks)
    return table


def _draws(blocks: int, confidence: float, resamples: int, seed: int) -> np.ndarray:
    """How often each block is drawn in each resample: shape (resamples, blocks)."""
    if blocks < 2:
        raise ValueError(f"needs at least two days, but got {blocks}")
    tail = max(_tail(blocks, confidence), TAIL_SAMPLES / MAX_RESAMPLES)  # of two days and much confidence it is 0
    wanted = max(resamples, math.ceil(TAIL_SAMPLES / tail))
    return np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), wanted).astype(np.float64)


def _tail(blocks: int, confidence: float) -> float:
    """The share of the bootstrap distribution beyond each end: Hesterberg's expansion for this number of blocks."""
    student = stats.t.ppf((1 - confidence) / 2, blocks - 1)
    return float(stats.norm.cdf(student * math.sqrt(blocks / (blocks - 1))))


def _ends(values: np.ndarray, blocks: int, confidence: float) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    tail = _tail(blocks, confidence)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
