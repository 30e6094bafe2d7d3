"""The two-sample test: sees what single features do not, is not fooled by days, and says what tells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.config import load_params
from ml.errors import NotEnoughDataError
from ml.monitoring import multivariate as mv
from ml.monitoring.multivariate import Apart, tell_apart

PARAMS = load_params().monitoring.estimate.model_copy(update={"apart_rows": 6000})
A_DAY = 150


def rows(
    days: range, seed: int, turned: bool = False, weather: float = 1.0, lifted: float = 0.0
) -> tuple[pd.DataFrame, np.ndarray]:
    """Features of days with a weather of their own. `turned`: two features correlate the other way, each by itself as before."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.array(days), A_DAY)
    n = len(day)
    first = rng.standard_normal(n)
    second = (-0.9 if turned else 0.9) * first + np.sqrt(1 - 0.81) * rng.standard_normal(n)
    text = rng.choice(["a", "b", "c"], n).astype(object)
    text[rng.random(n) < 0.05] = None
    table = pd.DataFrame({
        "first": first, "second": second, "storm": np.repeat(weather * rng.standard_normal(len(days)), A_DAY) + lifted,
        "text": text, "empty": np.nan,
    })  # fmt: skip
    return table, day


def apart(reference: tuple[pd.DataFrame, np.ndarray], window: tuple[pd.DataFrame, np.ndarray], seed: int = 0) -> Apart:
    return tell_apart(reference[0], window[0], reference[1], window[1], PARAMS, seed)


REFERENCE = rows(range(40), 1)


def test_tell_apart__sees_a_turned_correlation_that_no_single_feature_shows() -> None:
    found = apart(REFERENCE, rows(range(100, 107), 2, turned=True))
    assert found.verdict == "moved"
    assert found.auc > 0.8 and 0.6 < found.low <= found.auc <= found.high
    assert {"first", "second"} <= set(list(found.features)[:3])


def test_tell_apart__is_not_fooled_by_the_weather_of_days() -> None:
    verdicts, naive = [], []
    for seed in range(12):
        window = rows(range(100, 107), 100 + seed)
        verdicts.append(apart(REFERENCE, window, seed).verdict)
        if seed < 2:  # rows held out in place of days: every day is known by its weather
            days = [np.random.default_rng(seed).integers(0, 40, len(sample[1])) for sample in (REFERENCE, window)]
            naive.append(apart((REFERENCE[0], days[0]), (window[0], days[1]), seed).auc)
    assert verdicts.count("same") >= 10  # low > 0.5 by chance in 2.5 %; three of 12 would be far out
    assert "moved" not in verdicts
    assert min(naive) > 0.75


def test_tell_apart__names_a_category_and_a_gap() -> None:
    table, days = rows(range(100, 107), 3)
    table.loc[np.random.default_rng(0).random(len(table)) < 0.7, "text"] = "new"
    found = apart(REFERENCE, (table.drop(columns="second"), days))
    assert found.verdict == "moved"
    assert set(found.features) & {"text", "second"}
    assert sum(found.features.values()) == pytest.approx(1)
    assert "empty" not in found.features


def test_tell_apart__a_faint_difference_is_small() -> None:
    table, days = rows(range(100, 130), 4)
    found = apart(rows(range(60), 5), (table.assign(first=table["first"] + 0.4), days))
    assert found.verdict == "small"
    assert 0.5 < found.low < found.auc < PARAMS.apart_auc


def test_tell_apart__is_the_same_again_and_caps_its_rows() -> None:
    window = rows(range(100, 140), 6)
    first, again = apart(REFERENCE, window), apart(REFERENCE, window)
    assert first == again
    assert (first.reference, first.window) == (3000, 3000)
    assert (first.reference_days, first.window_days) == (40, 40)


def test_tell_apart__of_two_days_has_a_wide_interval() -> None:
    window = rows(range(100, 102), 7)
    found = apart(REFERENCE, window)
    assert found.window_days == 2
    assert found.verdict == "same"
    with pytest.raises(NotEnoughDataError, match=r"the window has 150 rows of 1 day\(s\)"):
        apart(REFERENCE, (window[0][:A_DAY], window[1][:A_DAY]))


def test_matrix__ranks_text_over_both_samples_and_keeps_gaps() -> None:
    reference = pd.DataFrame({"x": [1.0, np.nan], "t": ["b", "b"], "flag": [True, False]})
    window = pd.DataFrame({"x": [2, 3], "t": ["a", None], "flag": [True, True]})
    made = mv.matrix(reference, window)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, [[1, 0, 1], [np.nan, 0, 0], [2, 1, 1], [3, np.nan, 1]])


def test_pairs__are_those_of_all_rows_of_one_fold() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(30).round(1), rng.random(50).round(1)
    our_day, their_day = np.repeat([0, 1, 2], 10), np.repeat(np.arange(5), 10)
    folds = [np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1])]
    won, pairs = mv._pairs(ours, theirs, our_day, their_day, folds)
    for i in range(3):
        for j in range(5):
            a, b = ours[our_day == i][:, None], theirs[their_day == j][None]
            meet = folds[1][i] == folds[0][j]
            assert won[i, j] == pytest.approx(((a > b) + 0.5 * (a == b)).sum() if meet else 0)
            assert pairs[i, j] == (100 if meet else 0)
