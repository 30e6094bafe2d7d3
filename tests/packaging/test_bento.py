"""The Bento: built without network, runs from the archive alone, leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions, version
from pathlib import Path

import httpx
import psutil
import pytest

from ml import store
from ml.config import FamilyName
from ml.errors import IntegrityError
from ml.packaging import bento
from ml.packaging.bento import BentoError, archive_of, boot, build_bento, requirements_of
from ml.packaging.bundle import Bundle
from ml.refs import VersionRef
from ml.serving.smoke import smoke, smoke_bento
from tests.sample_bundle import ENTITY_ID, REQUEST, sample_bundle
from tests.sample_models import explained_bundle, served

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundle() -> bytes:
    return sample_bundle()


@pytest.fixture(scope="module")
def built(bundle: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_VAR", str(tmp_path_factory.mktemp("bento")))
        bento.settings.cache_clear()
        made = build_bento(bundle, "flight_delay", {"model": "abc"})
    bento.settings.cache_clear()
    return made


def _family(workspace: Path) -> list[psutil.Process]:
    """Worker (known by this test's settings in its environment) and server, its parent (which overwrites its environment)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("EVERGREEN_VAR") == str(workspace / "var"):
                found += [process, process.parent()]
    assert [process.name() for process in found if process.name() == "circusd"], found
    return found


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_build__archive__holds_bundle_code_and_pinned_requirements(bundle: bytes, built: tuple[str, bytes]) -> None:
    tag, archive = built
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        files = {member.name.removeprefix("./"): member for member in members.getmembers()}
        requirements = members.extractfile(files["env/python/requirements.txt"]).read().decode().splitlines()  # type: ignore[union-attr]
        (packed,) = [name for name in files if name.endswith("bundle.tar")]
        assert members.extractfile(files[packed]).read() == bundle  # type: ignore[union-attr]
    assert tag.startswith("flight_delay:")
    assert "src/ml/serving/app.py" in files
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
    assert f"onnxruntime=={version('onnxruntime')}" in requirements
    assert not [line for line in requirements if "==" not in line and line.strip()]


def test_boot__real_requests__answered_and_nothing_left_behind(bundle: bytes, built: tuple[str, bytes], workspace: Path) -> None:
    with boot(built[1]) as base_url, httpx.Client(base_url=base_url) as client:
        assert client.get("/livez").status_code == 200
        answer = client.post("/predict", json=REQUEST).json()
        assert (answer["entity_id"], answer["model_version"]) == (ENTITY_ID, store.sha256(bundle)[:12])
        assert answer["probability"] == Bundle.from_bytes(bundle).examples[0].probability
        assert client.post("/predict", json={"colour": 1}).status_code == 422
        assert "evergreen_request_seconds_count 2.0" in client.get("/metrics").text
        assert client.post("/parity", json=[{}]).status_code == 404  # only in a sandbox
        family = _family(workspace)
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url + "/livez")
    assert not _alive(family)


def test_boot__server_does_not_stop_when_asked__killed_with_its_workers(
    built: tuple[str, bytes], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bento, "STOP_SECONDS", 1.0)
    with boot(built[1]):
        family = _family(workspace)
        for process in family:
            process.suspend()
    assert not _alive(family)


def test_boot__packed_code_is_broken__error_with_its_last_lines(built: tuple[str, bytes], workspace: Path) -> None:
    broken = io.BytesIO()  # that it fails proves that the packed code runs, and not this working tree's
    with tarfile.open(fileobj=io.BytesIO(built[1])) as members, tarfile.open(fileobj=broken, mode="w") as copy:
        for member in members.getmembers():
            content = members.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
            if member.name.endswith("src/ml/serving/app.py"):
                content = b"raise RuntimeError('the packed code')"
            member.size = len(content)
            copy.addfile(member, io.BytesIO(content))
    with pytest.raises(BentoError, match="the packed code"), boot(broken.getvalue()):
        pytest.fail("it must not start")


def test_build__several_at_once__each_has_its_archive(workspace: Path) -> None:
    bundles = [sample_bundle(bias=bias) for bias in (0.1, 0.2, 0.3)]
    with ThreadPoolExecutor(len(bundles)) as pool:
        built = list(pool.map(lambda bundle: build_bento(bundle, "flight_delay", {}), bundles))
    assert len({tag for tag, _ in built}) == len(bundles)
    for bundle, (_, archive) in zip(bundles, built, strict=True):
        assert store.get(store.recall(f"bento-{store.sha256(bundle)}") or "") == archive


def test_build__bundle_without_a_good_service__error_names_the_cause(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bento, "_SERVICE", "raise RuntimeError('no such service')")
    with pytest.raises(BentoError, match="no such service"):
        build_bento(sample_bundle(), "flight_delay", {})


def test_build__no_bundle__refused(workspace: Path) -> None:
    with pytest.raises(IntegrityError, match="not a bundle archive"):
        build_bento(b"bundle", "flight_delay", {})


@pytest.mark.parametrize(
    ("family", "added"),
    [
        ("xgboost", {"pandas", "xgboost-cpu"}),
        ("linear", {"pandas", "xgboost-cpu"}),  # all families are in one module, which imports XGBoost
        ("lightgbm", {"pandas", "xgboost-cpu", "lightgbm"}),
    ],
)
def test_requirements__with_explainer__what_it_imports_besides(family: FamilyName, added: set[str]) -> None:
    plain = requirements_of(Bundle.from_bytes(sample_bundle()))
    found = requirements_of(Bundle.from_bytes(explained_bundle(served(family))))
    assert {line.split("==")[0] for line in set(found) - set(plain)} == {
        "xgboost" if name == "xgboost-cpu" and not _installed(name) else name for name in added
    }
    assert set(plain) < set(found)


def _installed(name: str) -> bool:
    return next(distributions(name=name), None) is not None


def test_requirements__neither_name_installed__named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bento, "EXPLAINING", (("no-such-model", "nor-this-one"),))
    with pytest.raises(BentoError, match="no-such-model or nor-this-one is not installed"):
        requirements_of(Bundle.from_bytes(explained_bundle(served("linear"))))


def test_boot__bundle_with_explainer__explains_from_the_archive_alone(workspace: Path) -> None:
    _, archive = build_bento(explained_bundle(served()), "flight_delay", {})
    with boot(archive) as base_url:
        answer = httpx.post(f"{base_url}/predict?explain=true", json=REQUEST, timeout=30).json()
    assert len(answer["explanation"]["contributions"]) == 11
    assert "explanation_missing" not in answer["flags"]


def test_smoke__the_bento_of_the_version__passes_every_check(bundle: bytes, built: tuple[str, bytes], workspace: Path) -> None:
    digest = store.put(bundle)
    store.remember(f"bento-{digest}", store.put(built[1]))
    assert archive_of(digest) == built[1]
    ref = VersionRef(version="1", bundle=digest, model="m", verdict="promote", backfill=False, run_id="r")
    decision = smoke(ref)
    assert decision.passed, decision.model_dump_json(indent=1)
    assert (decision.verdict, [check.name for check in decision.checks]) == (
        "pass",
        ["boots", "bundle", "parity", "answers", "refuses"],
    )


def test_smoke__bento_of_another_bundle__fails_on_bundle_and_parity(built: tuple[str, bytes], workspace: Path) -> None:
    decision = smoke_bento(built[1], Bundle.from_bytes(sample_bundle(bias=1.0)))
    failed = {check.name for check in decision.checks if not check.passed}
    assert (decision.verdict, failed) == ("fail", {"bundle", "parity"}), decision.model_dump_json(indent=1)
    assert json.loads(decision.model_dump_json())["reason"].startswith("bundle: serves ")
