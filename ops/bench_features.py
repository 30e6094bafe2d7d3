"""``make bench-features``: what the feature store costs, side by side with the alternatives, on the whole shipped year.

Parts: join, incremental, online, equality, auc. Everything is measured in this run, in a temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PARTS = ("join", "incremental", "online", "equality", "auc")
YEAR = (date(2013, 1, 1), date(2014, 1, 1))
TIMEOUT = 300


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_features", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--small", action="store_true", help="six weeks instead of the year, fewer repeats")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.contender:
        print(json.dumps(contend(asked.contender, asked.rows)))
        return
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    from ops import bench_online

    last = date(2013, 2, 12) if asked.small else YEAR[1]
    run: dict[str, Callable[[date, bool], None]] = {
        "join": join, "incremental": incremental,
        "online": bench_online.online, "equality": bench_online.equality, "auc": auc,
    }  # fmt: skip
    with landed_days(YEAR[0], last):
        for part in asked.parts or PARTS:
            say(f"\n## {part}\n")
            run[part](last, asked.small)


@contextmanager
def landed_days(first: date, end: date) -> Iterator[None]:
    """A landed, validated and versioned copy of the days in a temporary folder, with the settings pointing there."""
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    try:
        os.environ |= {"EVERGREEN_VAR": str(home / "var"), "EVERGREEN_DATA": str(home / "data")}
        for name in ("ONLINE", "FEAST", "STORE", "LEDGER", "DVC_REMOTE", "MLFLOW"):
            os.environ.pop(f"EVERGREEN_{name}", None)
        (home / "var").mkdir()
        land(first, end)
        yield
    finally:
        shutil.rmtree(home)


def say(text: str) -> None:
    print(text, flush=True)


def show(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table in Markdown."""
    say("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        say("| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def land(first: date, end: date) -> None:
    """Lands, validates and snapshots the days, as one landing after the last."""
    from ml import steps
    from ml.refs import Window

    began = time.monotonic()
    as_of = datetime.combine(end, datetime.min.time()) + timedelta(days=2, hours=2)
    steps.validate(steps.land(Window(start=first, end=end), as_of))
    steps.snapshot(as_of)
    say(f"landed {first} to {end} in {time.monotonic() - began:.0f} s")


def landed(last: date) -> tuple[Path, Any]:
    """The restored snapshot and its reference."""
    from ml.data import snapshots

    version = snapshots.find(datetime.combine(last, datetime.min.time()) + timedelta(days=3))
    return snapshots.restore(version), version


# ---- the join


def join(last: date, small: bool) -> None:
    """Training-set build: ours through Feast, a bare as-of join, Feast's own file store; each in a process of its own."""
    from ml.config import load_params
    from ml.data import rows
    from ml.features import days, inputs, offline, repository
    from ml.features.definitions import load_module
    from ml.features.history import keys_of
    from ml.settings import settings

    params = load_params()
    root, version = landed(last)
    start, end = inputs.midnight(YEAR[0]), inputs.midnight(last)
    wanted = rows.problem_rows(root, start, end, end + timedelta(days=3))
    began = time.monotonic()
    found = days.histories(params, inputs.landed(root, version.last_day), start - timedelta(hours=3), end)
    say(f"histories of {len(wanted):,} flights' days computed once in {time.monotonic() - began:.1f} s: "
        f"{sum(len(t) for t in found.values()):,} changes in {len(found)} views\n")  # fmt: skip
    folder = settings().var / "bench"
    folder.mkdir()
    repository.write_histories(params, found, folder)
    tick = offline.ticks(wanted["prediction_time"], end, params.features.tick_minutes)
    keys = keys_of(load_module(params).entities, wanted).append_column("event_timestamp", tick)
    pq.write_table(keys.append_column("entity_id", wanted["entity_id"]), folder / "points.parquet")
    pq.write_table(wanted, folder / "wanted.parquet")
    names = ["bare: one statement", "bare: one a view", "ours: the join", "ours: with request features"]
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(1 if small else 3):
        for name in names:
            outcomes[name].append(contender(name))
            say(f"{name}: {outcomes[name][-1]['seconds']:.2f} s")
    seconds = {name: median(o["seconds"] for o in found_) for name, found_ in outcomes.items()}
    bare = min(wall for name, wall in seconds.items() if name.startswith("bare"))
    say("")
    show(
        ["training set, all features", "wall, s", "of bare", "peak memory, MB", "rows"],
        [
            [name, seconds[name], seconds[name] / bare, f"{max(o['peak_mb'] for o in found_):,.0f}", f"{found_[0]['rows']:,}"]
            for name, found_ in outcomes.items()
        ],
    )
    same = outcomes["ours: the join"][0]["digest"] == outcomes["bare: one a view"][0]["digest"]
    say(f"\nours and bare: {'equal' if same else 'DIFFERENT'} to the last bit\n")
    beside_the_file_store(folder, [250, 500] if small else [50, 100, 200])


def beside_the_file_store(folder: Path, sizes: Sequence[int]) -> None:
    """Feast's file store pairs every row with every change of its entity before it looks at the time: it is given fewer rows."""
    table = []
    for n in sizes:
        feast, ours = contender("feast file store", n), contender("ours: the join", n)
        if not feast:
            table.append([f"{n:,}", f"more than {TIMEOUT} s, or out of memory", ours["seconds"], "-", "-", "-", "-"])
            break
        peaks = f"{feast['peak_mb']:,.0f} / {ours['peak_mb']:,.0f}"
        ratio = feast["seconds"] / ours["seconds"]
        table.append([f"{n:,}", feast["seconds"], ours["seconds"], ratio, peaks, f"{feast['rows']:,}", f"{compare(folder):,}"])
        say(f"{n:,} rows: {feast['seconds']:.1f} s against {ours['seconds']:.2f} s")
    say("")
    show(["rows asked", "file store, s", "ours, s", "times", "peaks, MB", "rows it returned", "values that differ"], table)


def contender(name: str, rows: int = 0) -> dict[str, Any]:
    """Runs one contender in a fresh process on `rows` rows, spread evenly (0: all); empty when it took too long or was killed."""
    command = [sys.executable, "-m", "ops.bench_features", "--contender", name, "--rows", str(rows)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode < 0:
        return {}
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def contend(name: str, rows: int) -> dict[str, Any]:
    """One contender: wall time from Parquet to an Arrow table, after imports; peak memory of the process, imports included."""
    from ml.config import load_params
    from ml.features import offline, repository  # imported by all, so that peaks compare
    from ml.features.definitions import load_module
    from ml.settings import settings

    folder, params = settings().var / "bench", load_params()
    columns = [c for view in load_module(params).views for c in view.stored]
    repository.repository(params, folder)  # the registry is there before
    began = time.perf_counter()
    if name.startswith("bare"):
        made = bare(folder, name.endswith("one statement"))
    elif name == "ours: the join":
        points = entity_rows(folder, rows)
        store = repository.repository(params, folder)
        made = store.get_historical_features(points, store.get_feature_service(params.problem.name)).to_arrow()
    elif name == "ours: with request features":
        wanted = pq.read_table(folder / "wanted.parquet")
        made = offline.compute(params, wanted, repository.lookup(params, folder), datetime(2015, 1, 1))
        columns = [f.name for f in load_module(params).features]
    else:
        made = feast_file(params, folder, rows)
    seconds = time.perf_counter() - began
    if name == "feast file store":
        pq.write_table(made.select(["entity_id", *columns]), folder / "feast.parquet")
    if name == "ours: the join":
        pq.write_table(made.select(["entity_id", *columns]), folder / "ours.parquet")
    return {
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "rows": len(made),
        "digest": digest(made.select(columns)),
    }


def entity_rows(folder: Path, rows: int) -> pa.Table:
    points = pq.read_table(folder / "points.parquet")
    return points.take(pa.array(range(0, len(points), len(points) // rows)[:rows])) if rows else points


def peak_mb() -> float:
    """Highest resident memory of this process; getrusage would also count the parent's before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def bare(folder: Path, one_statement: bool) -> pa.Table:
    """The as-of join written by hand: DuckDB over the same files, no Feast, nothing of ours."""
    import duckdb

    from ml.config import load_params
    from ml.features.definitions import load_module

    views = load_module(load_params()).views
    connection = duckdb.connect(config={"threads": 2})
    points = connection.sql(
        f"SELECT *, row_number() OVER () AS row FROM read_parquet('{folder}/points.parquet')"
    ).to_arrow_table()
    connection.register("points", points)

    def joined(view: Any, left: str) -> str:
        right = f"read_parquet('{folder}/{view.name}.parquet') {view.name}_"
        return f"ASOF LEFT JOIN {right} ON {left}.{view.entity.name} = {view.name}_.{view.entity.name} AND " \
               f"{left}.event_timestamp >= {view.name}_.moment"  # fmt: skip

    if one_statement:
        chosen = ", ".join(f"{view.name}_.{c}" for view in views for c in view.stored)
        joins = " ".join(joined(view, "p") for view in views)
        return connection.sql(f"SELECT {chosen} FROM points p {joins} ORDER BY p.row").to_arrow_table()
    found: dict[str, pa.ChunkedArray] = {}
    for view in views:
        chosen = ", ".join(f"{view.name}_.{c}" for c in view.stored)
        one = connection.sql(f"SELECT {chosen} FROM points p {joined(view, 'p')} ORDER BY p.row").to_arrow_table()
        found |= {c: one[c] for c in view.stored}
    return pa.table(found)


def feast_file(params: Any, folder: Path, rows: int) -> pa.Table:
    """Feast's default: the same definitions and files, its own file store."""
    from feast import FeatureService, FeatureStore
    from feast.repo_config import RepoConfig

    from ml.features import repository
    from ml.features.definitions import load_module

    module = load_module(params)
    config = RepoConfig(project="bench", provider="local", registry=str(folder / "registry.db"), offline_store={"type": "file"},
                        online_store=None, entity_key_serialization_version=3)  # fmt: skip
    config.repo_path = folder
    store = FeatureStore(config=config)
    store.repo_path = folder
    views: list[Any] = [repository.feast_view(params, view) for view in module.views]
    service = FeatureService(name="bench", features=views)
    store.apply([*map(repository.feast_entity, module.entities), *views, service])
    entities = entity_rows(folder, rows).to_pandas()
    entities["event_timestamp"] = entities["event_timestamp"].dt.tz_localize("UTC")
    return store.get_historical_features(entities, store.get_feature_service("bench")).to_arrow()


def digest(table: pa.Table) -> str:
    """Over the values, in order; missing is one value."""
    sha = hashlib.sha256()
    for name in table.column_names:
        values = table[name].to_numpy()
        sha.update(name.encode() + (repr(values.tolist()).encode() if values.dtype == object else values.tobytes()))
    return sha.hexdigest()


def compare(folder: Path) -> int:
    """Values in which Feast's file store and ours differ, over the rows that both returned."""
    from ml.data.query import query

    ours, feast = pq.read_table(folder / "ours.parquet"), pq.read_table(folder / "feast.parquet")
    columns = [c for c in ours.column_names if c != "entity_id"]
    sums = " + ".join(f"sum(CASE WHEN o.{c} IS DISTINCT FROM f.{c} THEN 1 ELSE 0 END)" for c in columns)
    counted = query(f"SELECT ({sums})::BIGINT AS n FROM ours o JOIN feast f USING (entity_id)", ours=ours, feast=feast)
    return int(counted["n"][0].as_py())


# ---- incremental


def incremental(last: date, small: bool) -> None:
    """One new day at day 30, 120 and 300 of the year, the days before it being there."""
    from ml import store
    from ml.config import load_params
    from ml.features import days, inputs

    params = load_params()
    root, version = landed(last)
    numbers = (30, 36, 40) if small else (30, 120, 300)
    source = inputs.landed(root, version.last_day)
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    for number in numbers:
        new = YEAR[0] + timedelta(days=number - 1)
        days.histories(params, source, inputs.midnight(new) - timedelta(hours=1), inputs.midnight(new) - timedelta(hours=1))
    keys = {}
    for _ in range(2 if small else 7):
        for number in numbers:
            new = YEAR[0] + timedelta(days=number - 1)
            at = inputs.midnight(new) + timedelta(hours=23)
            keys[number] = days._keys(params, days.load_module(params), root, [new])[new]
            if store.recall(keys[number]) is not None:
                forget(keys[number])
            began = time.perf_counter()
            days.histories(params, source, at, at)
            taken[number].append(time.perf_counter() - began)
    first = median(taken[numbers[0]])
    show(
        ["features of one new day", "seconds", "of day 30"],
        [[f"day {n}", median(taken[n]), median(taken[n]) / first] for n in numbers],
    )


def forget(key: str) -> None:
    """Removes one note from the local content-addressed store of this run."""
    from ml.settings import settings

    (Path(settings().store) / "keys" / key).unlink()


# ---- what history is worth


def auc(last: date, small: bool) -> None:
    """AUC and log-loss with and without history features, same rows, same settings, on the holdouts of April and July."""
    from ml import metrics
    from ml.config import load_params
    from ml.evaluation.ablation import Settings, answers, groups
    from ml.features import stored
    from ml.features.definitions import load_module
    from ml.refs import Recipe, Window
    from ml.significance import paired_by_day
    from ml.training.fit import labelled
    from ml.training.splits import split

    params = load_params()
    module = load_module(params)
    root, version = landed(last)
    moments = [datetime(2013, 2, 10, 3)] if small else [datetime(2013, 5, 2, 3), datetime(2013, 8, 2, 3)]
    outside = {"request", "weather", "plane"}
    history = {name for group, names in groups(module).items() if group not in outside for name in names}
    chosen = Recipe(family="xgboost", params={name: d.default for name, d in params.tune.space.items()})
    table = []
    for as_of in moments:
        windows = split(as_of, params.train)
        days_ = Window(start=windows.train.start, end=windows.holdout.end)
        rows = stored.read(stored.build(root, version, days_, as_of))
        settings_ = Settings(chosen, 150, windows.train, windows.holdout)
        holdout = labelled(rows, windows.holdout)
        y_true, day = holdout["label"].to_numpy(), holdout["event_time"].dt.date.astype(str).to_numpy()
        whole = answers(rows, module.learned, settings_, params)
        without = answers(rows, [f for f in module.learned if f.name not in history], settings_, params)
        gain = paired_by_day(metrics.log_losses(y_true, whole), metrics.log_losses(y_true, without), day, 0.95, 2000, 0)
        table.append([
            f"{windows.holdout}", f"{len(y_true):,}", f"{metrics.auc(y_true, without):.4f}", f"{metrics.auc(y_true, whole):.4f}",
            f"{metrics.auc(y_true, whole) - metrics.auc(y_true, without):+.4f}",
            f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
        ])  # fmt: skip
    show(["holdout", "flights", "AUC without history", "AUC with", "gained", "log-loss, 95 % by day"], table)


if __name__ == "__main__":
    main()
