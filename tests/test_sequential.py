"""Bounds hold at every look, tell when they must, and are no wider than their source says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from ml import sequential
from ml.sequential import Bounds

ALPHA = 0.05
LOOKS = range(50, 2001, 50)


def ever(made: list[Bounds], truth: float) -> tuple[bool, bool]:
    """Did the lower, the upper bound miss the truth at any look?"""
    return any(b.low > truth for b in made), any(b.high < truth for b in made)


def missed(rounds: list[tuple[bool, bool]]) -> tuple[float, float]:
    low, high = np.mean(rounds, axis=0)
    return float(low), float(high)


def test_mean_bounds__forty_looks_miss_no_more_than_promised_where_a_z_interval_does() -> None:
    rng, ours, usual = np.random.default_rng(1), [], []
    for _ in range(250):
        x = rng.exponential(size=2000) - 1.0
        ours.append(ever([sequential.mean_bounds(x[:n], ALPHA, ALPHA, 500) for n in LOOKS], 0.0))
        half = [stats.norm.ppf(1 - ALPHA) * x[:n].std() / math.sqrt(n) for n in LOOKS]
        usual.append(any(x[:n].mean() - h > 0 for n, h in zip(LOOKS, half, strict=True)))
    assert max(missed(ours)) <= ALPHA + 0.03
    assert np.mean(usual) > 2 * ALPHA


def test_reach__is_where_the_mixture_of_drifts_has_earned_one_over_alpha() -> None:
    n, alpha, rho = 300, 0.01, 0.15
    total = n * sequential.reach(n, alpha, rho)

    def capital(drift: float) -> float:
        return 2 * stats.norm.pdf(drift, 0, rho) * math.exp(drift * total - drift**2 * n / 2)

    earned, _ = integrate.quad(capital, 0, 3, limit=400)
    assert 1 / alpha <= earned <= 1.05 / alpha


def test_tuned__no_other_rho_is_much_narrower_at_its_time() -> None:
    n, alpha = 1000, 0.01
    best = min(sequential.reach(n, alpha, rho) for rho in np.geomspace(0.001, 1, 400))
    assert sequential.reach(n, alpha, sequential.tuned(n, alpha)) <= best * 1.005


def test_clustered_bounds__rows_that_repeat_their_cluster_add_nothing() -> None:
    values, hours = np.random.default_rng(2).normal(size=100), np.arange(100)
    once = sequential.clustered_bounds(values, hours, ALPHA, ALPHA, 100)
    often = sequential.clustered_bounds(np.repeat(values, 20), np.repeat(hours, 20), ALPHA, ALPHA, 100)
    assert (often.low, often.high, often.n) == (pytest.approx(once.low), pytest.approx(once.high), once.n)
    assert once.high == pytest.approx(sequential.mean_bounds(values, ALPHA, ALPHA, 100).high)


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.2])
def test_gap_bounds__hold_at_every_look_for_rare_and_common_events(rate: float) -> None:
    rng, rounds, gap = np.random.default_rng(3), [], 0.01
    for _ in range(120):
        first, second = rng.random(2000) < rate + gap, rng.random(2000) < rate
        rounds.append(ever([sequential.gap_bounds(first[:n], second[:n], ALPHA, ALPHA) for n in range(100, 2001, 100)], gap))
    assert max(missed(rounds)) <= ALPHA + 0.04


def test_gap_bounds__tell_a_wreck_after_a_handful_and_mirror_each_other() -> None:
    wreck = sequential.gap_bounds(np.ones(12, bool), np.zeros(12, bool), 0.004, 0.05)
    assert wreck.low > 0.01
    rng = np.random.default_rng(4)
    first, second = rng.random(500) < 0.3, rng.random(500) < 0.1
    there, back = sequential.gap_bounds(first, second, 0.01, 0.05), sequential.gap_bounds(second, first, 0.05, 0.01)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-5)
    assert sequential.gap_bounds(np.empty(0, bool), second, 0.01, 0.05).high == 1


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.05])
def test_answers_for_gap__is_the_first_clean_run_that_shows_it(limit: float) -> None:
    n = sequential.answers_for_gap(limit, ALPHA)
    clean = [sequential.gap_bounds(np.zeros(k, bool), np.zeros(k, bool), ALPHA, ALPHA).high for k in (n - 1, n)]
    assert clean[1] < limit <= clean[0] + 2e-6
    assert n > math.log(1 / ALPHA) / -math.log1p(-limit)  # no test of any kind can do with fewer


def test_median_bounds__hold_at_every_look_and_follow_the_unit() -> None:
    rng, rounds = np.random.default_rng(5), []
    for _ in range(250):
        x = rng.exponential(size=2000)
        rounds.append(ever([sequential.median_bounds(x[:n], ALPHA, ALPHA, 400) for n in LOOKS], math.log(2)))
    assert max(missed(rounds)) <= ALPHA + 0.03
    inner, outer = sequential.median_bounds(x, ALPHA, ALPHA, 400), sequential.median_bounds(7 * x, ALPHA, ALPHA, 400)
    assert (outer.low, outer.high) == pytest.approx((7 * inner.low, 7 * inner.high))
    assert inner.low < inner.value < inner.high < 1.25 * inner.value
    assert sequential.median_bounds(x[:3], ALPHA, ALPHA, 400).high == math.inf


def test_median_bounds__ties_are_never_called_different() -> None:
    tied = sequential.median_bounds(np.full(500, 0.25), ALPHA, ALPHA, 400)
    assert (tied.low, tied.value, tied.high) == (0.25, 0.25, 0.25)


def test_arm_size__sees_the_effect_as_often_as_promised() -> None:
    sd, effect, alpha, power = 0.5, 0.1, 0.025, 0.8
    n = sequential.arm_size(sd, effect, alpha, power)
    rng = np.random.default_rng(6)
    seen = [
        sequential.difference_bounds(rng.normal(effect, sd, n), rng.normal(0, sd, n), alpha, alpha, 2 * n).low > 0
        for _ in range(600)
    ]
    assert abs(np.mean(seen) - power) < 0.05
    assert 3.9 < sequential.arm_size(sd, effect / 2, alpha, power) / n < 4.1
    with pytest.raises(ValueError, match="effect"):
        sequential.arm_size(sd, 0.0, alpha, power)
