"""Trials of the promotion gate on days whose losses are known: drawn pairs of models, drawn holdouts, and the gate's verdicts.

Losses are summed up by day first: an interval over days needs nothing else, and thousands of trials take seconds. Days are drawn
with replacement: then the pool *is* the world, its mean difference is the true one, and days are independent, which is what the
day-block bootstrap assumes. (Without replacement, 14 of 90 days vary less than 14 days of the world, and a gate looks too good.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from ml import metrics, significance
from ml.config import Gates

NULLS = ("as they are", "centred", "swapped by day", "consecutive days")
"""How two models are made equal; see `Scored.trials`."""
FLOOR = 0.025
"""Share of detections that a curve of power starts from: chance alone, at a confidence of 0.95. Without it, pairs that hardly
differ would bend the curve."""
CHUNK = 100
"""Trials that share their resamples: the gate's depend on the seed and the number of days alone."""


@dataclass(frozen=True)
class Trials:
    """One trial a row: its days' sums of loss differences, of their squares, and rows; each of shape (trials, days)."""

    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Scored:
    """Models on one pool of labelled rows, summed up by day; losses are log-losses in nats."""

    loss: np.ndarray
    """Sum of each day's losses, shape (models, days)."""
    products: np.ndarray
    """Sum of each day's ``loss_i × loss_j``, shape (models, models, days)."""
    counts: np.ndarray
    """Rows of each day, shape (days,)."""
    auc: np.ndarray
    """ROC-AUC on the whole pool, shape (models,)."""

    @property
    def log_loss(self) -> np.ndarray:
        """Mean log-loss on the whole pool, shape (models,)."""
        return np.asarray(self.loss.sum(axis=1) / self.counts.sum())

    def trials(self, pairs: np.ndarray, drawn: np.ndarray, null: str, rng: np.random.Generator) -> Trials:
        """Losses of the first model of each pair less those of the second.

        Args:
            pairs: numbers of two models, shape (trials, 2).
            drawn: numbers of days, shape (trials, days).
            null: ``as they are``: the pool's mean difference is the truth. Else it is exactly zero: ``centred`` and ``consecutive
                days`` take the pair's mean difference off each row; ``swapped by day`` exchanges the two on a fair coin a day.
        """
        first, second = pairs[:, :1], pairs[:, 1:]
        counts = self.counts[drawn].astype(np.float64)
        sums = self.loss[first, drawn] - self.loss[second, drawn]
        products = self.products
        squares = products[first, first, drawn] + products[second, second, drawn] - 2 * products[first, second, drawn]
        if null == "swapped by day":
            return Trials(sums * rng.choice([-1.0, 1.0], sums.shape), squares, counts)
        if null == "as they are":
            return Trials(sums, squares, counts)
        off = (self.log_loss[first] - self.log_loss[second]) * np.ones_like(sums)
        return Trials(sums - off * counts, squares - 2 * off * sums + off**2 * counts, counts)


def summed(y_true: np.ndarray, answers: Sequence[np.ndarray], days: np.ndarray) -> Scored:
    """Sums up models' answers to the same rows by day.

    Args:
        y_true: labels 0/1, shape (n,); `answers`: probabilities of 1, shape (n,) each; `days`: the day of each row, shape (n,).
    """
    losses = np.stack([metrics.log_losses(y_true, y_proba) for y_proba in answers])
    order = np.argsort(days, kind="stable")
    _, starts, counts = np.unique(days[order], return_index=True, return_counts=True)
    by_day = np.split(losses[:, order], starts[1:], axis=1)
    return Scored(
        np.stack([day.sum(axis=1) for day in by_day], axis=1),
        np.stack([day @ day.T for day in by_day], axis=2),
        counts,
        np.array([metrics.auc(y_true, y_proba) for y_proba in answers]),
    )


def pairs_of(models: int, trials: int, rng: np.random.Generator) -> np.ndarray:
    """Two different models for each trial: shape (trials, 2)."""
    first = rng.integers(models, size=trials)
    return np.stack([first, (first + rng.integers(1, models, size=trials)) % models], axis=1)


def holdouts(days: int, length: int, trials: int, rng: np.random.Generator, consecutive: bool = False) -> np.ndarray:
    """Numbers of drawn days, shape (trials, length): with replacement, or `length` days in a row."""
    if consecutive:
        return np.asarray(rng.integers(days - length + 1, size=(trials, 1)) + np.arange(length))
    return rng.integers(days, size=(trials, length))


def upper_ends(
    sums: np.ndarray, counts: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The upper ends of `significance.paired_sums` for many trials, shape (trials,), and those of plain percentile intervals."""
    days, ours, plain = sums.shape[1], [], []
    tail = significance._tail(days, confidence)
    for start in range(0, len(sums), CHUNK):
        weights = significance._draws(days, confidence, resamples, seed + start)
        means = (weights @ sums[start : start + CHUNK].T) / (weights @ counts[start : start + CHUNK].T)
        ends = np.quantile(means, [1 - tail, (1 + confidence) / 2], axis=0)
        ours.append(ends[0])
        plain.append(ends[1])
    return np.concatenate(ours), np.concatenate(plain)


def row_ends(trials: Trials, confidence: float) -> np.ndarray:
    """Upper ends of the z-interval that takes rows as independent, shape (trials,)."""
    rows = trials.counts.sum(axis=1)
    mean = trials.sums.sum(axis=1) / rows
    variance = (trials.squares.sum(axis=1) - rows * mean**2) / (rows - 1)
    return np.asarray(mean + stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance / rows))


def verdicts(ends: np.ndarray, margin: float) -> np.ndarray:
    """The gate's verdict for each upper end: shape (trials,) of text."""
    return np.array([significance.Interval(math.nan, math.nan, float(end), 0, 0).verdict(margin) for end in ends], dtype="U10")


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, JASA 22:209)."""
    found = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


# ---- power


def detectable(
    differences: np.ndarray, detected: np.ndarray, share: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """The true difference that is detected in `share` of the trials, and its 95 % interval.

    The curve rises from `FLOOR` to 1, logistic in the logarithm of the difference, by maximum likelihood. The interval resamples
    pairs, because pairs of one difference but of another make differ in power by more than their trials' chance.

    Args:
        differences: true differences, > 0, shape (pairs,); `detected`: shares of trials, 0–1, shape (pairs,).

    Raises:
        ValueError: all pairs are on one side of `share`: there is nothing to read off.
    """
    if not straddles(detected, share):
        raise ValueError(f"all {len(detected)} pairs are detected on one side of {share:.0%}: add weaker or stronger ones")
    rng = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < resamples:
        again = rng.integers(len(differences), size=len(differences))
        if straddles(detected[again], share):
            found.append(crossing(differences[again], detected[again], share))
    low, high = np.quantile(found, [0.025, 0.975])
    return crossing(differences, detected, share), float(low), float(high)


def straddles(detected: np.ndarray, share: float) -> bool:
    """Are there pairs on both sides of `share`?"""
    return bool((detected < share).any() and (detected > share).any())


def crossing(differences: np.ndarray, detected: np.ndarray, share: float) -> float:
    """Where the fitted curve reaches `share`; see `detectable`."""
    level, slope, middle = _logistic(np.log(differences), detected)
    above = (share - FLOOR) / (1 - FLOOR)
    return math.exp(middle + (math.log(above / (1 - above)) - level) / slope)


def curve(differences: np.ndarray, detected: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The fitted share of detections by true difference."""
    level, slope, middle = _logistic(np.log(differences), detected)
    return lambda x: np.asarray(FLOOR + (1 - FLOOR) / (1 + np.exp(-level - slope * (np.log(x) - middle))))


def _logistic(x: np.ndarray, detected: np.ndarray) -> tuple[float, float, float]:
    """Level at the middle of `x`, slope, and that middle. The slope is at most 50: a perfect step has no finite one."""
    middle = float(x.mean())

    def unlikely(given: np.ndarray) -> float:
        p = FLOOR + (1 - FLOOR) / (1 + np.exp(-np.clip(given[0] + given[1] * (x - middle), -30, 30)))
        return -float(np.sum(detected * np.log(p) + (1 - detected) * np.log1p(-p)))

    fitted = optimize.minimize(unlikely, [0.0, 1.0], bounds=[(-50, 50), (0.05, 50)])
    return float(fitted.x[0]), float(fitted.x[1]), middle


# ---- reuse


def promoted(scored: Scored, nights: int, length: int, histories: int, gates: Gates, seed: int, arm: str) -> np.ndarray:
    """Which nights of which histories ended in *better*, all models being equal: bool, shape (histories, nights).

    Each night another model than the champion is judged on `length` days; on *better* it becomes the champion. Pool means are
    taken off, so that no model is better than another.

    Args:
        arm: ``fresh``: days that no night used before; ``unpaid``: the last `length` days, which move on by one each night;
            ``paid``: the same, and the interval pays for the earlier uses of its most used day; ``paid ahead``: it pays for
            `length` - 1 uses from the first night on.
    """
    rng = np.random.default_rng(seed)
    days, models = len(scored.counts), len(scored.loss)
    life = rng.integers(days, size=(histories, nights * length if arm == "fresh" else nights + length - 1))
    champion, won = rng.integers(models, size=histories), np.zeros((histories, nights), dtype=bool)
    for night in range(nights):
        candidate = (champion + rng.integers(1, models, size=histories)) % models
        first = night * length if arm == "fresh" else night
        trials = scored.trials(np.stack([candidate, champion], axis=1), life[:, first : first + length], "centred", rng)
        uses = {"paid": min(night, length - 1), "paid ahead": length - 1}.get(arm, 0)
        won[:, night] = better(trials, gates, uses, seed + 1 + night * histories)
        champion = np.where(won[:, night], candidate, champion)
    return won


def better(trials: Trials, gates: Gates, uses: int, seed: int) -> np.ndarray:
    """Which trials are *better* at the confidence that pays for `uses`: bool, shape (trials,).

    Few resamples are worth their time: what is worse by its mean is not better, and what is not better without paying is not
    better with it, because the wider interval holds the narrower one.
    """
    found = trials.sums.sum(axis=1) < 0
    for confidence in dict.fromkeys([gates.confidence, significance.paid(gates.confidence, 1 + uses)]):
        if found.any():
            ends, _ = upper_ends(trials.sums[found], trials.counts[found], confidence, gates.resamples, seed)
            found[found] = verdicts(ends, gates.margin) == "better"
    return found
