"""The gate promotes what is proven, and nothing else."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from ml.config import load_params
from ml.evaluation.gates import Contender, judge
from ml.evaluation.significance import paired_by_day
from ml.refs import Decision, Window

N, DAYS = 14_000, 14
HOLDOUT = Window(start=date(2013, 3, 17), end=date(2013, 3, 31))
BEFORE, INSIDE = date(2013, 3, 16), date(2013, 3, 20)
DRAW = np.random.default_rng(1)
LOGIT = DRAW.normal(-1, 1.2, N)
TRUTH = 1 / (1 + np.exp(-LOGIT))
LABEL = (DRAW.random(N) < TRUTH).astype(float)
DAY = np.repeat(np.arange(DAYS), N // DAYS).astype(str)
CONSTANT = {"climatology": np.full(N, LABEL.mean())}


def blurred(noise: float, seed: int = 2) -> np.ndarray:
    """The true probability with noise on its logit: more noise, a worse model."""
    return 1 / (1 + np.exp(-(LOGIT + np.random.default_rng(seed).normal(0, noise, N))))


def verdict(candidate: np.ndarray, champion: np.ndarray | None = None, trained: date = BEFORE, champion_trained: date = BEFORE,
            baselines: dict[str, np.ndarray] = CONSTANT) -> Decision:  # fmt: skip
    other = None if champion is None else Contender("v1", champion, champion_trained)
    return judge(LABEL, DAY, Contender("candidate", candidate, trained), other, baselines, HOLDOUT, load_params().gates, seed=3)


def failed(decision: Decision) -> list[str]:
    return [c.name for c in decision.checks if not c.passed]


def test_judge__cold_start_promotes_what_beats_the_baseline() -> None:
    decision = verdict(blurred(0.2))
    assert (decision.verdict, failed(decision)) == ("promote", [])
    assert "cold start" in decision.reason


@pytest.mark.parametrize(
    ("candidate", "gate"),
    [
        (np.random.default_rng(4).random(N), "auc_floor"),
        (np.clip(TRUTH, 1e-4, 1) ** 8, "log_loss_ceiling"),
        (CONSTANT["climatology"], "better_than_baseline"),
    ],
    ids=["random answers", "overconfident", "no better than climatology"],
)
def test_judge__refuses_a_bad_candidate_by_the_gate_meant_for_it(candidate: np.ndarray, gate: str) -> None:
    decision = verdict(candidate)
    assert decision.verdict == "keep"
    assert gate in failed(decision)
    assert gate in decision.reason


def test_judge__refuses_a_candidate_that_is_worse_than_the_champion() -> None:
    decision = verdict(blurred(1.0), champion=blurred(0.1))
    assert (decision.verdict, failed(decision)) == ("keep", ["not_worse_than_champion"])


def test_judge__asks_for_more_than_noise_over_the_baseline() -> None:
    equal = {"logistic": blurred(0.5, seed=5)}
    passed = [verdict(blurred(0.5, seed=seed), baselines=equal).verdict == "promote" for seed in range(100, 120)]
    assert sum(passed) <= 3  # of 20 equal ones: 2.5 % nominal, somewhat more with 14 blocks; half would be luckier on average


def test_judge__an_equal_candidate_may_still_be_worse_than_a_tiny_margin() -> None:
    gates = load_params().gates.model_copy(update={"margin": 1e-6})
    champion = Contender("v1", blurred(0.5, seed=6), BEFORE)
    decision = judge(LABEL, DAY, Contender("candidate", blurred(0.5, seed=7), BEFORE), champion, CONSTANT, HOLDOUT, gates, 3)
    assert failed(decision) == ["not_worse_than_champion"]


def test_judge__accepts_an_equal_candidate() -> None:
    assert verdict(blurred(0.2, seed=5), champion=blurred(0.2, seed=6)).verdict == "promote"


@pytest.mark.parametrize(
    "ranges", [{"trained": INSIDE}, {"champion_trained": INSIDE, "champion": blurred(0.3)}], ids=["candidate", "champion"]
)
def test_judge__refuses_a_holdout_that_somebody_trained_on(ranges: dict) -> None:
    decision = verdict(blurred(0.2), **ranges)
    assert decision.verdict == "keep"
    assert failed(decision)[0].startswith("untouched_holdout_")


def test_judge__with_one_class_only_fails_closed() -> None:
    proba = blurred(0.2)
    decision = judge(np.ones(N), DAY, Contender("candidate", proba, BEFORE), None, CONSTANT, HOLDOUT, load_params().gates, 3)
    assert "auc_floor" in failed(decision)


def test_judge__refuses_missing_answers() -> None:
    broken = blurred(0.2)
    broken[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        verdict(broken)


def test_paired_by_day__is_wider_than_rows_alone_when_days_differ() -> None:
    by_day = np.repeat(np.random.default_rng(7).normal(0, 1, DAYS), N // DAYS)
    interval = paired_by_day(by_day, np.zeros(N), DAY, 0.95, 2000, 1)
    rows_alone = 1.96 * by_day.std() / np.sqrt(N)
    assert interval.high - interval.low > 10 * rows_alone
    assert interval.low < by_day.mean() < interval.high


def test_paired_by_day__covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        day_effect = np.random.default_rng(seed).normal(0, 1, 40)
        interval = paired_by_day(np.repeat(day_effect, 10), np.zeros(400), np.repeat(np.arange(40), 10), 0.95, 400, seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99  # 95 % nominal; the percentile interval of 40 blocks is a little short


def test_paired_by_day__refuses_one_day() -> None:
    with pytest.raises(ValueError, match="at least two days"):
        paired_by_day(np.zeros(5), np.zeros(5), np.zeros(5), 0.95, 100, 1)
