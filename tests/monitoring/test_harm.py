"""The test of harm: its arithmetic, what it sees, and what it says in words. How often it errs: tests/test_bench_harm.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from ml import config
from ml.monitoring import harm
from ml.monitoring.harm import DayLoss

FIRST = date(2013, 6, 1)
PARAMS = config.Harm(confidence=0.95, margin=0.01, min_rows=200, fresh_days=30, fresh_rounds=40)
SPREAD = 0.02


def days(behind: Sequence[float], first: date = FIRST, n: int = 800) -> list[DayLoss]:
    """Days on which the champion loses so much more than the yardstick."""
    return [DayLoss(day=first + timedelta(days=i), n=n, loss=0.5 + x, fresh=0.5) for i, x in enumerate(behind)]


def drawn(mean: float, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, SPREAD, count)


HOLDOUT = days(drawn(0, 14, 1) - drawn(0, 14, 1).mean(), first=date(2013, 5, 15))


# ---- days


def test_day_losses__by_hand() -> None:
    judged = pd.DataFrame(
        {
            "event_time": pd.to_datetime(["2013-06-01 10:00", "2013-06-01 23:59", *["2013-06-02 00:00"] * 3]),
            "probability": [0.5, 0.0, 0.9, 0.5, 0.5],
            "fresh": [0.5, 0.5, 0.9, 0.5, np.nan],
            "label": [1.0, 1.0, 1.0, np.nan, 1.0],
        }
    )
    first, second = harm.day_losses(judged)
    assert (first.day, first.n) == (date(2013, 6, 1), 2)
    assert first.loss == pytest.approx((math.log(2) - math.log(0.01)) / 2)  # a probability of 0 counts as 0.01
    assert first.behind == pytest.approx((-math.log(0.01) - math.log(2)) / 2)
    assert (second.n, second.behind) == (1, 0.0)  # rows without a label or a yardstick are left out
    assert harm.day_losses(judged.assign(label=np.nan)) == []


def test_bounded__regression__cut_off_at_the_holdouts_tail() -> None:
    y_true, answers = np.zeros(1000), np.arange(1000.0)
    limit = harm.limit_of("regression", y_true, answers)
    assert limit == pytest.approx(989.01**2, rel=1e-4)  # between the 990th and the 991st square
    assert harm.bounded("regression", np.zeros(2), np.array([2.0, 1e9]), limit).tolist() == [4.0, limit]


def test_day_losses__of_classes() -> None:
    judged = pd.DataFrame({"event_time": pd.to_datetime(["2013-06-01"] * 2), "label": [2.0, 0.0]})
    judged["probability"], judged["fresh"] = [[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]], [[0.0, 0.0, 1.0], [0.25, 0.5, 0.25]]
    (day,) = harm.day_losses(judged, "multiclass")
    assert day.loss == pytest.approx(math.log(2))
    assert day.fresh == pytest.approx((-math.log(0.99) - math.log(0.25)) / 2)


# ---- the test


@pytest.mark.parametrize(("t", "n", "m"), [(0.0, 3, 14), (1.5, 1, 14), (3.0, 20, 14), (-2.0, 9, 6), (6.0, 60, 14)])
def test_log_evidence__is_the_mixed_likelihood_ratio(t: float, n: int, m: int) -> None:
    scale, freedom = math.sqrt(1 / (1 / n + 1 / m)), n + m - 2

    def weighted(effect: float) -> float:
        return float(stats.nct.pdf(t, freedom, effect * scale) * 2 * stats.norm.pdf(effect, scale=harm.EFFECT))

    mixed, _ = integrate.quad(weighted, 0, 8, epsabs=1e-13)
    expected = math.log(mixed / stats.t.pdf(t, freedom))
    assert harm.log_evidence(np.array([t]), np.array([n]), m)[0] == pytest.approx(expected, abs=1e-5)


def test_critical__evidence_there_is_one_over_alpha() -> None:
    n, alpha = np.array([2, 14, 60]), np.array([0.05, 0.01, 0.001])
    t = harm.critical(n, 14, alpha)
    assert np.exp(-harm.log_evidence(t, n, 14)) == pytest.approx(alpha)
    assert math.isinf(harm.critical(np.array([1]), 5, 0.05)[0])  # one day beside five can never be enough


def test_since_each__is_the_two_sample_t_statistic() -> None:
    seen, reference = drawn(0.01, 9, 2), drawn(0, 14, 3)
    mean, error = harm.since_each(seen, reference)
    for start in range(9):
        found = stats.ttest_ind(seen[start:], reference) if start < 8 else None
        assert mean[start] == pytest.approx(seen[start:].mean() - reference.mean())
        if found:
            assert mean[start] / error[start] == pytest.approx(found.statistic)


@pytest.mark.parametrize("count", [1, 2, 60, 1000])
def test_prior__shares_out_no_more_than_there_is(count: int) -> None:
    shares = harm.prior(count)
    assert (len(shares), shares[0]) == (count, 0.5)
    assert shares.sum() <= 1
    assert (np.diff(shares) < 0).all()


@given(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=30), st.floats(0.001, 0.1))
def test_judge__more_loss_is_never_less_harm(behind: list[float], more: float) -> None:
    before, after = (harm.judge(days(np.array(behind) + add), HOLDOUT, PARAMS) for add in (0.0, more))
    assert before.verdict != "harmed" or after.verdict == "harmed"
    assert after.low is None or after.high is None or after.low <= after.excess <= after.high


# ---- what it sees


@pytest.mark.parametrize("good", [0, 40], ids=["from the start", "after 40 good days"])
def test_judge__harm_of_0_05__seen_within_three_weeks(good: int) -> None:
    live = days(np.concatenate([drawn(0, good, 4), drawn(0.05, 21, 5)]))
    found = harm.judge(live, HOLDOUT, PARAMS)
    assert found.verdict == "harmed"
    assert found.low is not None and found.low > PARAMS.margin
    assert found.since is not None and abs((found.since - FIRST).days - good) <= 3
    assert harm.judge(live[:good], HOLDOUT, PARAMS).verdict in ("unproven", "few_labels")


def test_judge__a_hard_day_for_both_is_no_harm() -> None:
    storm = [d.model_copy(update={"loss": d.loss + 0.4, "fresh": d.fresh + 0.4}) for d in days(drawn(0, 21, 6))]
    found = harm.judge(storm, HOLDOUT, PARAMS)
    assert found.verdict == "unproven"
    assert sum(found.by_day.values()) < 14


def test_judge__an_unsteady_holdout__takes_longer() -> None:
    live = days(drawn(0.04, 14, 7))
    unsteady = [d.model_copy(update={"loss": 0.5 + 5 * d.behind}) for d in HOLDOUT]
    assert harm.judge(live, HOLDOUT, PARAMS).verdict == "harmed"
    assert harm.judge(live, unsteady, PARAMS).verdict == "unproven"


# ---- what it says


def test_judge__by_day_is_above_expected_and_margin() -> None:
    holdout = [d.model_copy(update={"loss": d.loss + 0.1}) for d in HOLDOUT]  # 0.1 behind the yardstick is what is expected
    found = harm.judge(days([0.105, 0.115, 0.05]), holdout, PARAMS)
    assert list(found.by_day.values()) == [False, True, False]
    assert found.excess == pytest.approx((0.105 + 0.115 + 0.05) / 3 - 0.1)


def test_judge__days_with_few_labels_do_not_count() -> None:
    live = [*days(drawn(0, 10, 8)), *days([3.0], first=FIRST + timedelta(days=10), n=PARAMS.min_rows - 1)]
    found = harm.judge(live, HOLDOUT, PARAMS)
    assert (found.verdict, found.days, found.n) == ("unproven", 10, 8000)
    assert FIRST + timedelta(days=10) not in found.by_day
    assert found == harm.judge(live[::-1], HOLDOUT, PARAMS)


@pytest.mark.parametrize(
    ("live", "holdout", "told"),
    [
        ([], HOLDOUT, "none of 0 matured days has 200 labels"),
        (days([0.5] * 3, n=100), HOLDOUT, "none of 3 matured days"),
        (days([0.5] * 30), HOLDOUT[:4], "the holdout has 4 days with 200 labels, 5 are wanted"),
    ],
    ids=["no day", "small days", "short holdout"],
)
def test_judge__few_labels__says_which(live: list[DayLoss], holdout: list[DayLoss], told: str) -> None:
    found = harm.judge(live, holdout, PARAMS)
    assert (found.verdict, found.excess, found.by_day) == ("few_labels", None, {})
    assert told in found.detail


def test_judge__days_that_do_not_differ__are_still_judged() -> None:
    same = days([0.0] * 14, first=date(2013, 5, 15))
    assert harm.judge(days([0.0]), same, PARAMS).verdict == "unproven"
    found = harm.judge(days([0.05] * 30), same, PARAMS)
    assert (found.verdict, found.low) == ("harmed", pytest.approx(0.05))


def test_harm__is_json_both_ways() -> None:
    for live in (days(drawn(0.05, 20, 9)), days([0.1]), []):
        found = harm.judge(live, HOLDOUT, PARAMS)
        assert harm.Harm.model_validate_json(found.model_dump_json()) == found


def test_harm__detail_in_plain_words() -> None:
    found = harm.judge(days(drawn(0.05, 20, 9)), HOLDOUT, PARAMS)
    assert found.detail.startswith("harm is shown: since 2013-06-01, 20 days with 16,000 labels, it loses +0.0")
    assert found.detail.endswith("0.01 is tolerated")
