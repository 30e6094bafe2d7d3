"""The Open Inference Protocol v2 over a real socket; and the token, the limits and the order of a stop."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from ml.logs import JsonFormatter
from ml.packaging.bundle import Bundle
from ml.serving import service
from ml.serving.log import folder
from ml.settings import ROOT
from tests.conftest import forget
from tests.sample_bundle import REQUEST, sample_bundle, stored
from tests.sample_models import explained_bundle, served
from tests.serving.conftest import Serve, eventually, serves
from tests.serving.test_ladder import failing, publish

INFER = "/v2/models/flight_delay/infer"


@pytest.fixture
def given() -> tuple[float, list[float], list[str]]:
    """A recorded answer, and the features that it was given to, in the model's order; NaN for what is missing."""
    bundle = Bundle.from_bytes(sample_bundle())
    example = bundle.examples[0]
    numeric = [float("nan") if (v := example.features[n]) is None else float(v) for n in bundle.card.numeric]
    return example.probability, numeric, [str(example.features[n] or "") for n in bundle.card.text]


def question(numeric: list[float], text: list[str], rows: int = 1) -> dict[str, Any]:
    plain = [None if value != value else value for value in numeric]
    return {
        "id": "mine",
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [rows, len(numeric)], "data": plain * rows},
            {"name": "text", "datatype": "BYTES", "shape": [rows, len(text)], "data": text * rows},
        ],
    }


def test_infer__json__as_the_protocol_says_and_not_logged(serve: Serve, given: tuple[float, list[float], list[str]]) -> None:
    probability, numeric, text = given
    publish(champion=stored(sample_bundle(), "1"), previous=stored(sample_bundle(0.5), "0"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        answer = client.post(INFER, json=question(numeric, text, 3)).json()
        nested = question(numeric, text, 2)
        for tensor in nested["inputs"]:
            tensor["data"] = [tensor["data"][: len(tensor["data"]) // 2]] * 2
        assert client.post(INFER, json=nested).json()["outputs"][0]["shape"] == [2, 1]
        older = client.post("/v2/models/flight_delay/versions/0/infer", json=question(numeric, text)).json()
        about = client.get("/v2/models/flight_delay").json()
        states = [
            client.get(path).status_code
            for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/flight_delay/ready")
        ]
    assert {k: answer[k] for k in ("model_name", "model_version", "id")} == {
        "model_name": "flight_delay",
        "model_version": "1",
        "id": "mine",
    }
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probability", "FP32", [3, 1])
    assert output["data"] == pytest.approx([probability] * 3, abs=1e-6)
    assert (older["model_version"], older["outputs"][0]["data"] != output["data"][:1]) == ("0", True)
    assert [(i["name"], i["datatype"], i["shape"]) for i in about["inputs"]] == [
        ("numeric", "FP32", [-1, len(numeric)]),
        ("text", "BYTES", [-1, len(text)]),
    ]
    assert states == [200] * 4
    assert not list(folder().glob("*"))


def test_infer__binary_tensors__both_ways(serve: Serve, given: tuple[float, list[float], list[str]]) -> None:
    probability, numeric, text = given
    raw = [np.array(numeric, "<f4").tobytes(), b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in text)]
    asked = question(numeric, text)
    for tensor, part in zip(asked["inputs"], raw, strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(part)}
    asked["outputs"] = [{"name": "probability", "parameters": {"binary_data": True}}]
    head = json.dumps(asked).encode()
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        length = {"inference-header-content-length": str(len(head))}
        reply = client.post(INFER, content=head + b"".join(raw), headers=length)
        cut = client.post(INFER, content=head + raw[0], headers=length)
    said = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.content[:said])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert np.frombuffer(reply.content[said:], "<f4")[0] == pytest.approx(probability, abs=1e-6)
    assert (cut.status_code, list(cut.json())) == (400, ["error"])


def _shape(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["shape"] = [1, 3]


def _type(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["datatype"] = "FP64"


def _name(asked: dict[str, Any]) -> None:
    asked["inputs"][1]["name"] = "colour"


def _missing(asked: dict[str, Any]) -> None:
    asked["inputs"].pop()


def _text_for_a_number(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["data"][0] = "1"


def _rows_differ(asked: dict[str, Any]) -> None:
    asked["inputs"][1] |= {"shape": [2, asked["inputs"][1]["shape"][1]], "data": asked["inputs"][1]["data"] * 2}


def _output(asked: dict[str, Any]) -> None:
    asked["outputs"] = [{"name": "label"}]


@pytest.mark.parametrize("spoil", [_shape, _type, _name, _missing, _text_for_a_number, _rows_differ, _output])
def test_infer__wrong_request__400_with_an_error(serve: Serve, given: tuple[float, list[float], list[str]], spoil: Any) -> None:
    _, numeric, text = given
    publish(champion=stored(sample_bundle(), "1"))
    asked = question(numeric, text)
    spoil(asked)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        reply = client.post(INFER, json=asked)
        assert (reply.status_code, list(reply.json())) == (400, ["error"])
        assert client.post(INFER, content=b"{").status_code == 400
        assert client.post("/v2/models/nobody/infer", json=question(numeric, text)).status_code == 404
        assert client.post(INFER, json=question(numeric, text)).status_code == 200


def test_infer__model_gives_nan__error_and_its_neighbours_are_answered(
    serve: Serve, given: tuple[float, list[float], list[str]]
) -> None:
    _, numeric, text = given
    publish(champion=stored(failing(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        reply = client.post(INFER, json=question(numeric, ["???"] * len(text)))
        assert (reply.status_code, list(reply.json())) == (500, ["error"])
        assert client.post(INFER, json=question(numeric, text)).status_code == 200


def test_triton_client__unchanged__is_answered(serve: Serve, given: tuple[float, list[float], list[str]]) -> None:
    probability, numeric, text = given
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        asker = triton.InferenceServerClient(str(client.base_url).removeprefix("http://").rstrip("/"))
        assert asker.is_server_ready() and asker.is_model_ready("flight_delay")
        numbers = triton.InferInput("numeric", [1, len(numeric)], "FP32")
        numbers.set_data_from_numpy(np.array([numeric], np.float32))
        texts = triton.InferInput("text", [1, len(text)], "BYTES")
        texts.set_data_from_numpy(np.array([text], object))
        answer = asker.infer("flight_delay", [numbers, texts]).as_numpy("probability")
    assert answer.tolist() == [[pytest.approx(probability, abs=1e-6)]]


def test_token__asked_for_by_all_but_probes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TOKEN", "secret")
    forget()
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/livez").status_code == 200
        for path in ("/metadata", "/metrics", "/openapi.json", "/docs", "/v2", "/v2/models/flight_delay"):
            assert client.get(path).status_code == 401, path
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/predict", "/explain", "/models/flight_delay/predict", INFER):
                refused = client.post(path, json=REQUEST, headers=wrong)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        right = {"authorization": "Bearer secret"}
        assert client.post("/predict", json=REQUEST, headers=right).status_code == 200
        assert client.get("/openapi.json", headers=right).json()["security"] == [{"token": []}]


def test_explain__is_predict_with_explain(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        headers = {"x-request-id": "mine"}
        ways = ["/explain", "/predict?explain=true", "/models/flight_delay/explain"]
        replies = [client.post(way, json=REQUEST, headers=headers).json() for way in ways]
        assert replies[0] == replies[1] == replies[2]
        assert "explanation" in replies[0]
        assert client.post("/predict?explain=perhaps", json=REQUEST).status_code == 422
        assert client.get("/predict").status_code == 405


def test_openapi__names_every_route_that_is_answered(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        document = client.get("/openapi.json").json()
        example = document["components"]["schemas"]["InferenceRequest"]["example"]
        assert client.post(INFER, json=example).status_code == 200
        for path, methods in document["paths"].items():
            for method in methods:
                url = path.replace("{name}", "flight_delay").replace("{version}", "1")
                assert client.request(method, url, content=b"").status_code not in (404, 405, 500), path
    assert {"/predict", "/explain", "/livez", "/readyz", "/metrics", "/metadata", "/v2/models/{name}/infer"} <= set(
        document["paths"]
    )


def test_limit__too_many_wait__503_and_the_rest_is_answered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_WAITING", -1)
    publish(champion=stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        assert client.post("/predict", json=REQUEST).status_code == 503
        monkeypatch.setattr(service, "MOST_WAITING", 100)
        assert client.post("/predict", json=REQUEST).status_code == 200


def test_answers__many_at_once__each_caller_gets_its_own(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"))
    found: dict[int, Any] = {}
    with serve() as client:
        eventually(lambda: serves(client, "1"))

        def ask(number: int) -> None:
            wrong = number % 5 == 0
            body = {"flight": number} if wrong else REQUEST | {"flight": number}
            found[number] = httpx.post(f"{client.base_url}/predict", json=body, headers={"x-request-id": str(number)}, timeout=30)

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    for number, reply in found.items():
        if number % 5 == 0:
            assert reply.status_code == 422
        else:
            answer = reply.json()
            assert (answer["request_id"], answer["entity_id"].split("-")[1]) == (str(number), str(number))


def test_log__an_event__one_json_object_in_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "failed: %s", ("é\n",), (type(error), error, error.__traceback__))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert {k: v for k, v in json.loads(line).items() if k in ("level", "logger", "message")} == {
        "level": "error",
        "logger": "x",
        "message": "failed: é\n",
    }


NO_PICKLE = """
import json, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "pickle.find_class" else None)
from fastapi.testclient import TestClient
from ml.packaging.bundle import Bundle
from ml.serving.app import create_app

archive, request = Path(sys.argv[1]).read_bytes(), json.loads(sys.argv[2])
with TestClient(create_app(lambda: Bundle.from_bytes(archive))) as client:
    states = [client.post(path, json=request).status_code for path in ("/predict", "/explain")]
    states += [client.get(path).status_code for path in ("/metadata", "/metrics", "/v2/models/flight_delay")]
import pickle
loaded = list(opened)
pickle.loads(pickle.dumps(Path))
print(json.dumps([states, [str(each) for each in loaded], len(opened) > len(loaded)]))
"""


def test_process__serves_and_explains__without_loading_a_pickle(workspace: Path) -> None:
    (workspace / "bundle.tar").write_bytes(explained_bundle(served()))
    command = [sys.executable, "-c", NO_PICKLE, str(workspace / "bundle.tar"), json.dumps(REQUEST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    states, loaded, notices = json.loads(done.stdout.splitlines()[-1])
    assert (states, loaded, notices) == ([200] * 5, [], True)
