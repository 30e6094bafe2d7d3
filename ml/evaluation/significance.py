"""Is a difference more than noise? Paired bootstrap over whole days, because rows of one day share weather and delays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Mean difference and its two-sided percentile interval; negative = the first is better (for losses)."""

    mean: float
    low: float
    high: float
    rows: int
    days: int


def paired_by_day(
    first: np.ndarray, second: np.ndarray, days: np.ndarray, confidence: float, resamples: int, seed: int
) -> Interval:
    """Bootstrap interval of ``mean(first - second)`` over rows, resampling days as blocks.

    Method: non-overlapping block bootstrap (Carlstein 1986, Annals of Statistics 14:1171), paired on rows, percentile interval.

    Args:
        first, second: losses of the same rows, shape (n,), no NaN.
        days: the block of each row, shape (n,), any comparable type.
        confidence: e.g. 0.95 gives the 2.5 % and 97.5 % percentiles.

    Raises:
        ValueError: shapes differ, NaN, or fewer than two days (a block bootstrap of one block has no spread).
    """
    if not first.shape == second.shape == days.shape or first.ndim != 1:
        raise ValueError(f"first, second, days must have one shape (n,), but got {first.shape}, {second.shape}, {days.shape}")
    difference = first - second
    if np.isnan(difference).any():
        raise ValueError(f"NaN in {int(np.isnan(difference).sum())} of {len(difference)} losses")
    blocks, block_of = np.unique(days, return_inverse=True)
    if len(blocks) < 2:
        raise ValueError(f"needs at least two days, but got {len(blocks)}")
    sums, counts = np.bincount(block_of, weights=difference), np.bincount(block_of)
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (resamples, len(blocks)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(difference.mean()), float(low), float(high), len(difference), len(blocks))
