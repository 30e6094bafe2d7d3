"""A cluster on one computer, without containers: PostgreSQL, Redis, an S3 server, MLflow, Airflow with Celery, two workers.

    python -m ops.cluster up|down|status

Scheduler, workers and service are machines of their own: each has a working folder that no other one looks into. What they share
is PostgreSQL, Redis and the object store. A keeper starts what ends, as a container engine would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ops import environment, postgres, services
from ops.cluster_parts import BUCKET, DATABASES, WORKERS, Part, Place, members, parts, stores

START_SECONDS = 600.0
"""On cores that others use, too."""
AGAIN_SECONDS = 1.0
"""Between the end of a process and its next start."""


def up(place: Place, without: tuple[str, ...] = ()) -> None:
    """Starts a keeper, and waits until all is well; a cluster that runs already is only waited for.

    Raises:
        EvergreenError: something did not get well; all is stopped again.
    """
    if _keeper(place) is None:
        (place.folder / "logs").mkdir(parents=True, exist_ok=True)
        (place.folder / "run").mkdir(exist_ok=True)
        environment.password(place.settings("control"))
        command = [sys.executable, "-m", "ops.cluster", "keep", "--folder", str(place.folder), "--without", *without]
        with (place.folder / "logs" / "keeper.log").open("ab") as log:
            keeper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        _note(place, "keeper", keeper.pid)
    deadline, waiting = time.monotonic() + START_SECONDS, [p for p in [*stores(place), *parts(place)] if p.name not in without]
    began = time.monotonic()
    while waiting:
        if waiting[0].healthy():
            print(f"  {waiting.pop(0).name:14} well after {time.monotonic() - began:5.1f} s", flush=True)
        elif _keeper(place) is None or time.monotonic() > deadline:
            name = waiting[0].name
            down(place)
            raise EvergreenError(f"{name} of the cluster in {place.folder} is not well", f"read {place.folder}/logs")
        else:
            time.sleep(0.25)


def down(place: Place) -> None:
    """Stops the keeper, and then whatever it started. Folders and logs stay to be read; the objects go with their server."""
    names = ["keeper", *(part.name for part in reversed([*stores(place), *parts(place)]))]
    for name in names:
        for process in members(place, name):
            _signal(process, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        if name in ("keeper", *WORKERS, "scheduler", "postgres"):
            _await_end(place, name)
    for name in names:
        for process in members(place, name):
            _signal(process, signal.SIGKILL)
        _await_end(place, name)
        (place.folder / "run" / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(place.postgres, ignore_errors=True)


def keep(place: Place, without: tuple[str, ...] = ()) -> None:
    """Runs all parts, and starts again what ends, until it is told to stop."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopping.append(number))
    for machine in ("control", *WORKERS, "serving", "redis"):
        (place.folder / machine / "var").mkdir(parents=True, exist_ok=True)
    postgres.make(place.postgres, place.secret["postgres"])
    running: dict[str, subprocess.Popen[bytes]] = {}
    ended: dict[str, float] = {}

    def tend(wanted: list[Part]) -> None:
        for part in wanted:
            process = running.get(part.name)
            if process is not None and process.poll() is not None and part.name not in ended:
                ended[part.name] = time.monotonic()
                print(f"{part.name} ended with {process.returncode}", flush=True)
                _sweep(place, part.name)
            if process is None or (part.name in ended and time.monotonic() - ended[part.name] > AGAIN_SECONDS):
                running[part.name] = _start(place, part)
                ended.pop(part.name, None)

    base = stores(place)
    while not stopping and not all(part.healthy() for part in base):
        tend(base)
        time.sleep(0.1)
    if not stopping:
        _prepare(place, "scheduler" not in without)
    whole = [*base, *(part for part in parts(place) if part.name not in without)]
    while not stopping:
        tend(whole)
        time.sleep(0.1)


def kill(place: Place, name: str, number: int = signal.SIGKILL, *, leader: bool = False, wake: bool = True) -> int:
    """Sends a signal to all processes of a part at once, as the end of its machine would; returns to how many.

    Args:
        leader: only to its first process.
        wake: False leaves them stopped.
    """
    found = members(place, name)[: 1 if leader else None]
    for process in found if not leader else []:
        _signal(process, signal.SIGSTOP)  # none may start another meanwhile
    for process in found:
        _signal(process, number)
    for process in found if wake else []:
        _signal(process, signal.SIGCONT)
    return len(found)


@contextmanager
def on(place: Place, machine: str) -> Iterator[None]:
    """This process reads what `machine` would read."""
    from s3fs import S3FileSystem

    def forget() -> None:
        settings.cache_clear()
        S3FileSystem.clear_instance_cache()  # it knows the address of the cluster before

    before = dict(os.environ)
    os.environ.update(place.environment(machine))
    forget()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        forget()


def status(place: Place) -> bool:
    """Prints a line for each part; True when all are well."""
    well = True
    for part in [*stores(place), *parts(place)]:
        alive = members(place, part.name)
        state = "stopped" if not alive else "well" if part.healthy() else "not well"
        well &= state == "well"
        print(f"  {part.name:14} {state:9} {len(alive):3} processes   log: {place.folder / 'logs' / part.name}.log")
    return well


def _prepare(place: Place, airflow: bool) -> None:
    import boto3

    postgres.create(place.database("postgres"), *DATABASES)
    env = place.environment("control")
    keys = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_DEFAULT_REGION"], **keys)
    client.create_bucket(Bucket=BUCKET)
    if airflow:
        migrate = [str(environment.BIN / "airflow"), "db", "migrate"]
        subprocess.run(migrate, env=place.airflow("control"), cwd=place.folder / "control", check=True)


def _start(place: Place, part: Part) -> subprocess.Popen[bytes]:
    part.cwd.mkdir(parents=True, exist_ok=True)
    _sweep(place, part.name)
    for left in (part.cwd / "var" / "airflow").glob("airflow-worker.pid"):
        left.unlink()
    with (place.folder / "logs" / f"{part.name}.log").open("ab") as log:
        process = subprocess.Popen(
            part.command,
            cwd=part.cwd,
            env=part.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **part.identity,
        )
    _note(place, part.name, process.pid)
    return process


def _sweep(place: Place, name: str) -> None:
    """Ends what a part left behind when its first process died."""
    for process in members(place, name):
        _signal(process, signal.SIGKILL)


def _note(place: Place, name: str, pid: int) -> None:
    log = place.folder / "logs" / f"{name}.log"
    begins = log.stat().st_size if log.exists() else 0
    record = {"pid": pid, "started": psutil.Process(pid).create_time(), "log": begins}
    aside = place.folder / "run" / f".{name}"
    aside.write_text(json.dumps(record))
    aside.rename(place.folder / "run" / f"{name}.json")


def _keeper(place: Place) -> psutil.Process | None:
    return next(iter(members(place, "keeper")), None)


def _await_end(place: Place, name: str) -> None:
    deadline = time.monotonic() + services.STOP_SECONDS
    while members(place, name) and time.monotonic() < deadline:
        time.sleep(0.05)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ops.cluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status", "keep"])
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "cluster", help="where it lives (default var/cluster)")
    parser.add_argument("--without", nargs="*", default=[], help="parts to leave out")
    asked = parser.parse_args(arguments)
    try:
        if asked.action == "up" and asked.folder.exists() and _keeper(Place.at(asked.folder.resolve())) is None:
            shutil.rmtree(asked.folder)  # what a cluster of before left: its objects are gone
        place = Place.at(asked.folder.resolve())
        if asked.action == "up":
            up(place, tuple(asked.without))
            print(f"  Airflow   http://127.0.0.1:{place.ports['airflow']}   user {environment.USER}, password "
                  f"{environment.password(place.settings('control'))}\n  Stop with make cluster-down")  # fmt: skip
        elif asked.action == "down":
            down(place)
        elif asked.action == "keep":
            keep(place, tuple(asked.without))
        else:
            return 0 if status(place) else 1
    except EvergreenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
