"""The predictor: a number for what is known, an error for what is not a probability."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ml.errors import IntegrityError
from ml.packaging.bundle import Bundle, Example, build
from ml.serving.predictor import PredictionError, Predictor
from tests.sample_bundle import REQUEST, graph, sample_bundle, sample_parts


def predictor(bias: float = 0.0) -> Predictor:
    return Predictor(Bundle.from_bytes(sample_bundle(bias)))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_predict__known_and_unknown_values__graph_answers() -> None:
    y_proba = predictor(bias=0.5).predict([{"distance": 1000.0, "origin": "EWR"}, {"distance": None, "origin": None}, {}])
    assert y_proba.shape == (3,)
    # 0.5 + 0.001 · 1000 + 0.1 for EWR; what is not known counts as nothing in this graph
    assert y_proba == pytest.approx([sigmoid(1.6), sigmoid(0.5), sigmoid(0.5)], abs=1e-6)


def test_predict__no_rows__empty() -> None:
    assert predictor().predict([]).shape == (0,)


@pytest.mark.parametrize("row", [{"distance": "far"}, {"origin": 7.0}], ids=["text_for_number", "number_for_text"])
def test_predict__wrong_type__error_names_the_feature(row: dict[str, float | str | None]) -> None:
    with pytest.raises(PredictionError, match=next(iter(row))):
        predictor().predict([row])


def test_predict__model_answers_nan__error_not_a_number() -> None:
    bundle = Bundle.from_bytes(build(**sample_parts(bias=float("nan"))))
    with pytest.raises(PredictionError, match="not probabilities"):
        Predictor(bundle).predict([{"distance": 1.0}])


def test_probe__as_recorded__passes() -> None:
    assert predictor().probe() == 0.0


def test_probe__recorded_answer_differs__refused() -> None:
    example = Bundle.from_bytes(sample_bundle()).examples[0]
    wrong = Example(request=REQUEST, features=example.features, probability=example.probability - 2e-6)
    bundle = Bundle.from_bytes(build(**sample_parts(examples=[example, wrong])))
    with pytest.raises(IntegrityError, match="example 1"):
        Predictor(bundle).probe()


def test_probe__no_recorded_answers__refused() -> None:
    with pytest.raises(IntegrityError, match="no recorded answers"):
        Predictor(Bundle.from_bytes(build(**sample_parts()))).probe()


def test_predictor__graph_with_other_inputs_than_the_card__refused() -> None:
    parts = sample_parts()
    parts["model"] = graph(0.0, len(parts["numeric"]) + 1, len(parts["text"]))
    with pytest.raises(IntegrityError, match="the card says"):
        Predictor(Bundle.from_bytes(build(**parts)))


def test_predictor__bytes_are_no_graph__refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be loaded"):
        Predictor(Bundle.from_bytes(build(**sample_parts(model=b"no graph"))))


def test_predict__one_row_at_a_time_or_all_at_once__same_to_the_last_bit() -> None:
    rows = [{"distance": float(d), "origin": "EWR" if d % 2 else "JFK"} for d in range(50)]
    asked = predictor()
    assert np.array_equal(asked.predict(rows), np.concatenate([asked.predict([row]) for row in rows]))
