"""The DAG files: they parse without heavy libraries, and tasks, steps and commands are the same list."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowSkipException
from typer.main import get_command

from dags.common import TAGS
from dags.words import words
from ml.cli import app, step_names
from ml.config import load_params
from ml.serving import release
from ml.settings import ROOT
from tests.conftest import forget

NAMES = ("ingest", "features", "train", "release", "drift", "score", "online", "report")
SHARED = {"common", "lineage", "links", "words"}
"""Modules of ``dags/`` that hold no DAG."""
ANNOUNCE = {"announce", "request_retrain"}
"""The tasks that are no steps: they emit an asset event, which only Airflow can."""
PEOPLE = {"ask", "mail"}
"""The tasks that ask or tell people."""
BUTTONS = {"rollback"}
"""The steps that are for people, and no part of a pipeline."""
HEAVY = ("pandas", "numpy", "xgboost", "sklearn", "mlflow", "great_expectations", "duckdb", "optuna", "dvc", "bentoml", "onnx")


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    return {name: getattr(importlib.import_module(f"dags.{name}"), name.upper()) for name in NAMES}


def _tasks(dags: dict[str, Any]) -> set[str]:
    return {task for dag in dags.values() for task in dag.task_dict}


def test_dag_files__are_all_listed_here() -> None:
    assert {path.stem for path in (ROOT / "dags").glob("*.py")} == {*NAMES, *SHARED}
    assert set((ROOT / "dags" / ".airflowignore").read_text().split()) == {f"{name}.py" for name in SHARED}
    assert {path.stem for path in (ROOT / "dags" / "docs").glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_dag_file__is_wiring(name: str) -> None:
    assert len((ROOT / "dags" / f"{name}.py").read_text().splitlines()) <= 125


@pytest.mark.parametrize("name", NAMES)
def test_parsing__loads_no_heavy_library_and_is_quick(name: str, airflow_home: Path) -> None:
    code = f"""
import json, sys, time
import airflow.sdk
airflow.sdk.dag, airflow.sdk.Asset, airflow.sdk.Param, airflow.sdk.AssetOrTimeSchedule, airflow.sdk.TriggerRule  # lazy attributes
import airflow.sdk.exceptions, pydantic, pydantic_settings, yaml  # what Airflow loads anyway
began = time.process_time()
import dags.{name}
print(json.dumps({{"seconds": time.process_time() - began, "heavy": [m for m in {HEAVY!r} if m in sys.modules]}}))
"""
    env = {**os.environ, "AIRFLOW_HOME": str(airflow_home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["heavy"] == []
    assert found["seconds"] < 1.5  # CPU seconds over bare Airflow; about 0.2 on an idle machine


def test_tasks__are_steps(dags: dict[str, Any]) -> None:
    assert _tasks(dags) - set(step_names()) == ANNOUNCE | PEOPLE


def test_steps__are_all_used_by_a_dag(dags: dict[str, Any]) -> None:
    assert set(step_names()) - _tasks(dags) == BUTTONS


def test_steps__all_have_a_command() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {name.replace("_", "-") for name in step_names()} - set(commands) == set()


def test_pipeline_stages__are_steps_and_run_their_commands() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages) <= set(step_names())
    for name, stage in stages.items():
        lines = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
        called = [line.split("${run} ")[1].split()[0] for line in lines]
        assert called[0] == name.replace("_", "-")
        assert set(called) <= commands, f"stage {name}"


@pytest.mark.parametrize("name", NAMES)
def test_dag__tells_who_to_call_and_cannot_hang(name: str, dags: dict[str, Any]) -> None:
    dag = dags[name]
    assert "Who is called" in dag.doc_md
    assert "| task failed |" in dag.doc_md
    for task in dag.task_dict:
        assert f"| `{task}` |" in dag.doc_md, f"the triage table of {name} lacks {task}"
    assert dag.dagrun_timeout is not None
    for task in dag.tasks:
        assert task.owner == load_params().card.owner
        assert task.retries == 3
        assert task.retry_exponential_backoff
        assert task.execution_timeout is not None


@pytest.mark.parametrize("name", NAMES)
def test_schedule__is_bounded_by_the_parameters(name: str, dags: dict[str, Any]) -> None:
    schedule = load_params().schedule
    assert dags[name].start_date == datetime.combine(schedule.start, datetime.min.time(), UTC)
    assert dags[name].end_date.date() == schedule.end
    assert dags[name].catchup is schedule.catchup


@pytest.mark.parametrize(
    ("dag", "order"),
    [
        ("ingest", ["land", "validate", "snapshot"]),
        ("ingest", ["land", "validate", "data_docs"]),
        ("train", ["plan", "pull", "features", "tune", "fit", "evaluate", "refit", "package", "register", "announce"]),
        ("train", ["pull", "validate_training", "fit", "evaluate"]),
        ("release", ["smoke", "canary", "ask", "promote"]),
        ("drift", ["monitor", "decide", "request_retrain"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_order__of_tasks(dag: str, order: list[str], dags: dict[str, Any]) -> None:
    for before, after in pairwise(order):
        assert after in dags[dag].get_task(before).get_flat_relative_ids(upstream=False)


def test_data_docs__are_built_when_validation_failed(dags: dict[str, Any]) -> None:
    assert dags["ingest"].get_task("data_docs").trigger_rule == "all_done"


def test_nothing_but_the_announcing_tasks_emits(dags: dict[str, Any]) -> None:
    emitting = {task.task_id for dag in dags.values() for task in dag.tasks if task.outlets}
    assert emitting == {"snapshot", "promote", *ANNOUNCE}


@pytest.fixture
def approving(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """DAG release where a person must say yes first."""
    text = (ROOT / "params.yaml").read_text()
    assert "approval: false" in text
    (workspace / "params.yaml").write_text(text.replace("approval: false", "approval: true"))
    with monkeypatch.context() as patched:
        patched.setenv("EVERGREEN_PARAMS", str(workspace / "params.yaml"))
        forget()
        yield importlib.reload(importlib.import_module("dags.release")).RELEASE
    forget()
    importlib.reload(importlib.import_module("dags.release"))


def test_release__asks_before_any_traffic_where_parameters_say_so(approving: Any, dags: dict[str, Any]) -> None:
    assert set(approving.task_dict) - set(dags["release"].task_dict) == {"approve"}
    approve = approving.get_task("approve")
    assert approve.downstream_task_ids == {"canary"}
    assert set(approve.options) == {release.GRANT, release.DENY}
    assert approving.get_task("canary").upstream_task_ids == {"approve"}
    assert (approve.defaults, approve.response_timeout) == ([release.DENY], timedelta(hours=load_params().release.approval_hours))


def test_release__silence_means_no(dags: dict[str, Any]) -> None:
    ask = dags["release"].get_task("ask")
    assert ask.defaults == [release.NO]
    assert set(ask.options) == {release.YES, release.NO}
    assert ask.response_timeout == timedelta(hours=load_params().release.approval_hours)


@pytest.mark.parametrize(("verdict", "asked"), [("pass", False), ("fail", False), ("inconclusive", True)])
def test_release__asks_only_when_the_canary_is_inconclusive(verdict: str, asked: bool, dags: dict[str, Any]) -> None:
    state = {"verdict": verdict, "reason": "few answers"}
    context = {"ti": SimpleNamespace(xcom_pull=lambda task_ids: state if task_ids == "canary" else None)}
    with nullcontext() if asked else pytest.raises(AirflowSkipException, match="few answers"):
        dags["release"].get_task("ask")._pre_execute_hook(context)


def test_release__promotes_after_a_canary_and_not_after_a_rejected_one(dags: dict[str, Any]) -> None:
    promote = dags["release"].get_task("promote")
    assert promote.upstream_task_ids == {"canary", "ask"}
    assert promote.trigger_rule == "none_failed_min_one_success", "ask is usually skipped; if canary is too, nothing is promoted"


def test_release__has_time_for_every_step_of_the_canary_and_for_people(dags: dict[str, Any]) -> None:
    limits, dag = load_params().release, dags["release"]
    watching = timedelta(hours=limits.max_hours * len(limits.steps))
    assert dag.get_task("canary").mode == "reschedule"
    assert timedelta(seconds=dag.get_task("canary").timeout) > watching
    assert dag.dagrun_timeout > watching + 2 * timedelta(hours=limits.approval_hours)


@pytest.mark.parametrize("name", NAMES)
def test_words__are_those_of_the_tasks_that_are_there(name: str, dags: dict[str, Any]) -> None:
    dag, found = dags[name], words(name)
    optional = {"approve"} if name == "release" else set()  # only with release.approval
    assert set(found.tasks) - optional == set(dag.task_dict)
    assert dag.dag_display_name == found.title != name
    for task in dag.tasks:
        assert (task.task_display_name, task.doc_md) == found.tasks[task.task_id]
        for line in ("**Reads**", "**Writes**", "**When it fails:**"):
            assert line in task.doc_md, f"{name}.{task.task_id} does not say {line}"


def test_words__without_what_to_do_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.md").write_text("# Odd\n\n## work: Work\nWorks.\n\n- **When it fails:** the disk is full\n")
    monkeypatch.setattr("dags.words.FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"odd.md, task work: no line .*means → do"):
        words("odd")


def test_tags__are_a_closed_set(dags: dict[str, Any]) -> None:
    assert {tag for dag in dags.values() for tag in dag.tags} == set(TAGS)
    assert all("evergreen" in dag.tags and len(dag.tags) > 1 for dag in dags.values())


def test_groups__are_of_train_and_leave_ids_alone(dags: dict[str, Any]) -> None:
    groups = {
        group: {task for task in dags["train"].task_dict if dags["train"].get_task(task).task_group.group_id == group}
        for group in dags["train"].task_group_dict
    }
    assert groups == {
        "prepare": {"plan", "pull", "validate_training", "features"},
        "learn": {"tune", "fit"},
        "prove": {"evaluate", "refit"},
        "ship": {"package", "register", "announce"},
    }


def test_links__are_where_an_outcome_can_be_seen(dags: dict[str, Any]) -> None:
    links = {
        f"{name}.{task.task_id}": {link.name for link in task.operator_extra_links}
        for name, dag in dags.items()
        for task in dag.tasks
        if task.operator_extra_links
    }
    of_version = {"MLflow run", "Evaluation report", "Bento"}
    assert links == {
        "train.register": of_version,
        "release.canary": of_version,
        "drift.decide": {"Drift report"},
        "report.report": {"Weekly summary"},
        "ingest.validate": {"Data Docs"},
        "ingest.data_docs": {"Data Docs"},
    }


@pytest.mark.parametrize("name", NAMES)
def test_form__has_a_title_help_and_a_section_for_each_field(name: str, dags: dict[str, Any]) -> None:
    params = dags[name].params
    sections = [params.get_param(field).schema["section"] for field in params]
    assert sections == sorted(sections, key=sections.index), "fields of a section stand together"
    for field in params:
        schema = params.get_param(field).schema
        assert schema["title"]
        assert len(schema["description_md"]) > 20
        assert params[field] is None, "a run without a form is the scheduled one"


def test_online__cannot_be_backfilled(dags: dict[str, Any]) -> None:
    allowed = {name: dag.allowed_run_types and {str(kind.value) for kind in dag.allowed_run_types} for name, dag in dags.items()}
    assert "backfill" not in allowed.pop("online")
    assert set(allowed.values()) == {None}
