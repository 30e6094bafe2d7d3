"""Backfills on a real Airflow, beside a nightly training and a drift run: their cost, and whether they move what they must not.

    python -m ops.bench_backfills [--days 30] [--dags ingest features score drift train] [--parallel 1 2]

For each number of parallel runs a fresh place of its own (temporary; small parameters, the shipped data; Airflow's metadata in
PostgreSQL where that is installed, else in SQLite, which it at times finds locked): a month is landed, a champion trained and
released, the online store filled. Then each DAG is backfilled over the same days in turn. Ends with exit code 1 when a run
failed, or when champion, manifest, online store or landed bytes moved.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

import httpx
import yaml

from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ml.store import sha256
from ops import postgres, services
from ops.airflow_api import BUSY_SECONDS, Airflow
from ops.ports import free_port

DAGS = ("ingest", "features", "score", "drift", "train")
"""Those that can be backfilled, in an order that makes sense: what is landed can be prepared, and then scored and learnt from."""
FIRST = date(2013, 2, 1)
"""First day that is backfilled; the month before it is landed by hand."""
SMALL: dict[str, dict[str, Any]] = {
    "train": {"window_days": 14, "holdout_days": 2, "folds": 1, "fold_days": 2, "min_rows": 1000, "max_rounds": 40},
    "tune": {"trials": 2, "rows": 3000, "seconds": 20},
    "gates": {"resamples": 100, "min_days": 2},
    "release": {"steps": [0.5], "max_hours": 0.001, "approval_hours": 0.003},
}
"""Parameters of a model that takes seconds: what is measured is the machinery."""
STUCK_SECONDS = 900.0
UNWELL_SECONDS = 90.0
POLL_SECONDS = 1.0
CALM_SECONDS = 3.0
"""After a DAG is paused: by then the scheduler has written what it had begun for it."""


@dataclass
class Outcome:
    """What became of one DAG's backfill."""

    dag: str
    runs: int
    seconds: float
    wrong: list[str] = field(default_factory=list)
    """What must not be, in words."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ops.bench_backfills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=30, help="days that each DAG is backfilled over (default 30)")
    parser.add_argument("--dags", nargs="+", choices=DAGS, default=list(DAGS), help="which (default all)")
    parser.add_argument("--parallel", nargs="+", type=int, default=[1, 2], help="parallel runs, a round for each (default 1 2)")
    parser.add_argument("--here", action="store_true", help="one round in the place that EVERGREEN_* names; prints JSON")
    asked = parser.parse_args(arguments)
    if asked.here:
        outcomes = one_round(asked.dags, asked.days, asked.parallel[0])
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
        return 0
    rounds = {parallel: _in_a_place(asked.dags, asked.days, parallel) for parallel in asked.parallel}
    return report(rounds, asked.days)


def report(rounds: dict[int, list[Outcome]], days: int) -> int:
    """Prints the table and the verdict; returns the exit code."""
    numbers = sorted(rounds)
    heads = "".join(f"{f'{n} at once, s':>16}" for n in numbers)
    print(f"\nAirflow's metadata in {kept_in()}")
    print(f"{'DAG':<10}{'runs':>6}{heads}{'ratio':>8}  of {days} days each")
    for index, first in enumerate(rounds[numbers[0]]):
        seconds = [rounds[n][index].seconds for n in numbers]
        ratio = f"{seconds[0] / seconds[-1]:8.2f}" if len(numbers) > 1 else f"{'':>8}"
        print(f"{first.dag:<10}{first.runs:>6}" + "".join(f"{s:>16.0f}" for s in seconds) + ratio)
    wrong = [f"{n} at once, {one.dag}: {what}" for n, outcomes in rounds.items() for one in outcomes for what in one.wrong]
    print("\n".join(f"WRONG  {line}" for line in wrong) if wrong else
          "All runs ended well. Champion, manifest, online store and landed bytes are as they were; no event was emitted;"
          " every run says that it is a backfill.")  # fmt: skip
    return 1 if wrong else 0


def _in_a_place(dags: list[str], days: int, parallel: int) -> list[Outcome]:
    """One round in a process and a folder of its own."""
    print(f"{parallel} at once: a fresh place", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="evergreen-backfills-") as folder:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        for section, values in SMALL.items():
            params[section] |= values
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(params))
        where = {name.upper(): f"{folder}/{name}" for name in ("var", "data")} | {"PARAMS": f"{folder}/params.yaml"}
        where |= {f"{name}_PORT": str(free_port()) for name in ("AIRFLOW", "MLFLOW", "SERVING")}
        env = {**os.environ, **{f"EVERGREEN_{name}": value for name, value in where.items()}, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ops.bench_backfills", "--here", "--days", str(days), "--parallel", str(parallel)]
        command += ["--dags", *dags]
        with _metadata() as more:
            done = subprocess.run(command, cwd=ROOT, env=env | more, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise EvergreenError(f"the round with {parallel} at once ended with exit code {done.returncode}", "read what it said")
        return [Outcome(**one) for one in json.loads(done.stdout.splitlines()[-1])]


@contextmanager
def _metadata() -> Iterator[dict[str, str]]:
    """Where Airflow's metadata is to be, as environment variables: a PostgreSQL server for this round, where one is installed."""
    print(f"  Airflow's metadata: {kept_in()}", file=sys.stderr, flush=True)
    if postgres.installed() is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="evergreen-postgres-") as folder, postgres.running(Path(folder), "backfills") as url:
        yield {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}


def kept_in() -> str:
    """The database of Airflow's metadata, in words."""
    return "PostgreSQL" if postgres.installed() else "SQLite (no PostgreSQL is installed)"


def one_round(dags: list[str], days: int, parallel: int) -> list[Outcome]:
    """Sets the place up, backfills each DAG in turn, and stops what it started."""
    with _said_aside():
        services.up(["airflow"])
    try:
        airflow = Airflow(lambda _: None)
        airflow.wait_for_dags({*DAGS, "release", "online"})
        _say(f"  a month, a champion, an online store: {_set_up(airflow, dags, days):.0f} s")
        return [_backfilled(airflow, dag, days, parallel) for dag in sorted(dags, key=DAGS.index)]
    finally:
        with _said_aside():
            services.down(["airflow"])


def _set_up(airflow: Airflow, dags: list[str], days: int) -> float:
    """Lands a month, trains and releases a champion, fills the online store up to after the backfill; returns the seconds."""
    from ml import tracking

    began, last = time.monotonic(), FIRST + timedelta(days=days + 1)
    until = FIRST if "ingest" in dags else last
    airflow.run("ingest", conf={"start": "2013-01-01", "end": str(until), "as_of": f"{until}T02:00:00"})
    airflow.run("train", conf={"as_of": f"{FIRST}T03:00:00"})
    version = tracking.version_ref("1").to_xcom() | {"verdict": "promote"}  # so small a model may not pass its gates
    airflow.run("release", conf={"version": version, "as_of": f"{FIRST}T04:00:00"})
    airflow.run("online", conf={"as_of": f"{last}T06:00:00"})
    # from here on nobody releases: what moves is the backfill's doing
    airflow.http.patch("/dags/release", json={"is_paused": True}).raise_for_status()
    return time.monotonic() - began


def _backfilled(airflow: Airflow, dag: str, days: int, parallel: int) -> Outcome:
    """One DAG's backfill beside a nightly training and a drift run; ingest twice."""
    before = _evidence()
    began = time.monotonic()
    _create(airflow, dag, days, parallel, "none")
    nightly = {name: _patiently_triggered(airflow, name, DAGS.index(dag)) for name in ("train", "drift")}
    runs = _wait(airflow, dag, days)
    seconds = max(_parsed(run["end_date"]) for run in runs) - min(_parsed(run["queued_at"]) for run in runs)
    outcome = Outcome(dag, len(runs), round(seconds, 1))
    outcome.wrong += _faults(airflow, dag, runs)
    for name, run_id in nightly.items():
        try:
            airflow.follow(name, run_id)
        except EvergreenError as error:
            outcome.wrong.append(f"the nightly run of {name} beside it: {error}")
    if dag == "ingest":
        landed = _landed_bytes()
        _create(airflow, dag, days, parallel, "completed")
        again = _wait(airflow, dag, days, after=max(run["end_date"] for run in runs))
        outcome.wrong += _faults(airflow, dag, again)
        outcome.wrong += [] if _landed_bytes() == landed else ["landed twice, the days have other bytes"]
    outcome.wrong += [f"{what} moved" for what, digest in _evidence().items() if digest != before[what]]
    verdict = "well" if not outcome.wrong else f"{len(outcome.wrong)} things wrong"
    _say(f"  {dag}: {outcome.runs} runs in {seconds:.0f} s, {time.monotonic() - began:.0f} s with all beside it: {verdict}")
    return outcome


def _patiently_triggered(airflow: Airflow, dag: str, minute: int) -> str:
    """A run by hand, as of the morning on which the champion began to serve; each time a minute later, so that it is new work."""
    as_of = datetime.combine(FIRST, clock(5)) + timedelta(minutes=minute)
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return airflow.trigger(dag, conf={"as_of": as_of.isoformat()})
        except EvergreenError as error:
            if not ("503" in error.what or "Database error" in error.what) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _create(airflow: Airflow, dag: str, days: int, parallel: int, again: str) -> None:
    """Creates a backfill while its DAG is paused.

    On SQLite, Airflow may otherwise find its database locked by its own scheduler, which has begun with the first runs, take back
    those that it had created, and so bring down the scheduler, which misses them.
    """
    airflow.http.patch(f"/dags/{dag}", json={"is_paused": True}).raise_for_status()
    time.sleep(CALM_SECONDS)
    span = {"from_date": f"{FIRST}T00:00:00Z", "to_date": f"{FIRST + timedelta(days=days - 1)}T23:59:59Z"}
    body = {"dag_id": dag, **span, "reprocess_behavior": again, "max_active_runs": parallel}
    body |= {"run_backwards": False, "dag_run_conf": {}}
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        answer = airflow.http.post("/backfills", json=body)
        # 409: the scheduler has not yet noticed that the backfill before is over
        if not (answer.status_code == 409 or _is_busy(answer)) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if answer.is_error:
        raise EvergreenError(f"no backfill of {dag}: {answer.status_code} {answer.text[:300]}", "see the message")
    airflow.http.patch(f"/dags/{dag}", json={"is_paused": False}).raise_for_status()


def _is_busy(answer: httpx.Response) -> bool:
    """Whether Airflow answers so because its SQLite is locked."""
    return answer.status_code == 503 or "Database error" in answer.text


def _wait(airflow: Airflow, dag: str, days: int, after: str = "") -> list[dict[str, Any]]:
    """The backfill's runs, once all are over.

    Args:
        after: only runs that ended later count: they are run again.
    """
    over, changed, healthy = -1, time.monotonic(), time.monotonic()
    while True:
        answer = airflow.http.get(f"/dags/{dag}/dagRuns", params={"run_type": "backfill", "limit": 100, "order_by": "run_after"})
        runs = answer.raise_for_status().json()["dag_runs"]
        done = [run for run in runs if run["state"] in ("success", "failed") and (run["end_date"] or "") > after]
        if len(done) >= days:
            return done
        now = time.monotonic()
        if len(done) != over:
            over, changed = len(done), now
            _say(f"    {dag}: {over} of {days} over")
        healthy = now if services.well("airflow") else healthy
        if now - changed > STUCK_SECONDS or now - healthy > UNWELL_SECONDS:
            raise EvergreenError(
                f"{dag}: no run ended for {now - changed:.0f} s, well {now - healthy:.0f} s ago", "read airflow.log"
            )
        time.sleep(POLL_SECONDS)


def _faults(airflow: Airflow, dag: str, runs: list[dict[str, Any]]) -> list[str]:
    """Runs that failed, notes that do not say what they are, and events that a backfill must not emit."""
    wrong = []
    for run in runs:
        if run["state"] != "success":
            try:
                airflow.follow(dag, run["dag_run_id"])
            except EvergreenError as error:
                wrong.append(str(error))
        elif not (run["note"] or "").startswith("Backfill: "):
            wrong.append(f"the note of {run['dag_run_id']} is {run['note']!r}")
    events = (
        airflow.http.get("/assets/events", params={"limit": 100, "order_by": "-timestamp"})
        .raise_for_status()
        .json()["asset_events"]
    )
    mine = {run["dag_run_id"] for run in runs}
    emitted = {(event["name"], event["source_run_id"]) for event in events if event["source_dag_id"] == dag}
    return wrong + [f"{run} emitted {name}" for name, run in sorted(emitted) if run in mine]


def _evidence() -> dict[str, str]:
    """Digests of what a backfill must not move: champion, manifest, the online store's values and tick."""
    from ml import tracking
    from ml.config import load_params
    from ml.serving import manifest

    now = manifest.current()
    with sqlite3.connect(settings().online) as store:
        online = store.execute("SELECT field, payload FROM features ORDER BY field").fetchall()
    return {
        "the champion's alias": str(tracking.get_alias(load_params().problem.name, "champion")),
        "the manifest": sha256(now.model_dump_json().encode()) if now else "none",
        "the online store": sha256(json.dumps(online).encode()),
    }


def _landed_bytes() -> dict[str, str]:
    raw = settings().data / "raw"
    return {str(path.relative_to(raw)): sha256(path.read_bytes()) for path in sorted(raw.rglob("*.parquet"))}


def _parsed(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _said_aside() -> Any:
    """What others print goes to stderr: stdout is for the outcome."""
    from contextlib import redirect_stdout

    return redirect_stdout(sys.stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
