"""The service as a process: SIGTERM loses nothing, not even what was only half asked; SIGKILL at most the last second."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ml.serving import manifest
from ml.serving.log import FLUSH_SECONDS, read_online
from ml.settings import settings
from tests.sample_bundle import EVENT_TIME, REQUEST, sample_bundle, stored
from tests.serving.conftest import eventually, serve_process

ROWS = 40

pytestmark = pytest.mark.e2e


@pytest.fixture
def service(workspace: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", "key")
    with serve_process() as started:
        yield started


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
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert sorted(_logged()) == sorted(asked)
    assert len(asked) == ROWS


@pytest.mark.usefixtures("workspace")
def test_workers__two__count_together_log_all_and_end_with_the_process_that_began_them() -> None:
    manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", "key")
    with serve_process(EVERGREEN_SERVING_WORKERS="2") as (process, client):
        eventually(lambda: "evergreen_swaps_total 2.0" in client.get("/metrics").text)
        asked: list[str] = []

        def both_have_answered() -> bool:
            """Who takes a connection is the kernel's choice: one may take many in a row."""
            asked.extend(answer for _ in range(5) for answer in _on_a_new_connection(client))
            return len(list((settings().var / "predictions" / "online").glob("*.jsonl"))) == 2

        eventually(both_have_answered, 60)
        shown = client.get("/metrics").text
        assert f'evergreen_predictions_total{{cohort="champion",model_version="1"}} {len(asked)}.0' in shown
        assert 'evergreen_manifest_version{name="flight_delay"} 1.0' in shown
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        eventually(lambda: sorted(_logged()) == sorted(asked))
        process.kill()
        _, alive = psutil.wait_procs(workers, 20)
        assert not alive
    assert sorted(_logged()) == sorted(asked)


def _on_a_new_connection(client: httpx.Client) -> list[str]:
    found = httpx.post(client.base_url.join("/predict"), json=[REQUEST])
    return [answer["entity_id"] for answer in found.json()]


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


def test_sigterm__requests_in_flight__answered_and_logged_while_new_connections_are_refused(
    service: tuple[subprocess.Popen[bytes], httpx.Client],
) -> None:
    process, client = service
    address = (str(client.base_url.host), client.base_url.port or 0)
    bodies = [json.dumps(REQUEST | {"flight": number}).encode() for number in (1, 2)]
    with socket.create_connection(address, 10) as idle, contextlib.ExitStack() as stack:
        asked = [stack.enter_context(socket.create_connection(address, 10)) for _ in bodies]
        for connection, body in zip(asked, bodies, strict=True):
            head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(head % len(body) + body[:50])
        client.get("/livez")  # what was sent before on other connections has been read
        process.send_signal(signal.SIGTERM)
        eventually(lambda: _refused(address))
        assert idle.recv(1) == b""  # nobody waits for who has asked nothing
        time.sleep(0.5)  # uvicorn itself lingers for 0.1 s, even where it is told not to wait for anybody
        assert process.poll() is None
        replies = []
        for connection, body in zip(asked, bodies, strict=True):
            connection.sendall(body[50:])
            replies.append(_reply(connection))
    assert [status for status, _ in replies] == [200, 200]
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert sorted(_logged()) == sorted(answer["entity_id"] for _, answer in replies)


def _refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1).close()
    except ConnectionRefusedError:
        return True
    return False


def _reply(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and body; the server closes the connection after it, as it is about to end."""
    with connection.makefile("rb") as received:
        head, _, body = received.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
