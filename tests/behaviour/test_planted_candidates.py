"""Eight candidates that must not reach people, on real flights: each is refused, by the gate that is meant for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost as xgb

from ml import steps, store
from ml.config import Params, load_params
from ml.features import stored
from ml.features.definitions import Feature, load_module
from ml.packaging import bundle, contest
from ml.packaging.artifacts import Artifacts
from ml.packaging.graph import export
from ml.packaging.parity import at_thresholds, check_parity, predict, session
from ml.refs import Decision, Recipe, TrainPlan, Window
from ml.training.encoding import encode
from ml.training.fit import Fitted, fit_model, labelled
from ml.training.models import XGBoost
from ml.training.tuning import Winner
from tests.behaviour.chain import landed
from tests.sample_bundle import sample_parts

AS_OF = datetime(2013, 3, 4, 3)
DAYS = Window(start="2013-01-01", end="2013-03-03")
ROUNDS = 60


@dataclass(frozen=True)
class Arena:
    """Real rows, and a champion that was trained on older days."""

    plan: TrainPlan
    table: pd.DataFrame
    features: list[Feature]
    champion: contest.Champion
    params: Params

    @property
    def X(self) -> pd.DataFrame:
        return labelled(self.table, self.plan.holdout)

    @property
    def recipe(self) -> Recipe:
        return self.champion.shipped.winner.recipe

    def fit(
        self, table: pd.DataFrame | None = None, window: Window | None = None, features: list[Feature] | None = None
    ) -> Fitted:
        return fit_model(
            self.table if table is None else table,
            window or self.plan.train,
            features or self.features,
            self.params,
            self.recipe,
            ROUNDS,
        )

    def judge(self, candidate: Artifacts, X: pd.DataFrame | None = None) -> Decision:
        return contest.hold(self.plan, self.X if X is None else X, candidate, self.champion, {}, self.params).decision


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Arena]:
    small = {"window_days: 90": "window_days: 61", "max_rounds: 300": "max_rounds: 100"}
    with landed(tmp_path_factory.mktemp("arena"), parsed_sources, small, DAYS, AS_OF):
        params = load_params()
        plan = steps.plan(AS_OF, "planted", "manual", "planted")
        table, features = stored.read(steps.features(plan)), list(load_module(params).learned)
        recipe = Recipe(family="xgboost", params={name: d.default for name, d in params.tune.space.items()})
        plan = plan.model_copy(update={"champion_recipe": recipe})
        older = Window(start=plan.train.start, end=plan.train.end - timedelta(days=7))
        champion = champion_of(fit_model(table, older, features, params, recipe, ROUNDS))
        yield Arena(plan, table, features, champion, params)


def parts_of(fitted: Fitted, onnx_bytes: bytes | None = None) -> Artifacts:
    recipe = Recipe(family=fitted.members[0].family, params={n: d.default for n, d in load_params().tune.space.items()})
    winner = Winner(recipe=recipe, rounds=ROUNDS, loss=0.5, trial=0, trials=1, reason="planted", convergence=[])
    return Artifacts(fitted, winner, onnx_bytes or export(fitted), b"{}")


def champion_of(fitted: Fitted) -> contest.Champion:
    parts = parts_of(fitted)
    archive = bundle.build(**sample_parts(model=parts.onnx, numeric=fitted.encoding.numeric, text=fitted.encoding.text))
    store.put(archive)
    return contest.Champion("1", bundle.Bundle.from_bytes(archive), parts, None)


def refused_by(decision: Decision) -> list[str]:
    return [c.name for c in decision.checks if not c.passed]


def test_control__a_good_candidate_passes_every_gate(arena: Arena) -> None:
    decision = arena.judge(parts_of(arena.fit()))
    assert (decision.verdict, refused_by(decision)) == ("promote", []), decision.reason
    assert decision.reason.startswith("refresh, ")


def test_control__a_candidate_that_is_the_champion_again_passes(arena: Arena) -> None:
    assert arena.judge(arena.champion.shipped).verdict == "promote"


# ---- the eight


def label_leak(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """A column that is only known afterwards: about what the arrival delay is."""
    noise = np.random.default_rng(1).normal(0, 0.3, len(arena.table))
    leaking = arena.table.assign(arrival=arena.table["label"].fillna(0) + noise)
    features = [*arena.features, Feature("arrival", "the future")]
    return parts_of(arena.fit(leaking, features=features)), labelled(leaking, arena.plan.holdout)


def shuffled_labels(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    rows, shuffled = labelled(arena.table, arena.plan.train).index, arena.table.copy()
    shuffled.loc[rows, "label"] = np.random.default_rng(1).permutation(arena.table.loc[rows, "label"].to_numpy())
    return parts_of(arena.fit(shuffled)), None


def trained_on_the_holdout(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    return parts_of(arena.fit(window=Window(start=arena.plan.train.start, end=arena.plan.holdout.end))), None


def broken_encoder_order(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """The graph puts two columns in each other's place; the model itself is right."""
    fitted = arena.fit()
    graph = onnx.load_from_string(export(fitted))
    (matrix,) = (node for node in graph.graph.node if node.op_type == "Concat")
    a, b = (fitted.encoding.columns.index(name) for name in ("origin_rate_24h", "distance"))
    matrix.input[a], matrix.input[b] = matrix.input[b], matrix.input[a]
    return parts_of(fitted, graph.SerializeToString()), None


def logits_times_three(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """Every leaf and the base three times as large: same order of rows, far too sure."""
    fitted = arena.fit()
    (member,) = fitted.members
    assert isinstance(member, XGBoost)
    model = json.loads(member.booster.save_raw("json"))
    learner = model["learner"]
    for tree in learner["gradient_booster"]["model"]["trees"]:
        leaf = [left == -1 for left in tree["left_children"]]
        tree["split_conditions"] = [3 * v if is_leaf else v for v, is_leaf in zip(tree["split_conditions"], leaf, strict=True)]
    base = float(learner["learner_model_param"]["base_score"].strip("[]"))
    learner["learner_model_param"]["base_score"] = f"[{1 / (1 + ((1 - base) / base) ** 3):.9e}]"
    sure = XGBoost(xgb.Booster(model_file=bytearray(json.dumps(model).encode())), "binary")
    margin = lambda m: np.log(p := m.predict(encode(fitted.encoding, arena.X.head(50)))) - np.log1p(-p)
    assert margin(sure) == pytest.approx(3 * margin(member), abs=1e-3)
    return parts_of(replace(fitted, members=(sure,))), None


def one_slice_ruined(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """For one carrier the labels were the wrong way round in training."""
    ruined = arena.table.copy()
    rows = ruined["carrier"] == "UA"
    ruined.loc[rows, "label"] = 1 - ruined.loc[rows, "label"]
    return parts_of(arena.fit(ruined)), None


def ten_times_slower(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """The same answers, by the mean of forty copies."""
    fitted = arena.fit()
    return parts_of(fitted, export(replace(fitted, members=fitted.members * 40))), None


def flipped_nan_routing(arena: Arena) -> tuple[Artifacts, pd.DataFrame | None]:
    """Missing values go the other way at every split of the graph."""
    fitted = arena.fit()
    graph = onnx.load_from_string(export(fitted))
    (trees,) = (node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble"))
    (routes,) = (a for a in trees.attribute if a.name == "nodes_missing_value_tracks_true")
    routes.ints[:] = [1 - way for way in routes.ints]
    return parts_of(fitted, graph.SerializeToString()), None


@pytest.mark.parametrize(
    ("plant", "gate"),
    [
        (label_leak, "leak"),
        (shuffled_labels, "score_floor"),
        (trained_on_the_holdout, "untouched_holdout"),
        (broken_encoder_order, "parity"),
        (logits_times_three, "calibration"),
        (one_slice_ruined, "slices"),
        (ten_times_slower, "latency_ratio"),
        (flipped_nan_routing, "parity"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_planted__is_refused_by_the_gate_meant_for_it(
    arena: Arena, plant: Callable[[Arena], tuple[Artifacts, pd.DataFrame | None]], gate: str
) -> None:
    candidate, X = plant(arena)
    decision = arena.judge(candidate, X)
    assert decision.verdict == "keep"
    assert gate in refused_by(decision)
    assert f"{gate}: " in decision.reason


def test_report_mode__shows_failed_checks_and_waives_all_but_integrity(arena: Arena) -> None:
    shown = replace(
        arena, params=arena.params.model_copy(update={"gates": arena.params.gates.model_copy(update={"mode": "report"})})
    )
    decision = shown.judge(logits_times_three(arena)[0])
    assert decision.verdict == "promote"
    assert "calibration" in refused_by(decision)
    assert "or it would have been kept back: " in decision.reason
    for plant in (trained_on_the_holdout, flipped_nan_routing):
        assert shown.judge(plant(arena)[0]).verdict == "keep"


# ---- parity, at every threshold


def test_parity__rows_at_every_threshold_decide_alike(arena: Arena) -> None:
    fitted = arena.fit()
    (member,) = fitted.members
    rows = at_thresholds(fitted, arena.X.iloc[:: len(arena.X) // 20].head(20))
    plain = [s for s in member.thresholds() if fitted.encoding.columns[s[0]] in fitted.encoding.numeric]
    assert len(plain) > 500
    assert len(rows) == 20 * 3 * len(plain)
    graph = session(export(fitted))
    decision = check_parity(export(fitted), fitted, arena.X, 1e-6, 0.5)
    assert decision.passed, decision.reason
    assert all("; 0 decisions differ" in c.detail for c in decision.checks)
    expected, found = fitted.predict(rows), predict(graph, fitted.encoding.numeric, fitted.encoding.text, rows)
    print(f"\n{len(rows):,} rows: largest |Δ probability| {np.abs(expected - found).max():.1e}")
    assert np.abs(expected - found).max() <= 1e-6
    assert ((expected >= 0.5) == (found >= 0.5)).all()
