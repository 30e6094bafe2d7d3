"""What lineage events cost: the same runs with and without them, on two Airflows that are up at the same time and take turns.

    python -m ops.bench_lineage [--rounds 6]

`ingest` over the same days is nearly all Airflow's own time (four tasks, each of a fraction of a second): its ratio is the worst
case; `train` is a small training. The machine's other work falls on both alike, since turns alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import yaml

from ml.errors import EvergreenError
from ml.settings import ROOT, Settings
from ops.airflow_api import Airflow
from ops.bench_backfills import SMALL
from ops.ports import free_port

DAYS = {"start": "2013-01-01", "end": "2013-01-21", "as_of": "2013-01-21T02:00:00"}
TRAIN = {"as_of": "2013-01-21T03:00:00"}


class Side:
    """An Airflow in a folder of its own, with lineage on or off."""

    def __init__(self, folder: Path, on: bool) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        for section, values in SMALL.items():
            params[section] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        paths = {"var": folder / "var", "data": folder / "data", "params": folder / "params.yaml"}
        ports = {f"{name}_port": free_port() for name in ("airflow", "mlflow", "serving")}
        self.on, self.where = on, Settings.model_validate({**paths, **ports})
        given = {f"EVERGREEN_{name.upper()}": str(value) for name, value in {**paths, **ports}.items()}
        self.env = {**os.environ, **given, "AIRFLOW__OPENLINEAGE__DISABLED": str(not on).lower()}
        self.seconds: dict[str, list[float]] = {"ingest": [], "train": []}

    def services(self, action: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ops.services", action, "airflow"],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EvergreenError(f"Airflow does not go {action}\n{done.stderr}", "read what it said")

    def run(self, dag: str, counts: bool = True) -> None:
        run = self.airflow.run(dag, conf=DAYS if dag == "ingest" else TRAIN)
        if counts:
            self.seconds[dag].append(run.seconds)

    def ready(self) -> None:
        self.airflow = Airflow(lambda _: None, self.where)
        self.airflow.wait_for_dags(set(self.seconds))

    def events(self) -> tuple[int, int]:
        """How many were written, and their bytes."""
        path = self.where.var / "lineage.jsonl"
        return (len(path.read_text().splitlines()), path.stat().st_size) if path.exists() else (0, 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ops.bench_lineage", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="of ingest; a third as many of train")
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        sides = []
        for on in (False, True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-lineage-")))
            sides.append(side := Side(folder, on))
            stack.callback(side.services, "down")
            side.services("up")
        for side in sides:
            side.ready()
            side.run("ingest", counts=False)  # the first of a place parses the source
        for dag, count in (("ingest", rounds), ("train", max(2, rounds // 3))):
            for turn in range(count):
                for side in sides if turn % 2 else reversed(sides):
                    side.run(dag)
        without, having = sides
        count, size = having.events()
        print(f"{'DAG':<8}{'runs':>6}{'off, s':>10}{'on, s':>10}{'ratio':>8}   medians of queued to end")
        for dag in without.seconds:
            was, now = statistics.median(without.seconds[dag]), statistics.median(having.seconds[dag])
            print(f"{dag:<8}{len(without.seconds[dag]):>6}{was:>10.2f}{now:>10.2f}{now / was:>8.3f}")
            print(f"        off {_sorted(without.seconds[dag])}   on {_sorted(having.seconds[dag])}")
        print(f"{count} events, {size / count / 1000:.1f} KB each; without lineage {without.events()[0]}")
    return 0


def _sorted(seconds: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in sorted(seconds))


if __name__ == "__main__":
    sys.exit(main())
