"""Intervals cover as often as they say; re-use is paid for; areas agree with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ml.significance import Interval, auc_by_day, clustered_by_day, delong, jackknife_by_day, paid, paired_by_day, paired_sums

DRAW = np.random.default_rng(1)
N, DAYS = 2800, 14
LOGIT = DRAW.normal(-1, 1.2, N)
LABEL = (DRAW.random(N) < 1 / (1 + np.exp(-LOGIT))).astype(float)
DAY = np.repeat(np.arange(DAYS), N // DAYS)


def scores(noise: float, seed: int) -> np.ndarray:
    return LOGIT + np.random.default_rng(seed).normal(0, noise, N)


def test_paired_by_day__is_wider_than_rows_alone_when_days_differ() -> None:
    by_day = np.repeat(np.random.default_rng(7).normal(0, 1, DAYS), N // DAYS)
    interval = paired_by_day(by_day, np.zeros(N), DAY, 0.95, 2000, 1)
    rows_alone = 1.96 * by_day.std() / np.sqrt(N)
    assert interval.high - interval.low > 10 * rows_alone
    assert interval.low < by_day.mean() < interval.high


@pytest.mark.parametrize("days", [7, 14])
def test_paired_sums__errs_to_each_side_about_as_often_as_it_says(days: int) -> None:
    """2.5 % nominal; 1,000 trials of normal days give 1.4 – 3.9 % by chance (4 standard errors). The plain percentile gives 6 % for 7."""
    draw = np.random.default_rng(3)
    found = [paired_sums(draw.normal(size=days), np.ones(days), 0.95, 1000, seed) for seed in range(1000)]
    for missed in (np.mean([i.high < 0 for i in found]), np.mean([i.low > 0 for i in found])):
        assert 0.005 <= missed <= 0.045


def test_paired_by_day__refuses_one_day_and_missing_losses() -> None:
    with pytest.raises(ValueError, match="at least two days"):
        paired_by_day(np.zeros(5), np.zeros(5), np.zeros(5), 0.95, 100, 1)
    with pytest.raises(ValueError, match="NaN in 1 of 5"):
        paired_by_day(np.array([0, 0, np.nan, 0, 0]), np.zeros(5), np.arange(5), 0.95, 100, 1)


def test_paired_sums__days_of_other_sizes_weigh_by_their_rows() -> None:
    """Sums 10 of 10 rows and 0 of 90: mean 0.1."""
    assert paired_sums(np.array([10.0, 0.0]), np.array([10, 90]), 0.9, 200, 1).mean == pytest.approx(0.1)


def test_auc_by_day__is_the_difference_of_areas_with_ties() -> None:
    first, second = scores(0.5, 1), np.round(scores(0.8, 2))
    interval = auc_by_day(LABEL, first, second, DAY, 0.95, 500, 1)
    assert interval.mean == pytest.approx(roc_auc_score(LABEL, first) - roc_auc_score(LABEL, second), abs=1e-12)


def test_auc_by_day__a_resample_is_the_area_of_its_rows() -> None:
    """Two days: each resample takes one of them twice, or both once; the ends are areas of such tables of rows."""
    rows = np.r_[0:40, 200:240]
    y, s, d = LABEL[rows], scores(0.5, 3)[rows], np.repeat([0, 1], 40)
    areas = {roc_auc_score(y[d == 0], s[d == 0]), roc_auc_score(y[d == 1], s[d == 1]), roc_auc_score(y, s)}
    interval = auc_by_day(y, s, np.zeros(80), d, 0.9, 400, 1)  # whoever says the same to all has an area of 1/2
    for end in (interval.low, interval.high):
        assert min(abs(end + 0.5 - area) for area in areas) < 1e-12


def test_auc_by_day__of_one_class_is_unknown() -> None:
    assert np.isnan(auc_by_day(np.ones(N), LOGIT, LOGIT, DAY, 0.95, 100, 1).low)


def test_delong__agrees_with_a_bootstrap_of_rows() -> None:
    first, second, draw = scores(0.3, 1), scores(0.9, 2), np.random.default_rng(5)
    interval = delong(LABEL, first, second, 0.95)
    resampled = []
    for _ in range(400):
        rows = draw.integers(0, N, N)
        resampled.append(roc_auc_score(LABEL[rows], first[rows]) - roc_auc_score(LABEL[rows], second[rows]))
    assert interval.mean == pytest.approx(roc_auc_score(LABEL, first) - roc_auc_score(LABEL, second), abs=1e-12)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * np.std(resampled), rel=0.15)


def test_delong__of_a_model_with_itself_is_zero() -> None:
    interval = delong(LABEL, LOGIT, LOGIT, 0.95)
    assert (interval.mean, interval.low, interval.high) == (0, 0, 0)


def test_paid__widens_the_interval_with_each_use() -> None:
    first, second = scores(0.5, 1), scores(0.6, 2)
    widths = [(lambda i: i.high - i.low)(paired_by_day(first, second, DAY, paid(0.95, uses), 2000, 1)) for uses in (1, 2, 5, 14)]
    assert widths == sorted(widths)
    assert widths[-1] > 1.3 * widths[0]
    with pytest.raises(ValueError, match="at least 1"):
        paid(0.95, 0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, -0.001, "better"),
        (-0.01, 0.009, "equivalent"),
        (-0.01, 0.011, "worse"),
        (0.02, 0.03, "worse"),
        (-1, np.nan, "worse"),
    ],
    ids=["below zero", "within the margin", "cannot be told", "above the margin", "not measured"],
)
def test_verdict__goes_by_the_upper_bound(low: float, high: float, verdict: str) -> None:
    assert Interval(0.0, low, high, 100, 14).verdict(0.01) == verdict


@pytest.mark.parametrize(("days", "rows"), [(2, 5), (7, 30)])
def test_clustered_by_day__covers_the_truth_as_often_as_it_says(days: int, rows: int) -> None:
    """2,000 trials at 95 %: four standard errors are 2 %. The percentile bootstrap of two days covers half."""
    draw, day, hits = np.random.default_rng(1), np.repeat(np.arange(days), rows), 0
    for _ in range(2000):
        effect = np.repeat(draw.normal(size=days), rows) + draw.normal(size=days * rows)
        interval = clustered_by_day(effect, np.zeros(days * rows), day, 0.95)
        hits += interval.low <= 0 <= interval.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_clustered_by_day__equals_students_t_of_day_means_where_days_are_equally_long() -> None:
    draw, day = np.random.default_rng(2), np.repeat(np.arange(9), 40)
    first, second = draw.normal(size=(2, 360))
    found = clustered_by_day(first, second, day, 0.9)
    means = (first - second).reshape(9, 40).mean(axis=1)
    expected = stats.t.interval(0.9, 8, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.rows, found.days) == (360, 9)


def test_clustered_by_day__refuses_one_day() -> None:
    with pytest.raises(ValueError, match="two days"):
        clustered_by_day(np.zeros(3), np.zeros(3), np.zeros(3), 0.95)


def test_jackknife_by_day__of_a_mean_is_students_t_and_of_an_area_agrees_with_the_bootstrap() -> None:
    draw, day = np.random.default_rng(3), np.repeat(np.arange(9), 40)
    values = draw.normal(size=360)
    means = values.reshape(9, 40).mean(axis=1)
    found = jackknife_by_day(lambda rows: {"mean": float(values[rows].mean())}, day, 0.9)["mean"]
    assert found == pytest.approx(stats.t.interval(0.9, 8, means.mean(), stats.sem(means)))
    shown = scores(1.0, 1)
    area = jackknife_by_day(lambda rows: {"auc": float(roc_auc_score(LABEL[rows], shown[rows]))}, DAY, 0.95)["auc"]
    again = auc_by_day(LABEL, shown, np.zeros(N), DAY, 0.95, 4000, 1)
    assert area[1] - area[0] == pytest.approx(again.high - again.low, rel=0.2)


def test_jackknife_by_day__of_what_cannot_be_without_a_day_is_nan() -> None:
    found = jackknife_by_day(lambda rows: {"last": float(rows[-1]) if rows[-1] == 3 else np.nan}, np.array([1, 1, 2, 2]), 0.9)
    assert np.isnan(found["last"]).all()
    with pytest.raises(ValueError, match="two days"):
        jackknife_by_day(lambda _: {}, np.zeros(3), 0.9)
