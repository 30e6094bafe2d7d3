"""One function for every engine: what it answers depends on the row alone."""

from __future__ import annotations

import json
import struct

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.batch import answer
from ml.batch.answer import Scorer
from ml.errors import IntegrityError
from ml.packaging.bundle import Bundle
from ml.packaging.graph import export
from ml.serving.predictor import Predictor
from ml.serving.segments import SCHEMA
from tests.batch.conftest import AS_OF, feature_rows
from tests.sample_bundle import sample_bundle, sample_parts
from tests.sample_models import served


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """With real trees: sums of many, in which another order would show."""
    from ml.packaging.bundle import build

    return Bundle.from_bytes(build(**sample_parts(model=export(served()))))


def scorer(bundle: Bundle, log_features: bool = True) -> Scorer:
    return Scorer(bundle, "3", "late", AS_OF, log_features)


def batch(n: int) -> pa.RecordBatch:
    return feature_rows(n).combine_chunks().to_batches()[0]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 999, 3000])
def test_answer__any_size_of_batch__same_to_the_last_bit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rows, score = batch(3000), scorer(bundle)
    whole = score.answer(rows)
    assert len(set(whole["probability"].to_pylist())) > 100  # they depend on the row
    some = min(3000, 40 * size)
    parts = [score.answer(rows.slice(at, min(size, some - at))) for at in range(0, some, size)]
    assert pa.concat_batches(parts).equals(whole.slice(0, some))
    monkeypatch.setattr(answer, "BLOCK", size)
    assert score.answer(rows.slice(0, some)).equals(whole.slice(0, some))


def test_answer__as_the_service_answers_and_logs(bundle: Bundle) -> None:
    rows = batch(200)
    found = scorer(bundle).answer(rows)
    names = [*bundle.card.numeric, *bundle.card.text]
    served = [{name: row[name] for name in names} for row in rows.to_pylist()]
    assert found["probability"].to_numpy().tolist() == Predictor(bundle).predict(served).tolist()
    logged = [json.loads(values) for values in found["features"].to_pylist()]
    assert logged == [json.loads(json.dumps(values)) for values in served]
    assert [list(values) for values in logged] == [names] * 200
    assert found.schema == SCHEMA
    for name in answer.PASSED_ON:
        assert found[name].equals(rows[name])
    assert found["request_id"][0].as_py() == "score-3-UA-1-0"
    assert set(found["cohort"].to_pylist()) == {"batch"}
    assert scorer(bundle, log_features=False).answer(rows)["features"].null_count == 200


@given(st.lists(st.floats(width=64), min_size=1, max_size=50))
def test_features__any_number__reads_back_to_the_last_bit(numbers: list[float]) -> None:
    words = answer._number_words(pa.array(numbers, pa.float64())).to_pylist()
    for number, word in zip(numbers, words, strict=True):
        back = json.loads(word)
        if number != number:  # missing
            assert back is None
        elif number == 0:
            assert back == 0
        else:
            assert struct.pack("d", float(back)) == struct.pack("d", number)


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.bool_(), pa.int64()], ids=str)
def test_answer__other_types_of_number__are_taken(kind: pa.DataType) -> None:
    rows = batch(50)
    name = next(iter(Bundle.from_bytes(sample_bundle()).card.numeric))
    small = pa.array([i % 2 for i in range(50)]).cast(kind)
    changed, plain = (rows.set_column(rows.schema.names.index(name), name, c) for c in (small, small.cast(pa.float64())))
    score = scorer(Bundle.from_bytes(sample_bundle()))
    assert score.answer(changed)["probability"].equals(score.answer(plain)["probability"])


def test_answer__texts_as_categories__are_taken(bundle: Bundle) -> None:
    rows = batch(50)
    at = rows.schema.names.index("carrier")
    assert (
        scorer(bundle)
        .answer(rows.set_column(at, "carrier", rows["carrier"].dictionary_encode()))
        .equals(scorer(bundle).answer(rows))
    )


def test_answer__no_rows__none(bundle: Bundle) -> None:
    found = scorer(bundle).answer(batch(5).slice(0, 0))
    assert (len(found), found.schema) == (0, SCHEMA)


def test_answer__column_is_absent__names_it(bundle: Bundle) -> None:
    with pytest.raises(IntegrityError, match=r"needs features \['distance'\] that are not computed"):
        scorer(bundle).answer(batch(5).drop_columns(["distance"]))


def test_answer__graph_gives_no_probability__names_the_rows() -> None:
    broken = Bundle.from_bytes(_fails())
    with pytest.raises(IntegrityError, match=r"5 rows from UA-1-0 on: the model answered .* not probabilities"):
        scorer(broken).answer(batch(5))


def _fails() -> bytes:
    from ml.packaging.bundle import build
    from tests.sample_bundle import graph

    parts = sample_parts()
    return build(**(parts | {"model": graph(float("nan"), len(parts["numeric"]), len(parts["text"]))}))
