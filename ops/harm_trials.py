"""Made years of a champion, and what different rules say of them: thousands of daily looks as a few array operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import stats

from ml import sequential
from ml.config import Harm
from ml.monitoring import harm

Rule = Callable[[np.ndarray, np.ndarray, Harm], np.ndarray]
"""From live days (years, days) and holdout days (years, m) to the day of the first alarm, (years,), from 0; `days` if none."""
USUAL = 30
"""Days at which the asymptotic sequence is narrowest."""


def drawn(pool: np.ndarray, years: int, days: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """Years of days that are drawn from the pool in runs of `block` consecutive days, its end joined to its beginning.

    Source: circular block bootstrap (Politis and Romano 1992). Shape (years, days).
    """
    starts = rng.integers(len(pool), size=(years, math.ceil(days / block)))
    places = (starts[:, :, None] + np.arange(block)) % len(pool)
    return np.asarray(pool[places.reshape(years, -1)[:, :days]])


def ours(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
    """First day on which `ml.monitoring.harm.judge` says harmed."""
    reach = _reach(live.shape[1], holdout.shape[1], 1 - params.confidence)
    return np.array([_first(x - h.mean() - params.margin, h, reach) for x, h in zip(live, holdout, strict=True)])


def _first(excess: np.ndarray, reference: np.ndarray, reach: np.ndarray) -> int:
    """`harm.since_each` for every day as the last one: rows are last days, columns first days."""
    days, m = len(excess), len(reference)
    total, squares = (np.concatenate([[0.0], np.cumsum(excess**power)]) for power in (1, 2))
    n = np.maximum(np.arange(1, days + 1)[:, None] - np.arange(days), 1)
    mean = (total[1:, None] - total[:-1]) / n
    within = np.maximum(squares[1:, None] - squares[:-1] - n * mean**2, 0) + m * reference.var()
    error = np.sqrt(within / (n + m - 2) * (1 / n + 1 / m))
    alarm = (mean > error * reach).any(axis=1)
    return int(np.argmax(alarm)) if alarm.any() else days


@cache
def _reach(days: int, m: int, alpha: float) -> np.ndarray:
    """The t statistic that is enough, by last and first day; inf where the first is after the last."""
    n = np.arange(1, days + 1)[:, None] - np.arange(days)
    found = np.full(n.shape, np.inf)
    found[n >= 1] = harm.critical(n[n >= 1], m, alpha * np.broadcast_to(harm.prior(days), n.shape)[n >= 1])
    return found


def whole_life(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
    """The same test without new beginnings: all of alpha for harm that is there from the first day."""
    n, m = np.arange(1, live.shape[1] + 1), holdout.shape[1]
    return _earliest(_t(live, holdout, params) > harm.critical(n, m, 1 - params.confidence), since=1)


def asymptotic(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
    """The lower bound of `ml.sequential.mean_bounds` on the whole life, the holdout's mean taken for the truth."""
    alpha, n = 1 - params.confidence, np.arange(1, live.shape[1] + 1)
    reach = np.array([sequential.reach(k, alpha, sequential.tuned(USUAL, alpha)) for k in n])
    mean, spread = _so_far(live)
    return _earliest(mean - spread * reach > holdout.mean(axis=1)[:, None] + params.margin, since=5)


def daily_t_test(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
    """A t-test a day of all days so far against the holdout's, as if each were the only one."""
    n, m = np.arange(1, live.shape[1] + 1), holdout.shape[1]
    return _earliest(_t(live, holdout, params) > stats.t.ppf(params.confidence, n + m - 2), since=1)


def _t(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
    """Two-sample t statistics of the days so far against holdout and margin; NaN on the first day."""
    n, m = np.arange(1, live.shape[1] + 1), holdout.shape[1]
    mean, spread = _so_far(live)
    within = (n - 1) * spread**2 + m * holdout.var(axis=1)[:, None]
    error = np.sqrt(within / (n + m - 2) * (1 / n + 1 / m))
    return np.asarray((mean - holdout.mean(axis=1)[:, None] - params.margin) / error)


def of_days(limit: float, wanted: int = 2, window: int = 3) -> Rule:
    """`wanted` of the last `window` days above the holdout's mean by more than `limit`, the newest among them."""

    def rule(live: np.ndarray, holdout: np.ndarray, params: Harm) -> np.ndarray:
        over = live > holdout.mean(axis=1)[:, None] + limit
        count = np.cumsum(over, axis=1)
        count[:, window:] = count[:, window:] - count[:, :-window]
        return _earliest(over & (count >= wanted), since=0)

    return rule


def _so_far(live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the days so far; NaN on the first day."""
    n = np.arange(1, live.shape[1] + 1)
    centre = live.mean()
    mean, square = (np.cumsum((live - centre) ** power, axis=1) / n for power in (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean + centre, np.sqrt(np.maximum(square - mean**2, 0) * n / (n - 1))


def _earliest(alarm: np.ndarray, since: int) -> np.ndarray:
    """Index of the first alarm of each row, none before day `since`."""
    alarm = alarm.copy()
    alarm[:, :since] = False
    return np.where(alarm.any(axis=1), alarm.argmax(axis=1), alarm.shape[1])


def delays(first: np.ndarray, begins: int, days: int) -> tuple[float, float, float]:
    """Days of harm that were there at the alarm, of years without one before: median, 90th percentile (inf: not within `days`),
    and the share of years seen within `days`.
    """
    waited = np.where(first - begins < days, first - begins + 1.0, np.inf)[first >= begins]
    middle, late = (float(np.quantile(waited, q, method="higher")) for q in (0.5, 0.9))
    return middle, late, float(np.isfinite(waited).mean())


def lag_one(values: Sequence[float] | np.ndarray) -> float:
    """Correlation of a day with the next."""
    return float(np.corrcoef(np.asarray(values)[:-1], np.asarray(values)[1:])[0, 1])
