"""Intervals that hold at every moment at once: look as often as you like, stop when you like, and they are still true.

An ordinary 95 % interval that is looked at after every answer misses the truth sooner or later. A *confidence sequence* is a
sequence of intervals of which all together hold with probability 1 - alpha. Each bound here is one-sided, with its own alpha,
so that who asks "is it harmful?" and who asks "is it harmless?" can pay for their own errors alone. Every figure is computed
anew from all observations so far, and depends on them alone: nothing is kept between looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 0.99])
"""Shares of the largest allowed stake that `gap_bounds` bets at the same time."""
WEIGHTS = np.array([0.07, 0.07, 0.07, 0.07, 0.07, 0.1, 0.15, 0.4])
"""And how its capital is split among them: mostly on the bold end, which shows soonest that errors are rare."""
LARGEST = 10**12
"""Sample sizes above this are not looked for."""


@dataclass(frozen=True)
class Bounds:
    """An estimate and its two one-sided bounds, each at its own alpha; ±inf where nothing can be said yet.

    `n` is how many observations (or clusters of them) carried the spread.
    """

    value: float
    low: float
    high: float
    n: int


# ---- means


def tuned(n: float, alpha: float) -> float:
    """The `rho` that makes a one-sided asymptotic bound narrowest at n observations; it must be chosen before looking.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, Annals of Statistics 52:2613, with twice the
        alpha for one side.

    >>> round(tuned(100, 0.025), 2)
    0.28
    """
    level = -2 * math.log(min(2 * alpha, 0.999))
    return math.sqrt((level + math.log1p(level)) / n)


def reach(n: float, alpha: float, rho: float) -> float:
    """How many standard deviations of one observation a one-sided bound lies from the mean of n of them.

    Source: the one-sided asymptotic confidence sequence of Waudby-Smith et al. 2024 (see `tuned`): a Gaussian mixture over
    positive drifts, ``sqrt(2 (n ρ² + 1) / (n² ρ²) · log(1 + sqrt(n ρ² + 1) / (2 α)))``. Asymptotic: as in any z-interval, the
    spread is estimated; some tens of observations at least.
    """
    inner = n * rho**2 + 1
    return math.sqrt(2 * inner / (n * rho) ** 2 * math.log1p(math.sqrt(inner) / (2 * alpha)))


def mean_bounds(values: np.ndarray, alpha_low: float, alpha_high: float, expected: int) -> Bounds:
    """Bounds of the mean of independent values (for instance differences of pairs), at all times.

    Args:
        values: shape (n,), no NaN.
        alpha_low, alpha_high: the chance that the lower, the upper bound ever fails; in (0, 0.5).
        expected: number of values at which the bounds shall be narrowest.
    """
    n = len(values)
    if n < 2:
        return Bounds(float(values.mean()) if n else math.nan, -math.inf, math.inf, n)
    return _about(float(values.mean()), float(values.std(ddof=1)), n, alpha_low, alpha_high, expected)


def clustered_bounds(values: np.ndarray, clusters: np.ndarray, alpha_low: float, alpha_high: float, expected: int) -> Bounds:
    """Bounds of the mean over values that depend on each other within clusters, as rows of one hour share its weather.

    The mean is a ratio of sums over clusters; its spread is that of the clusters' residual sums ``Σ(value - mean)``, so k
    clusters are k observations, whatever number of values they hold (Cameron and Miller 2015, Journal of Human Resources
    50:317, equation 10).

    Args:
        values: shape (n,), no NaN; `clusters`: the cluster of each, shape (n,).
        expected: number of *clusters* at which the bounds shall be narrowest.
    """
    if not len(values):
        return Bounds(math.nan, -math.inf, math.inf, 0)
    found, cluster_of = np.unique(clusters, return_inverse=True)
    mean, k = float(values.mean()), len(found)
    if k < 2:
        return Bounds(mean, -math.inf, math.inf, k)
    residuals = np.bincount(cluster_of, weights=values - mean)
    spread = math.sqrt(k / (k - 1) * float((residuals**2).sum()) * k) / len(values)
    return _about(mean, spread, k, alpha_low, alpha_high, expected)


def difference_bounds(first: np.ndarray, second: np.ndarray, alpha_low: float, alpha_high: float, expected: int) -> Bounds:
    """Bounds of ``mean(first) - mean(second)`` of two groups that entities were drawn into by chance, at all times.

    Rows of both groups may share hours and weather: chance alone decided who is where, and the spread of the difference is that
    of the draw (Neyman 1923). The asymptotic sequence of `reach` on the difference of means, as Waudby-Smith et al. 2024
    do for average treatment effects.

    Args:
        first, second: one value for each entity, shapes (n,) and (m,), no NaN.
        expected: n + m at which the bounds shall be narrowest.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return Bounds(math.nan, -math.inf, math.inf, n + m)
    error = math.sqrt(float(first.var(ddof=1)) / n + float(second.var(ddof=1)) / m)
    return _about(float(first.mean() - second.mean()), error * math.sqrt(n + m), n + m, alpha_low, alpha_high, expected)


def _about(mean: float, spread: float, n: int, alpha_low: float, alpha_high: float, expected: int) -> Bounds:
    low, high = (spread * reach(n, alpha, tuned(expected, alpha)) for alpha in (alpha_low, alpha_high))
    return Bounds(mean, mean - low, mean + high, n)


# ---- shares


def gap_bounds(first: np.ndarray, second: np.ndarray, alpha_low: float, alpha_high: float) -> Bounds:
    """Bounds of the difference of two proportions, ``P(first) - P(second)``, at all times; exact for any n, also for rare
    events.

    The i-th event of one is paired with the i-th of the other, in the order in which they came; what has no partner yet waits.
    A bet is held that the differences (-1, 0 or 1) average at most m; where its capital would ever reach 1 / alpha, m is
    excluded. A fixed mixture of stakes keeps the capital a function of the three counts.

    Source: Waudby-Smith and Ramdas 2024, Journal of the Royal Statistical Society B 86:1 (a grid of
    constant bets); Ville's inequality.

    Args:
        first, second: 0/1 or bool in order of arrival, shapes (n,) and (m,).
    """
    n = min(len(first), len(second))
    difference = first[:n].astype(int) - second[:n].astype(int)
    if n == 0:
        return Bounds(math.nan, -1.0, 1.0, 0)
    counts = np.array([(difference == 1).sum(), (difference == 0).sum(), (difference == -1).sum()])
    value = float(first.mean() - second.mean())
    return Bounds(value, _least_gap(counts, alpha_low), -_least_gap(counts[::-1], alpha_high), n)


def answers_for_gap(limit: float, alpha: float) -> int:
    """The fewest answers of each side, all without an event, after which `gap_bounds` shows a difference below `limit`.

    >>> 300 <= answers_for_gap(0.01, 0.05) <= 420
    True
    """
    return _fewest(lambda n: -_least_gap(np.array([0, n, 0]), alpha) < limit)


def _least_gap(counts: np.ndarray, alpha: float) -> float:
    """The largest m in [-1, 1] such that "the mean is at most m" is excluded; capital falls as m grows, so it is bisected."""
    if _capital(counts, -1 + 1e-9) < -math.log(alpha):
        return -1.0
    low, high = -1 + 1e-9, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _capital(counts, middle) >= -math.log(alpha) else (low, middle)
    return low


def _capital(counts: np.ndarray, m: float) -> float:
    """Logarithm of the mixed capital of bets against "the mean of differences is at most m"; `counts` are of 1, 0 and -1.

    The stakes are shares of ``1 / (1 + m)``, the most that a -1 allows.
    """
    gains = np.log1p(STAKES[:, None] * (np.array([1.0, 0.0, -1.0]) - m) / (1 + m)) @ counts
    best = float(gains.max())
    return best + math.log(float(WEIGHTS @ np.exp(gains - best)))


# ---- medians


def median_bounds(values: np.ndarray, alpha_low: float, alpha_high: float, expected: int) -> Bounds:
    """Bounds of the median of independent values of one distribution, at all times; exact, whatever the distribution.

    At the true median, counts of values on one side are coin tosses: a median is excluded when they are no longer, by a mixture
    of coins with a Beta prior on that side.

    Source: Howard and Ramdas 2022, Bernoulli 28:1704 (quantiles from a sequence for coin tosses); Robbins 1970,
    Annals of Mathematical Statistics 41:1397 (the Beta mixture).

    Args:
        values: shape (n,), no NaN.
        expected: number of values at which the bounds shall be narrowest.
    """
    ordered, n = np.sort(values), len(values)
    if n == 0:
        return Bounds(math.nan, -math.inf, math.inf, 0)
    low, high = (_too_many(n, alpha, expected) for alpha in (alpha_low, alpha_high))
    return Bounds(
        float(np.median(ordered)),
        float(ordered[n - low]) if low <= n else -math.inf,
        float(ordered[high - 1]) if high <= n else math.inf,
        n,
    )


def _too_many(n: int, alpha: float, expected: int) -> int:
    """The least number of n tosses on one side that a fair coin ever shows with probability `alpha` at most; n + 1: none."""
    prior = max(1.0, expected / 16)  # its spread is about the one that is looked for at `expected` tosses
    low, high = n // 2, n + 1
    while high - low > 1:
        k = (low + high) // 2
        mixed = special.betaln(prior + k, prior + n - k) - special.betaln(prior, prior) + n * math.log(2)
        one_sided = mixed + math.log(2 * max(special.betainc(prior + n - k, prior + k, 0.5), 1e-300))
        low, high = (low, k) if one_sided >= -math.log(alpha) else (k, high)
    return high


# ---- how many


def arm_size(sd: float, effect: float, alpha: float, power: float) -> int:
    """Entities in each of two arms after which a true difference of `effect` is seen with probability `power` by
    `difference_bounds`.

    By the time of the forecast the bound, tuned for that time, and the estimate's own chance together fit into the effect. It
    is the time by which it is seen; as one looks all the time, it is often seen earlier.

    Args:
        sd: standard deviation of the metric over entities, > 0; `effect`: > 0, in the metric's unit.
        alpha: of the one-sided bound.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (sd > 0 and effect > 0 and 0 < alpha < 0.5 and 0 < power < 1):
        raise ValueError(f"sd, effect > 0, 0 < alpha < 0.5, 0 < power < 1 must hold, but got {(sd, effect, alpha, power)}")
    chance = float(stats.norm.ppf(power))
    # of 2n entities the difference of means has the standard error sd · 2 / sqrt(2n)
    return _fewest(lambda n: 2 * sd * (reach(2 * n, alpha, tuned(2 * n, alpha)) + chance / math.sqrt(2 * n)) <= effect, least=2)


def _fewest(enough: Callable[[int], bool], least: int = 1) -> int:
    """The smallest number for which `enough`, which stays true once it is, holds."""
    high = least
    while not enough(high):
        high *= 2
        if high > LARGEST:
            raise ValueError(f"more than {LARGEST:,} observations would be needed")
    low = max(least - 1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
