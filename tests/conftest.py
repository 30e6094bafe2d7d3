"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml import config, ledger
from tests.redis_server import RedisServer, running


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


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path) as server:
        yield server


def forget() -> None:
    """Makes this process read its environment again."""
    for cached in (config.settings, config.load_params, ledger._engine):
        cached.cache_clear()
