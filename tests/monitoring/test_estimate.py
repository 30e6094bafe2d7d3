"""Estimated performance: the arithmetic is exact, intervals cover, moved inputs do no harm, a changed relation is named once
labels show it, and not before.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ml import metrics
from ml.config import load_params
from ml.metrics import Scoring
from ml.monitoring import estimate as es
from ml.monitoring import expected as ex
from ml.monitoring.expected import Answers, Labelled

PARAMS = load_params().monitoring.estimate
SCORING = Scoring(threshold=0.4, false_alarm_cost=1, miss_cost=3)
HOLDOUT_DAYS, A_DAY = 14, 400


def world(days: range, seed: int, shift: float = 0.0, tilt: float = 0.0, bent: float = 1.0, spread: float = 0.3) -> Labelled:
    """Rows of calibrated answers on days that lie as a whole above or below theirs by `spread`.

    `shift` moves the label's log-odds, `bent` multiplies them (both change the relation); `tilt` moves the inputs alone.
    """
    rng = np.random.default_rng(seed)
    day = np.repeat(np.array(days), A_DAY)
    y_proba = expit(-1 + tilt + rng.standard_normal(len(day)))
    shock = np.repeat(spread * rng.standard_normal(len(days)), A_DAY)
    y_true = (rng.random(len(day)) < expit(bent * logit(y_proba) + shift + shock)).astype(float)
    return Labelled(y_proba, day, y_true)


def told(rows: Labelled, matured: Labelled | None = None, moved: float | None = 0.0, seed: int = 0) -> es.Estimate:
    return es.estimate(Answers(rows.y_proba, rows.days), world(range(HOLDOUT_DAYS), 99), matured, moved, SCORING, PARAMS, seed)


# ---- arithmetic


def test_realised__is_what_the_metrics_say() -> None:
    rows = world(range(3), 1)
    rows = Labelled(rows.y_proba.round(2), rows.days, rows.y_true)  # ties
    found, wanted = ex.realised(rows, SCORING), metrics.summary(rows.y_true, rows.y_proba, SCORING)
    for name in ("auc", "log_loss", "brier", "cost", "positives"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-12)
    shown = metrics.by_class(rows.y_true, rows.y_proba, SCORING, [])[1]
    assert (found["precision"], found["recall"]) == pytest.approx((shown["precision"], shown["recall"]))
    parts = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    assert sum(found[part] for part in parts) == pytest.approx(1)
    assert found["accuracy"] == pytest.approx(found["true_positives"] + found["true_negatives"])


def test_expected__is_the_mean_over_all_labels() -> None:
    y_proba, chance = np.array([0.1, 0.4, 0.4, 0.7]), np.array([0.2, 0.3, 0.5, 0.6])
    mean = dict.fromkeys(("log_loss", "brier", "accuracy", "positives", "cost", "true_positives"), 0.0)
    won = pairs = 0.0
    for labels in itertools.product((0.0, 1.0), repeat=4):
        y_true = np.array(labels)
        weight = float(np.prod(np.where(y_true == 1, chance, 1 - chance)))
        found = ex.realised(Labelled(y_proba, np.zeros(4), y_true), SCORING)
        mean = {name: value + weight * found[name] for name, value in mean.items()}
        number = y_true.sum() * (1 - y_true).sum()
        pairs += weight * number
        won += weight * number * (found["auc"] if number else 0.0)
    found = ex.expected(y_proba, chance, SCORING)
    assert {name: found[name] for name in mean} == pytest.approx(mean)
    assert found["auc"] == pytest.approx(won / pairs)


def test_expected__auc_pairs_no_row_with_itself() -> None:
    rng = np.random.default_rng(0)
    y_proba = rng.random(40).round(1)
    above = (y_proba[:, None] > y_proba) + 0.5 * (y_proba[:, None] == y_proba)
    weight = y_proba[:, None] * (1 - y_proba)
    np.fill_diagonal(weight, 0)
    assert ex.expected(y_proba, y_proba, SCORING)["auc"] == pytest.approx((above * weight).sum() / weight.sum())


def test_realised__of_one_class_has_no_auc() -> None:
    found = ex.realised(Labelled(np.array([0.2, 0.6]), np.zeros(2), np.zeros(2)), SCORING)
    assert math.isnan(found["auc"]) and math.isnan(found["recall"])
    assert found["false_positives"] == 0.5


def test_recalibration__finds_what_was_bent() -> None:
    rows = world(range(60), 3, shift=0.4, bent=0.7, spread=0.0)
    intercept, slope = ex.recalibration(rows)
    assert (intercept, slope) == pytest.approx((0.4, 0.7), abs=0.05)
    assert ex.recalibrated(np.array([0.5]), intercept, slope)[0] == pytest.approx(expit(intercept))
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(rows.y_proba)[:, None], rows.y_true)
    assert (intercept, slope) == pytest.approx((model.intercept_[0], model.coef_[0, 0]), abs=1e-4)


def test_recalibration__of_separated_labels_and_of_one_answer_is_finite() -> None:
    y_proba, days = np.array([0.1, 0.2, 0.6, 0.9]), np.arange(4)
    assert np.isfinite(ex.recalibration(Labelled(y_proba, days, (y_proba > 0.5).astype(float)))).all()
    same = Labelled(np.full(10, 0.3), np.arange(10), np.repeat([0.0, 1.0], 5))
    assert ex.recalibrated(same.y_proba, *ex.recalibration(same)) == pytest.approx(np.full(10, 0.5))


# ---- intervals


def test_forecast__covers_what_comes_true() -> None:
    inside: dict[str, list[bool]] = {name: [] for name in es.JUDGED}
    quick = PARAMS.model_copy(update={"resamples": 100})
    for seed in range(60):
        known, week = world(range(28), 2 * seed), world(range(28, 35), 2 * seed + 1)
        settled = es.settle(
            ex.forecast(Answers(week.y_proba, week.days), known, SCORING, quick, seed), ex.realised(week, SCORING)
        )
        for name in es.JUDGED:
            inside[name].append(settled[name].inside is True)
    covered = {name: np.mean(hits) for name, hits in inside.items()}
    assert all(0.866 <= share <= 1 for share in covered.values()), covered  # 95 % wanted; three standard errors are 0.084


def test_forecast__is_wider_where_days_differ_more() -> None:
    wide, narrow = (
        ex.forecast(world(range(28, 35), 1), world(range(28), 2, spread=spread), SCORING, PARAMS, 0)["positives"]
        for spread in (0.8, 0.0)
    )
    assert wide.high and wide.low and narrow.high and narrow.low
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    rows = 7 * A_DAY  # without any, what is left is mostly the noise of 7 × 400 labels: ± 1.96 · sqrt(0.31 · 0.69 / n)
    assert narrow.high - narrow.low < 2 * 2 * 1.96 * math.sqrt(0.31 * 0.69 / rows)


def test_forecast__is_the_same_again() -> None:
    rows = world(range(20, 27), 4)
    assert told(rows) == told(rows)
    assert told(rows) != told(rows, seed=1)


# ---- validity


def test_estimate__of_moved_inputs_is_right_and_valid() -> None:
    rows = world(range(20, 27), 5, tilt=1.0, spread=0.1)
    found = told(rows, moved=0.2)
    assert found.valid and found.reasons == []
    settled = es.settle(found, ex.realised(rows, SCORING))
    assert all(settled[name].inside for name in es.JUDGED)
    before = ex.realised(world(range(HOLDOUT_DAYS), 99), SCORING)
    assert abs(settled["positives"].error) < 0.3 * abs(settled["positives"].realised - before["positives"])


@pytest.mark.parametrize("change", [{"bent": 0.2}, {"shift": 1.5}, {"shift": -1.5}], ids=["order lost", "more", "fewer"])
def test_estimate__of_a_changed_relation_is_wrong_until_labels_show_it(change: dict[str, float]) -> None:
    old, new, later = world(range(14, 28), 6), world(range(28, 35), 7, **change), world(range(35, 42), 8, **change)
    blind = told(new, matured=old)
    assert blind.valid  # nothing shows it yet
    settled = es.settle(blind, ex.realised(new, SCORING))
    assert not all(settled[name].inside for name in es.JUDGED)
    seen = told(later, matured=old + new)
    assert not seen.valid
    assert any("labels of the last 7 matured days contradict it" in reason for reason in seen.reasons)


def test_estimate__is_right_again_once_it_has_learned_the_new_relation() -> None:
    change = {"bent": 0.3, "shift": 0.5}
    found = told(later := world(range(70, 77), 10, **change), matured=world(range(14, 70), 9, **change))
    assert not any("contradict" in reason for reason in found.reasons)
    settled = es.settle(found, ex.realised(later, SCORING))
    assert all(settled[name].inside for name in es.JUDGED)


def test_contradictions__are_rare_while_nothing_changes() -> None:
    quick = PARAMS.model_copy(update={"resamples": 200})
    said = [bool(es.contradictions(world(range(14), 3 * s), world(range(14, 35), 3 * s + 1), SCORING, quick)) for s in range(60)]
    assert np.mean(said) <= 0.15  # 5 % wanted; three standard errors are 0.084


@pytest.mark.parametrize(
    ("changes", "moved", "reason"),
    [
        ({"min_rows": 10_000}, 0.0, "2,800 answers, at least 10,000 are wanted"),
        ({"min_days": 20}, 0.0, "14 days have labels, at least 20 are wanted"),
        ({"max_gap": 0.001}, 0.0, "answers were not calibrated on the holdout: error 0.0"),
        ({}, 0.6, "60% of the importance lies in features that left the reference, at most 50% is allowed"),
        ({}, None, "it is not known whether inputs lie inside the reference"),
    ],
    ids=["few rows", "few days", "not calibrated", "outside", "not measured"],
)
def test_estimate__says_why_it_is_invalid(changes: dict[str, float], moved: float | None, reason: str) -> None:
    rows = world(range(20, 27), 5)
    params = PARAMS.model_copy(update=changes)
    found = es.estimate(Answers(rows.y_proba, rows.days), world(range(HOLDOUT_DAYS), 99), None, moved, SCORING, params)
    assert not found.valid
    assert [r for r in found.reasons if r.startswith(reason)] == found.reasons


def test_estimate__says_that_answers_since_are_too_low() -> None:
    found = told(world(range(80, 87), 1), matured=world(range(14, 80), 2, shift=1.5))
    assert any(reason.startswith("answers since have been too low by at least") for reason in found.reasons)
    assert found.matured and found.matured.low and found.matured.low > PARAMS.max_gap
    assert found.matured.bias > found.matured.low


def test_estimate__without_a_row_or_a_class_has_no_figures() -> None:
    empty = Labelled(np.array([]), np.array([], int), np.array([]))
    none = told(empty)
    assert (none.valid, none.metrics, none.reasons) == (False, {}, ["there are no answers"])
    holdout = world(range(HOLDOUT_DAYS), 1)
    zeros = Labelled(holdout.y_proba, holdout.days, np.zeros(len(holdout.days)))
    found = es.estimate(holdout, zeros, None, 0.0, SCORING, PARAMS)
    assert (found.valid, found.metrics) == (False, {})
    assert es.Estimate.model_validate(found.to_xcom()) == found


def test_estimate__travels_as_json() -> None:
    found = told(world(range(20, 27), 5), matured=world(range(14, 20), 6))
    assert es.Estimate.model_validate(found.to_xcom()) == found
    assert found.matured and found.matured.days == 6


def test_settle__leaves_out_what_is_undefined() -> None:
    figures = {"auc": ex.Figure(value=None), "brier": ex.Figure(value=0.2), "cost": ex.Figure(value=1.0, low=0.5, high=2.0)}
    settled = es.settle(figures, {"auc": 0.7, "brier": 0.15, "cost": 3.0, "log_loss": 1.0})
    assert set(settled) == {"brier", "cost"}
    assert (settled["brier"].inside, settled["cost"].inside) == (None, False)
    assert settled["brier"].error == pytest.approx(0.05)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Answers(np.array([0.1, np.nan]), np.zeros(2)),
        lambda: Answers(np.array([0.1, 1.2]), np.zeros(2)),
        lambda: Answers(np.array([0.1, 0.2]), np.zeros(3)),
        lambda: Labelled(np.array([0.1, 0.2]), np.zeros(2), np.array([0.0, np.nan])),
        lambda: Labelled(np.array([0.1, 0.2]), np.zeros(2), np.array([0.0, 2.0])),
    ],
    ids=["missing", "above one", "another length", "no label", "no such label"],
)
def test_answers__that_make_no_sense_are_refused(made: object) -> None:
    assert callable(made)
    with pytest.raises(ValueError):
        made()
