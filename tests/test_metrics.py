"""Metrics of the three tasks, by hand-made figures."""

from __future__ import annotations

import numpy as np
import pytest

from ml import metrics
from ml.metrics import Scoring

Y = np.array([0.0, 0.0, 1.0, 1.0])
P = np.array([0.1, 0.6, 0.4, 0.9])
CLASSES = np.array([0.0, 1.0, 2.0, 2.0])
SHARES = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])


def test_summary__of_a_binary_task() -> None:
    found = metrics.summary(Y, P, Scoring(threshold=0.5, false_alarm_cost=1, miss_cost=3))
    assert found["auc"] == 0.75  # 3 of 4 pairs in order
    assert found["f1"] == 0.5  # one hit, one false alarm, one miss
    assert found["cost"] == 1.0  # (1 + 3) / 4
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["positives"] == 0.5


def test_summary__of_a_multiclass_task() -> None:
    found = metrics.summary(CLASSES, SHARES, Scoring("multiclass"))
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.6]).mean())
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # class 0: precision ½, recall 1; class 1 is never said


def test_summary__of_a_regression() -> None:
    found = metrics.summary(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0]), Scoring("regression", quantile=0.9))
    assert found["rmse"] == pytest.approx(np.sqrt(3))
    assert found["mae"] == 1.0
    assert found["pinball"] == pytest.approx(0.1 * 3 / 3)  # too high by 3 once, at weight 1 − 0.9
    assert found["r2"] == pytest.approx(1 - 9 / 2)


def test_calibration_error__is_the_mean_gap_and_sees_overconfidence() -> None:
    draw = np.random.default_rng(1)
    p = draw.random(20_000)
    y = (draw.random(20_000) < p).astype(float)
    logit = np.log(p / (1 - p))
    assert metrics.calibration_error(y, p) < 0.02
    assert metrics.calibration_error(y, 1 / (1 + np.exp(-3 * logit))) > 0.1
    assert metrics.calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0


def test_losses__are_what_decisions_go_by() -> None:
    assert metrics.losses("regression", Y, P).tolist() == pytest.approx([0.01, 0.36, 0.36, 0.01])
    assert metrics.losses("multiclass", CLASSES, SHARES)[1] == pytest.approx(-np.log(0.3))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_feature_score__finds_a_leak_whichever_way_it_points(task: str) -> None:
    y = np.arange(100.0) if task == "regression" else np.repeat([0.0, 1.0], 50)
    assert metrics.feature_score(task, y, -np.arange(100.0)) == pytest.approx(1.0)
    assert metrics.feature_score(task, y, np.random.default_rng(1).random(100)) < 0.7
    assert metrics.feature_score(task, y, np.full(100, np.nan)) == 0.0
    assert metrics.feature_score(task, y, np.full(100, 3.0)) == 0.0


def test_by_class__counts_each_class() -> None:
    rows = metrics.by_class(CLASSES, SHARES, Scoring("multiclass"), ["early", "fair", "late"])
    assert [(row["class"], row["n"], row["recall"]) for row in rows] == [("early", 1, 1.0), ("fair", 1, 0.0), ("late", 2, 1.0)]
    assert metrics.by_class(Y, P, Scoring("regression"), []) == []


def test_summary__refuses_missing_answers() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.summary(Y, np.array([0.1, np.nan, 0.2, 0.3]))
