"""What a run came to, in plain words: as the note of the run, which people read in the list of runs, and in the ledger.

A task says it by XCom key ``run_note``, and why it failed by ``why`` (`dags.common.step`); when the run has ended, the scheduler
writes both down. It must not wait and must not fail for that: the ledger is written by a process of its own.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import datetime
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from sqlalchemy.orm import object_session

NOTE, WHY, COST = "run_note", "why", "cost"
LONGEST = 1000
"""Characters that Airflow's API takes."""
RECORD = [sys.executable, "-m", "ml.runs"]

log = logging.getLogger(__name__)
_started: list[subprocess.Popen[bytes]] = []
"""Processes that may still write; those that ended are taken off at the next run, so that none stays a zombie."""


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Runs in the scheduler, inside its transaction; a note that a person wrote stays."""
    _finished(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Runs in the scheduler, inside its transaction; or in the API server, when a person marked the run."""
    _finished(dag_run, msg)


def _finished(dag_run: Any, failed: str = "") -> None:
    try:
        reason = _reason(dag_run, failed)
        if not dag_run.note and reason and object_session(dag_run) is not None:
            dag_run.note = reason
        _record(_told(dag_run, reason or f"{dag_run.state}, and no task said more"))
    except Exception:  # nothing here may stop the scheduler
        cure = "the run itself is not affected; read the traceback, and check that python -m ml.runs starts"
        log.exception("%s, run %s, was not noted in the ledger: %s", dag_run.dag_id, dag_run.run_id, cure)


def _reason(dag_run: Any, failed: str) -> str:
    """What a task said; of a failed run the failed tasks, each with the last line of why."""
    if not failed:
        return str(next(iter(_said(dag_run, NOTE).values()), ""))[:LONGEST]
    whys = _said(dag_run, WHY)
    named = {(task.task_id, task.map_index): _name(task) for task in _tasks(dag_run) if task.state == "failed"}
    lines = [
        f"{name} failed: {whys.get(place, 'no message: killed or out of time; its log has more')}"
        for place, name in named.items()
    ]
    backfill = "Backfill: " if _plain(dag_run.run_type) == "backfill" else ""
    return (backfill + ("; ".join(lines) or f"failed without a failed task: {failed}"))[:LONGEST]


def _said(dag_run: Any, key: str) -> dict[tuple[str, int], Any]:
    """What tasks of the run said under an XCom key, by task and map index."""
    from airflow.models.xcom import XComModel

    session = object_session(dag_run)
    if session is None:
        return {}
    found = session.scalars(XComModel.get_many(run_id=dag_run.run_id, key=key, dag_ids=dag_run.dag_id))
    return {(said.task_id, said.map_index): XComModel.deserialize_value(said) for said in found}


def _tasks(dag_run: Any) -> list[Any]:
    session = object_session(dag_run)
    return [] if session is None else list(dag_run.get_task_instances(session=session))


def _name(task: Any) -> str:
    return f"{task.task_id}[{task.map_index}]" if task.map_index >= 0 else str(task.task_id)


def _told(dag_run: Any, reason: str) -> dict[str, Any]:
    """The run as `ml.runs.record` takes it."""
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    return {
        "dag": dag_run.dag_id,
        "run_id": dag_run.run_id,
        "state": _plain(dag_run.state),
        "run_type": _plain(dag_run.run_type),
        "user": dag_run.triggering_user_name,
        "started": _iso(dag_run.start_date),
        "ended": _iso(dag_run.end_date),
        "interval": [_iso(start), _iso(end)] if start and end and start < end else None,
        "run_after": _iso(dag_run.run_after),
        "conf": dag_run.conf or {},
        "tasks": dict(Counter(_plain(task.state) or "none" for task in _tasks(dag_run))),
        "reason": reason,
        "costs": _costs(dag_run),
    }


def _costs(dag_run: Any) -> dict[str, list[dict[str, float]]]:
    """By task what its steps cost, one entry per mapped instance; of a task that was retried the last try."""
    costs: dict[str, list[dict[str, float]]] = {}
    for (task, _), cost in _said(dag_run, COST).items():
        costs.setdefault(task, []).append(cost)
    return costs


def _plain(state: Any) -> str:
    return str(getattr(state, "value", state) or "")


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _record(run: dict[str, Any]) -> None:
    """Starts the process that writes; what it cannot do it says on this process's standard error."""
    _started[:] = [process for process in _started if process.poll() is None]
    with tempfile.TemporaryFile() as told:
        told.write(json.dumps(run, default=str).encode())
        told.seek(0)
        _started.append(subprocess.Popen(RECORD, stdin=told, stdout=subprocess.DEVNULL))


class RunNotes(AirflowPlugin):
    name = "evergreen_run_notes"
    listeners = [sys.modules[__name__]]  # noqa: RUF012 - Airflow reads the class
