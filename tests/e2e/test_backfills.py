"""Three days of backfills of every DAG, two at a time, beside a nightly: by the benchmark itself, on a real Airflow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ml.settings import ROOT
from ops.bench_backfills import DAGS

pytestmark = pytest.mark.e2e


def test_backfills__move_nothing() -> None:
    command = [sys.executable, "-m", "ops.bench_backfills", "--days", "3", "--parallel", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All runs ended well." in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith(DAGS)] == [[dag, "3"] for dag in DAGS]
