"""A real Airflow (scheduler, API server, DAG processor, triggerer) in a place of its own, on a free port, with a tiny problem."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ml.settings import ROOT, Settings
from ops.airflow_api import Airflow
from ops.ports import free_port

SMALL = {
    "train": {"window_days": 14, "holdout_days": 2, "folds": 1, "fold_days": 2, "min_rows": 1000, "max_rounds": 40},
    "tune": {"trials": 2, "rows": 3000, "seconds": 20},
    "gates": {"resamples": 100, "min_days": 2},
    "release": {"steps": [0.5], "max_hours": 0.001, "approval_hours": 0.003},  # 4 s without a verdict, 11 s without an answer
}


@dataclass
class Place:
    """Settings of the place, the environment that makes them, and a logged-in session."""

    settings: Settings
    env: dict[str, str]
    airflow: Airflow | None = None

    def services(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ops.services", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)

    def python(self, code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=self.env, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An empty place with small parameters; nothing runs in it."""
    folder = tmp_path_factory.mktemp("place")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    names = ("airflow_port", "mlflow_port", "serving_port", "exporter_port", "statsd_port")
    ports = {name: free_port() for name in names}
    paths: dict[str, Path] = {"var": folder / "var", "data": folder / "data", "params": folder / "params.yaml"}
    given = {f"EVERGREEN_{name.upper()}": str(value) for name, value in {**ports, **paths}.items()}
    return Place(Settings(**ports, **paths), {**os.environ, **given})


@pytest.fixture(scope="module")
def airflow(place: Place) -> Iterator[Airflow]:
    """Airflow, up in the place; stopped afterwards."""
    try:
        started = place.services("up", "airflow")
        assert started.returncode == 0, started.stdout + started.stderr
        place.airflow = Airflow(lambda _: None, place.settings)
        place.airflow.wait_for_dags({"ingest", "features", "train", "release", "drift", "score", "online", "report"})
        yield place.airflow
    finally:
        place.services("down")
