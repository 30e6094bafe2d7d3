"""A mock cluster for all tests of a file, topics of its own for each."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from ml import brokers
from ml.serving import manifest
from ml.settings import ROOT
from ops import kafka_mock
from ops.stream_scene import MemberProcess
from tests.conftest import forget
from tests.sample_bundle import sample_bundle, stored

_numbers = itertools.count()

Start = Callable[..., MemberProcess]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with kafka_mock.running(tmp_path_factory.mktemp("kafka")) as variables:
        yield variables


@pytest.fixture
def kafka(cluster: dict[str, str], workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings that point to empty topics; a busy machine gets fifty times the time for an answer."""
    number = next(_numbers)
    names = {
        f"EVERGREEN_KAFKA_{name.upper()}": f"{name}-{number}" for name in ("group", "requests", "predictions", "dead_letters")
    }
    patient = (ROOT / "params.yaml").read_text().replace("budget_ms: 100 ", "budget_ms: 5000 ")
    (workspace / "params.yaml").write_text(patient)
    for name, value in (cluster | names | {"EVERGREEN_PARAMS": str(workspace / "params.yaml")}).items():
        monkeypatch.setenv(name, value)
    forget()
    brokers.checked(brokers.producer(), brokers.topics())  # which makes them
    return workspace


@pytest.fixture
def start(kafka: Path) -> Iterator[Start]:
    """Starts members; what still runs at the end is killed, and what they logged is shown."""
    members: list[MemberProcess] = []

    def started(name: str = "member", **settings: str) -> MemberProcess:
        members.append(MemberProcess(kafka, name, **settings))
        return members[-1]

    with contextlib.ExitStack() as stack:
        yield started
        for member in members:
            stack.callback(member.kill)
            print(member.log.read_text()[-3000:])


def deploy(bias: float = 0.0, version: str = "1") -> None:
    """Version `version` serves."""
    manifest.promote(stored(sample_bundle(bias), version), datetime(2013, 4, 1), "test", "", f"key-{version}")
