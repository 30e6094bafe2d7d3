"""Starts, stops and shows the three local services: Airflow, MLflow's UI and the prediction service.

    python -m ops.services up|down|status

A service is one session of processes; `down` stops the sessions that `up` started, whole, and no other process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path

import psutil

from ml.errors import EvergreenError
from ml.settings import ROOT, Settings, settings
from ops import environment

START_SECONDS = 240.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Service:
    """What to run, where it listens, and how to know that it is well."""

    name: str
    port: int
    variable: str
    command: list[str]
    env: dict[str, str]
    healthy: Callable[[], bool]
    prepare: Callable[[], object] = lambda: None


def services(where: Settings | None = None) -> list[Service]:
    """The three services as the settings describe them."""
    where = where or settings()
    url = {name: f"http://{where.host}:{port}" for name, port in ports(where).items()}
    return [
        Service(
            "airflow",
            where.airflow_port,
            "EVERGREEN_AIRFLOW_PORT",
            _command("airflow standalone"),
            environment.airflow(where),
            lambda: _all_healthy(fetch(url["airflow"] + "/api/v2/monitor/health")),
        ),
        Service(
            "mlflow",
            where.mlflow_port,
            "EVERGREEN_MLFLOW_PORT",
            _command(
                f"mlflow server --workers 1 --host {where.host} --port {where.mlflow_port} --backend-store-uri", where.mlflow
            ),
            environment.mlflow(where),
            lambda: fetch(url["mlflow"] + "/health") is not None,
            _init_mlflow,
        ),
        Service(
            "serving",
            where.serving_port,
            "EVERGREEN_SERVING_PORT",
            [sys.executable, "-c", "from ml.cli import main; main()", "serve"],
            environment.common(),
            lambda: fetch(url["serving"] + "/livez") is not None,
        ),
    ]


def ports(where: Settings) -> dict[str, int]:
    return {"airflow": where.airflow_port, "mlflow": where.mlflow_port, "serving": where.serving_port}


def up(names: list[str] | None = None) -> None:
    """Starts what does not run yet, all at once, and waits until each is well.

    Raises:
        PortInUseError: a port is taken; nothing was started.
        EvergreenError: a service died or did not get well; what was started here is stopped again.
    """
    wanted = [service for service in services() if names is None or service.name in names]
    missing = [service for service in wanted if not _alive(service.name)]
    for service in wanted:
        if service not in missing:
            print(f"  {service.name:8} runs already on port {service.port}", flush=True)
    for service in missing:
        _require_free(service)
    abandon = threading.Event()
    with ThreadPoolExecutor(max_workers=max(len(missing), 1)) as pool:
        starting = [pool.submit(_start, service, abandon) for service in missing]
        try:
            for waiting in as_completed(starting):
                waiting.result()
        except BaseException:
            abandon.set()
            wait(starting)
            down([service.name for service in missing], quiet=True)
            raise


def down(names: list[str] | None = None, *, quiet: bool = False) -> None:
    """Stops what `up` started: asks, waits, then kills whatever is left of each session. Nothing running is no error."""
    records = {path: json.loads(path.read_text()) for path in sorted(_run_folder().glob("*.json"))}
    chosen = {path: record for path, record in records.items() if names is None or path.stem in names}
    with ThreadPoolExecutor(max_workers=max(len(chosen), 1)) as pool:
        killed = list(pool.map(lambda record: _stop(record["pid"], record["started"]), chosen.values()))
    for path, left in zip(chosen, killed, strict=True):
        path.unlink(missing_ok=True)
        if not quiet:
            print(f"  {path.stem:8} stopped" + (f" ({left} processes had to be killed)" if left else ""), flush=True)
    if not chosen and not quiet:
        print("  nothing was running")


def status() -> bool:
    """Prints one line per service; True when all are well."""
    well = True
    for service in services():
        state = "stopped" if not _alive(service.name) else "healthy" if service.healthy() else "not healthy"
        well &= state == "healthy"
        print(f"  {service.name:8} {state:12} http://{settings().host}:{service.port}   log: {_log(service.name)}")
    return well


def well(name: str) -> bool:
    """Whether a service, with all that belongs to it, is healthy now."""
    return next(service for service in services() if service.name == name).healthy()


def summary() -> str:
    """Addresses, and how to log in."""
    where = settings()
    login = f"user {environment.USER}, password {environment.password(where)}"
    return "\n".join(
        [
            f"  Airflow     http://{where.host}:{where.airflow_port}   {login}",
            f"  MLflow      http://{where.host}:{where.mlflow_port}",
            f"  Predictions http://{where.host}:{where.serving_port}/docs",
            "  Stop with   make down",
        ]
    )


def _command(words: str, *more: str) -> list[str]:
    return [*words.split(), *more]


class PortInUseError(EvergreenError):
    """Another program listens where a service should."""


def fetch(url: str) -> bytes | None:
    """The body of a GET that answered 200 within two seconds, else None."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def _all_healthy(body: bytes | None) -> bool:
    """Scheduler, triggerer, DAG processor and database; `standalone` says "ready" when some of them are dead."""
    parts = json.loads(body) if body else {}
    return len(parts) >= 4 and all(part["status"] == "healthy" for part in parts.values())


def _init_mlflow() -> None:
    from ml import tracking

    tracking.init_store()


def _require_free(service: Service) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings().host, service.port))
        except OSError as error:
            raise PortInUseError(
                f"port {service.port} on {settings().host}, wanted by {service.name}, cannot be used: {error.strerror}",
                f"stop the program that uses it, or choose another: {service.variable}={service.port + 1} make …",
            ) from None


def _start(service: Service, abandon: threading.Event) -> None:
    begun = time.monotonic()
    service.prepare()
    if abandon.is_set():
        return
    _log(service.name).parent.mkdir(parents=True, exist_ok=True)
    program = shutil.which(service.command[0], path=service.env["PATH"]) or service.command[0]
    with _log(service.name).open("ab") as log:
        process = subprocess.Popen(
            [program, *service.command[1:]],
            cwd=ROOT,
            env=service.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "port": service.port}
    _run_folder().mkdir(parents=True, exist_ok=True)
    (_run_folder() / f"{service.name}.json").write_text(json.dumps(record))
    while not service.healthy():
        if abandon.wait(0.25):
            return
        if process.poll() is not None:
            raise _not_well(service, f"ended with exit code {process.returncode}")
        if time.monotonic() - begun > START_SECONDS:
            raise _not_well(service, f"was not healthy after {START_SECONDS:.0f} s")
    print(
        f"  {service.name:8} healthy after {time.monotonic() - begun:4.1f} s   http://{settings().host}:{service.port}",
        flush=True,
    )


def _not_well(service: Service, how: str) -> EvergreenError:
    lines = _log(service.name).read_text(errors="replace").splitlines()[-15:]
    tail = "\n".join(f"    | {line}" for line in lines)
    return EvergreenError(f"{service.name} {how}\n{tail}", f"read {_log(service.name)}")


def _stop(pid: int, started: float) -> int:
    """Ends the session that `pid` leads: SIGTERM, then SIGKILL; returns how many had to be killed.

    `started` tells our process from a later one with the same number. Members are found by session, since a process whose
    parent died is nobody's child any more.
    """
    members = session(pid, started)
    _signal(members, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while members and time.monotonic() < deadline:
        time.sleep(0.1)
        members = session(pid, started)
    _signal(members, signal.SIGKILL)
    while session(pid, started):
        time.sleep(0.05)
    return len(members)


def session(leader: int, started: float) -> list[psutil.Process]:
    """The living processes of the session `leader`; none when that number belongs to a later process now."""
    found = []
    try:
        if abs(psutil.Process(leader).create_time() - started) > 0.5:
            return []
    except psutil.NoSuchProcess:
        pass  # the leader is gone; its number is not given away while others of its session live
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _alive(name: str) -> bool:
    try:
        record = json.loads((_run_folder() / f"{name}.json").read_text())
    except FileNotFoundError:
        return False
    return bool(session(record["pid"], record["started"]))


def _run_folder() -> Path:
    return settings().var / "run"


def _log(name: str) -> Path:
    return settings().var / "logs" / f"{name}.log"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ops.services", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("names", nargs="*", metavar="service", help="airflow, mlflow, serving; all when none is named")
    parsed = parser.parse_args(arguments)
    action, names = parsed.action, parsed.names or None
    try:
        if action == "down":
            down(names)
        elif action == "status":
            return 0 if status() else 1
        else:
            up(names)
            print(summary())
    except EvergreenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, PortInUseError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
