"""Structured logs: each line of what a real process says is one JSON object, with what it belongs to."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ml.serving import manifest
from tests.sample_bundle import REQUEST, sample_bundle, stored
from tests.serving.conftest import serve_process
from tests.test_cli import evergreen

ALWAYS = {"time", "level", "logger", "message"}
TASK = {
    "AIRFLOW_CTX_DAG_ID": "train",
    "AIRFLOW_CTX_DAG_RUN_ID": "manual__1",
    "AIRFLOW_CTX_TASK_ID": "fit",
    "AIRFLOW_CTX_TRY_NUMBER": "2",
}


def parsed(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line.keys() >= ALWAYS and datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    return lines


def test_command__in_a_task_of_airflow__says_whose_it_is(workspace: Path) -> None:
    done = evergreen("fit", "--refs", str(workspace / "refs"), EVERGREEN_LOGS="json", **TASK)
    assert done.returncode == 1
    (line,) = parsed(done.stderr)
    assert (line["level"], line["dag"], line["run_id"], line["task"], line["try"]) == ("error", "train", "manual__1", "fit", "2")
    assert "no plan at" in line["message"]


def test_command__by_hand__says_it_in_words(workspace: Path) -> None:
    done = evergreen("fit", "--refs", str(workspace / "refs"))
    assert done.stderr.startswith("error: no plan at")


def test_command__that_breaks__leaves_one_line_with_the_traceback(workspace: Path) -> None:
    (workspace / "var" / "ledger.db").write_bytes(b"no database" * 100)
    done = evergreen("ledger", "verify", EVERGREEN_LOGS="json")
    assert done.returncode == 1
    (line,) = parsed(done.stderr)
    assert (line["level"], "Traceback" in line["error"]) == ("critical", True)


def test_setting__that_there_is_not__is_refused(workspace: Path) -> None:
    done = evergreen("config", EVERGREEN_LOGS="xml")
    assert (done.returncode, "EVERGREEN_LOGS='xml'" in done.stderr) == (1, True)


@pytest.mark.e2e
def test_service__logs_each_request_with_its_id(workspace: Path) -> None:
    manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", "key")
    with (workspace / "said").open("wb") as said, serve_process(said, EVERGREEN_LOGS="requests") as (process, client):
        mine = client.post("/predict", json=REQUEST, headers={"x-request-id": "mine"}).json()
        made = client.post("/predict", json=REQUEST).json()
        assert client.post("/predict", content=b"{").status_code == 422
        _stop(process)
    lines = parsed((workspace / "said").read_text())
    asked = [(line["request_id"], line["status"]) for line in lines if line["message"] == "POST /predict"]
    assert asked[:2] == [(mine["request_id"], 200), (made["request_id"], 200)]
    assert mine["request_id"] == "mine" and made["request_id"]
    assert asked[2][1] == 422
    assert any(line["message"].startswith("serving flight_delay: version 1") for line in lines)


@pytest.mark.e2e
def test_service__otherwise_logs_no_request(workspace: Path) -> None:
    manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", "key")
    with (workspace / "said").open("wb") as said, serve_process(said) as (process, client):
        client.post("/predict", json=REQUEST)
        _stop(process)
    assert not [line for line in parsed((workspace / "said").read_text()) if "request_id" in line]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)
