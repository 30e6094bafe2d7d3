"""Kills on a running cluster: does every run reach its end, and is the end the same as without them?

    python -m ops.kill_table [--kills 100] [--seed 0] [--per-day 16]

A cluster lives day after day (land, prepare, train, release, score, watch) while scheduler, workers, Redis, PostgreSQL and the
object store are killed, restarted or frozen at random moments. A second cluster lives the same days undisturbed. Ends with exit
code 1 when a run failed, something was done twice or by half, or the two states differ.

The S3 server here keeps its objects in memory, so it is frozen (SIGSTOP) for 30 seconds, and not killed: who asks waits or runs
into his time limit. PostgreSQL is restarted (SIGINT: connections are cut); all else is killed by SIGKILL with all its children.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from ml.errors import EvergreenError
from ops import cluster
from ops.airflow_api import Airflow
from ops.cluster_loop import Loop, digest, faults, state, write_params
from ops.cluster_parts import WORKERS, Place, members, parts, stores

TASKS = ("fit", "register", "promote")
"""In whose middle a worker is killed."""
KINDS = ("scheduler", "worker", *(f"worker, mid-{task}" for task in TASKS), "redis", "postgres", "object store")
FROZEN_SECONDS = 30.0
SPREAD_SECONDS = 8.0
"""A kill at any moment comes up to so long after the cluster is well again."""
WAIT_SECONDS = 240.0
"""So long a kill in the middle of a task waits for the task; then it is one at any moment."""
WELL_SECONDS = 300.0


@dataclass(frozen=True)
class Kill:
    """One that was made: what of, by how many processes, and how long until all was well again."""

    kind: str
    processes: int
    seconds: float
    met: str
    """What it was to meet, and did: the task in the middle of which it came; else empty."""


class Killer(threading.Thread):
    """Makes the kills of one day, one after another, beside the loop."""

    def __init__(self, place: Place, kinds: list[str], seed: int, airflow: Airflow, over: threading.Event) -> None:
        super().__init__(name="killer", daemon=True)
        self.place, self.kinds, self.airflow, self.over = place, kinds, airflow, over
        self.chance = random.Random(seed)  # noqa: S311 - a reproducible choice
        self.made: list[Kill] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            for kind in self.kinds:
                self.made.append(self._kill(kind))
                _say(f"    {kind}: well again after {self.made[-1].seconds:.0f} s")
        except Exception as error:  # raised again where the loop runs: a day without its kills proves nothing
            self.problem = error

    def _kill(self, kind: str) -> Kill:
        part, met = self.chance.choice(WORKERS), ""
        if kind.startswith("worker, mid-"):
            met, part = self._in_the_middle_of(kind.rpartition("mid-")[2]) or ("", part)
        else:
            self.over.wait(self.chance.uniform(0, SPREAD_SECONDS))
        began, before = time.monotonic(), _pids(self.place)
        if kind == "object store":
            count = cluster.kill(self.place, "s3", signal.SIGSTOP, wake=False)
            time.sleep(FROZEN_SECONDS)
            cluster.kill(self.place, "s3", signal.SIGCONT)
        elif kind == "postgres":
            count = cluster.kill(self.place, "postgres", signal.SIGINT, leader=True)
        else:
            count = cluster.kill(self.place, part if kind.startswith("worker") else kind)
        self._until_well({} if kind == "object store" else before, part if kind.startswith("worker") else kind)
        return Kill(kind, count, time.monotonic() - began, met)

    def _in_the_middle_of(self, task: str) -> tuple[str, str] | None:
        """Waits until a worker runs the task; returns task and worker, or None when it does not come."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and not self.over.is_set():
            for identity in self._running(task):
                for worker in WORKERS:
                    if any(identity in _words(process) for process in members(self.place, worker)):
                        time.sleep(self.chance.uniform(0, 1.5))
                        return task, worker
            time.sleep(0.2)
        return None

    def _running(self, task: str) -> list[str]:
        try:
            address = "/dags/~/dagRuns/~/taskInstances"
            found = self.airflow.http.get(address, params={"state": "running", "limit": 50}).json()["task_instances"]
        except (httpx.HTTPError, ValueError, KeyError):  # it may be down just now
            return []
        return [one["id"] for one in found if one["task_id"] == task]

    def _until_well(self, before: dict[str, int], killed: str) -> None:
        """Until the killed part runs again, and all are well."""
        deadline = time.monotonic() + WELL_SECONDS
        waiting = [*stores(self.place), *parts(self.place)]
        waiting = [part for part in waiting if part.name != "serving"]
        while before and _pids(self.place).get(killed) == before[killed] and time.monotonic() < deadline:
            time.sleep(0.1)
        while waiting:
            waiting = [part for part in waiting if not (members(self.place, part.name) and part.healthy())]
            if waiting and time.monotonic() > deadline:
                raise EvergreenError(
                    f"not well again: {', '.join(part.name for part in waiting)}", f"read {self.place.folder}/logs"
                )
            time.sleep(0.2)


def lived(
    place: Place, days: int, kinds: list[list[str]], seed: int
) -> tuple[dict[str, object], list[Kill], dict[str, list[str]]]:
    """A cluster's life of some days; returns its state, the kills made, and what was wrong.

    Args:
        kinds: of each day, the kills to make in it; empty: none.
    """
    made: list[Kill] = []
    cluster.up(place, ("serving",))
    try:
        loop = Loop(place, lambda line: None)
        loop.begin()
        for day in range(days):
            over = threading.Event()
            killer = Killer(place, kinds[day] if kinds else [], seed + day, loop.airflow, over)
            killer.start()
            try:
                loop.day(day)
            finally:
                over.set()
                killer.join()
            made += killer.made
            if killer.problem is not None:
                raise killer.problem
            _say(f"  day {day + 1} of {days}: {len(made)} kills so far")
        loop.rest()
        return state(place), made, faults(place)
    finally:
        cluster.down(place)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ops.kill_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--per-day", type=int, default=16, help="in each day that the cluster lives (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="which kills, and when (default 0)")
    parser.add_argument("--keep", action="store_true", help="keep the clusters' folders")
    asked = parser.parse_args(arguments)
    plan = _plan(asked.kills, asked.per_day, asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="evergreen-kills-"))
    began = time.monotonic()
    try:
        killed = lived(Place.at(folder / "killed", write_params(folder)), len(plan), plan, asked.seed)
        _say("the same days without kills")
        calm = lived(Place.at(folder / "calm", write_params(folder)), len(plan), [], asked.seed)
    except EvergreenError as error:
        print(f"error: {error}\nits folder is {folder}", file=sys.stderr)
        return 1
    wrong = report(killed[1], killed[2], killed[0], calm[0])
    print(f"{len(plan)} days, {time.monotonic() - began:,.0f} s")
    if not wrong and not asked.keep:
        shutil.rmtree(folder)
    return 1 if wrong else 0


def report(made: list[Kill], found: dict[str, list[str]], killed: dict[str, object], calm: dict[str, object]) -> bool:
    """Prints the table and the verdict; returns whether anything is wrong."""
    counts = Counter(kill.kind for kill in made)
    print(f"\n{'what':<24}{'kills':>6}{'processes':>11}{'well again, s: median':>23}{'longest':>9}")
    for kind in KINDS:
        mine = [kill for kill in made if kill.kind == kind]
        if mine:
            seconds = sorted(kill.seconds for kill in mine)
            missed = sum(not kill.met for kill in mine) if "mid-" in kind else 0
            print(
                f"{kind:<24}{counts[kind]:>6}{sum(kill.processes for kill in mine):>11}"
                f"{seconds[len(seconds) // 2]:>23.0f}{seconds[-1]:>9.0f}" + (f"  ({missed} at another moment)" if missed else "")
            )
    print(f"{'all':<24}{len(made):>6}\nevery run reached its end")
    for what, which in found.items():
        print(f"{len(which)} {what}" + "".join(f"\n  {one}" for one in which))
    differing = [name for name in calm if digest({"": killed[name]}) != digest({"": calm[name]})]
    print(f"state with kills {digest(killed)[:16]}, without {digest(calm)[:16]}: " + ("differ" if differing else "equal"))
    for name in differing:
        print(f"  {name}:\n    with    {killed[name]}\n    without {calm[name]}")
    return bool(differing) or any(found.values())


def _plan(kills: int, per_day: int, seed: int) -> list[list[str]]:
    """The kinds of each day, in random order: each task is met in its middle once a day, the other kinds are equally many."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible choice
    middles = [kind for kind in KINDS if "mid-" in kind]
    others = [kind for kind in KINDS if kind not in middles]
    days, free = [], 0
    for begun in range(0, kills, per_day):
        count = min(per_day, kills - begun)
        met = middles[:count]
        slots = sorted(chance.sample(range(count), len(met)))  # a day fits, then registers, then promotes
        day = [others[(free + i) % len(others)] for i in range(count - len(met))]
        free += len(day)
        chance.shuffle(day)
        for slot, kind in zip(slots, met, strict=True):
            day.insert(slot, kind)
        days.append(day)
    return days


def _pids(place: Place) -> dict[str, int]:
    """The first process of each part, as the keeper started it last."""
    return {path.stem: json.loads(path.read_text())["pid"] for path in (place.folder / "run").glob("[!.]*.json")}


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
