"""Lineage events of a small DAG that Airflow's own code runs, over transports that work and that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from ml.revision import revision
from ml.settings import ROOT
from tests.lineage_events import of, read, versions

DIGEST = "d" * 32 + ".dir"
DAG = """
from airflow.sdk import dag, task

from dags.common import step


@dag("small", schedule=None)
def small():
    @task
    def snapshot():
        with step():
            return {"digest": "d" * 32 + ".dir", "files": 1, "size": 1, "as_of": "2013-02-01T02:00:00",
                    "first_day": "2013-01-01", "last_day": "2013-01-31"}

    @task
    def register(data):
        with step():
            return {"version": "7", "bundle": "b", "model": "m", "verdict": "promote", "backfill": False, "run_id": "r7"}

    @task
    def announce(version):
        with step():
            raise ValueError("nobody listens")

    announce(register(snapshot()))


SMALL = small()
"""
RUN = """
import json, os, sys, traceback
from pathlib import Path
import airflow.models
from airflow import settings
from airflow.models.base import Base
from airflow.utils.db import synchronize_log_template
airflow.models.import_all_models()
Base.metadata.create_all(settings.engine)  # a migration takes 14 s
synchronize_log_template()
settings.engine.dispose()

for name, transport in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            os.environ["AIRFLOW__OPENLINEAGE__TRANSPORT"] = json.dumps(transport)
            sys.path.append("airflow/dags")
            from small import SMALL
            states = {task.task_id: str(task.state) for task in SMALL.test().get_task_instances()}
            Path(f"{name}.json").write_text(json.dumps(states))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
"""
"""The DAG once over each transport, each in a process of its own; forked, so that Airflow is imported once."""


@dataclass(frozen=True)
class Ran:
    events: list[dict[str, Any]]
    states: dict[str, dict[str, str]]
    """By transport and task."""
    said: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of the DAG over each transport, each in a process of its own."""
    folder = tmp_path_factory.mktemp("lineage")
    transports = {
        "file": {"type": "file", "log_file_path": str(folder / "lineage.jsonl"), "append": True},
        "no_folder": {"type": "file", "log_file_path": str(folder / "none" / "lineage.jsonl"), "append": True},
        "no_server": {"type": "http", "url": "http://127.0.0.1:9", "timeout": 1, "retry": {"total": 0}},  # nobody listens there
    }
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "evergreen",
        "AIRFLOW__OPENLINEAGE__EXTRACTORS": "dags.lineage.StepExtractor",
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "true",
        # those of the DAG run are sent by a pool that the scheduler forks; forked from this test's threads it would hang: see tests/e2e
        "AIRFLOW__OPENLINEAGE__EMISSION_POLICY": json.dumps([{"scope": {}, "controls": {"emit_dag_events": False}}]),
        "EVERGREEN_VAR": str(folder / "var"),
        "PYTHONPATH": str(ROOT),
    }
    (folder / "airflow" / "dags").mkdir(parents=True)
    (folder / "airflow" / "dags" / "small.py").write_text(DAG)
    command = [sys.executable, "-c", RUN, json.dumps(transports)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    said = done.stdout + done.stderr
    assert (folder / "no_server.json").exists(), said
    states = {name: json.loads((folder / f"{name}.json").read_text()) for name in transports}
    return Ran(read(folder / "lineage.jsonl"), states, said)


def test_events__tell_what_each_task_read_and_made(ran: Ran) -> None:
    (snapshot,), (register,) = of(ran.events, "small.snapshot"), of(ran.events, "small.register")
    assert (versions(snapshot["inputs"]), versions(snapshot["outputs"])) == ({}, {"snapshot": DIGEST})
    assert (versions(register["inputs"]), versions(register["outputs"])) == ({"snapshot": DIGEST}, {"registered_model": "7"})
    assert {d["namespace"] for d in register["inputs"] + register["outputs"]} == {"evergreen://flight_delay"}


def test_events__carry_the_data_version_and_the_mlflow_run(ran: Ran) -> None:
    (register,) = of(ran.events, "small.register")
    data, run = (register["run"]["facets"][f"evergreen_{name}"] for name in ("dataVersion", "mlflowRun"))
    assert {name: data[name] for name in ("digest", "firstDay", "lastDay", "asOf", "revision")} == {
        "digest": DIGEST,
        "firstDay": "2013-01-01",
        "lastDay": "2013-01-31",
        "asOf": "2013-02-01T02:00:00",
        "revision": revision(),
    }
    assert (run["runId"], run["model"], run["version"]) == ("r7", "flight_delay", "7")


def test_events__of_a_task_that_fails__say_why_and_what_it_was_given(ran: Ran) -> None:
    (failed,) = of(ran.events, "small.announce", "FAIL")
    assert failed["run"]["facets"]["errorMessage"]["message"] == "nobody listens"
    assert versions(failed["inputs"]) == {"registered_model": "7"}


@pytest.mark.parametrize(
    ("transport", "warning"),
    [("no_folder", "No such file or directory"), ("no_server", "Connection refused")],
)
def test_transport__that_is_broken__is_warned_of_and_changes_no_task(transport: str, warning: str, ran: Ran) -> None:
    assert ran.states[transport] == ran.states["file"] == {"snapshot": "success", "register": "success", "announce": "failed"}
    assert warning in ran.said
    assert 'Traceback (most recent call last):\n  File "<string>"' not in ran.said
