"""One contract, two ways to serve: ``evergreen serve``, and the Bento of the version with nothing but its own requirements."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ml.config import FamilyName
from ml.features.online import open_store
from ml.packaging.bento import boot, build_bento, requirements_of
from ml.packaging.bundle import Bundle
from ml.serving import manifest
from ml.settings import ROOT, settings
from tests.conftest import forget
from tests.sample_bundle import REQUEST, fresh_features, sample_bundle, stored
from tests.sample_models import explained_bundle, served
from tests.serving.conftest import serve_process

pytestmark = pytest.mark.e2e

NAME = "flight_delay"
NUMBER = "417"
V2 = f"/v2/models/{NAME}"


@dataclass(frozen=True)
class Both:
    """The same bundle, served twice."""

    serve: httpx.Client
    bento: httpx.Client
    bundle: Bundle
    notes: Path
    """What the Bento's processes have imported, see `only_required`."""

    def versions(self) -> dict[httpx.Client, str]:
        """What each calls the version: the registry's number, and the digest of the only bundle."""
        return {self.serve: NUMBER, self.bento: self.bundle.digest[:12]}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    home = tmp_path_factory.mktemp("contract")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_VAR", str(home / "var"))
        patch.setenv("EVERGREEN_DATA", str(home / "data"))
        (home / "var").mkdir()
        forget()
        archive = explained_bundle(served())
        fresh_features(open_store(settings().online))
        manifest.promote(stored(archive, NUMBER), datetime(2013, 4, 1), "test", "", "key")
        bundle = Bundle.from_bytes(archive)
        _, bento = build_bento(archive, NAME, {})
        alone = {"PYTHONPATH": str(only_required(home / "alone", requirements_of(bundle)))}
        with (
            serve_process() as (_, serving),
            boot(bento, alone) as base_url,
            httpx.Client(base_url=base_url, timeout=30) as packed,
        ):
            serving.timeout = 30
            yield Both(serving, packed, bundle, home / "alone")
    forget()


def only_required(folder: Path, requirements: list[str]) -> Path:
    """A folder that makes a Python process as if only these distributions were installed, and those that they require."""
    folder.mkdir()
    required = closure(requirements)
    foreign = [top for top, owners in packages_distributions().items() if not required & {canonicalize_name(o) for o in owners}]
    (folder / "foreign").write_text("\n".join(foreign))
    shutil.copy(Path(__file__).with_name("only_required.py"), folder / "sitecustomize.py")
    return folder


def closure(requirements: list[str]) -> set[str]:
    """Names of the distributions that an installer would bring for these requirements here."""
    wanted, seen = [Requirement(line) for line in requirements], set()
    while wanted:
        one = wanted.pop()
        if (key := (canonicalize_name(one.name), frozenset(one.extras))) in seen:
            continue
        seen.add(key)
        needs = [Requirement(line) for line in distribution(one.name).requires or []]
        wanted += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in {"", *one.extras})]
    return {name for name, _ in seen}


# ---- answers that are the same, but for the version's name

ASKED: dict[str, tuple[str, str, Any, int]] = {
    "one row": ("POST", "/predict", REQUEST, 200),
    "rows": ("POST", "/predict", [REQUEST | {"flight": number} for number in range(3)], 200),
    "no rows": ("POST", "/predict", [], 200),
    "by name": ("POST", f"/models/{NAME}/predict", REQUEST, 200),
    "explained": ("POST", "/explain", REQUEST, 200),
    "explained, by query": ("POST", "/predict?explain=true", REQUEST, 200),
    "explained, by name": ("POST", f"/models/{NAME}/explain", [REQUEST], 200),
    "nobody": ("POST", "/models/nobody/predict", REQUEST, 404),
    "unknown field": ("POST", "/predict", {"colour": 1}, 422),
    "no JSON": ("POST", "/predict", b"{", 422),
    "too many to explain": ("POST", "/explain", [REQUEST] * 101, 422),
    "get": ("GET", "/predict", None, 405),
    "no such route": ("GET", "/nothing", None, 404),
    "parity outside of a sandbox": ("POST", "/parity", [{}], 404),
    "alive": ("GET", "/livez", None, 200),
    "ready": ("GET", "/readyz", None, 200),
    "v2": ("GET", "/v2", None, 200),
    "v2 alive": ("GET", "/v2/health/live", None, 200),
    "v2 ready": ("GET", "/v2/health/ready", None, 200),
    "v2 model": ("GET", V2, None, 200),
    "v2 model ready": ("GET", f"{V2}/ready", None, 200),
    "v2 version": ("GET", f"{V2}/versions/VERSION", None, 200),
    "v2 infer": ("POST", f"{V2}/infer", "tensors", 200),
    "v2 infer version": ("POST", f"{V2}/versions/VERSION/infer", "tensors", 200),
    "v2 infer, no such version": ("POST", f"{V2}/versions/77/infer", "tensors", 404),
    "v2 infer nobody": ("POST", "/v2/models/nobody/infer", "tensors", 404),
    "v2 infer nothing": ("POST", f"{V2}/infer", {"inputs": []}, 400),
}
WORDED_BY_BENTOML = {"alive", "ready", "no such route", "parity outside of a sandbox"}
"""It answers probes itself (the second with what `ml.packaging.bento` has it ask), and what no route of the app matches."""


@pytest.mark.parametrize("case", ASKED)
def test_route__served_either_way__same_status_and_answer(case: str, both: Both) -> None:
    method, path, body, status = ASKED[case]
    if body == "tensors":
        body = tensors(both.bundle, missing=None)
    found = []
    for client, version in both.versions().items():
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"x-request-id": "mine", "content-type": "application/json"}
        reply = client.request(method, path.replace("VERSION", version), content=content, headers=headers)
        assert reply.status_code == status, (str(client.base_url), reply.text)
        found.append((reply.headers["content-type"], re.sub(rf'(?<=[" ]){version}(?=")', "VERSION", reply.text)))
    if case not in WORDED_BY_BENTOML:
        assert found[0] == found[1]
    if "/predict" in path and status == 200 and body:
        assert ('"flags":[]' in found[0][1]) and ('"VERSION"' in found[0][1])


def test_infer__binary_tensors__same_bytes_either_way(both: Both) -> None:
    asked = tensors(both.bundle)
    numeric, text = (tensor.pop("data") for tensor in asked["inputs"])
    raw = [np.array(numeric, "<f4").tobytes(), b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in text)]
    for tensor, part in zip(asked["inputs"], raw, strict=True):
        tensor["parameters"] = {"binary_data_size": len(part)}
    asked["outputs"] = [{"name": "probability", "parameters": {"binary_data": True}}]
    head = json.dumps(asked).encode()
    found = []
    for client in both.versions():
        length = {"inference-header-content-length": str(len(head))}
        reply = client.post(f"{V2}/infer", content=head + b"".join(raw), headers=length)
        assert reply.status_code == 200, reply.text
        found.append(reply.content[int(reply.headers["inference-header-content-length"]) :])
    assert found[0] == found[1]
    assert np.frombuffer(found[0], "<f4") == pytest.approx([both.bundle.examples[0].probability], abs=1e-6)


def test_documents__served_either_way__tell_of_the_same_things(both: Both) -> None:
    for client, version in both.versions().items():
        about = client.get("/metadata").json()
        assert (about["bundle"], about["model_version"]) == (both.bundle.digest, version)
        assert client.get("/docs").status_code == 200
    keys = [sorted(client.get("/metadata").json()) for client in both.versions()]
    paths = [sorted(client.get("/openapi.json").json()["paths"]) for client in both.versions()]
    metrics = [
        sorted(line.split()[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE evergreen_"))
        for client in both.versions()
    ]
    for mine, packed in (keys, paths, metrics):
        assert mine == packed != []


# ---- what the Bento stands on


def test_bento__imports__its_archive_and_its_requirements_alone(both: Both) -> None:
    both.bento.post("/explain", json=REQUEST).raise_for_status()
    notes = [dict(line.split(" ", 1) for line in path.read_text().splitlines()) for path in both.notes.glob("imported.*")]
    serving = [origins for origins in notes if "onnxruntime" in origins]  # the worker, and the server, which looks at its service
    assert serving
    for origins in serving:
        assert Path(origins["ml"]).parts[-3:] == ("src", "ml", "__init__.py")
        assert not Path(origins["ml"]).is_relative_to(ROOT)
    wanted = {"uvicorn", "uvloop", "httptools", "orjson", "xgboost"}  # without the second and third it would work, but slowly
    assert any(wanted <= set(origins) for origins in serving), serving
    named = {canonicalize_name(Requirement(line).name) for line in requirements_of(both.bundle)}
    assert {"uvloop", "httptools"} <= named, "BentoML does not require them itself"


@pytest.mark.parametrize("family", [None, "lightgbm"])
def test_bento__of_another_kind__its_requirements_are_enough_too(family: FamilyName | None, workspace: Path) -> None:
    """Fewer without an explainer, others for another family."""
    archive = explained_bundle(served(family)) if family else sample_bundle()
    _, bento = build_bento(archive, NAME, {})
    alone = only_required(workspace / "alone", requirements_of(Bundle.from_bytes(archive)))
    with boot(bento, {"PYTHONPATH": str(alone)}) as base_url:
        answer = httpx.post(f"{base_url}/explain", json=REQUEST, timeout=30).json()
    assert answer["probability"] == pytest.approx(Bundle.from_bytes(archive).examples[0].probability)
    assert ("explanation_missing" in answer["flags"]) == (family is None)


def tensors(bundle: Bundle, missing: float | None = float("nan")) -> dict[str, Any]:
    """The recorded example's features as a request of the Open Inference Protocol; `missing` stands for numbers that are not known."""
    features = bundle.examples[0].features
    numeric = [missing if features[name] is None else features[name] for name in bundle.card.numeric]
    text = [str(features[name] or "") for name in bundle.card.text]
    return {
        "id": "mine",
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [1, len(numeric)], "data": numeric},
            {"name": "text", "datatype": "BYTES", "shape": [1, len(text)], "data": text},
        ],
    }
