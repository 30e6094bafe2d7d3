"""Rows a second of each batch engine beside bare ONNX Runtime, on one Parquet file of real feature rows, repeated.

Each runs in a process of its own, and is started anew for each turn. An engine first scores one row group (cold start: imports,
processes, sessions), then the file; its rate is that of the file, start and commit included. The base is the faster of two bare
loops, which write only names and answers; an engine writes the prediction log's columns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ops.bench_features import landed, landed_days, say, show

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = {"local": ".venv", "ray": ".venv-engines", "spark": ".venv-engines", "beam": ".venv-beam"}
GROUP = 125_000
"""Rows of a row group of the file."""
ROUNDS, DEPTH = 150, 7


def make(first: date, end: date, rows: int, folder: Path) -> tuple[str, str]:
    """A model that learned the real days, as a bundle, and their feature rows, repeated to `rows`; digest and file."""
    from ml import store
    from ml.config import load_params
    from ml.features import stored
    from ml.features.definitions import load_module
    from ml.packaging.bundle import build
    from ml.packaging.graph import export
    from ml.refs import Recipe, Window
    from ml.training.fit import fit_model, labelled

    params = load_params()
    root, version = landed(end)
    window = Window(start=first, end=end)
    X = stored.read(stored.build(root, version, window, datetime.combine(end, datetime.min.time()) + timedelta(days=3)))
    learned = Window(start=max(first, end - timedelta(days=90)), end=end)
    recipe = Recipe(family="xgboost", params={"max_depth": DEPTH, "learning_rate": 0.05, "min_child_weight": 5})
    fitted = fit_model(labelled(X, learned), learned, load_module(params).learned, params, recipe, ROUNDS)
    model, encoding, spec = export(fitted), fitted.encoding, params.tables[params.problem.table]
    bundle = build(
        name=params.problem.name, model=model, task=params.problem.task, numeric=encoding.numeric, text=encoding.text,
        threshold=params.serving.threshold, request={c: t for c, t in spec.columns.items() if c not in spec.outcomes},
        params=params.model_dump(mode="json", include={"problem", "tables", "features", "serving"}),
        climatology=fitted.climatology, lineage={"made": "by make bench-batch"}, profile=b"{}", examples=[],
    )  # fmt: skip
    (folder / "model.onnx").write_bytes(model)
    kept = ["entity_id", "event_time", "prediction_time", "tick", *encoding.numeric, *encoding.text]
    table = pa.Table.from_pandas(X[kept], preserve_index=False)
    for name in kept[1:4]:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.timestamp("us")))
    path = folder / "rows.parquet"
    repeat(table, rows, path)
    say(f"{rows:,} rows: {len(table):,} real ones of {window}, repeated; {len(kept) - 4} features, {ROUNDS} trees "
        f"of depth {DEPTH}; {path.stat().st_size / 1e6:,.0f} MB of Parquet")  # fmt: skip
    return store.put(bundle), str(path)


def repeat(table: pa.Table, rows: int, path: Path) -> None:
    """Writes the table again and again until there are so many rows; never more than a group in memory."""
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        written = at = 0
        while written < rows:
            piece = table.slice(at, min(GROUP, rows - written))
            writer.write_table(piece, row_group_size=GROUP)
            written, at = written + len(piece), (at + len(piece)) % len(table)


def turn(engine: str, job: dict[str, Any], cold: dict[str, Any]) -> dict[str, float]:
    """One engine in a new process of its environment: seconds of the cold start and of the file, MB of memory at most."""
    python = ROOT / ENVIRONMENTS[engine] / "bin" / "python"
    command = [str(python), "-m", "ops.bench_batch", "--worker", engine, "--jobs", json.dumps([cold, job])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"engine {engine}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(engine: str, given: str) -> None:
    """Inside the process of `turn`."""
    from ml.batch import engines
    from ml.batch.job import Job

    cold, whole = (Job.model_validate(each) for each in json.loads(given))
    started = time.monotonic()
    engines.run(cold, engine)
    between = time.monotonic()
    engines.run(whole, engine)
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e3
    print(json.dumps({"cold": between - started, "seconds": time.monotonic() - between, "mb": peak}))


def bare(folder: Path, how: str) -> float:
    command = [
        sys.executable,
        "-m",
        "ops.bench_batch_bare",
        *(str(folder / n) for n in ("model.onnx", "rows.parquet", "bare.parquet")),
    ]
    return float(subprocess.run([*command, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the file")
    parser.add_argument("--days", type=int, default=364, help="days of the real year that are repeated")
    parser.add_argument("--engines", default="local,ray,spark,beam", help="those that are installed of these are measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.jobs)
    first = date(2013, 1, 1)
    with landed_days(first, first + timedelta(days=given.days)), tempfile.TemporaryDirectory(prefix="evergreen-bench-") as home:
        measure(given.rows, given.engines.split(","), first, first + timedelta(days=given.days), Path(home))


def measure(rows: int, chosen: list[str], first: date, end: date, folder: Path) -> None:
    bundle, path = make(first, end, rows, folder)
    small = folder / "small.parquet"
    pq.write_table(pq.ParquetFile(path).read_row_group(0).slice(0, 10_000), small)
    loops = {how: bare(folder, how) for how in ("loop", "two")}
    base = min(loops.values())
    names = {"loop": "bare, plain loop, ONNX Runtime's threads", "two": "bare, two threads"}
    table: list[list[Any]] = [[names[how], "–", s, round(rows / s), base / s, "–"] for how, s in loops.items()]
    truth = pq.read_table(folder / "bare.parquet", columns=["probability"])["probability"]
    for engine in chosen:
        if not (ROOT / ENVIRONMENTS[engine] / "bin" / "python").exists():
            say(f"{engine}: not installed, left out (`make engines`)")
            continue
        for logged in (False, True) if engine == "local" else (False,):
            out = folder / f"{engine}.parquet"
            common = {
                "bundle": bundle,
                "version": "1",
                "name": "bench",
                "as_of": str(datetime(2014, 1, 1)),
                "log_features": logged,
            }
            cold, whole = (
                common | {"parts": [{"inputs": [str(source)], "output": str(target)}]}
                for source, target in ((small, folder / "cold.parquet"), (path, out))
            )
            found = turn(engine, whole, cold)
            answers = pq.read_table(out, columns=["probability"])["probability"].cast(pa.float32())
            if not answers.equals(truth):
                raise RuntimeError(f"engine {engine} answers otherwise than bare ONNX Runtime")
            out.unlink()
            what = engine + (", features logged" if logged else "")
            rate = round(rows / found["seconds"])
            say(f"{what}: {rate:,} rows/s")
            table.append([what, found["cold"], found["seconds"], rate, base / found["seconds"], round(found["mb"])])
    show(["", "cold start, s", "file, s", "rows/s", "of bare", "memory, MB"], table)
    local = next((row for row in table if row[0] == "local"), None)
    if local:
        say(f"local reaches {local[4]:.0%} of the faster bare loop; the target is 80 %")


if __name__ == "__main__":
    main()
