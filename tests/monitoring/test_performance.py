"""Realised performance by slice, and what other thresholds would have cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.config import load_params
from ml.errors import ConfigError
from ml.metrics import log_loss
from ml.monitoring.performance import CostCurve, by_slice, cost_curve

PARAMS = load_params().evaluation.model_copy(update={"slices": {"origin": None, "hour": [0, 12]}, "min_slice_rows": 3})
JUDGED = pd.DataFrame(
    {
        "event_time": pd.to_datetime(["2013-06-01", "2013-06-01", "2013-06-02", "2013-06-02", "2013-06-02", "2013-06-02"]),
        "probability": [0.9, 0.1, 0.5, 0.5, 0.2, 0.7],
        "label": [1.0, 0.0, 1.0, 0.0, 1.0, np.nan],
    },
    index=[7, 3, 5, 1, 2, 9],
)
X = pd.DataFrame({"origin": ["A", "A", "A", "B", "B", "B"], "hour": [3.0, 15.0, 3.0, 15.0, 3.0, 3.0]}, index=JUDGED.index)


def test_by_slice__by_hand() -> None:
    found = {part.name: part for part in by_slice(JUDGED, X, PARAMS)}
    assert set(found) == {"origin = A", "origin = B", "hour = 0 – 12", "hour = from 12"}
    first = found["origin = A"]
    assert (first.n, first.days, first.judged, first.score) == (3, 2, True, 1.0)
    assert first.loss == pytest.approx(log_loss(np.array([1.0, 0, 1]), np.array([0.9, 0.1, 0.5])))
    assert (first.label, first.answer) == (pytest.approx(2 / 3), pytest.approx(0.5))
    assert (found["origin = B"].n, found["origin = B"].judged) == (2, False)  # the row without a label is no row
    assert found["hour = from 12"].score is None  # only one class came true


def test_by_slice__worst_first_and_small_ones_last() -> None:
    found = by_slice(JUDGED, X, PARAMS)
    assert [part.judged for part in found] == [True, True, False, False]
    assert found[0].loss > found[1].loss


def test_by_slice__order_of_rows_does_not_matter() -> None:
    assert by_slice(JUDGED, X.iloc[::-1], PARAMS) == by_slice(JUDGED, X, PARAMS)


def test_by_slice__nothing_matured_or_an_unknown_feature() -> None:
    assert by_slice(JUDGED.assign(label=np.nan), X, PARAMS) == []
    with pytest.raises(ConfigError, match="'colour', which is no feature"):
        by_slice(JUDGED, X, PARAMS.model_copy(update={"slices": {"colour": None}}))


def test_by_slice__of_numbers() -> None:
    judged = JUDGED.assign(label=[10.0, 20, 30, 40, 50, 60], probability=[11.0, 19, 31, 40, 50, 60])
    found = {part.name: part for part in by_slice(judged, X, PARAMS, "regression")}
    assert found["origin = A"].loss == pytest.approx(1.0)
    assert found["origin = B"].score == pytest.approx(1.0)


def curve(threshold: float = 0.5) -> CostCurve:
    costs = PARAMS.model_copy(update={"false_alarm_cost": 1.0, "miss_cost": 3.0})
    return cost_curve(np.array([1.0, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.3]), costs, threshold)


def test_cost_curve__by_hand() -> None:
    found = curve()
    by_threshold = dict(zip(found.thresholds, found.costs, strict=True))
    assert by_threshold[0.0] == pytest.approx(2 * 1 / 4)  # everything is 1: two false alarms
    assert by_threshold[1.0] == pytest.approx(2 * 3 / 4)  # nothing is: two misses
    assert (found.cost, by_threshold[0.5]) == (pytest.approx(3 / 4), pytest.approx(3 / 4))  # 0.4 is missed
    assert (found.best, found.best_cost) == (pytest.approx(0.31), 0.0)
    assert (found.calibrated, found.n) == (0.25, 4)


def test_cost_curve__a_threshold_between_those_of_the_grid_is_in_it() -> None:
    found = curve(0.3999)
    assert found.thresholds == sorted(found.thresholds)
    assert (0.3999 in found.thresholds, found.cost) == (True, 0.0)
    assert len(curve(0.5).thresholds) == 101


def test_cost_curve__missing_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN in y_true"):
        cost_curve(np.array([1.0, np.nan]), np.array([0.5, 0.5]), PARAMS, 0.5)
