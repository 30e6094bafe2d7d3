"""The loop on a real cluster: PostgreSQL, Redis, Celery, two workers and a service that share no folder; and some kills."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ml.settings import ROOT
from ops import cluster
from ops.cluster_loop import Loop, faults, state, write_params
from ops.cluster_parts import WORKERS, Place
from tests.cluster.conftest import require_servers

pytestmark = pytest.mark.e2e
NONE = {"duplicate registrations": [], "double promotions": [], "half-written partitions": []}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster that has landed a month, trained, released, and lived a day."""
    require_servers()
    folder = tmp_path_factory.mktemp("cluster")
    place = Place.at(folder, write_params(folder))
    try:
        cluster.up(place)
        loop = Loop(place)
        loop.begin()
        loop.day(0)
        loop.rest()
        yield place
    finally:
        cluster.down(place)


def test_kill_table__of_a_few_kills() -> None:
    """First in the file: it starts two clusters, one after the other, beside which no third one should run."""
    require_servers()
    command = [sys.executable, "-m", "ops.kill_table", "--kills", "4", "--per-day", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 duplicate registrations\n0 double promotions\n0 half-written partitions" in done.stdout
    assert ": equal" in done.stdout


def test_loop__runs_on_two_workers_that_share_no_folder(place: Place) -> None:
    tasks = {worker: [json.loads(line) for line in _lines(place, worker)] for worker in WORKERS}
    assert all(tasks.values()), "each worker had a part in it"
    done = {(line["dag"], line["task"]) for lines in tasks.values() for line in lines if line["outcome"] == "success"}
    assert done >= {
        ("ingest", "snapshot"),
        ("train", "register"),
        ("release", "promote"),
        ("score", "score"),
        ("drift", "decide"),
    }
    assert not _lines(place, "control"), "the scheduler's machine did none"


def test_loop__ends_with_a_champion_landed_days_and_answers(place: Place) -> None:
    found = state(place)
    assert len(found["registry"]) == len(found["manifests"]) == 2
    assert found["champion"] == found["manifests"][-1][0]
    assert "data/raw/flights/2013-02-01.parquet" in found["landed"]
    assert list(found["scored"]) == ["var/predictions/batch/2013-02-02.parquet"]
    assert faults(place) == NONE


ROW = {
    "carrier": "UA", "flight": 1545, "origin": "EWR", "dest": "IAH", "tailnum": "N14228", "distance": 1400,
    "time_hour": "2013-02-02T15:00:00", "hour": 10, "minute": 15, "sched_dep_time": 1015, "sched_arr_time": 1319,
}  # fmt: skip
READ = """
from datetime import datetime
from ml.serving.log import read_online
print(read_online(datetime(2013, 2, 2), datetime(2013, 2, 3))["request_id"].to_pylist())
"""


def test_service__on_a_machine_of_its_own__serves_what_was_promoted_and_workers_read_its_log(place: Place) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{place.ports['serving']}", timeout=30) as service:
        until(lambda: service.get("/readyz").is_success)
        answer = service.post("/predict", json=ROW, headers={"x-request-id": "asked-on-a-cluster"}).raise_for_status().json()
    assert answer["model_version"] == "2", "the second day's model was promoted"
    command = [sys.executable, "-c", READ]

    def read_on_a_worker() -> bool:
        done = subprocess.run(command, cwd=ROOT, env=place.environment("worker-a"), capture_output=True, text=True, check=True)
        return "asked-on-a-cluster" in done.stdout

    until(read_on_a_worker)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.2)


def _lines(place: Place, machine: str) -> list[str]:
    path: Path = place.folder / machine / "var" / "steps.jsonl"
    return path.read_text().splitlines() if path.exists() else []
