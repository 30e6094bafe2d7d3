"""The service as a process: SIGTERM loses nothing, SIGKILL at most the last second."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from ml.serving import manifest
from ml.serving.log import FLUSH_SECONDS, read_online
from tests.sample_bundle import EVENT_TIME, REQUEST, sample_bundle, stored
from tests.serving.conftest import eventually

ROWS = 40

pytestmark = pytest.mark.e2e


@pytest.fixture
def service(workspace: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", "key")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", f"from ml.serving.app import serve; serve('127.0.0.1', {port})"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            eventually(lambda: _ready(client), seconds=30)
            yield process, client
    finally:
        process.kill()
        process.wait()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _ask(client: httpx.Client) -> list[str]:
    rows = [[REQUEST | {"flight": 10 * i + j} for j in range(10)] for i in range(ROWS // 10)]
    return [answer["entity_id"] for part in rows for answer in client.post("/predict", json=part).json()]


def _logged() -> list[str]:
    found: list[str] = read_online(EVENT_TIME, EVENT_TIME + timedelta(minutes=1))["entity_id"].to_pylist()
    return found


def test_sigterm__right_after_answers__all_of_them_are_in_the_log(service: tuple[subprocess.Popen[bytes], httpx.Client]) -> None:
    process, client = service
    asked = _ask(client)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) in (0, -signal.SIGTERM)
    assert sorted(_logged()) == sorted(asked)
    assert len(asked) == ROWS


def test_sigkill__after_the_flush__what_was_answered_before_is_in_the_log(
    service: tuple[subprocess.Popen[bytes], httpx.Client],
) -> None:
    process, client = service
    asked = _ask(client)
    time.sleep(FLUSH_SECONDS + 0.3)
    _ask(client)
    process.kill()
    process.wait()
    assert set(_logged()) >= set(asked)
