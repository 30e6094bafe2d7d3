"""Measures equal SciPy's on the rows; a verdict takes a change that matters and enough rows to show it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import stats
from scipy.spatial import distance

from ml.config import Drift, load_params
from ml.errors import IntegrityError
from ml.monitoring.drift import (
    FLOOR,
    LEAST_EXPECTED,
    FeatureDrift,
    chi2,
    feature_drift,
    grouped,
    jensen_shannon,
    ks,
    psi,
    same_weekdays,
    share_p,
    summary,
    verdict,
    wasserstein,
)
from ml.monitoring.profiles import LABEL, PREDICTION, build_profile, merge, profile_day

LIMITS = load_params().monitoring.drift
DRAW = np.random.default_rng(5)
N, M = 20_000, 12_000


def rows(n: int, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame({
        "x": draw.normal(100 + 15 * shift, 15, n),
        "hour": np.clip(draw.poisson(9 + 2 * shift, n), 0, 23).astype(float),
        "place": draw.choice(["a", "b", "c", "d"], n, p=[0.5 - 0.1 * shift, 0.3, 0.1 + 0.1 * shift, 0.1]),
    })  # fmt: skip


BEFORE, AFTER = rows(N, seed=1), rows(M, 0.3, seed=2)
REFERENCE = build_profile(["x", "hour"], ["place"], BEFORE, importance={"x": 6, "hour": 3, "place": 1})


def drifts(current: pd.DataFrame, reference=REFERENCE, **kwargs: object) -> dict[str, FeatureDrift]:
    return {d.name: d for d in feature_drift(reference, profile_day(reference, current), LIMITS, **kwargs)}


def shares(x: pd.Series, y: pd.Series) -> np.ndarray:
    return np.array(pd.crosstab(np.r_[x, y], np.r_[np.zeros(len(x)), np.ones(len(y))])).T


# ---- measures


def test_psi__is_the_sum_of_both_relative_entropies() -> None:
    r, c = DRAW.integers(1, 500, (2, 30))
    assert psi(r, c) == pytest.approx(stats.entropy(r, c) + stats.entropy(c, r), rel=1e-12)


def test_psi__an_empty_bin_counts_as_the_floor() -> None:
    # shares 1, 0 → 0.5, 0.5: (0.5 − 1)·ln 0.5 + (0.5 − FLOOR)·ln(0.5/FLOOR)
    by_hand = -0.5 * np.log(0.5) + (0.5 - FLOOR) * np.log(0.5 / FLOOR)
    assert psi(np.array([9, 0]), np.array([1, 1])) == pytest.approx(by_hand)


def test_jensen_shannon__is_scipys_on_shares() -> None:
    r, c = DRAW.integers(0, 50, (2, 30))
    assert jensen_shannon(r, c) == pytest.approx(distance.jensenshannon(r / r.sum(), c / c.sum(), 2), rel=1e-12)


@pytest.mark.parametrize("measure", [psi, jensen_shannon, lambda r, c: ks(r, c)[1], lambda r, c: chi2(r, c)[1]])
def test_measures__of_nothing_are_unknown(measure) -> None:
    assert np.isnan(measure(np.array([1, 2]), np.array([0, 0])))
    assert np.isnan(measure(np.array([0, 0]), np.array([1, 2])))


def test_drift_of_a_number_with_few_values__is_scipys_on_the_rows() -> None:
    found = drifts(AFTER)["hour"]
    same = stats.ks_2samp(BEFORE["hour"], AFTER["hour"], method="asymp")
    away = stats.wasserstein_distance(BEFORE["hour"], AFTER["hour"]) / BEFORE["hour"].std(ddof=0)
    counts = shares(BEFORE["hour"], AFTER["hour"])
    assert found.ks == pytest.approx(same.statistic, rel=1e-12)
    assert ks(*counts)[1] == pytest.approx(same.pvalue, rel=1e-9)
    assert found.wasserstein == pytest.approx(away, rel=1e-9)
    assert chi2(*counts)[0] == pytest.approx(stats.chi2_contingency(counts, correction=False).statistic, rel=1e-12)


def test_ks__p_is_scipys_where_nothing_changed() -> None:
    # the p-value above is near 0: this one is not
    calm = rows(M, seed=7)["hour"]
    same = stats.ks_2samp(BEFORE["hour"], calm, method="asymp")
    assert 0.05 < same.pvalue < 0.999
    assert ks(*shares(BEFORE["hour"], calm))[1] == pytest.approx(same.pvalue, rel=1e-9)


def test_drift_of_a_number_with_many_values__is_near_scipys_and_never_surer() -> None:
    found = drifts(AFTER)["x"]
    same = stats.ks_2samp(BEFORE["x"], AFTER["x"], method="asymp")
    away = stats.wasserstein_distance(BEFORE["x"], AFTER["x"]) / BEFORE["x"].std(ddof=0)
    assert same.statistic - 0.01 < found.ks <= same.statistic
    assert found.wasserstein == pytest.approx(away, rel=0.05)


def test_drift_of_a_text__is_scipys_on_the_rows() -> None:
    found, counts = drifts(AFTER)["place"], shares(BEFORE["place"], AFTER["place"])
    p = stats.chi2_contingency(counts, correction=False).pvalue
    assert chi2(*counts)[1] == pytest.approx(p, rel=1e-9)
    assert found.p == pytest.approx(3 * p, rel=1e-9)  # Bonferroni: categories, new ones, missing ones
    assert found.psi == pytest.approx(psi(*counts), rel=1e-12)
    assert (found.ks, found.wasserstein) == (None, None)


def test_wasserstein__sees_values_that_move_beyond_the_last_bin() -> None:
    # the highest hundredth goes ten standard deviations further: no bin's count changes, the mean does
    far = BEFORE["x"].where(BEFORE["x"] < BEFORE["x"].quantile(0.99), BEFORE["x"] + 150)
    found = drifts(BEFORE.assign(x=far))["x"]
    assert found.wasserstein == pytest.approx(0.01 * 150 / BEFORE["x"].std(ddof=0), rel=0.01)
    assert wasserstein(np.array([0.0, 1.0]), np.array([1, 1]), np.array([1, 1])) == 0


def test_grouped__puts_rare_bins_together_and_keeps_the_rest() -> None:
    r, c = np.array([1, 400, 2, 0, 500, 90]), np.array([0, 40, 1, 1, 60, 10])
    few, many = grouped(r, c)
    # expected of both in 112 of 1105 rows: 0.1, 45, 0.3, 0.1, 57, 10; the three rare ones come to 0.5, so the next joins them
    assert (few.tolist(), many.tolist()) == ([93, 400, 500], [12, 40, 60])
    r, c = np.full(50, 100), np.full(50, 1)
    few, many = grouped(r, c)
    assert (few.sum(), many.sum()) == (5000, 50)
    assert ((few + many) * 50 / 5050).min() >= LEAST_EXPECTED - 0.01


@pytest.mark.parametrize(("reference", "current"), [(0, 3), (40, 1), (10, 12), (0, 0), (2, 0)])
def test_share_p__is_twice_the_smaller_binomial_tail(reference: int, current: int) -> None:
    both = reference + current
    tails = [stats.binomtest(current, max(both, 1), 0.2, alternative=side).pvalue for side in ("less", "greater")]
    assert share_p(reference, 4000, current, 1000) == pytest.approx(min(1, 2 * min(tails)))


# ---- verdicts


@pytest.mark.parametrize(
    ("effect", "q", "expected"),
    [(0.09, 0.0, "none"), (0.1, 0.0, "small"), (0.2, 0.0, "moderate"), (0.5, 0.0, "large"), (9.0, 0.051, "none"), (9.0, 0.05, "large"), (9.0, np.nan, "none")],
)  # fmt: skip
def test_verdict__is_by_effect_and_only_where_it_is_no_chance(effect: float, q: float, expected: str) -> None:
    limits = LIMITS.model_copy(update={"small": 0.1, "moderate": 0.2, "large": 0.5, "false_discovery_rate": 0.05})
    assert verdict(effect, q, limits) == expected


def test_limits__must_grow() -> None:
    with pytest.raises(ValidationError, match="small ≤ moderate ≤ large must hold"):
        Drift.model_validate(LIMITS.model_dump() | {"moderate": LIMITS.large + 1})


def test_feature_drift__a_significant_change_that_does_not_matter_is_none() -> None:
    found = drifts(rows(200_000, 0.1, seed=4))["x"]
    assert found.q < 1e-9
    assert (found.verdict, found.psi < LIMITS.small) == ("none", True)


def test_feature_drift__a_large_change_of_few_rows_is_none() -> None:
    found = drifts(rows(6, seed=4))["x"]
    assert (found.verdict, found.psi > LIMITS.large) == ("none", True)


def test_feature_drift__of_many_features_none_drifts_by_chance() -> None:
    # 150 rows in 20 bins: by chance alone PSI is above `small` in most features, and p below 0.05 in some
    names = [f"f{i}" for i in range(200)]
    before, after = (pd.DataFrame(DRAW.normal(size=(n, 200)), columns=names) for n in (5000, 150))
    found = drifts(after, build_profile(names, [], before)).values()
    assert sum(d.psi >= LIMITS.small for d in found) > 100
    assert any(d.p < 0.05 and d.psi >= LIMITS.small for d in found)
    assert [d.name for d in found if d.verdict != "none"] == []
    adjusted = stats.false_discovery_control([d.p for d in found])
    assert [d.q for d in found] == pytest.approx(adjusted)


def test_feature_drift__sees_missing_values_that_ks_does_not() -> None:
    half = AFTER.assign(x=rows(M, seed=9)["x"].where(np.arange(M) % 2 == 0))
    found = drifts(half)["x"]
    assert found.ks < 0.03
    assert (found.verdict, found.missing) == ("large", 0.5)
    sixty = drifts(rows(60, seed=9).assign(x=np.nan))["x"]
    assert (sixty.verdict, sixty.ks, sixty.wasserstein, sixty.missing) == ("large", None, None, 1.0)


def test_feature_drift__sees_new_categories_and_values_out_of_range() -> None:
    new = drifts(AFTER.assign(place=np.where(np.arange(M) % 10 == 0, "new", AFTER["place"])))["place"]
    assert (new.unseen, new.verdict) == (0.1, "large")
    out = drifts(AFTER.assign(x=np.where(np.arange(M) % 10 == 0, 1e4, BEFORE["x"][:M])))["x"]
    assert (out.out_of_range, out.verdict) == (0.1, "large")


def test_feature_drift__sees_a_constant_that_changes() -> None:
    reference = build_profile(["one"], [], pd.DataFrame({"one": np.ones(N)}))
    found = drifts(pd.DataFrame({"one": np.full(M, 2.0)}), reference)["one"]
    assert (found.verdict, found.ks, found.out_of_range, found.wasserstein) == ("large", 1.0, 1.0, None)
    assert drifts(pd.DataFrame({"one": np.ones(M)}), reference)["one"].verdict == "none"


def test_feature_drift__against_the_same_weekdays_asks_for_what_is_new() -> None:
    autumn = [profile_day(REFERENCE, rows(800, 1.0, seed=s)) for s in range(20, 27)]
    usual = merge([profile_day(REFERENCE, rows(800, 1.0, seed=s)) for s in range(30, 58)])
    by_training = {d.name: d.verdict for d in feature_drift(REFERENCE, merge(autumn), LIMITS)}
    by_weekdays = {d.name: d.verdict for d in feature_drift(REFERENCE, merge(autumn), LIMITS, usual)}
    assert by_training["x"] == "large"
    assert set(by_weekdays.values()) == {"none"}


def test_feature_drift__of_answers_and_labels_leaves_out_what_is_missing() -> None:
    label, answers = (DRAW.random(N) < 0.2).astype(float), DRAW.beta(2, 8, 3000)
    reference = build_profile(["x"], [], BEFORE, prediction=answers, label=label)
    half = np.arange(M) % 2 == 0
    same = {PREDICTION: np.where(half, DRAW.beta(2, 8, M), np.nan), LABEL: np.where(half, DRAW.random(M) < 0.2, np.nan)}
    calm = drifts(BEFORE[:M].assign(**same), reference)
    assert {calm[PREDICTION].verdict, calm[LABEL].verdict} == {"none"}
    assert (calm[LABEL].n, calm[LABEL].missing, calm["x"].n) == (M // 2, 0.0, M)
    moved = {PREDICTION: DRAW.beta(5, 5, M), LABEL: (DRAW.random(M) < 0.5).astype(float)}
    found = feature_drift(reference, profile_day(reference, BEFORE[:M].assign(**moved)), LIMITS)
    said = summary(found)
    assert (said.features, said.drifted, said.prediction, said.label) == (1, 0, "large", "moderate")
    unknown = drifts(BEFORE[:M].assign(**{LABEL: np.nan}), reference)
    assert set(unknown) == {"x"}


def test_feature_drift__of_an_empty_window_says_nothing() -> None:
    assert drifts(AFTER[:0]) == {}
    assert summary([]).share == 0


def test_feature_drift__refuses_a_day_of_another_reference() -> None:
    other = build_profile(["x"], [], BEFORE)
    with pytest.raises(IntegrityError, match="different references"):
        feature_drift(REFERENCE, profile_day(other, AFTER), LIMITS)


def test_summary__weighs_by_importance() -> None:
    far = AFTER.assign(hour=23.0, place="a")
    said = summary(list(drifts(far.assign(x=BEFORE["x"][:M])).values()))
    # importance: x 6, hour 3, place 1 of 10
    assert (said.features, said.drifted, said.share) == (3, 2, pytest.approx(0.4))
    unweighted = [replace(d, importance=None) for d in drifts(far.assign(x=BEFORE["x"][:M])).values()]
    assert summary(unweighted).share == pytest.approx(2 / 3)
    assert (said.prediction, said.label) == (None, None)


def test_same_weekdays__are_never_in_the_window() -> None:
    window = [date(2013, 5, 1) + timedelta(days=i) for i in range(10)]
    found = same_weekdays(window, 3)
    assert max(found) < min(window)
    assert {d.weekday() for d in found} == set(range(7))
    assert min(found) == date(2013, 5, 1) - timedelta(weeks=3)
