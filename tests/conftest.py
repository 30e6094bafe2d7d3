"""Fixtures that all tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml import config, ledger, store, tracking
from ml.packaging.bundle import Bundle
from ml.refs import VersionRef
from ml.settings import settings
from tests.redis_server import RedisServer, running
from tests.sample_bundle import sample_bundle


@pytest.fixture(scope="session")
def parsed_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sources keep their parsed copies: parsing the shipped data takes a second, once for all tests."""
    return tmp_path_factory.mktemp("parsed")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed_sources: Path) -> Iterator[Path]:
    """An empty <data> and <var> below a temporary folder; settings, parameters and ledger are read anew."""
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("EVERGREEN_VAR", str(tmp_path / "var"))
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "cache").symlink_to(parsed_sources)
    forget()
    yield tmp_path
    forget()


@pytest.fixture(scope="module")
def own_settings() -> Iterator[None]:
    """No EVERGREEN_* variable says where things are while the module's tests run: what they call sets them. All are put back."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VAR", "DATA", "ONLINE", "STORE", "LEDGER", "MLFLOW"):
            patch.setenv(f"EVERGREEN_{name}", "")  # so that it is put back, also where it was not set
            patch.delenv(f"EVERGREEN_{name}")
        forget()
        yield
    forget()


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: migrating one takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_VAR", str(tmp_path_factory.mktemp("mlflow")))
        forget()
        tracking.init_store()
        database = settings().var / "mlflow.db"
    forget()
    return database


@pytest.fixture
def register(empty_registry: Path, workspace: Path) -> Callable[..., VersionRef]:
    """Registers the next version in a real registry, with a real bundle in the store; tags can be changed."""
    shutil.copy(empty_registry, settings().var / "mlflow.db")

    def registered(**changes: str) -> VersionRef:
        name = config.load_params().problem.name
        number = len(tracking.versions(name))
        bundle = sample_bundle(0.1 * number)
        digest = store.put(bundle)
        tags = {"bundle": digest, "model": Bundle.from_bytes(bundle).card.model_digest, "verdict": "promote", "backfill": "false"}
        empty = {"params": {}, "metrics": {}, "artifacts": {}, "plots": {}, "description": ""}
        graph = {"onnx": b"", "numeric": ["distance"], "text": []}
        _, version = tracking.log_and_register(
            f"key-{number}", name, title=f"model {number}", tags=tags | changes, dataset=("raw", "0" * 32), **empty, **graph
        )
        return tracking.version_ref(version)

    return registered


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path) as server:
        yield server


def forget() -> None:
    """Makes this process read its environment again."""
    for cached in (settings, config.load_params, ledger._engine):
        cached.cache_clear()
