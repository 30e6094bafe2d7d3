"""Shares are exact, slices and shifts say what they are made of, and nothing is explained away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.config import FamilyName
from ml.errors import EvergreenError, NotEnoughDataError
from ml.evaluation import explain
from ml.training.fit import Fitted
from tests.sample_models import FEATURES, fitted, made_up

ROWS = made_up(FEATURES, rows=300, seed=2)


def log_odds(y_proba: np.ndarray) -> np.ndarray:
    return np.log(y_proba / (1 - y_proba))


@pytest.fixture(scope="module")
def model() -> Fitted:
    return fitted()


@pytest.mark.parametrize("family", ["xgboost", "lightgbm", "linear"])
def test_rows__base_and_contributions__add_up_to_the_log_odds_of_the_answer(family: FamilyName) -> None:
    model = fitted(family)
    found = explain.rows(model, ROWS, top=2)
    sums = np.array([row["base"] + sum(part["contribution"] for part in row["contributions"]) for row in found])
    np.testing.assert_allclose(sums, log_odds(model.predict(ROWS)), atol=2e-5)  # XGBoost adds in float32
    np.testing.assert_allclose(sums, [row["margin"] for row in found], atol=1e-12)
    assert [row["answer"] for row in found] == model.predict(ROWS).tolist()


def test_rows__regression__adds_up_to_the_answer_itself() -> None:
    model = fitted(task="regression")
    found = explain.rows(model, ROWS, top=1)
    np.testing.assert_allclose([row["margin"] for row in found], model.predict(ROWS), rtol=1e-5, atol=1e-4)


def test_rows__multiclass__adds_up_to_the_likeliest_class_over_the_mean_of_all() -> None:
    model = fitted(task="multiclass")
    found = explain.rows(model, ROWS, top=1)
    logs = np.log(model.predict(ROWS))
    np.testing.assert_allclose([row["margin"] for row in found], logs.max(axis=1) - logs.mean(axis=1), atol=1e-4)
    assert found[0]["answer"] == model.predict(ROWS)[0].tolist()


def test_rows__ensemble__margin_is_the_mean_of_the_members_margins() -> None:
    model = fitted(ensemble=3)
    margins = [row["margin"] for row in explain.rows(model, ROWS, top=3)]
    alone = [Fitted((each,), model.encoding, model.climatology, model.linear, model.learned) for each in model.members]
    members = np.mean([log_odds(each.predict(ROWS)) for each in alone], axis=0)
    np.testing.assert_allclose(margins, members, atol=2e-5)
    assert np.abs(margins - log_odds(model.predict(ROWS))).max() > 1e-4  # as the module says: the answer is another mean


def test_rows__values_and_order__as_the_row_has_them(model: Fitted) -> None:
    row = pd.DataFrame({"x": [np.nan], "hour": [5.0], "place": [None]})
    (found,) = explain.rows(model, row, top=3)
    values = {part["feature"]: part["value"] for part in found["contributions"]}
    assert values == {"x": None, "hour": 5.0, "place": None}
    sizes = [abs(part["contribution"]) for part in found["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    named = explain.one_row(model, row, top=1)["contributions"]
    assert [part["feature"] for part in named] == [found["contributions"][0]["feature"], "(others)"]


def test_rows__shares_of_both_signs__ordered_by_size(model: Fitted) -> None:
    for row in explain.rows(model, ROWS, top=3):
        sizes = [abs(part["contribution"]) for part in row["contributions"]]
        assert sizes == sorted(sizes, reverse=True)


def test_rows__none__no_explanations(model: Fitted) -> None:
    assert explain.rows(model, ROWS.head(0), top=3) == []


@pytest.mark.parametrize(("count", "top", "what"), [(2, 3, "2 rows where one"), (0, 3, "0 rows where one"), (1, 0, "top = 0")])
def test_one_row__not_one_or_nothing_named__refused(model: Fitted, count: int, top: int, what: str) -> None:
    with pytest.raises(EvergreenError, match=what):
        explain.one_row(model, ROWS.head(count), top)


@pytest.mark.parametrize("family", ["xgboost", "lightgbm", "linear"])
def test_importance__the_feature_that_decides__comes_first(family: FamilyName) -> None:
    found = explain.importance(fitted(family), ROWS)
    assert list(found)[:2] == ["x", "place"]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == {"x", "hour", "place"}  # one for each feature, though hour has two columns; no base


def test_importance__no_rows__refused(model: Fitted) -> None:
    with pytest.raises(NotEnoughDataError, match="no rows"):
        explain.importance(model, ROWS.head(0))


SHARES = pd.DataFrame({"a": [3.0, -3.0, 0.0], "b": [1.0, 1.0, 9.0], "c": [0.0, 0.0, 1.0], "d": [0.5, 0.5, 2.0], "(base)": 50.0})


def test_by_slice__top_three_of_each__by_mean_size() -> None:
    slices = {"early": np.array([True, True, False]), "last": np.array([False, False, True]), "none": np.zeros(3, bool)}
    assert explain.by_slice(SHARES, slices) == [
        {
            "slice": "early",
            "top": [{"feature": "a", "value": 3.0}, {"feature": "b", "value": 1.0}, {"feature": "d", "value": 0.5}],
        },
        {
            "slice": "last",
            "top": [{"feature": "b", "value": 9.0}, {"feature": "d", "value": 2.0}, {"feature": "c", "value": 1.0}],
        },
        {"slice": "none", "top": []},
    ]


@pytest.mark.parametrize("mask", [np.ones(2, bool), np.array([0, 1, 1])], ids=["too_short", "not_bool"])
def test_by_slice__mask_that_is_none__named(mask: np.ndarray) -> None:
    with pytest.raises(EvergreenError, match=r"slice 'odd' is .* contributions have 3 rows"):
        explain.by_slice(SHARES, {"odd": mask})


def test_by_slice__share_is_nan__named() -> None:
    with pytest.raises(EvergreenError, match="contributions of b are not finite"):
        explain.by_slice(SHARES.assign(b=[1.0, np.nan, 1.0]), {})


def test_shift__names_who_gained_and_lost_most() -> None:
    distance, words = explain.shift({"a": 6.0, "b": 2.0, "c": 2.0}, {"a": 1.0, "b": 4.0, "c": 5.0})
    assert distance == pytest.approx(0.5)  # ½ (0.5 + 0.2 + 0.3)
    assert words == "50.0% of the importance moved: a gained most (10.0% → 60.0%), c lost most (50.0% → 20.0%)"


def test_shift__only_the_scale_differs__none() -> None:
    distance, words = explain.shift({"a": 0.1, "b": 0.3}, {"a": 10.0, "b": 30.0})
    assert distance == pytest.approx(0.0, abs=1e-12)
    assert words == "both models weigh their features alike"


@pytest.mark.parametrize(
    ("candidate", "champion", "distance", "words"),
    [
        (
            {"a": 1.0},
            {"b": 2.0},
            1.0,
            "100.0% of the importance moved: a gained most (0.0% → 100.0%), b lost most (100.0% → 0.0%)",
        ),
        ({}, {}, 0.0, "neither model uses a feature"),
        ({"a": 0.0}, {"a": 2.0}, 1.0, "the candidate uses no feature"),
        ({"a": 1.0}, {}, 1.0, "the champion uses no feature"),
    ],
    ids=["disjoint", "both_empty", "candidate_all_zero", "champion_empty"],
)
def test_shift__edges(candidate: dict[str, float], champion: dict[str, float], distance: float, words: str) -> None:
    assert explain.shift(candidate, champion) == (distance, words)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_shift__no_importance__refused_and_named(bad: float) -> None:
    with pytest.raises(EvergreenError, match=r"importances of the champion are negative or not finite: \{'b'"):
        explain.shift({"a": 1.0}, {"a": 1.0, "b": bad})


def test_shift__two_real_models__same_rows() -> None:
    one, other = (explain.importance(fitted(family), ROWS) for family in ("xgboost", "linear"))
    distance, _ = explain.shift(one, other)
    assert 0 < distance < 0.5
