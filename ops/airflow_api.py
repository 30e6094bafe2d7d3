"""A small client of Airflow's REST API: trigger a run, follow it with visible progress, explain a failure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from ml.errors import EvergreenError
from ml.settings import Settings, settings
from ops import environment

POLL_SECONDS = 0.3
OVER = {"success", "failed", "skipped", "upstream_failed", "removed"}
PATIENCE_SECONDS = 300.0
"""A run in which no task ends for this long is stuck: no step of the demo or of a test takes as long."""
BUSY_SECONDS = 120.0
"""So long a locked database is waited for."""
LOG_LINES = 15


class RunFailedError(EvergreenError):
    """A DAG run failed; the message holds the task, the end of its log and the log's path."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    dag: str
    run_id: str
    seconds: float
    """From queued to the end."""
    busy: float
    """Of these, seconds in which at least one step was at work; the rest is Airflow's."""
    states: dict[str, str] = field(default_factory=dict)
    """State by task; a mapped task's worst."""


class Patient(httpx.HTTPTransport):
    """Asks again, for a while, what may be asked twice: on SQLite, Airflow answers 500 or 503 while its database is locked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                answer = super().handle_request(request)
            except httpx.TransportError:  # the server itself may be starting again
                if request.method != "GET" or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            busy = answer.status_code in (500, 503) and request.method in ("GET", "PATCH", "PUT")
            if not busy or time.monotonic() > deadline:
                return answer
            answer.close()
            time.sleep(POLL_SECONDS)


class Airflow:
    """One logged-in session."""

    def __init__(self, say: Callable[[str], None] = print, where: Settings | None = None) -> None:
        where = where or settings()
        self.say, self.where = say, where
        self.base = f"http://{where.host}:{where.airflow_port}"
        credentials = {"username": environment.USER, "password": environment.password(where)}
        token = httpx.post(f"{self.base}/auth/token", json=credentials, timeout=30).raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{self.base}/api/v2", headers=headers, timeout=60, transport=Patient())

    def wait_for_dags(self, names: set[str], seconds: float = 120) -> None:
        """Until every DAG was parsed.

        Raises:
            EvergreenError: one does not parse (its traceback is shown), or some are missing after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while missing := names - {dag["dag_id"] for dag in self._get("/dags", limit=100)["dags"]}:
            self._require_parsed()
            if time.monotonic() > deadline:
                raise EvergreenError(f"DAGs are not there after {seconds:.0f} s: {', '.join(sorted(missing))}", "see airflow.log")
            time.sleep(POLL_SECONDS)

    def _require_parsed(self) -> None:
        if broken := self._get("/importErrors")["import_errors"]:
            raise EvergreenError(f"{broken[0]['filename']} does not parse:\n{broken[0]['stack_trace']}", "mend it")

    def trigger(self, dag: str, logical_date: datetime | None = None, conf: dict[str, Any] | None = None) -> str:
        """Starts a run and returns its id; `logical_date` (UTC) is the end of a scheduled run's data interval."""
        body = {"logical_date": f"{logical_date:%Y-%m-%dT%H:%M:%S}Z" if logical_date else None, "conf": conf or {}}
        answer = self.http.post(f"/dags/{dag}/dagRuns", json=body)
        if answer.is_error:
            raise EvergreenError(f"{dag} was not started: {answer.status_code} {answer.text[:500]}", "see the message")
        return str(answer.json()["dag_run_id"])

    def run_ids(self, dag: str) -> set[str]:
        return {run["dag_run_id"] for run in self._get(f"/dags/{dag}/dagRuns", limit=100, order_by="-run_after")["dag_runs"]}

    def run(self, dag: str, logical_date: datetime | None = None, conf: dict[str, Any] | None = None) -> Run:
        """Triggers a run and follows it to its end."""
        return self.follow(dag, self.trigger(dag, logical_date, conf))

    def note(self, run: Run) -> str:
        """What the run came to, in plain words; empty when nothing was said."""
        return str(self._get(f"/dags/{run.dag}/dagRuns/{run.run_id}")["note"] or "")

    def follow_new(self, dag: str, seen: set[str], seconds: float = 60) -> Run:
        """Waits for a run that is not among `seen` (an asset triggers it), and follows it."""
        deadline = time.monotonic() + seconds
        while not (new := self.run_ids(dag) - seen):
            if time.monotonic() > deadline:
                raise EvergreenError(
                    f"the asset event started no run of {dag} within {seconds:.0f} s", "look at its asset in Airflow"
                )
            time.sleep(POLL_SECONDS)
        return self.follow(dag, sorted(new)[0])

    def follow(self, dag: str, run_id: str) -> Run:
        """Prints a line for each task as it ends.

        Raises:
            RunFailedError: the run failed.
        """
        shown: set[tuple[str, int, int]] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            run = self._get(f"/dags/{dag}/dagRuns/{run_id}")  # before its tasks: when it is over, so are they
            tasks = self._get(f"/dags/{dag}/dagRuns/{run_id}/taskInstances", limit=200)["task_instances"]
            for task in sorted(tasks, key=lambda task: task["end_date"] or "~"):
                identity = (task["task_id"], task["map_index"], task["try_number"])
                if (task["state"] in OVER or task["state"] == "up_for_retry") and identity not in shown:
                    shown.add(identity)
                    deadline = time.monotonic() + PATIENCE_SECONDS
                    self._show(dag, task)
            if run["state"] in ("success", "failed"):
                break
            if time.monotonic() > deadline:
                self._require_parsed()
                raise EvergreenError(f"{dag}: no task ended within {PATIENCE_SECONDS:.0f} s", f"look at {self.base}/dags/{dag}")
            time.sleep(POLL_SECONDS)
        if run["state"] == "failed":
            raise self._explain(dag, run_id, tasks)
        states: dict[str, str] = {}
        for task in tasks:
            if states.get(task["task_id"], "success") == "success":
                states[task["task_id"]] = task["state"]
        return Run(dag, run_id, _between(run["queued_at"], run["end_date"]), busy_seconds(self.where, run_id), states)

    def _show(self, dag: str, task: dict[str, Any]) -> None:
        name = task["task_id"] + (f" [{task['rendered_map_index']}]" if task["rendered_map_index"] else "")
        took = f"{task['duration']:6.1f} s" if task["duration"] is not None and task["state"] != "upstream_failed" else "        "
        self.say(f"    {dag + '.' + name:32} {took}" + ("" if task["state"] == "success" else f"  {task['state']}"))

    def _explain(self, dag: str, run_id: str, tasks: list[dict[str, Any]]) -> RunFailedError:
        failed = [task for task in tasks if task["state"] == "failed"]
        if not failed:
            return RunFailedError(f"{dag}, run {run_id}, failed without a failed task", f"look at {self.base}/dags/{dag}")
        task = failed[0]
        path = log_path(self.where, dag, run_id, task["task_id"], task["map_index"], task["try_number"])
        tail = "\n".join(f"    | {line}" for line in log_tail(path))
        return RunFailedError(f"{dag}: task {task['task_id']} failed (run {run_id})\n{tail}", f"read {path}")

    def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        return dict(self.http.get(path, params=parameters).raise_for_status().json())


def log_path(where: Settings, dag: str, run_id: str, task: str, map_index: int, attempt: int) -> Path:
    folder = environment.airflow_home(where) / "logs" / f"dag_id={dag}" / f"run_id={run_id}" / f"task_id={task}"
    return (folder / f"map_index={map_index}" if map_index >= 0 else folder) / f"attempt={attempt}.log"


def log_tail(path: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a task's log, readable: Airflow writes JSON, tracebacks as a field of it."""
    if not path.exists():
        return ["(no log)"]
    readable: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            readable.append(line)
            continue
        readable += str(event.get("event", "")).splitlines()
        for error in event.get("error_detail") or []:
            readable += f"{error.get('exc_type')}: {error.get('exc_value')}".splitlines()
    return readable[-lines:]


def busy_seconds(where: Settings, run_id: str) -> float:
    """Seconds of a run in which some step was at work, from ``steps.jsonl``; steps that overlap count once."""
    total, until = 0.0, 0.0
    for begun, ended in sorted(
        (line["began"], line["began"] + line["seconds"]) for line in step_lines(where) if line["run"] == run_id
    ):
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total


def step_lines(where: Settings) -> Iterator[dict[str, Any]]:
    path = where.var / "steps.jsonl"
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def _between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
