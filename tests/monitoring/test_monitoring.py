"""Drift figures equal their definitions; the policy answers to lasting harm alone."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from ml.config import load_params
from ml.monitoring.drift import feature_drift, psi
from ml.monitoring.performance import DayQuality, by_day
from ml.monitoring.policy import decide
from ml.monitoring.profiles import build_profile

DRAW = np.random.default_rng(1)
REFERENCE = pd.DataFrame({"x": DRAW.normal(size=20_000), "place": DRAW.choice(["A", "B"], 20_000, p=[0.7, 0.3])})
PROFILE = build_profile(["x"], ["place"], REFERENCE)
AS_OF = datetime(2013, 4, 22, 5)
PARAMS = load_params().monitoring


def current(shift: float = 0.0, a: float = 0.7, missing: float = 0.0, n: int = 4000) -> pd.DataFrame:
    draw = np.random.default_rng(2)
    x = draw.normal(shift, 1, n)
    x[draw.random(n) < missing] = np.nan
    return pd.DataFrame({"x": x, "place": draw.choice(["A", "B"], n, p=[a, 1 - a])})


def drift_of(name: str, rows: pd.DataFrame) -> object:
    return next(d for d in feature_drift(PROFILE, rows) if d.name == name)


def test_psi__by_hand() -> None:
    # shares 0.5, 0.5 → 0.6, 0.4: 0.1·ln(1.2) + (−0.1)·ln(0.8) = 0.01823 + 0.02231
    assert psi(np.array([5, 5]), np.array([6, 4])) == pytest.approx(0.1 * np.log(1.2) - 0.1 * np.log(0.8))
    assert np.isnan(psi(np.array([5, 5]), np.array([0, 0])))


def test_feature_drift__is_small_without_and_large_with_a_shift() -> None:
    assert drift_of("x", current()).psi < 0.02
    assert drift_of("x", current(shift=1.0)).psi > 0.5
    assert drift_of("place", current(a=0.2)).psi > 0.5


def test_feature_drift__ks_of_a_shift_is_the_gap_of_two_normals() -> None:
    # sup |Φ(x) − Φ(x − 1)| is at x = ½: 2·Φ(½) − 1 = 0.3829
    assert drift_of("x", current(shift=1.0)).ks == pytest.approx(0.3829, abs=0.02)
    assert drift_of("x", current(shift=1.0)).ks_p < 1e-6


def test_feature_drift__sees_missing_values_and_unseen_categories() -> None:
    assert drift_of("x", current(missing=0.5)).psi > 1
    assert drift_of("x", current(missing=0.5)).missing == pytest.approx(0.5, abs=0.03)
    assert drift_of("place", current().assign(place="C")).psi > 1
    assert drift_of("x", current(missing=1.0)).psi > 1
    half = current()
    half.loc[::2, "place"] = None
    assert drift_of("place", half).psi > 1
    assert drift_of("place", half).missing == pytest.approx(0.5)


def test_feature_drift__a_feature_that_is_absent_counts_as_missing() -> None:
    (drift,) = [d for d in feature_drift(PROFILE, current().drop(columns="x")) if d.name == "x"]
    assert (drift.missing, drift.psi > 1) == (1.0, True)


def test_by_day__leaves_out_rows_without_a_label() -> None:
    rows = pd.DataFrame({"event_time": pd.to_datetime(["2013-04-18"] * 3 + ["2013-04-19"]), "probability": [0.5, 0.5, 0.9, 0.5],
                         "label": [1.0, 0.0, np.nan, 1.0]})  # fmt: skip
    first, second = by_day(rows)
    assert (first.day, first.n, round(first.log_loss, 4), first.auc) == (date(2013, 4, 18), 2, 0.6931, 0.5)
    assert (second.n, second.auc) == (1, None)


def days(*losses: float, n: int = 900) -> list[DayQuality]:
    return [
        DayQuality(day=date(2013, 4, 18) + timedelta(days=i), n=n, log_loss=loss, auc=0.7, positives=0.3, mean_probability=0.3)
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("quality", "last_request", "verdict"),
    [
        (days(0.40, 0.60, 0.60), None, "retrain"),
        (days(0.60, 0.40, 0.60), None, "retrain"),
        (days(0.60, 0.60, 0.40), None, "keep"),
        (days(0.40, 0.40, 0.60), None, "keep"),
        (days(0.40, 0.40, 0.40), None, "keep"),
        (days(0.60, 0.60, 0.60, n=10), None, "wait"),
        ([], None, "wait"),
        (days(0.60, 0.60, 0.60), AS_OF - timedelta(days=1), "wait"),
        (days(0.60, 0.60, 0.60), AS_OF - timedelta(days=PARAMS.cooldown_days), "retrain"),
    ],
    ids=[
        "lasting",
        "two of three",
        "newest is well",
        "one bad day",
        "well",
        "few labels",
        "no labels",
        "cooling down",
        "cooled down",
    ],
)
def test_decide__asks_for_a_retrain_on_lasting_harm_alone(quality: list, last_request: datetime | None, verdict: str) -> None:
    decision = decide(quality, 0.45, [], AS_OF, last_request, PARAMS)
    assert decision.verdict == verdict
    assert decision.passed == (verdict == "retrain")


def test_decide__drift_without_harm_does_not_retrain() -> None:
    drifts = feature_drift(PROFILE, current(shift=3.0))
    decision = decide(days(0.40, 0.40, 0.40), 0.45, drifts, AS_OF, None, PARAMS)
    assert decision.verdict == "keep"
    assert "features drifted" in decision.reason
    assert "x " in decision.reason
