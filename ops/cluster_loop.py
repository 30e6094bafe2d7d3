"""The loop on a cluster, day by day, and what it leaves: a state that must not depend on what broke on the way."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import yaml

from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ops.airflow_api import Airflow
from ops.bench_backfills import SMALL
from ops.cluster import on
from ops.cluster_parts import Place

FIRST = date(2013, 2, 1)
"""The first day that is lived; the month before it is landed at once."""
DAGS = {"ingest", "features", "train", "release", "score", "drift", "online"}
ASK_SECONDS = 300.0
"""So long a trigger is tried again while something is down."""
IDLE_SECONDS = 900.0
POLL_SECONDS = 0.5
PARAMS: dict[str, dict[str, Any]] = SMALL | {
    "release": {"steps": []},
    "tune": SMALL["tune"] | {"seconds": 600, "workers": 2},
    "gates": SMALL["gates"] | {"mode": "report"},
    "train": SMALL["train"] | {"refit": False},
}
"""Models that take seconds, and all of them promoted: what is proven is the machinery."""


def write_params(folder: Path) -> Path:
    """Writes the loop's parameters to ``<folder>/params.yaml``."""
    made = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in PARAMS.items():
        made[section] |= values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(made))
    return folder / "params.yaml"


class Loop:
    """One loop on one cluster; runs have names, so that asking twice starts one."""

    def __init__(self, place: Place, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self.airflow = Airflow(say, place.settings("control"))
        self.airflow.wait_for_dags(DAGS, 300)

    def begin(self) -> None:
        """Lands a month, and trains and releases a first model."""
        moment = f"{FIRST}T02:00:00Z"
        self.run("ingest", "month", {"start": f"{FIRST - timedelta(days=31)}", "end": str(FIRST), "as_of": moment})
        self._train(FIRST)

    def day(self, number: int) -> None:
        """Lives day `number` (from 0): lands it, prepares it, trains, releases, scores the next, watches."""
        end = FIRST + timedelta(days=number + 1)
        days = {"start": str(end - timedelta(days=1)), "end": str(end)}
        self.run("ingest", str(end), days | {"as_of": f"{end}T02:00:00Z"})
        self.run("features", str(end), days | {"as_of": f"{end}T02:00:00Z"})
        self.run("online", str(end), {"as_of": f"{end}T02:59:00Z"})
        self.run("score", str(end), {"start": str(end), "end": str(end + timedelta(days=1)), "as_of": f"{end}T03:00:00Z"})
        self._train(end)
        self.run("drift", str(end), {"as_of": f"{end}T05:00:00Z"})

    def _train(self, day: date) -> None:
        before = self.airflow.run_ids("release")
        self.run("train", str(day), {"as_of": f"{day}T04:00:00Z", "reason": "the loop"})
        self.airflow.follow_new("release", before, seconds=120)

    def run(self, dag: str, name: str, conf: dict[str, Any]) -> None:
        """Triggers a run of this name, unless there is one, and follows it to its end."""
        body = {"logical_date": None, "conf": conf, "dag_run_id": f"loop-{name}"}
        deadline = time.monotonic() + ASK_SECONDS
        while True:
            try:
                answer = self.airflow.http.post(f"/dags/{dag}/dagRuns", json=body)
                if answer.is_success or answer.status_code == httpx.codes.CONFLICT:  # it was started, and the answer was lost
                    break
                problem = f"{answer.status_code} {answer.text[:300]}"
            except httpx.TransportError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise EvergreenError(f"{dag} was not started: {problem}", "see the message")
            time.sleep(POLL_SECONDS)
        self.airflow.follow(dag, f"loop-{name}")

    def rest(self) -> None:
        """Waits until no run is under way.

        Raises:
            EvergreenError: one still is.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        while busy := self._busy():
            if time.monotonic() > deadline:
                raise EvergreenError(f"runs do not end: {busy}", "look at them in Airflow")
            time.sleep(POLL_SECONDS)

    def _busy(self) -> list[str]:
        found = self.airflow.http.get("/dags/~/dagRuns", params={"state": ["queued", "running"], "limit": 100})
        return [f"{run['dag_id']}/{run['dag_run_id']}" for run in found.raise_for_status().json()["dag_runs"]]


def state(place: Place) -> dict[str, Any]:
    """What the loop has come to, without clocks, and without numbers that a lost try may use up (a version is its model)."""
    with on(place, "control"):
        return _state()


def digest(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def faults(place: Place) -> dict[str, list[str]]:
    """What must never be: duplicate registrations, double promotions, partitions that are not whole."""
    from ml import shared, store, tracking
    from ml.config import load_params
    from ml.serving import manifest

    with on(place, "control"):
        name = load_params().problem.name
        keys = Counter(tracking.tags(name, version)[tracking.KEY] for version in tracking.versions(name))
        releases = Counter(document.key for document in manifest.history())
        champions = [document.champion for document in manifest.history()]
        again = [str(one) for one, next_one in pairwise(champions) if one == next_one]
        torn = []
        for file, found in shared.files().items():
            if file.endswith(".parquet"):
                try:
                    pq.read_table(io.BytesIO(store.get(found)))
                except (EvergreenError, OSError, ValueError) as error:
                    torn.append(f"{file}: {error}")
    return {
        "duplicate registrations": [key for key, count in keys.items() if count > 1],
        "double promotions": [key for key, count in releases.items() if count > 1] + again,
        "half-written partitions": torn,
    }


def _state() -> dict[str, Any]:
    from ml import ledger, shared, tracking
    from ml.config import load_params
    from ml.serving import manifest

    name = load_params().problem.name
    tags = {version: tracking.tags(name, version) for version in tracking.versions(name)}
    models = {version: f"model {found['model'][:16]}" for version, found in tags.items()}
    alias = tracking.get_alias(name, "champion")

    def subject(text: str) -> str:
        return models.get(text.removeprefix("v"), text)

    entries = [entry for entry in ledger.entries() if entry.kind not in ledger.OPERATIONS]
    files = shared.files()
    return {
        "registry": sorted([models[version], found["verdict"], found[tracking.KEY]] for version, found in tags.items()),
        "champion": models[alias] if alias else None,
        "manifests": [
            [models.get(document.champion.version) if document.champion else None, str(document.changed_at)]
            for document in manifest.history()
        ],
        "ledger": sorted([entry.kind, str(entry.as_of), subject(entry.subject), entry.verdict] for entry in entries),
        "landed": {file: found for file, found in sorted(files.items()) if file.startswith("data/raw/")},
        "scored": {
            file: _answers(found, models) for file, found in sorted(files.items()) if file.startswith("var/predictions/batch/")
        },
        "online": _online(),
    }


def _answers(found: str, models: dict[str, str]) -> str:
    """Digest of a partition whose versions are named by their models."""
    from ml import store

    rows = pq.read_table(io.BytesIO(store.get(found))).drop_columns(["request_id"]).to_pylist()
    named = [row | {"model_version": models.get(row["model_version"], row["model_version"])} for row in rows]
    return hashlib.sha256(json.dumps(named, default=str).encode()).hexdigest()


def _online() -> str:
    """Digest of all that the online store holds."""
    import redis

    client: Any = redis.Redis.from_url(settings().online)
    held = {}
    for key in sorted(client.scan_iter()):
        kind = client.type(key)
        held[key.hex()] = sorted(client.hgetall(key).items()) if kind == b"hash" else client.get(key)
    return hashlib.sha256(repr(held).encode()).hexdigest()
