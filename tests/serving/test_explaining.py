"""Explanations over HTTP: exact, limited, never silently absent; and a service that never explains pays nothing for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ml.config import FamilyName
from ml.features.online import SQLiteStore
from ml.packaging.artifacts import dump
from ml.packaging.bundle import Bundle
from ml.packaging.graph import export
from ml.serving import manifest
from ml.serving.answering import FALLBACK, NO_STORE, Serving
from ml.serving.explaining import Explainer
from ml.serving.log import Entry, read_online
from ml.serving.schema import Explanation
from ml.settings import ROOT, settings
from ml.training.fit import Fitted
from tests.sample_bundle import EVENT_TIME, REQUEST, fresh_features, graph, sample_bundle, sample_parts, stored
from tests.sample_models import explained_bundle, served
from tests.serving.conftest import Serve, eventually, serves


@pytest.fixture(scope="module")
def model() -> Fitted:
    return served()


@pytest.fixture(scope="module")
def archive(model: Fitted) -> bytes:
    return explained_bundle(model)


def deploy(archive: bytes) -> None:
    manifest.promote(stored(archive, "1"), datetime(2013, 4, 1, 3), "test", "", "promote-1")


def ask(client: httpx.Client, body: Any, query: str = "?explain=true", status: int = 200) -> Any:
    eventually(lambda: serves(client, "1"))
    reply = client.post(f"/predict{query}", json=body, headers={"x-request-id": "mine"})
    assert reply.status_code == status, reply.text
    return reply.json()


def total(explanation: dict[str, Any]) -> float:
    return float(explanation["base"] + sum(part["contribution"] for part in explanation["contributions"]))


@pytest.mark.parametrize("family", ["xgboost", "lightgbm", "linear"])
def test_explain__one_row__adds_up_to_the_log_odds_of_the_answer(serve: Serve, family: FamilyName) -> None:
    deploy(explained_bundle(served(family)))
    fresh_features(SQLiteStore(Path(settings().online)))
    with serve() as client:
        answer = ask(client, REQUEST)
        about = client.get("/metadata").json()
    explanation = answer.pop("explanation")
    assert explanation["unit"] == "log-odds"
    assert 1 / (1 + np.exp(-total(explanation))) == pytest.approx(answer["probability"], abs=1e-6)
    names = [part["feature"] for part in explanation["contributions"]]
    assert (len(names), names[-1], len(set(names))) == (11, "(others)", 11)
    sizes = [abs(part["contribution"]) for part in explanation["contributions"][:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert answer["flags"] == []
    assert about["explains"] is True


def test_explain__a_list__each_row_its_own_and_the_rest_of_the_answer_as_without(serve: Serve, archive: bytes) -> None:
    deploy(archive)
    rows = [REQUEST, REQUEST | {"origin": "JFK", "distance": 200.0}]
    with serve() as client:
        answers, plain = ask(client, rows), ask(client, rows, query="")
        assert ask(client, []) == []
    first, second = (answer.pop("explanation") for answer in answers)
    assert answers == plain
    assert first["contributions"] != second["contributions"]
    said = {part["feature"]: part["value"] for part in second["contributions"]}
    assert said.get("origin", "JFK") == "JFK"


def test_predict__not_asked__the_same_bytes_with_and_without_an_explainer(serve: Serve, model: Fitted, archive: bytes) -> None:
    deploy(archive)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        headers = {"x-request-id": "mine"}
        replies = [client.post(f"/predict{query}", json=REQUEST, headers=headers) for query in ("", "?explain=false")]
    probability = Bundle.from_bytes(sample_bundle(model=export(model))).examples[0].probability
    expected = (
        f'{{"probability":{probability!r},"decision":{int(probability >= 0.5)},"entity_id":"UA-1545-EWR-20130418T1015",'
        '"model_version":"1","cohort":"champion","request_id":"mine","flags":["features_missing"]}'
    )
    assert [reply.text for reply in replies] == [expected, expected]


def test_explain__bundle_of_an_earlier_version__answered_and_flagged(serve: Serve) -> None:
    deploy(sample_bundle())
    with serve() as client:
        answer = ask(client, REQUEST)
        about, told = client.get("/metadata").json(), client.get("/metrics").text
    assert (answer["explanation"], answer["flags"]) == (None, ["features_missing", "explanation_missing"])
    assert about["explains"] is False
    assert 'evergreen_flags_total{flag="explanation_missing"} 1.0' in told


def test_explain__one_fallback_of_two__that_row_alone_is_flagged(workspace: Path, archive: bytes) -> None:
    serving = Serving.of(Bundle.from_bytes(archive), "1")
    features = serving.assembler.assemble(NO_STORE, [serving.schema.parse(json.dumps(REQUEST).encode())[0][0]]).features
    answers = [{"flags": ["features_missing"]}, {"flags": ["features_missing", FALLBACK]}]
    entry = Entry(
        "", EVENT_TIME, EVENT_TIME, EVENT_TIME, "1", float(serving.predictor.predict(features)[0]), [], "", None, features[0]
    )
    plain, fallback = serving.explain(answers, [entry, entry])
    assert plain["explanation"] is not None
    assert plain["flags"] == ["features_missing"]
    assert fallback["explanation"] is None
    assert fallback["flags"] == ["features_missing", "fallback_baseline", "explanation_missing"]


def test_explain__fallback__answered_and_flagged(serve: Serve, model: Fitted) -> None:
    parts = sample_parts()  # a graph that fails on what it does not know
    fails = graph(0.0, len(parts["numeric"]), len(parts["text"]), unknown=float("nan"))
    deploy(sample_bundle(model=fails, explainer=dump(model)))
    with serve() as client:
        answer = ask(client, REQUEST | {"dest": "???"})
    assert answer["flags"] == ["features_missing", "fallback_baseline", "explanation_missing"]
    assert answer["explanation"] is None


@pytest.mark.parametrize("broken", ["another_model", "damaged"])
def test_explain__explainer_of_no_use__answered_and_flagged(serve: Serve, model: Fitted, broken: str) -> None:
    explainer = dump(served("linear")) if broken == "another_model" else dump(model) | {"member-0.bin": b"{"}
    deploy(sample_bundle(model=export(model), explainer=explainer))
    with serve() as client:
        answer = ask(client, REQUEST)
    assert answer["probability"] > 0
    assert (answer["explanation"], answer["flags"]) == (None, ["features_missing", "explanation_missing"])


def test_explain__more_rows_than_allowed__422_with_the_reason(serve: Serve, archive: bytes) -> None:
    deploy(archive)
    with serve() as client:
        refused = ask(client, [REQUEST] * 101, status=422)
        assert refused["detail"] == "101 rows to explain in one request, at most 100 are allowed; ask in parts"
        assert len(ask(client, [REQUEST] * 100)) == 100
        assert len(ask(client, [REQUEST] * 101, query="")) == 101
        ask(client, REQUEST, query="?explain=perhaps", status=422)
        told = client.get("/metrics").text
    assert 'evergreen_requests_total{status="422"} 1.0' in told


def test_explain__prediction_log__as_without(serve: Serve) -> None:
    deploy(sample_bundle())
    fresh_features(SQLiteStore(Path(settings().online)))
    with serve() as client:
        ask(client, REQUEST)
        ask(client, REQUEST, query="")
    explained, plain = read_online(EVENT_TIME, EVENT_TIME.replace(minute=16)).drop_columns(["logged_at", "seconds"]).to_pylist()
    assert explained == plain
    assert explained["flags"] == []


def test_openapi__tells_of_explanations(serve: Serve, archive: bytes) -> None:
    deploy(archive)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        document = client.get("/openapi.json").json()
    (parameter,) = document["paths"]["/predict"]["post"]["parameters"]
    assert (parameter["name"], parameter["schema"]["default"]) == ("explain", False)
    assert "at most 100 rows" in parameter["description"]
    assert {"Answer", "Explained", "Explanation", "Contribution"} <= set(document["components"]["schemas"])


def test_explain__takes_long__other_answers_do_not_wait(archive: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    explaining, go_on, explained = threading.Event(), threading.Event(), []
    whole = Explainer.explain

    def slow(self: Explainer, entries: Sequence[Entry]) -> list[Explanation | None]:
        explaining.set()
        assert go_on.wait(30)
        return whole(self, entries)

    monkeypatch.setattr(Explainer, "explain", slow)
    deploy(archive)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        asker = threading.Thread(target=lambda: explained.append(ask(client, REQUEST)))
        asker.start()
        try:
            assert explaining.wait(10)
            assert ask(client, REQUEST, query="")["probability"] > 0  # or the client gives up
        finally:
            go_on.set()
            asker.join()
    assert explained[0]["explanation"] is not None


NEVER_EXPLAINED = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from ml.packaging.bundle import Bundle
from ml.serving.app import create_app

archive, request = Path(sys.argv[1]).read_bytes(), json.loads(sys.argv[2])
with TestClient(create_app(lambda: Bundle.from_bytes(archive))) as client:
    heavy = lambda: [name for name in ("xgboost", "lightgbm", "sklearn", "onnx", "optuna") if name in sys.modules]
    plain = client.post("/predict", json=request).json()
    before = heavy()
    explained = client.post("/predict?explain=true", json=request).json()
    print(json.dumps([plain["flags"], before, explained["flags"], explained["explanation"] is not None, heavy()]))
"""


def test_process__imports_a_models_library__only_once_it_explains(workspace: Path, archive: bytes) -> None:
    (workspace / "bundle.tar").write_bytes(archive)
    command = [sys.executable, "-c", NEVER_EXPLAINED, str(workspace / "bundle.tar"), json.dumps(REQUEST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    flags, before, explained_flags, is_explained, after = json.loads(done.stdout.splitlines()[-1])
    assert (flags, before) == (["features_missing"], [])
    assert (explained_flags, is_explained) == (["features_missing"], True)
    assert "xgboost" in after
    assert not {"lightgbm", "onnx", "optuna"} & set(after)  # the Bento has none of these
