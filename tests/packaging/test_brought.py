"""A brought model: its answers, its explanations, at rest, in the contest; and answers that do not hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import helper

from ml.config import load_params
from ml.errors import EvergreenError
from ml.packaging import adopt
from ml.packaging.artifacts import Artifacts, dump, load
from ml.packaging.brought import Brought, Origin
from ml.refs import Recipe
from ml.training.encoding import BASE
from ml.training.fit import fit_model
from ml.training.tuning import Winner
from tests.brought_graphs import FLOAT, STRING, model, simple, tensor
from tests.packaging.test_contest import HOLDOUT, OLD, TABLE, X, champion, contest, parts
from tests.sample_models import FEATURES, WHOLE, fitted, small_params

ROWS = X.head(300)
NUMERIC, TEXT = ["x", "hour"], ["place"]


def brought(graph: onnx.ModelProto, background: pd.DataFrame = ROWS, expected: float | None = None) -> Brought:
    beside = fitted("linear", table=TABLE)
    adopted = adopt.adopt(graph.SerializeToString(), NUMERIC, TEXT)
    origin = Origin(name="theirs", note="", file="f" * 64, producer="", opset=18, asks=adopted.asks, output=adopted.output,
                    expected_rows=3, expected_difference=expected)  # fmt: skip
    return Brought(
        (), beside.encoding, beside.climatology, beside.linear, beside.learned, graph=adopted.onnx,
        background=background.head(8)[[*NUMERIC, *TEXT]].reset_index(drop=True), origin=origin,
    )  # fmt: skip


@pytest.fixture(scope="module")
def good() -> Brought:
    """The truth of the made-up rows: 2 x + 1 for EWR."""
    return brought(simple({"x": 2.0}, {"place": {"EWR": 1.0}}))


def artifacts(made: Brought) -> Artifacts:
    winner = Winner(recipe=Recipe(family="onnx", params={}), rounds=0, loss=None, trial=-1, trials=0, reason="", convergence=[])
    return Artifacts(made, winner, made.graph, b"{}")


# ---- answers and explanations


def test_predict__is_the_graph(good: Brought) -> None:
    margin = 2 * ROWS["x"].fillna(0) + (ROWS["place"] == "EWR")
    np.testing.assert_allclose(good.predict(ROWS), 1 / (1 + np.exp(-margin)), atol=1e-6)


def test_contributions__of_a_sum__are_each_terms_distance_from_the_background(good: Brought) -> None:
    """Of an additive margin every order gives a feature the same share: weight × (value − mean of the background)."""
    shares, start = good.contributions(ROWS), good.background
    expected = 2 * (ROWS["x"].fillna(0) - start["x"].fillna(0).mean())
    np.testing.assert_allclose(shares["x"], expected, atol=1e-4)
    np.testing.assert_allclose(shares["place"], (ROWS["place"] == "EWR") * 1.0 - (start["place"] == "EWR").mean(), atol=1e-4)
    assert (shares["hour"] == 0).all() and good.unused == ["hour"]
    margin = np.log(good.predict(ROWS) / (1 - good.predict(ROWS)))
    np.testing.assert_allclose(shares.sum(axis=1), margin, atol=1e-6)
    assert shares[BASE].nunique() == 1


def test_contributions__twice__are_the_same(good: Brought) -> None:
    pd.testing.assert_frame_equal(good.contributions(ROWS), good.contributions(ROWS))


def test_contributions__certain_answers__are_finite() -> None:
    assert np.isfinite(brought(simple({"x": 1e4})).contributions(ROWS).to_numpy()).all()


def test_dump__load__is_the_same_model_and_no_pickle(good: Brought) -> None:
    files = dump(good)
    assert set(files) == {
        "family.json",
        "encoding.json",
        "climatology.json",
        "linear.json",
        "learned.json",
        "origin.json",
        "background.json",
    }
    again = load(files | {"model.onnx": good.graph})
    assert isinstance(again, Brought)
    pd.testing.assert_frame_equal(again.background, good.background)
    pd.testing.assert_frame_equal(again.contributions(ROWS), good.contributions(ROWS))
    assert (again.origin, again.learned, again.leaves) == (good.origin, good.learned, good.leaves)


def test_leaves__count_what_weighs() -> None:
    assert brought(simple({"x": 2.0})).leaves == 3  # zero, bias, one weight; look-up tables and whole numbers are not counted


def test_fit__refuses_its_recipe() -> None:
    with pytest.raises(EvergreenError, match="a brought model has no recipe to fit"):
        fit_model(TABLE, WHOLE, FEATURES, small_params(), Recipe(family="onnx", params={}), 1)


# ---- in the contest


def test_hold__judged_beside_climatology_linear_and_champion(good: Brought) -> None:
    held = contest(artifacts(good), champion(parts(OLD)))
    assert set(held.evidence.baselines) == {"climatology", "linear"}
    assert held.evidence.kind == "redesign", "it is not the champion's recipe on newer data"
    np.testing.assert_allclose(held.evidence.candidate.answers, good.predict(X), atol=1e-6)


def test_hold__learned_from_the_holdout__kept_back(good: Brought) -> None:
    last = pd.Timestamp(HOLDOUT.start).to_pydatetime() + pd.Timedelta(hours=5)
    late = replace(good, learned=good.learned.model_copy(update={"last": last}))
    held = contest(artifacts(late), None)
    check = next(check for check in held.decision.checks if check.name == "untouched_holdout")
    assert (check.passed, held.decision.verdict) == (False, "keep")


def test_hold__as_champion__its_graph_is_asked_where_it_did_not_answer(good: Brought) -> None:
    before = replace(good, learned=good.learned.model_copy(update={"last": pd.Timestamp("2013-01-11T23:59").to_pydatetime()}))
    shipped = artifacts(before)
    theirs = champion(shipped)
    held = contest(parts(), theirs, dict.fromkeys(X["entity_id"][:100], 0.5))
    assert held.sources == {"answered": 100, "computed": len(X) - 100, "twin": 0}
    assert held.evidence.champion is not None
    np.testing.assert_allclose(held.evidence.champion.answers[100:], good.predict(X)[100:], atol=1e-6)
    assert held.evidence.kind == "redesign"


# ---- answers that do not hold

TEMPLATE = simple({"x": 1.0}, {"place": {"EWR": 1.0}})


def raw(*nodes: onnx.NodeProto, text: bool = False) -> onnx.ModelProto:
    inputs = [tensor("x", FLOAT)] + ([tensor("place", STRING)] if text else [])
    constants = {"zero": np.float32(0), "one": np.float32(1), "axis": np.array([0], np.int64)}
    return model(nodes, inputs, [tensor("answer", FLOAT)], constants)


NODE = helper.make_node
CODES = {"domain": "ai.onnx.ml", "keys_strings": ["EWR", "UA", "IAH"], "values_floats": [0.1, 0.2, 0.3]}
BAD = {
    "log-odds": ("real rows", raw(NODE("IsNaN", ["x"], ["m"]), NODE("Where", ["m", "zero", "x"], ["answer"]))),
    "missing-is-not-known": ("missing values", raw(NODE("Sigmoid", ["x"], ["answer"]))),
    "category-without-default": (
        "unseen categories",
        raw(NODE("LabelEncoder", ["place"], ["answer"], default_float=float("nan"), **CODES), text=True),
    ),
    "mean-of-the-batch": (
        "one row at a time",
        raw(
            NODE("LabelEncoder", ["place"], ["code"], default_float=0.4, **CODES),
            NODE("ReduceMean", ["code", "axis"], ["mean"], keepdims=1),
            NODE("Sub", ["code", "mean"], ["centred"]),
            NODE("Sigmoid", ["centred"], ["answer"]),
            text=True,
        ),
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_holds__names_the_rows_that_break_it(case: str) -> None:
    name, graph = BAD[case]
    rows = ROWS.assign(x=ROWS["x"].fillna(0.5)) if case == "missing-is-not-known" else ROWS
    decision = brought(graph).holds(rows, 1e-5)
    assert decision.verdict == "different"
    failed = [check.name for check in decision.checks if not check.passed]
    assert name in failed and decision.reason.startswith(f"{failed[0]}: ")


def test_holds__fails_on_a_row__counts_as_no_answer() -> None:
    """The graph reshapes to one row, so a batch cannot run at all."""
    fixed = raw(NODE("Reshape", ["x", "axis_11"], ["flat"]), NODE("Sigmoid", ["flat"], ["answer"]))
    fixed.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1], np.int64), "axis_11"))
    decision = brought(fixed).holds(ROWS, 1e-5)
    assert not decision.passed
    assert decision.checks[0].value == len(ROWS)


def test_holds__good__and_says_how_many_checks(good: Brought) -> None:
    decision = good.holds(ROWS, 1e-5)
    assert decision.passed and [check.name for check in decision.checks] == [
        "real rows", "missing values", "unseen categories", "asked again", "one row at a time",
    ]  # fmt: skip
    assert not good.holds(ROWS.head(0), 1e-5).passed, "no rows prove nothing"


@pytest.mark.parametrize(("difference", "passed"), [(1e-6, True), (1e-4, False), (float("nan"), False)])
def test_holds__answers_that_came_with_it(difference: float, passed: bool) -> None:
    check = brought(TEMPLATE, expected=difference).holds(ROWS, load_params().gates.parity_tolerance).checks[-1]
    assert (check.name, check.passed, check.n) == ("expected answers", passed, 3)
