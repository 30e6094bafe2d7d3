"""A real service on a real socket."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import uvicorn

from ml.serving import follower
from ml.serving.app import create_app
from ml.settings import ROOT
from tests.conftest import forget

Serve = Callable[[], contextlib.AbstractContextManager[httpx.Client]]


@pytest.fixture
def serve(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts the service that follows the manifest; gives a client of it. A busy machine gets ten times the time for an answer."""
    patient = (ROOT / "params.yaml").read_text().replace("budget_ms: 100 ", "budget_ms: 1000 ")
    assert "budget_ms: 1000 " in patient
    (workspace / "params.yaml").write_text(patient)
    monkeypatch.setenv("EVERGREEN_PARAMS", str(workspace / "params.yaml"))
    forget()
    monkeypatch.setattr(follower, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(follower, "RETRY_SECONDS", 0.3)

    @contextlib.contextmanager
    def started() -> Iterator[httpx.Client]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(create_app(), log_level="warning", access_log=False))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                    eventually(lambda: server.started)
                    yield client
            finally:
                server.should_exit = True
                thread.join()

    return started


@contextlib.contextmanager
def serve_process(
    said: int | IO[bytes] = subprocess.DEVNULL, **settings: str
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """``evergreen serve`` as a process of its own, once it is ready, and a client of it; `said`: where its log goes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from ml.cli import main; main()", "serve"]
    where = {"EVERGREEN_HOST": "127.0.0.1", "EVERGREEN_SERVING_PORT": str(port), "PYTHONPATH": str(ROOT)} | settings
    process = subprocess.Popen(command, env=os.environ | where, stdout=subprocess.DEVNULL, stderr=said)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            eventually(lambda: _ready(client), seconds=90)
            yield process, client
    finally:
        process.kill()
        process.wait()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def eventually(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until `check` gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)
    return found


def serves(client: httpx.Client, version: str) -> bool:
    return bool(client.get("/metadata").json()["model_version"] == version)
