"""Training by one process and by several workers, on the real year repeated: memory of each process, time, log-loss afterwards.

Each number of workers has a process of its own, which fits the same recipe on January to November, ``--copies`` times, and
answers December. Memory is the most that a process held (VmHWM), what it imports included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from ops.bench_batch import repeat
from ops.bench_features import landed, landed_days, say, show

FIRST, CUT, END = date(2013, 1, 1), date(2013, 12, 1), date(2014, 1, 1)


def make(copies: int, folder: Path) -> dict[str, str]:
    """Feature sets in the store: the rows to learn from, repeated, and December's; as JSON."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from ml import store
    from ml.features import stored
    from ml.refs import Window

    root, version = landed(END)
    as_of = datetime.combine(END, datetime.min.time()) + timedelta(days=3)
    features = stored.build(root, version, Window(start=FIRST, end=END), as_of)
    table = pq.read_table(io.BytesIO(store.get(features.digest)))
    early = table.filter(pc.field("event_time") < datetime.combine(CUT, datetime.min.time()))
    repeat(early, copies * len(early), folder / "rows.parquet")
    digest = store.put((folder / "rows.parquet").read_bytes())
    learned = features.model_copy(update={"digest": digest, "rows": copies * len(early)})
    return {"learned": learned.model_dump_json(), "asked": features.model_dump_json()}


def turn(workers: int, rounds: int, given: dict[str, str]) -> dict[str, Any]:
    """One fit, in this process and its workers."""
    from ml import metrics
    from ml.config import load_params
    from ml.features.definitions import load_module
    from ml.refs import FeatureSetRef, Recipe, Window
    from ml.training.rows import rows_of
    from ml.training.spread import fit as spread
    from ml.training.spread.job import Job, Outcome, peak_mb

    params, seen, run = load_params(), list[Outcome](), spread.run

    def heard(job: Job, engine: str, address: str = "") -> list[Outcome]:
        seen.extend(run(job, engine, address))
        return seen

    spread.run = heard
    recipe = Recipe(family="xgboost", params={name: d.default for name, d in params.tune.space.items()})
    began, window = time.monotonic(), Window(start=FIRST, end=CUT)
    features = FeatureSetRef.model_validate_json(given["learned"])
    made = spread.fit(features, window, load_module(params).learned, params, recipe, rounds)
    seconds, peak = time.monotonic() - began, peak_mb()
    X = rows_of(FeatureSetRef.model_validate_json(given["asked"]), Window(start=CUT, end=END))
    loss = float(metrics.losses(params.problem.task, X["label"].to_numpy(), made.fitted.predict(X)).mean())
    return {"rows": made.fitted.learned.rows, "seconds": seconds, "peak": peak, "peaks": [each.peak_mb for each in seen],
            "trees": [each.seconds for each in seen], "loss": loss, "december": len(X)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=4, help="how often the eleven months are repeated")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        print(json.dumps(turn(given.turn, given.rounds, json.loads(sys.stdin.read()))))
        return
    with landed_days(FIRST, END), tempfile.TemporaryDirectory(prefix="evergreen-bench-") as folder:
        sets, rows = json.dumps(make(given.copies, Path(folder))), []
        for workers in (int(each) for each in given.workers.split(",")):
            command = [sys.executable, "-m", "ops.bench_spread", "--turn", str(workers), "--rounds", str(given.rounds)]
            told = os.environ | {"EVERGREEN_TRAIN_WORKERS": str(workers)}
            done = subprocess.run(command, input=sets, env=told, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append([workers, found["rows"], found["peak"], max(found["peaks"], default="–"), round(found["seconds"], 1),
                         round(max(found["trees"]), 1) if found["trees"] else "–", f"{found['loss']:.6f}"])  # fmt: skip
            say(json.dumps(found))
    say("")
    show(["workers", "rows", "step, MB", "largest worker, MB", "whole fit, s", "workers, s", "log-loss in December"], rows)


if __name__ == "__main__":
    main()
