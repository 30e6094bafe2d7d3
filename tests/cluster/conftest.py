"""Real stores (PostgreSQL, Redis, an S3 server, MLflow) and machines on them that share nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ml.settings import ROOT
from ops import cluster, postgres
from ops.cluster_loop import write_params
from ops.cluster_parts import Place

AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer", "worker-a", "worker-b", "serving")


def require_servers() -> None:
    if postgres.installed() is None or shutil.which("redis-server") is None:
        pytest.skip("PostgreSQL or Redis is not installed here: run `sh ops/install_debian.sh postgresql redis-server` as root")


class Machine:
    """One machine: see `tests.cluster.machine`."""

    def __init__(self, place: Place, name: str) -> None:
        self.name = name
        home = place.folder / name
        (home / "var").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.cluster.machine"]
        self._log = (place.folder / "logs" / f"{name}.log").open("ab")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=place.environment(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, step: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps({"step": step, "arguments": arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended: {Path(self._log.name).read_text()[-2000:]}"
        return dict(json.loads(line))

    def run(self, step: str, **arguments: Any) -> Any:
        self.ask(step, **arguments)
        answer = self.answer()
        assert "outcome" in answer, f"{step} on {self.name}: {answer}"
        return answer["outcome"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@contextmanager
def stores(folder: Path) -> Iterator[Place]:
    """A place with stores, and nothing of Airflow."""
    require_servers()
    folder.mkdir(parents=True, exist_ok=True)
    place = Place.at(folder, write_params(folder))
    try:
        cluster.up(place, AIRFLOW)
        yield place
    finally:
        cluster.down(place)
