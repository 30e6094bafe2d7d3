"""What became of a run: in the ledger, by a process of its own, and as the run's note."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml import ledger, runs
from ml.errors import DataQualityError, SourceError
from ml.settings import ROOT

START = datetime(2013, 4, 4, 2, tzinfo=UTC)
RUN: dict[str, Any] = {
    "dag": "score",
    "run_id": "manual__1",
    "state": "failed",
    "run_type": "manual",
    "user": "admin",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:00:05.250000+00:00",
    "interval": ["2013-04-03T04:00:00+00:00", "2013-04-04T04:00:00+00:00"],
    "run_after": "2026-01-01T00:00:00+00:00",
    "conf": {"as_of": "2013-04-04T04:00:00"},
    "tasks": {"failed": 1, "success": 2},
    "reason": "score failed: no champion",
    "costs": {
        "score": [{"seconds": 2.0, "cpu_seconds": 3.0, "peak_bytes": 7}, {"seconds": 1.0, "cpu_seconds": 0.5, "peak_bytes": 9}]
    },
}


@pytest.mark.parametrize(
    ("run_type", "user", "actor"),
    [
        ("scheduled", None, "schedule"),
        ("asset_triggered", None, "request"),
        ("manual", "admin", "manual:admin"),
        ("manual", None, "manual"),
        ("backfill", "admin", "backfill:admin"),
        ("asset_materialization", "ada", "manual:ada"),
    ],
)
def test_actor__of_each_kind_of_run(run_type: str, user: str | None, actor: str) -> None:
    assert runs.actor(run_type, user) == actor


def test_why__is_the_last_line_of_what_is_wrong_not_the_cure() -> None:
    assert runs.why(SourceError("table x\n  has no rows\n", "land it")) == "has no rows"
    wrapped = RuntimeError("table x\n  → land it")
    wrapped.__cause__ = DataQualityError("12 rows broke a rule", "mend them")
    assert runs.why(wrapped) == "12 rows broke a rule"
    assert runs.why(ValueError("first\nlast")) == "ValueError: last"
    assert runs.why(KeyboardInterrupt()) == "KeyboardInterrupt: without a message"


def test_key__that_is_too_long__stays_unique() -> None:
    one, other = runs.key("run", "d" * 250, "r" * 250, "1"), runs.key("run", "d" * 250, "r" * 250, "2")
    assert (len(one), one != other) == (255, True)
    assert runs.key("run", "score", "r") == "run-score-r"


def test_record__has_the_outcome_and_its_evidence(workspace: Path) -> None:
    assert runs.record(RUN)
    assert not runs.record(RUN), "the scheduler may tell it twice"
    (entry,) = ledger.entries()
    assert (entry.kind, entry.subject, entry.verdict, entry.reason) == ("run", "score", "failed", "score failed: no champion")
    assert (entry.key, entry.actor) == ("run-score-manual__1-2026-01-01T00:00:05.250000+00:00", "manual:admin")
    assert entry.as_of == datetime(2013, 4, 4, 4)
    assert entry.evidence == {
        "run_id": "manual__1", "run_type": "manual", "who": "manual:admin", "seconds": 5.25, "interval": RUN["interval"],
        "tasks": {"failed": 1, "success": 2}, "conf": {"as_of": "2013-04-04T04:00:00"},
        "costs": {"score": {"seconds": 3.0, "cpu_seconds": 3.5, "peak_bytes": 9}},
    }  # fmt: skip


def test_record__of_a_run_without_an_interval_or_a_start(workspace: Path) -> None:
    assert runs.record(RUN | {"interval": None, "started": None, "ended": None})
    (entry,) = ledger.entries()
    assert (entry.as_of, entry.evidence["seconds"]) == (datetime(2026, 1, 1), None)


def test_process__records_what_it_reads(workspace: Path) -> None:
    subprocess.run([sys.executable, "-m", "ml.runs"], input=json.dumps(RUN).encode(), cwd=ROOT, check=True)
    assert [entry.subject for entry in ledger.entries()] == ["score"]


def test_process__without_a_ledger_says_what_is_missing_and_the_cure(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_LEDGER", "mysql://nowhere/db")
    command = [sys.executable, "-m", "ml.runs"]
    done = subprocess.run(command, input=json.dumps(RUN), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the ledger has no entry of score, run manual__1 (failed: score failed: no champion)" in done.stderr
    assert "EVERGREEN_LEDGER" in done.stderr


def test_main__asks_a_locked_ledger_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def record(run: dict[str, Any]) -> bool:
        asked.append(run["dag"])
        if len(asked) < 3:
            raise sa.exc.OperationalError("INSERT", {}, Exception("database is locked"))
        return True

    monkeypatch.setattr(runs, "record", record)
    monkeypatch.setattr(runs, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda: json.dumps(RUN)))
    assert (runs.main(), len(asked)) == (0, 3)


# ---- the listener, on Airflow's own tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """Airflow's database, made at once instead of migrated."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        from airflow.models import import_all_models
        from airflow.models.base import Base

        import_all_models()
        made = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        Base.metadata.create_all(made)
        yield made
        made.dispose()


@pytest.fixture
def finished(tables: sa.Engine) -> Iterator[Any]:
    """A failed run with a failed and two mapped tasks, as the scheduler holds it when it has just ended."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel

    with Session(tables) as session:
        run = DagRun(dag_id="train", run_id="scheduled__1", run_type="scheduled", state="failed")
        run.run_after = run.start_date = START
        run.end_date = START + timedelta(seconds=9)
        run.data_interval_start, run.data_interval_end = START - timedelta(days=1), START
        session.add(run)
        session.flush()
        places = [("plan", -1, "success"), ("tune", 0, "success"), ("tune", 1, "failed"), ("fit", -1, "failed")]
        for task, index, state in places:
            row = {"task_id": task, "dag_id": "train", "run_id": "scheduled__1", "map_index": index, "state": state}
            session.execute(sa.insert(TaskInstance.__table__).values(**_filled(TaskInstance.__table__, row)))
        cost = {"seconds": 1.5, "cpu_seconds": 1.0, "peak_bytes": 100}
        for index, key, value in ((1, "why", "no trial ended"), (0, "cost", cost), (1, "cost", cost)):
            said = {"task_id": "tune", "map_index": index, "key": key, "value": value}
            row = {"dag_run_id": run.id, "dag_id": "train", "run_id": "scheduled__1", **said}
            session.execute(sa.insert(XComModel.__table__).values(**_filled(XComModel.__table__, row)))
        session.flush()
        yield run
        session.rollback()


def _filled(table: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The row with something in each column that must have a value: only what is asserted matters here."""
    import uuid

    blanks = {int: 1, str: "", dict: {}, bool: False, float: 0.0, datetime: START}
    for column in table.columns:
        needed = not column.nullable and column.default is None and column.server_default is None and not column.primary_key
        if column.name not in row and (needed or column.name == "id"):
            row[column.name] = uuid.uuid4() if isinstance(column.type, sa.Uuid) else blanks.get(column.type.python_type, "")
    return row


def _wait() -> None:
    from plugins import run_notes

    for process in run_notes._started:
        process.wait(60)


def test_listener__of_a_failed_run__note_and_entry_say_which_tasks_and_why(workspace: Path, finished: Any) -> None:
    from plugins import run_notes

    run_notes.on_dag_run_failed(finished, "task_failure")
    _wait()
    (entry,) = ledger.entries("run")
    told = "no message: killed or out of time; its log has more"
    assert set(entry.reason.split("; ", 1)) == {"tune[1] failed: no trial ended", f"fit failed: {told}"} or entry.reason == (
        f"fit failed: {told}; tune[1] failed: no trial ended"
    )
    assert finished.note == entry.reason
    assert (entry.subject, entry.verdict, entry.actor, entry.as_of) == ("train", "failed", "schedule", datetime(2013, 4, 4, 2))
    assert entry.evidence["tasks"] == {"success": 2, "failed": 2}
    assert entry.evidence["seconds"] == 9.0
    assert entry.evidence["costs"] == {"tune": {"seconds": 3.0, "cpu_seconds": 2.0, "peak_bytes": 100}}


def test_listener__of_a_failed_backfill__says_that_it_is_one(workspace: Path, finished: Any) -> None:
    from plugins import run_notes

    finished.run_type = "backfill"
    run_notes.on_dag_run_failed(finished, "task_failure")
    assert finished.note.startswith("Backfill: ")
    _wait()


def test_listener__a_note_that_a_person_wrote_stays(workspace: Path, finished: Any) -> None:
    from plugins import run_notes

    finished.note = "ada looks into it"
    run_notes.on_dag_run_failed(finished, "task_failure")
    assert finished.note == "ada looks into it"
    _wait()


def test_listener__does_not_wait_for_a_locked_ledger(workspace: Path, finished: Any) -> None:
    from plugins import run_notes

    with ledger.locked(ledger.engine()):
        run_notes.on_dag_run_failed(finished, "task_failure")
        assert run_notes._started[-1].poll() is None, "it was the other process that waits"
    _wait()
    assert len(ledger.entries("run")) == 1


def test_listener__that_cannot_write__does_not_raise_and_says_so(
    workspace: Path, finished: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plugins import run_notes

    monkeypatch.setattr(run_notes, "RECORD", ["/no/such/program"])
    with caplog.at_level(logging.ERROR):
        run_notes.on_dag_run_failed(finished, "task_failure")
        run_notes.on_dag_run_success(SimpleNamespace(dag_id="train", run_id="not a run"), "success")
    assert "train, run scheduled__1, was not noted in the ledger: the run itself is not affected" in caplog.text
    assert "train, run not a run" in caplog.text


def test_plugin__keeps_our_code_out_of_the_scheduler() -> None:
    code = "import sys; import plugins.run_notes; print([m for m in sys.modules if m == 'ml' or m.startswith('ml.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
