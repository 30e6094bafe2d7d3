"""What a task leaves for the ledger: whom it acts for, and why it failed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.context import set_current_context

from dags.common import step
from ml import ledger
from ml.errors import DataQualityError, NothingToDo
from ml.settings import settings

AS_OF = datetime(2013, 4, 1)


@pytest.fixture
def pushed(workspace: Path) -> list[dict[str, Any]]:
    return []


@pytest.fixture
def task(pushed: list[dict[str, Any]]) -> Iterator[SimpleNamespace]:
    """A run of Airflow user *admin*, as its tasks see it."""
    run = SimpleNamespace(run_type="manual", triggering_user_name="admin")
    instance = SimpleNamespace(
        dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1, xcom_push=lambda **said: pushed.append(said)
    )
    with set_current_context({"ti": instance, "dag_run": run}):  # type: ignore[typeddict-item]  # as much as is read
        yield SimpleNamespace(run=run, instance=instance)


@pytest.mark.parametrize(
    ("run_type", "user", "actor"),
    [("manual", "admin", "manual:admin"), ("backfill", "ada", "backfill:ada"), ("scheduled", None, "schedule")],
)
def test_step__acts_for_whoever_started_the_run(run_type: str, user: str | None, actor: str, task: SimpleNamespace) -> None:
    task.run.run_type, task.run.triggering_user_name = run_type, user
    with step():
        ledger.record("gate", "inside", AS_OF, "v1", "keep", "-")
    ledger.record("gate", "outside", AS_OF, "v1", "keep", "-")
    assert [entry.actor for entry in ledger.entries()] == [actor, "process"]


def test_step__that_fails__says_why(task: SimpleNamespace, pushed: list[dict[str, Any]]) -> None:
    with pytest.raises(Exception, match="12 rows"), step():
        raise DataQualityError("table x:\n12 rows broke a rule", "mend them")
    assert pushed[0] == {"key": "why", "value": "12 rows broke a rule"}


def test_step__says_what_it_cost_however_it_ends(task: SimpleNamespace, pushed: list[dict[str, Any]]) -> None:
    held = bytearray(b"x" * (64 << 20))

    def work() -> None:
        sum(range(3_000_000))
        raise ValueError(str(len(held)))

    with pytest.raises(ValueError), step():
        work()
    (cost,) = [said["value"] for said in pushed if said["key"] == "cost"]
    assert cost["seconds"] > 0
    assert cost["cpu_seconds"] > 0
    assert cost["peak_bytes"] > len(held)
    line = json.loads((settings().var / "steps.jsonl").read_text())
    assert {name: line[name] for name in cost} == cost
    assert line["outcome"] == "failed"


@pytest.mark.usefixtures("task")
def test_step__that_ends_well_or_has_nothing_to_do__says_no_why(pushed: list[dict[str, Any]]) -> None:
    with step():
        pass
    with pytest.raises(AirflowSkipException), step():
        raise NothingToDo("the policy said no")
    assert {said["key"] for said in pushed} == {"cost"}


def test_step__of_a_child_process__counts_its_time(task: SimpleNamespace, pushed: list[dict[str, Any]]) -> None:
    with step():
        subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    assert pushed[0]["value"]["cpu_seconds"] > 0.1


def test_step__whose_why_cannot_be_said__fails_by_its_own_error(task: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    def broken(**_: Any) -> None:
        raise ConnectionError("no API server")

    task.instance.xcom_push = broken
    with pytest.raises(ValueError, match="a bug"), step():
        raise ValueError("a bug")
    assert "why of the task cannot be said" in caplog.text
