"""The graph answers as the booster does; where it does not, parity says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.errors import IntegrityError
from ml.packaging import graph, parity
from ml.training.booster import fit_rounds
from ml.training.encoding import Encoding, encode, fit_encoding
from tests.training.test_training import FEATURES, table

PARAMETERS = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": 1, "tree_method": "hist", "max_bin": 64}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return table().dropna(subset=["label"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def encoding(rows: pd.DataFrame) -> Encoding:
    return fit_encoding(FEATURES, rows, rows["label"].to_numpy())


@pytest.fixture(scope="module")
def booster(rows: pd.DataFrame, encoding: Encoding) -> object:
    return fit_rounds(encode(encoding, rows), rows["label"].to_numpy(), PARAMETERS, 30)


def test_graph__equals_the_booster_on_every_kind_of_row(rows: pd.DataFrame, encoding: Encoding, booster: object) -> None:
    decision = parity.check_parity(graph.export(encoding, booster), booster, encoding, rows, 1e-6)
    assert decision.passed, decision
    assert {c.name: c.n > 0 for c in decision.checks} == dict.fromkeys(
        ["real rows", "missing values", "unseen categories", "split thresholds"], True
    )


def test_parity__finds_a_broken_encoding(rows: pd.DataFrame, encoding: Encoding, booster: object) -> None:
    swapped = dict(zip(encoding.rates["place"], reversed(encoding.rates["place"].values()), strict=True))
    broken = encoding.model_copy(update={"rates": {"place": swapped}})
    decision = parity.check_parity(graph.export(broken, booster), booster, encoding, rows, 1e-6)
    assert decision.verdict == "different"


def test_parity__finds_a_wrong_default_for_unseen_categories(rows: pd.DataFrame, encoding: Encoding, booster: object) -> None:
    broken = encoding.model_copy(update={"prior": 0.9})
    decision = parity.check_parity(graph.export(broken, booster), booster, encoding, rows, 1e-6)
    assert [c.name for c in decision.checks if not c.passed] == ["missing values", "unseen categories"]


def test_predict__refuses_a_table_without_a_feature(rows: pd.DataFrame, encoding: Encoding, booster: object) -> None:
    onnx = parity.session(graph.export(encoding, booster))
    with pytest.raises(IntegrityError, match=r"needs features \['x'\] that are not computed"):
        parity.predict(onnx, encoding.numeric, encoding.text, rows.drop(columns="x"))


def test_export__same_model_gives_the_same_bytes(encoding: Encoding, booster: object) -> None:
    assert graph.export(encoding, booster) == graph.export(encoding, booster)


def test_export__works_without_text(rows: pd.DataFrame) -> None:
    encoding = fit_encoding(FEATURES[:2], rows, rows["label"].to_numpy())
    booster = fit_rounds(encode(encoding, rows), rows["label"].to_numpy(), PARAMETERS, 5)
    onnx = parity.session(graph.export(encoding, booster))
    assert [i.name for i in onnx.get_inputs()] == ["numeric"]
    assert np.isfinite(parity.predict(onnx, encoding.numeric, encoding.text, rows)).all()
