"""The benchmark of harm: its daily looks are those of the shipped test, which errs as rarely as it promises."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pytest
from scipy import stats

from ml import config
from ml.monitoring import harm
from ml.monitoring.harm import DayLoss
from ml.settings import ROOT
from ops import harm_trials

PARAMS = config.Harm(confidence=0.95, margin=0.01, min_rows=200, fresh_days=30, fresh_rounds=40)
SPREAD, DAYS, HOLDOUT, YEARS = 0.02, 60, 14, 1000


def made(mean: float, years: int = YEARS, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(mean, SPREAD, (years, DAYS)), rng.normal(0, SPREAD, (years, HOLDOUT))


def days(behind: np.ndarray) -> list[DayLoss]:
    return [DayLoss(day=date(2013, 6, 1) + timedelta(days=i), n=800, loss=0.5 + x, fresh=0.5) for i, x in enumerate(behind)]


def test_ours__is_the_first_day_on_which_judge_says_harmed() -> None:
    live, holdout = made(0.0, years=4)
    live[:, 30:] += 0.06
    for x, h, first in zip(live, holdout, harm_trials.ours(live, holdout, PARAMS), strict=True):
        said = [harm.judge(days(x[:n]), days(h), PARAMS).verdict for n in (first, first + 1)]
        assert said == ["unproven", "harmed"]
        assert first >= 30


def test_ours__a_champion_on_the_margin__is_rarely_called_harmed() -> None:
    # the hardest that is not harmed; at most 5 % of 1,000, and a share that is really 5 % would be above this in 1 of 20 runs
    first = harm_trials.ours(*made(PARAMS.margin), PARAMS)
    assert (first < DAYS).sum() <= stats.binom.ppf(0.95, YEARS, 0.05)
    assert (harm_trials.daily_t_test(*made(PARAMS.margin), PARAMS) < DAYS).mean() > 0.1  # looking every day does cost


def test_ours__sees_a_late_change_sooner_than_the_whole_life_does() -> None:
    live, holdout = made(0.0, years=200)
    live[:, 40:] += 0.06
    restarted, whole = (rule(live, holdout, PARAMS) for rule in (harm_trials.ours, harm_trials.whole_life))
    assert np.median(restarted) < np.median(whole)
    assert (restarted < DAYS).mean() > 0.9


def test_drawn__runs_of_days_in_a_row() -> None:
    drawn = harm_trials.drawn(np.arange(10), 50, 21, 7, np.random.default_rng(1))
    assert drawn.shape == (50, 21)
    steps = np.diff(drawn.reshape(50, 3, 7), axis=2) % 10
    assert (steps == 1).all()


def test_of_days__two_of_three_and_the_newest() -> None:
    holdout = np.zeros((3, 14))
    live = np.array([[1, 0, 0, 1, 0, 1.0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    assert harm_trials.of_days(0.5)(live, holdout, PARAMS).tolist() == [5, 1, 6]


def test_delays__by_hand() -> None:
    # alarms on days 3 (before: left out), 10, 12, 14 and never, of harm that begins on day 10
    middle, late, seen = harm_trials.delays(np.array([3, 10, 12, 14, 99]), 10, 20)
    assert (middle, late, seen) == (pytest.approx(5.0), np.inf, 0.75)


def test_bench_harm__unknown_part__is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "ops.bench_harm", "storms"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "unknown part 'storms'; parts are yardstick, false-alarms, delay, rows" in done.stderr
