"""The contest: who answers the holdout with which model, and what the refit that ships is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest

from ml import store
from ml.config import FamilyName, Params, Task
from ml.packaging import bundle, refit
from ml.packaging.artifacts import Artifacts
from ml.packaging.contest import Champion, Held, hold, kind, latencies
from ml.refs import Recipe, SnapshotRef, TrainPlan, Window
from ml.training.fit import fit_model, labelled
from ml.training.models import FAMILIES
from ml.training.tuning import Winner
from tests.sample_bundle import sample_parts
from tests.sample_models import FEATURES, SMALL, made_up, small_params

OLD, TRAIN, HOLDOUT = (Window(start=date(2013, 1, first), end=date(2013, 1, end)) for first, end in ((1, 12), (1, 20), (20, 31)))
TABLE = made_up(FEATURES, rows=6000).assign(entity_id=[f"e{i}" for i in range(6000)])
X = labelled(TABLE, HOLDOUT)


def params_of(task: Task = "binary") -> Params:
    params = small_params(task)
    gates = params.gates.model_copy(
        update={
            "fairness": {"place": 0.9},
            "resamples": 300,
            "min_score": 0.1,
            "max_loss": 60.0,
            "margin": 0.1,
            "max_feature_score": 1.0,
            "slice_margin": 1.0,
            "max_calibration_error": 0.2,
        }
    )
    if task != "binary":
        gates = gates.model_copy(update={"fairness": {}})
    evaluation = params.evaluation.model_copy(update={"slices": {"place": None}, "min_slice_rows": 100})
    return params.model_copy(update={"gates": gates, "evaluation": evaluation})


def parts(
    window: Window = TRAIN, family: FamilyName = "xgboost", task: Task = "binary", table: pd.DataFrame = TABLE,
    features: Sequence = FEATURES, rounds: int = 25,
) -> Artifacts:  # fmt: skip
    recipe = Recipe(family=family, params=SMALL[family])
    winner = Winner(recipe=recipe, rounds=rounds, loss=0.5, trial=0, trials=1, reason="a test's", convergence=[])
    return Artifacts.make(fit_model(table, window, features, params_of(task), recipe, rounds), winner, b"{}")


def champion(shipped: Artifacts, twin: Artifacts | None = None, version: str = "7") -> Champion:
    encoding = shipped.fitted.encoding
    archive = bundle.build(**sample_parts(model=shipped.onnx, numeric=encoding.numeric, text=encoding.text))
    store.put(archive)
    return Champion(version, bundle.Bundle.from_bytes(archive), shipped, twin)


def plan(recipe: Recipe | None = None, uses: int = 0) -> TrainPlan:
    snapshot = SnapshotRef(
        digest="a.dir", as_of=datetime(2013, 2, 1), first_day=TRAIN.start, last_day=HOLDOUT.end, files=1, size=1
    )
    return TrainPlan(
        run_key="r", as_of=datetime(2013, 2, 1, 3), reason="a test", trigger="manual", snapshot=snapshot, train=TRAIN,
        holdout=HOLDOUT, folds=[], champion_version="7" if recipe else None, champion_digest=None, champion_recipe=recipe, warm=[],
        holdout_uses=uses, used_by=[],
    )  # fmt: skip


@pytest.fixture(scope="module")
def candidate() -> Artifacts:
    return parts()


def contest(candidate: Artifacts, other: Champion | None, answered: dict[str, float] | None = None, uses: int = 0) -> Held:
    recipe = other.shipped.winner.recipe if other else None
    return hold(plan(recipe, uses), X, candidate, other, answered or {}, params_of())


# ---- the champion's answers


def test_hold__a_champion_that_never_answered_is_asked(candidate: Artifacts) -> None:
    old = champion(parts(OLD))
    held = contest(candidate, old)
    assert held.sources == {"answered": 0, "computed": len(X), "twin": 0}
    assert held.evidence.champion is not None
    np.testing.assert_allclose(held.evidence.champion.answers, old.shipped.fitted.predict(X), atol=1e-6)
    assert (held.evidence.kind, held.decision.verdict) == ("refresh", "promote"), held.decision.reason


def test_hold__what_it_really_answered_counts(candidate: Artifacts) -> None:
    old = champion(parts(OLD))
    logged = dict.fromkeys(X["entity_id"][:500], 0.123)
    held = contest(candidate, old, logged | {"of another day": 0.5})
    assert held.sources == {"answered": 500, "computed": len(X) - 500, "twin": 0}
    assert held.evidence.champion is not None
    np.testing.assert_array_equal(held.evidence.champion.answers[:500], 0.123)
    np.testing.assert_allclose(held.evidence.champion.answers[500:], old.shipped.fitted.predict(X)[500:], atol=1e-6)


def test_hold__days_that_the_champion_learned_from_since_are_its_twins(candidate: Artifacts) -> None:
    until = Window(start=TRAIN.start, end=date(2013, 1, 25))
    old, logged = champion(parts(until), parts(OLD)), dict.fromkeys(X["entity_id"], 0.123)
    seen = (X["event_time"] < pd.Timestamp(until.end)).to_numpy()
    held = contest(candidate, old, logged)
    assert held.sources == {"answered": int((~seen).sum()), "computed": 0, "twin": int(seen.sum())}
    assert held.evidence.champion is not None
    assert old.twin is not None
    np.testing.assert_allclose(held.evidence.champion.answers[seen], old.twin.fitted.predict(X)[seen], atol=1e-6)
    np.testing.assert_array_equal(held.evidence.champion.answers[~seen], 0.123)
    assert [c.name for c in held.decision.checks if c.name.startswith("untouched") and c.passed] == [
        "untouched_holdout", "untouched_holdout_champion",
    ]  # fmt: skip


def test_hold__without_a_twin_such_a_champion_cannot_be_judged(candidate: Artifacts) -> None:
    held = contest(candidate, champion(parts(Window(start=TRAIN.start, end=date(2013, 1, 25)))))
    assert held.decision.verdict == "keep"
    assert "untouched_holdout_champion: champion v7 learned from rows until 2013-01-24" in held.decision.reason


def test_hold__uses_of_the_holdout_reach_the_verdict(candidate: Artifacts) -> None:
    assert "used 3 × before" in contest(candidate, champion(parts(OLD)), uses=3).decision.reason


# ---- kind


def test_kind__other_settings_family_or_features_are_a_redesign(candidate: Artifacts) -> None:
    old = champion(parts(OLD))
    recipe = old.shipped.winner.recipe
    assert kind(plan(), candidate, None) == "first model"
    assert kind(plan(recipe), candidate, old) == "refresh"
    assert kind(plan(recipe.model_copy(update={"params": {"max_depth": 4}})), candidate, old) == "redesign"
    assert kind(plan(recipe), parts(features=FEATURES[:2]), old) == "redesign"
    assert kind(plan(recipe), parts(family="lightgbm"), old) == "redesign"


# ---- the simple model


def test_simpler_wins__where_trees_are_no_better_than_a_line() -> None:
    draw = np.random.default_rng(5)
    straight = TABLE.assign(label=(draw.random(6000) < 1 / (1 + np.exp(-3 * TABLE["x"].fillna(0)))) * 1.0)
    trees = parts(table=straight, rounds=5)
    held = hold(plan(), labelled(straight, HOLDOUT), trees, None, {}, params_of())
    why = held.simpler_wins()
    assert why is not None
    assert why.startswith("the simple model wins: log_loss minus linear's")
    simple = trees.simple(why)
    again = hold(plan(), labelled(straight, HOLDOUT), simple, None, {}, params_of())
    assert (again.decision.verdict, again.simpler_wins()) == ("promote", None)
    assert (simple.winner.recipe.family, list(again.evidence.baselines)) == ("linear", ["climatology"])
    assert simple.onnx != trees.onnx


def test_simpler_wins__not_where_trees_are_better() -> None:
    bent = TABLE.assign(label=(np.abs(TABLE["x"].fillna(0)) > 0.7) * 1.0)
    held = hold(plan(), labelled(bent, HOLDOUT), parts(table=bent), None, {}, params_of())
    assert held.simpler_wins() is None


# ---- every family and task, from fit to verdict


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_hold__judges_every_family_and_task_by_its_graph(family: FamilyName, task: Task) -> None:
    table = TABLE
    if task == "multiclass":
        table = TABLE.assign(label=TABLE["label"] + (TABLE["x"] > 1))
    if task == "regression":
        table = TABLE.assign(label=TABLE["label"] * 3 + TABLE["x"].fillna(0))
    made = parts(family=family, task=task, table=table)
    held = hold(plan(), labelled(table, HOLDOUT), made, None, {}, params_of(task))
    checks = {check.name: check for check in held.decision.checks}
    assert checks["parity"].passed, checks["parity"].detail
    assert checks["untouched_holdout"].passed
    assert checks["baseline"].value is not None
    assert ("calibration" in checks) is (task != "regression")
    against = {name: answers for name, answers in held.evidence.baselines.items() if name == "climatology"}
    assert against
    assert held.evidence.candidate.answers.shape == ((len(X), 3) if task == "multiclass" else (len(X),))
    assert (held.decision.verdict == "promote") is checks["baseline"].passed, held.decision.reason


def test_latencies__a_slower_graph_is_seen(candidate: Artifacts) -> None:
    large = parts(rounds=600)
    names = (candidate.fitted.encoding.numeric, candidate.fitted.encoding.text)
    one, other = latencies([(candidate.onnx, *names), (large.onnx, *names)], X)
    assert 0 < one < other


# ---- the refit


def test_refit__learns_from_train_window_and_holdout(candidate: Artifacts) -> None:
    assert refit.window(plan()) == Window(start=TRAIN.start, end=HOLDOUT.end)
    made = refit.held_against_twin(parts(refit.window(plan())), candidate, X, params_of())
    assert (made.verdict, [c.name for c in made.checks if not c.passed]) == ("refitted", [])


@pytest.mark.parametrize(
    ("made", "failing"),
    [
        (lambda: parts(table=TABLE.assign(label=1 - TABLE["label"])), {"close_answers", "loss", "calibration"}),
        (lambda: parts(features=FEATURES[:2]), {"schema"}),
        (lambda: replace(parts(), onnx=parts(OLD).onnx), {"parity"}),
    ],
    ids=["labels turned round", "another feature list", "another graph"],
)
def test_refit__that_is_not_the_judged_model_is_named(made, failing: set[str], candidate: Artifacts) -> None:
    decision = refit.held_against_twin(made(), candidate, X, params_of())
    assert failing <= {c.name for c in decision.checks if not c.passed}
    assert (decision.verdict == "differs") is bool(failing)
    assert all(name in decision.reason for name in failing)
