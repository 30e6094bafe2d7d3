"""The graph answers as the model does, for every family and task; where it does not, parity says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ml.config import FamilyName, Task
from ml.errors import IntegrityError
from ml.packaging import graph, parity
from ml.refs import Recipe
from ml.training.fit import Fitted, fit_model
from tests.sample_models import FEATURES, WHOLE, fitted, made_up, small_params

FAMILIES: tuple[FamilyName, ...] = ("xgboost", "lightgbm", "linear")
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return made_up(FEATURES, seed=2)


@pytest.fixture(scope="module")
def model() -> Fitted:
    return fitted()


@pytest.mark.parametrize("ensemble", [1, 3], ids=["one member", "three members"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_graph__equals_the_model_on_every_kind_of_row(rows: pd.DataFrame, family: FamilyName, task: Task, ensemble: int) -> None:
    made = fitted(family, task, ensemble)
    assert len(made.members) == (1 if family == "linear" else ensemble)
    decision = parity.check_parity(graph.export(made), made, rows, 1e-6, 0.5)
    assert decision.passed, decision
    there = {c.name: c.n > 0 for c in decision.checks}
    trees = family != "linear"
    assert there == {"real rows": True, "missing values": True, "infinite values": True, "unseen categories": True,
                     "split thresholds": trees}  # fmt: skip
    turned = [c.detail for c in decision.checks if not c.detail.endswith("; 0 decisions differ")]
    assert len(turned) == (len(decision.checks) if task == "regression" else 0)  # a number decides nothing


@pytest.mark.parametrize("task", TASKS)
def test_graph__names_its_answer_by_the_task(rows: pd.DataFrame, task: Task) -> None:
    (output,) = parity.session(graph.export(fitted(task=task))).get_outputs()
    assert (output.name, output.shape[1]) == {
        "binary": ("probability", 1), "multiclass": ("probabilities", 3), "regression": ("value", 1)}[task]  # fmt: skip


def test_ensemble__answers_the_mean_of_members_that_differ(rows: pd.DataFrame) -> None:
    three = fitted(ensemble=3)
    single = [replace(three, members=(member,)).predict(rows) for member in three.members]
    assert np.abs(single[0] - single[1]).max() > 0.01
    assert three.predict(rows) == pytest.approx(np.mean(single, axis=0), abs=1e-12)


def test_parity__finds_a_broken_encoding(rows: pd.DataFrame, model: Fitted) -> None:
    rates = model.encoding.rates["place"]
    swapped = dict(zip(rates, reversed(rates.values()), strict=True))
    broken = replace(model, encoding=model.encoding.model_copy(update={"rates": {"place": swapped}}))
    assert parity.check_parity(graph.export(broken), model, rows, 1e-6, 0.5).verdict == "different"


def test_parity__finds_a_wrong_default_for_unseen_categories(rows: pd.DataFrame, model: Fitted) -> None:
    broken = replace(model, encoding=model.encoding.model_copy(update={"priors": [0.9]}))
    decision = parity.check_parity(graph.export(broken), model, rows, 1e-6, 0.5)
    assert [c.name for c in decision.checks if not c.passed] == ["missing values", "infinite values", "unseen categories"]
    assert "0 decisions" not in decision.checks[-2].detail


def test_lightgbm__thresholds_are_exact_where_values_lie_on_them() -> None:
    """Values on a coarse grid of doubles that no float32 holds: rounding to nearest would send some to the other side."""
    draw = np.random.default_rng(3)
    table = made_up(FEATURES).assign(x=draw.integers(-20, 20, 2000) / 10)
    table["label"] = ((table["x"] > 0.3) ^ (draw.random(2000) < 0.1)) * 1.0
    params = small_params()
    made = fit_model(table, WHOLE, FEATURES, params, Recipe(family="lightgbm", params={"num_leaves": 15}), 30)
    decision = parity.check_parity(graph.export(made), made, table, 1e-6, 0.5)
    assert decision.passed, decision


def test_at_thresholds__puts_each_row_below_at_and_above(rows: pd.DataFrame, model: Fitted) -> None:
    made = parity.at_thresholds(model, rows.head(2))
    thresholds = sorted({t for c, t in model.members[0].thresholds() if model.encoding.columns[c] == "x"})
    assert len(made) == 2 * 3 * len(thresholds)
    first = np.float32(thresholds[0])
    expected = [np.nextafter(first, np.float32(-np.inf)), first, np.nextafter(first, np.float32(np.inf))]
    assert made["x"].head(3).astype(np.float32).tolist() == expected
    assert (made["place"].head(3 * len(thresholds)) == rows["place"].iloc[0]).all()


def test_predict__refuses_a_table_without_a_feature(rows: pd.DataFrame, model: Fitted) -> None:
    onnx = parity.session(graph.export(model))
    with pytest.raises(IntegrityError, match=r"needs features \['x'\] that are not computed"):
        parity.predict(onnx, model.encoding.numeric, model.encoding.text, rows.drop(columns="x"))


def test_export__same_model_gives_the_same_bytes(model: Fitted) -> None:
    assert graph.export(model) == graph.export(model)


def test_export__works_without_text(rows: pd.DataFrame) -> None:
    params = small_params(climatology=("hour",))
    made = fit_model(rows, WHOLE, FEATURES[:2], params, Recipe(family="xgboost", params={}), 5)
    onnx = parity.session(graph.export(made))
    assert [i.name for i in onnx.get_inputs()] == ["numeric"]
    assert np.isfinite(parity.predict(onnx, ["x", "hour"], [], rows)).all()
