"""The online parts of ``make bench-features``: reads beside a bare key read, and one flight's features three ways."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench_features import landed, say, show
from ops.ports import free_port

HOUR = timedelta(hours=1)
FIRST = date(2013, 4, 1)
SMALL = {
    "\n  trials: 24": "\n  trials: 2",
    "rows: 100000": "rows: 5000",
    "max_rounds: 300": "max_rounds: 40",
    "workers: 2": "workers: 1",
}


def online(last: date, small: bool) -> None:
    """p50 and p99 of reading one flight's features, in one process, interleaved."""
    from ml.config import load_params
    from ml.data import rows
    from ml.features import days, history, inputs
    from ml.features.assembly import Assembler, entity_key
    from ml.features.definitions import load_module
    from ml.features.online import open_store
    from ml.settings import settings

    params = load_params()
    module = load_module(params)
    root, version = landed(last)
    tick = datetime(2013, 2, 5, 12) if small else datetime(2013, 7, 1, 12)
    found = days.histories(params, inputs.landed(root, version.last_day), tick, tick)
    values = {view.name: history.last_values(view, found[view.name], tick) for view in module.views}
    spec = params.tables[params.problem.table]
    due = rows.problem_rows(root, tick + 2 * HOUR, tick + 26 * HOUR, tick)
    flights = due.select([c for c in spec.columns if c not in spec.outcomes]).to_pylist()
    folder = settings().var / "online"
    folder.mkdir()
    with redis_server(folder) as url:
        if url is None:
            say("redis-server is not installed (sh ops/install_debian.sh redis-server): Redis is left out")
        stores = {"SQLite": open_store(str(folder / "online.db"))} | ({"Redis": open_store(url)} if url else {})
        for name, store in stores.items():
            began = time.perf_counter()
            written = store.write(tick, values)
            say(f"{name}: {written:,} entities of {len(module.views)} views written in {time.perf_counter() - began:.2f} s")
        keys = [sorted({(v.name, k) for v in module.views if (k := entity_key(v.entity.columns, f))}) for f in flights]
        blobs = [json.dumps([values[view].get(key) for view, key in of]).encode() for of in keys]
        readers: dict[str, Callable[[int], Any]] = {}
        readers["bare SQLite key read, same bytes"] = bare_sqlite(folder / "bare.db", blobs)
        for name, store in stores.items():
            readers[f"ours, {name}"] = partial(lambda store, i: store.read(keys[i]), store)
        assembler = Assembler(params)
        for name, store in stores.items():
            readers[f"ours, {name}, to features"] = partial(lambda store, i: assembler.assemble(store, [flights[i]]), store)
        if url:
            readers["bare Redis key read, same bytes"] = bare_redis(url, blobs)
        for name in stores:
            readers[f"Feast's own {name}"] = feast_stock(name, folder, url, values, tick, flights)
        taken = measure(readers, len(flights), blocks=4 if small else 20)
    bare = {name.split()[1]: float(np.median(t)) for name, t in taken.items() if name.startswith("bare")}
    lines = []
    for name, times in sorted(taken.items(), key=lambda item: float(np.median(item[1]))):
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        beside = next(b for kind, b in bare.items() if kind in name)
        lines.append([name, f"{p50:.3f}", f"{p99:.3f}", p50 / 1e3 / beside])
    size = np.mean([len(blob) for blob in blobs])
    say(f"\n{len(next(iter(taken.values()))):,} reads each, of {size:.0f} bytes, in interleaved blocks\n")
    show(["one flight, all views", "p50, ms", "p99, ms", "of the bare read"], lines)


def measure(readers: dict[str, Callable[[int], Any]], n: int, blocks: int, each: int = 250) -> dict[str, np.ndarray]:
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        for i in range(50):
            read(i % n)
    for block in range(blocks):
        for name, read in readers.items():
            for i in range(each):
                began = time.perf_counter()
                read((block * each + i) % n)
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(times) for name, times in taken.items()}


def bare_sqlite(path: Path, blobs: list[bytes]) -> Callable[[int], Any]:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE kv (key INTEGER PRIMARY KEY, value BLOB)")
    connection.executemany("INSERT INTO kv VALUES (?, ?)", enumerate(blobs))
    connection.commit()
    return lambda i: connection.execute("SELECT value FROM kv WHERE key = ?", (i,)).fetchone()


def bare_redis(url: str, blobs: list[bytes]) -> Callable[[int], Any]:
    import redis

    client = redis.Redis.from_url(url)
    client.mset({f"bare:{i}": blob for i, blob in enumerate(blobs)})
    return lambda i: client.get(f"bare:{i}")


def feast_stock(
    name: str, folder: Path, url: str | None, values: Any, tick: datetime, flights: list[Any]
) -> Callable[[int], Any]:
    """Feast's own online store with the same definitions and values."""
    import pandas as pd
    from feast import FeatureService, FeatureStore
    from feast.repo_config import RepoConfig

    from ml.config import load_params
    from ml.features import repository
    from ml.features.assembly import entity_key
    from ml.features.definitions import load_module

    params = load_params()
    module = load_module(params)
    address = (url or "").removeprefix("redis://").removesuffix("/0")
    kinds = {"SQLite": {"type": "sqlite", "path": str(folder / "feast.db")},
             "Redis": {"type": "redis", "connection_string": address}}  # fmt: skip
    config = RepoConfig(project="bench", provider="local", registry=str(folder / f"registry-{name}.db"), online_store=kinds[name],
                        offline_store={"type": "file"}, entity_key_serialization_version=3)  # fmt: skip
    config.repo_path = folder
    store = FeatureStore(config=config)
    views: list[Any] = [repository.feast_view(params, view) for view in module.views]
    for view in views:
        view.ttl = timedelta(0)  # years ago by the clock of this machine
    store.apply([*map(repository.feast_entity, module.entities), *views, FeatureService(name="bench", features=views)])
    for view in module.views:
        rows = pd.DataFrame([{view.entity.name: key, **payload} for key, payload in values[view.name].items()])
        store.write_to_online_store(view.name, rows.assign(moment=pd.Timestamp(tick, tz="UTC")))
    service = store.get_feature_service("bench")
    asked = [{e.name: entity_key(e.columns, f) or "" for e in module.entities} for f in flights]
    return lambda i: store.get_online_features(features=service, entity_rows=[asked[i]]).to_dict()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str | None]:
    """A redis-server on a free port of loopback; None where it is not installed."""
    if shutil.which("redis-server") is None:
        yield None
        return
    import redis

    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.RedisError):
                redis.Redis.from_url(url).ping()
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"redis-server does not answer on port {port}")
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


# ---- equality


def equality(last: date, small: bool) -> None:
    """The same flights by HTTP, training set and batch, in a process and a folder of its own."""
    from ml.settings import ROOT, settings

    home = settings().var / "equality"
    home.mkdir()
    text = (ROOT / "params.yaml").read_text()
    for old, new in SMALL.items():
        text = text.replace(old, new)
    (home / "params.yaml").write_text(text)
    (home / "var").mkdir()
    (home / "var" / "cache").symlink_to(settings().var / "cache")
    own = {"VAR": home / "var", "DATA": home / "data", "PARAMS": home / "params.yaml", "SERVING_PORT": free_port()}
    environment = os.environ | {f"EVERGREEN_{name}": str(value) for name, value in own.items()}
    code = f"from ops.bench_online import live; live({1 if small else 12})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def live(days: int) -> None:
    """Lives some days hour by hour: refresh, requests over HTTP, a landing each night; then compares."""
    import httpx

    from ml import steps
    from ml.config import load_params
    from ml.refs import Window
    from ml.settings import settings
    from ops.demo import requests_of

    ingest(Window(start=date(2013, 1, 1), end=FIRST))
    version = first_model()
    steps.promote(version, datetime.combine(FIRST, datetime.min.time()) + 4 * HOUR)
    url, largest = f"http://127.0.0.1:{settings().serving_port}", load_params().serving.max_batch
    process = subprocess.Popen([sys.executable, "-c", "from ml.cli import main; main()", "serve"], stderr=subprocess.DEVNULL)
    try:
        wait_for(url)
        now, end = (datetime.combine(FIRST + timedelta(days=k), datetime.min.time()) + 4 * HOUR for k in (0, days))
        asked, began = 0, time.monotonic()
        while now < end:
            if now.hour == 4 and now.date() > FIRST:
                ingest(Window(start=now.date() - timedelta(days=1), end=now.date()))
            if rows := requests_of(now, now + HOUR):
                steps.materialise(now)
                for start in range(0, len(rows), largest):
                    answer = httpx.post(f"{url}/predict", json=rows[start : start + largest], timeout=60)
                    answer.raise_for_status()
                asked += len(rows)
            now += HOUR
            if now.hour == 4:
                say(f"{now:%d %B}: {asked:,} flights answered over HTTP, {time.monotonic() - began:.0f} s")
    finally:
        process.terminate()
        process.wait()
    ingest(Window(start=now.date() - timedelta(days=1), end=now.date()))
    compare_three_ways(now)


def compare_three_ways(now: datetime) -> None:
    """Of all flights that were answered: the values that were served, those of a training set, and those of batch scoring."""
    from ml import steps
    from ml.batch.score import read_batch
    from ml.config import load_params
    from ml.data import rows, snapshots
    from ml.features import inputs, stored
    from ml.refs import Window
    from ml.serving.log import read_online

    params, later = load_params(), now + 48 * HOUR
    start, end = inputs.midnight(FIRST), inputs.midnight(now.date())
    served = {a["entity_id"]: a for a in read_online(start, end).to_pylist()}
    flagged = sum(bool(a["flags"]) for a in served.values())
    version = snapshots.find(later)
    root = snapshots.restore(version)
    trained = stored.compute(params, rows.problem_rows(root, start, end, later), inputs.landed(root, version.last_day), later)
    steps.score(Window(start=FIRST, end=now.date()), later)
    scored = read_batch(start, end)
    batch = {name: json.loads(values) for name, values in zip(scored["entity_id"], scored["features"], strict=True)}
    compared, differing, named = 0, 0, set()
    for row in trained.to_pylist():
        if row["entity_id"] in served:
            values = json.loads(served[row["entity_id"]]["features"])
            for name, value in values.items():
                compared += 1
                if not value == row[name] == batch[row["entity_id"]][name]:
                    differing += 1
                    named.add(name)
    both = sum(name in served for name in trained["entity_id"].to_pylist())
    say(f"\n{both:,} of {len(served):,} flights answered over HTTP ({flagged} flagged) are in the landed data.")
    say(f"HTTP, training set and batch: {compared:,} values compared, {differing:,} differ {sorted(named) or ''}")


def ingest(window: Any) -> None:
    from ml import steps

    as_of = datetime.combine(window.end, datetime.min.time()) + 2 * HOUR
    steps.validate(steps.land(window, as_of))
    steps.snapshot(as_of)


def first_model() -> Any:
    """A quick model, promoted whatever its gate says: it is the features that matter here."""
    from ml import steps

    plan = steps.plan(datetime.combine(FIRST, datetime.min.time()) + 3 * HOUR, "benchmark", "manual", "bench")
    features = steps.features(plan)
    steps.tune(plan, features, 0, 1)
    evaluation = steps.evaluate(plan, features, steps.fit(plan, features))
    shipped = steps.refit(plan, features, evaluation)
    version = steps.register(plan, features, evaluation, shipped, steps.package(plan, features, shipped))
    return version.model_copy(update={"verdict": "promote"})


def wait_for(url: str) -> None:
    import httpx

    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} does not serve")
        time.sleep(0.1)
