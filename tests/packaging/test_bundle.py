"""The bundle: same content, same digest; anything that is not as it was made is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from ml import store
from ml.errors import IntegrityError, NotFoundError
from ml.packaging.artifacts import dump
from ml.packaging.bundle import Bundle, Climatology, build
from ml.packaging.graph import export
from ml.settings import settings
from ml.training.fit import Fitted
from tests.sample_bundle import sample_bundle, sample_parts
from tests.sample_models import explained_bundle, fitted, served


def test_build__same_parts_twice__same_bytes() -> None:
    assert build(**sample_parts()) == build(**sample_parts())
    assert build(**sample_parts()) != build(**sample_parts(threshold=0.4))


def test_load__stored_bundle__comes_back_whole(workspace: Path) -> None:
    archive = sample_bundle()
    bundle = Bundle.load(store.put(archive))
    assert bundle.digest == store.sha256(archive)
    assert bundle.card.model_digest == store.sha256(bundle.model)
    assert bundle.examples[0].request["origin"] == "EWR"
    assert bundle.request_columns()["tailnum"] == ("string", False)  # may be null
    assert bundle.request_columns()["carrier"] == ("string", True)  # names the row


def test_load__nothing_stored__not_found(workspace: Path) -> None:
    with pytest.raises(NotFoundError, match="no object 00000"):
        Bundle.load("0" * 64)


def test_load__truncated_in_the_store__refused(workspace: Path) -> None:
    digest = store.put(sample_bundle())
    path = Path(settings().store, digest[:2], digest)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(IntegrityError, match="has digest"):
        Bundle.load(digest)


def test_from_files__other_model_than_the_card_names__refused() -> None:
    files = store.unpack(sample_bundle())
    other = store.unpack(sample_bundle(bias=1.0))["model.onnx"]
    with pytest.raises(IntegrityError, match=r"model.onnx has digest .* but bundle.json names"):
        Bundle.from_files(files | {"model.onnx": other})


def test_from_files__member_missing__is_named() -> None:
    files = store.unpack(sample_bundle())
    del files["profile.json"]
    with pytest.raises(IntegrityError, match=r"bundle without profile\.json"):
        Bundle.from_files(files)


@pytest.mark.parametrize(
    "card",
    [b"{", b"[]", b'{"name": "x"}'],
    ids=["not_json", "not_an_object", "keys_missing"],
)
def test_from_files__malformed_card__refused(card: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        Bundle.from_files(store.unpack(sample_bundle()) | {"bundle.json": card})


def test_from_files__unknown_key_in_card__refused() -> None:
    files = store.unpack(sample_bundle())
    card = json.loads(files["bundle.json"]) | {"pickle": "x"}
    with pytest.raises(IntegrityError, match="malformed"):
        Bundle.from_files(files | {"bundle.json": json.dumps(card).encode()})


def test_from_bytes__not_an_archive__refused() -> None:
    with pytest.raises(IntegrityError, match="not a bundle archive"):
        Bundle.from_bytes(b"\0" * 10 + b"no archive")


def test_build__feature_named_twice__refused() -> None:
    with pytest.raises(IntegrityError, match="none twice"):
        build(**sample_parts(numeric=["hour", "hour"]))


@pytest.fixture(scope="module")
def model() -> Fitted:
    return served()


def test_fitted__bundle_with_explainer__answers_as_the_model(workspace: Path, model: Fitted) -> None:
    bundle = Bundle.load(store.put(explained_bundle(model)))
    features = pd.DataFrame([example.features for example in bundle.examples]).astype(
        dict.fromkeys(model.encoding.numeric, float)
    )
    assert bundle.fitted().predict(features).tolist() == model.predict(features).tolist()
    assert bundle.fitted().predict(features).tolist() == pytest.approx([e.probability for e in bundle.examples], abs=1e-6)


def test_build__without_explainer__the_archive_of_before_and_no_model(model: Fitted) -> None:
    archive = sample_bundle(model=export(model))
    assert sorted(store.unpack(archive)) == ["bundle.json", "examples.json", "model.onnx", "profile.json"]
    with pytest.raises(NotFoundError, match=r"has no explainer\.tar: it was made before"):
        Bundle.from_bytes(archive).fitted()


def test_build__same_model__same_bytes_and_the_explainer_is_in_the_digest(model: Fitted) -> None:
    archive = explained_bundle(model)
    assert archive == explained_bundle(served())
    other = store.unpack(archive) | {"explainer.tar": store.pack(dump(served("linear")))}
    assert Bundle.from_files(other).digest != Bundle.from_bytes(archive).digest


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda files: b"no archive", "is no archive"),
        (lambda files: store.pack(files | {"member-0.bin": b"{"}), "is malformed"),
        (lambda files: store.pack({k: v for k, v in files.items() if k != "encoding.json"}), "is malformed: 'encoding.json'"),
        (lambda files: store.pack(dump(fitted())), "has other features than bundle.json names"),
    ],
    ids=["not_an_archive", "model_damaged", "member_missing", "other_features"],
)
def test_fitted__explainer_of_no_use__bundle_loads_and_the_explainer_is_refused(
    model: Fitted, change: Callable[[dict[str, bytes]], bytes], what: str
) -> None:
    files = store.unpack(explained_bundle(model))
    bundle = Bundle.from_files(files | {"explainer.tar": change(dump(model))})
    with pytest.raises(IntegrityError, match=what):
        bundle.fitted()


def test_climatology__nan_or_unknown_group__overall_rate() -> None:
    table = Climatology(by=["origin", "hour"], rates={"EWR|6": 0.21}, overall=0.22)
    assert table.rate({"origin": "EWR", "hour": 6.0}) == 0.21
    assert table.rate({"origin": "EWR", "hour": float("nan")}) == 0.22
    assert table.rate({}) == 0.22
