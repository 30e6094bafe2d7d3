"""The loop on a real Airflow: what is not scheduled, what a killed task does, what a backfill must not do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from ops import alert_watch, dashboards
from ops.airflow_api import Airflow, RunFailedError
from ops.fault_scene import eventually
from tests import lineage_events
from tests.e2e.conftest import Place

pytestmark = pytest.mark.e2e

DAYS = {"start": "2013-01-01", "end": "2013-01-21"}
AS_OF = datetime(2013, 1, 21, 3)
ORIGIN = """
import json
from ml import ledger, tracking
tags = tracking.tags("flight_delay", "1")
(noted,) = {e.subject for e in ledger.entries("snapshot") if e.subject == tags["snapshot"]}
print(json.dumps([noted, tracking.run_id("flight_delay", "1")]))
"""
"""The data version of version 1 as the ledger noted it, and its MLflow run."""


@pytest.fixture(scope="module", autouse=True)
def exporter(place: Place) -> Iterator[int]:
    """`evergreen exporter`, which hears Airflow from the beginning; its port."""
    command = [sys.executable, "-c", "from ml.cli import main; main()", "exporter"]
    with alert_watch.process(command, place.settings.var.with_suffix(".exporter.log"), **place.env):
        eventually(lambda: alert_watch.ready(place.settings.exporter_port, "/metrics"), "the exporter answers")
        yield place.settings.exporter_port


def test_up__with_a_port_in_use_starts_nothing_and_says_what_to_change(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", place.settings.mlflow_port))
        other.listen()
        refused = place.services("up")
    assert refused.returncode == 2
    assert f"port {place.settings.mlflow_port}" in refused.stderr
    assert f"EVERGREEN_MLFLOW_PORT={place.settings.mlflow_port + 1}" in refused.stderr
    assert not (place.settings.var / "run").exists()


def test_schedule__nothing_of_2013_is_run_by_itself(airflow: Airflow) -> None:
    for name in ("ingest", "train", "drift", "score", "online"):
        dag = airflow.http.get(f"/dags/{name}").json()
        assert dag["is_paused"] is False
        assert dag["next_dagrun_run_after"] is None
        assert airflow.run_ids(name) == set()


def test_ingest__by_hand_after_the_end_date_lands_and_emits(airflow: Airflow, place: Place) -> None:
    run = airflow.run("ingest", conf=DAYS)
    assert set(run.states.values()) == {"success"}
    assert len(list((place.settings.data / "raw" / "flights").glob("*.parquet"))) == 20
    assert _events(airflow, "raw_data") == [("ingest", run.run_id)]
    assert 0 < run.busy < run.seconds


def test_backfill__lands_but_emits_no_event(airflow: Airflow) -> None:
    before, events = airflow.run_ids("ingest"), _events(airflow, "raw_data")
    _backfill(airflow, "ingest", "2013-01-19T02:00:00Z")
    run = airflow.follow_new("ingest", before)
    assert run.run_id.startswith("backfill__")
    assert run.states["snapshot"] == "success"
    assert _events(airflow, "raw_data") == events


def test_train__of_which_fit_was_killed_registers_one_version(airflow: Airflow, place: Place) -> None:
    run_id = airflow.trigger("train", AS_OF)
    killed = _kill_when_running(airflow, "train", run_id, "fit")
    run = airflow.follow("train", run_id)
    task = _instance(airflow, "train", run_id, "fit")
    assert (task["state"], task["try_number"]) == ("success", 2)
    assert not psutil.pid_exists(killed)
    assert run.states["register"] == "success"
    assert _versions(place) == "['1']"
    links = airflow.http.get(f"/dags/train/dagRuns/{run_id}/taskInstances/register/links").json()["extra_links"]
    version = airflow.http.get(f"/dags/train/dagRuns/{run_id}/taskInstances/register/xcomEntries/return_value").json()["value"]
    assert links["Evaluation report"].startswith(f"http://127.0.0.1:{place.settings.mlflow_port}/#/experiments/")
    assert links["Evaluation report"].endswith(f"/runs/{version['run_id']}/artifacts/report.html")

    cleared = {"dry_run": False, "task_ids": ["register"], "dag_run_id": run_id, "reset_dag_runs": True, "only_failed": False}
    airflow.http.post("/dags/train/clearTaskInstances", json=cleared).raise_for_status()
    airflow.follow("train", run_id)
    assert _instance(airflow, "train", run_id, "register")["try_number"] == 2
    assert _versions(place) == "['1']"


def test_backfill__of_train_registers_a_marked_version_and_announces_nothing(airflow: Airflow, place: Place) -> None:
    before, events = airflow.run_ids("train"), _events(airflow, "candidate")
    _backfill(airflow, "train", "2013-01-20T03:00:00Z")
    run = airflow.follow_new("train", before)
    version = airflow.http.get(f"/dags/train/dagRuns/{run.run_id}/taskInstances/register/xcomEntries/return_value").json()[
        "value"
    ]
    assert version["backfill"] is True
    assert run.states["announce"] == "skipped"
    assert _events(airflow, "candidate") == events
    assert _versions(place) == "['1', '2']"


def test_train__without_a_time_after_the_source_ended_fails_at_once_with_the_cure(airflow: Airflow) -> None:
    with pytest.raises(RunFailedError, match="fill in") as caught:
        airflow.run("train")
    assert "task plan failed" in str(caught.value)
    assert "attempt=1.log" in str(caught.value)  # not retried: another try would say the same


def test_release__of_a_backfilled_version_is_refused(airflow: Airflow) -> None:
    version = {"version": "9", "bundle": "b", "model": "m", "verdict": "promote", "backfill": True, "run_id": "r"}
    with pytest.raises(RunFailedError, match="version 9 comes from a backfill"):
        airflow.run("release", conf={"version": version, "as_of": "2013-01-21T03:00:00"})


def test_release__canary_without_traffic__a_person_decides_and_silence_means_no(airflow: Airflow, place: Place) -> None:
    first, second = (_releasable(place, number) for number in ("1", "2"))
    run = airflow.run("release", conf={"version": first, "as_of": "2013-01-21T04:00:00"})
    assert run.states == {"smoke": "success", "canary": "success", "ask": "skipped", "promote": "success"}, (
        "no champion: no canary"
    )
    assert _serving(place) == "1 None 0.0"

    silent = airflow.run("release", conf={"version": second, "as_of": "2013-01-21T05:00:00"})
    assert silent.states == {"smoke": "success", "canary": "success", "ask": "success", "promote": "skipped"}
    assert _serving(place) == "1 None 0.0"

    run_id = airflow.trigger("release", conf={"version": second, "as_of": "2013-01-21T06:00:00"})
    _answer(airflow, "release", run_id, "ask", "promote")
    assert airflow.follow("release", run_id).states["promote"] == "success"
    assert _serving(place) == "2 None 0.0"

    conf = {"version": first, "as_of": "2013-01-21T07:00:00", "skip_canary": "the second is broken"}
    assert airflow.run("release", conf=conf).states["ask"] == "skipped"
    assert _serving(place) == "1 None 0.0"
    noted = place.python("from ml import ledger; print([(e.subject, e.verdict) for e in ledger.entries('canary')])")
    assert noted == str([
        ("v2", "running"), ("v2", "inconclusive"), ("v2", "refused"),
        ("v2", "running"), ("v2", "inconclusive"), ("v2", "approved"),
        ("v1", "skipped"),
    ])  # fmt: skip


def test_drift__says_in_a_note_what_it_came_to_and_a_backfill_asks_for_nothing(airflow: Airflow, place: Place) -> None:
    ordered = "from datetime import datetime; from ml.monitoring import requests; requests.give({!r}, 'ada', 'why', datetime({}))"
    place.python(ordered.format("hold", "2013, 1, 21, 4, 30"))
    run = airflow.run("drift", conf={"as_of": "2013-01-21T05:00:00"})
    assert (run.states["decide"], run.states["request_retrain"]) == ("success", "skipped")
    assert airflow.note(run).startswith("2013-01-20, champion 1: Frozen")
    assert "ada holds retrains" in airflow.note(run)

    place.python(
        ordered.format("resume", "2013, 1, 21, 4, 45") + "; " + ordered.format("force", "2013, 1, 20, 1").split("; ")[-1]
    )
    before, events = airflow.run_ids("drift"), _events(airflow, "retrain_request")
    _backfill(airflow, "drift", "2013-01-20T05:00:00Z")
    run = airflow.follow_new("drift", before)
    assert (run.states["decide"], run.states["request_retrain"]) == ("success", "skipped")
    assert _events(airflow, "retrain_request") == events
    noted = place.python("from ml import ledger; print([(e.verdict, e.reason[:80]) for e in ledger.entries('retrain')])")
    assert "('reported', 'backfill, asks for nothing; it would say retrain: forced: ada" in noted


@pytest.fixture
def approving(airflow: Airflow, place: Place) -> Iterator[None]:
    """The same Airflow with `release.approval: true`, and back."""
    path = place.settings.params
    before = path.read_text()
    params = yaml.safe_load(before)
    params["release"]["approval"] = True
    path.write_text(yaml.safe_dump(params))
    _parse_again(airflow, "release", lambda tasks: "approve" in tasks)
    yield
    path.write_text(before)
    _parse_again(airflow, "release", lambda tasks: "approve" not in tasks)


@pytest.mark.usefixtures("approving")
def test_release__with_approval__yes_goes_on_and_no_and_silence_expose_nothing(airflow: Airflow, place: Place) -> None:
    second, (before, _) = _releasable(place, "2"), _release_notes(place)
    refused = {"smoke": "success", "approve": "success", "canary": "success", "ask": "skipped", "promote": "skipped"}

    run_id = airflow.trigger("release", conf={"version": second, "as_of": "2013-01-21T08:00:00"})
    _answer(airflow, "release", run_id, "approve", "Reject")
    assert airflow.follow("release", run_id).states == refused

    assert airflow.run("release", conf={"version": second, "as_of": "2013-01-21T09:00:00"}).states == refused
    manifests, notes = _release_notes(place)
    assert manifests == before, "neither of the two changed who answers"
    assert notes["2013-01-21T08:00:00"] == [["refused", "admin", "admin said no, before any traffic"]]
    assert notes["2013-01-21T09:00:00"] == [["refused", "", "nobody said yes in time, before any traffic"]]

    run_id = airflow.trigger("release", conf={"version": second, "as_of": "2013-01-21T10:00:00"})
    _answer(airflow, "release", run_id, "approve", "Approve")
    _answer(airflow, "release", run_id, "ask", "promote")
    assert airflow.follow("release", run_id).states == refused | {"ask": "success", "promote": "success"}
    manifests, notes = _release_notes(place)
    assert manifests[len(before) :] == [["1", "2"], ["2", None]], "champion and canary: it got traffic, then it was promoted"
    assert notes["2013-01-21T10:00:00"][0] == ["allowed", "admin", "admin said yes before any traffic"]


def test_lineage__every_run_tells_what_it_read_and_made(airflow: Airflow, place: Place) -> None:
    _wait_until_still(path := place.settings.var / "lineage.jsonl")
    events = lineage_events.read(path)
    digest, mlflow_run = json.loads(place.python(ORIGIN))
    register = lineage_events.of(events, "train.register")[0]
    facets = register["run"]["facets"]
    assert (facets["evergreen_mlflowRun"]["runId"], facets["evergreen_mlflowRun"]["version"]) == (mlflow_run, "1")
    assert facets["evergreen_dataVersion"]["digest"] == digest
    assert lineage_events.versions(register["outputs"]) == {"registered_model": "1"}
    (features, *_) = lineage_events.of(events, "train.features")
    assert lineage_events.versions(features["inputs"]) == {"history": "", "snapshot": digest}
    assert lineage_events.versions(features["outputs"]).items() <= lineage_events.versions(register["inputs"]).items()
    (promote, *_) = lineage_events.of(events, "release.promote")
    assert lineage_events.versions(promote["inputs"]) == {"registered_model": "1"}
    assert set(lineage_events.versions(promote["outputs"])) == {"deployment"}

    assert lineage_events.of(events, "train.plan", "FAIL"), "the run without a time"
    (killed,) = lineage_events.of(events, "train.fit", "FAIL")  # the scheduler tells of it
    started = {event["run"]["runId"] for event in events if event["eventType"] == "START"}
    ended = {event["run"]["runId"] for event in events if event["eventType"] in ("COMPLETE", "FAIL")}
    assert started | {killed["run"]["runId"]} == ended, "all that began; the killed one may have had no time to say so"
    for dag in ("ingest", "train", "release"):
        told = lineage_events.of(events, dag, "START")
        assert {event["run"]["facets"]["airflowDagRun"]["dagRun"]["run_id"] for event in told} == airflow.run_ids(dag)


def test_metrics__airflow_tells_the_exporter_how_it_is__and_each_panel_has_an_answer(
    airflow: Airflow, exporter: int, tmp_path: Path
) -> None:
    shown = httpx.get(f"http://127.0.0.1:{exporter}/metrics", timeout=20).text
    for part in ("api_server", "metadatabase", "scheduler", "dag_processor", "triggerer"):
        assert f'evergreen_airflow_healthy{{component="{part}"}} 1.0' in shown
    assert 'airflow_ti_finish_total{dag_id="ingest",state="success",task_id="land"}' in shown
    assert 'airflow_ti_finish_total{dag_id="train",state="failed",task_id="plan"}' in shown
    assert not re.findall(r"^airflow_.*(?:manual__|backfill__).*$", shown, re.MULTILINE), "a run id is a label"
    longest = max(float(total) for total in re.findall(r"airflow_dag_processing_last_duration_seconds_sum\{.*\} (\S+)", shown))
    assert 0.01 < longest < 600, "seconds, that Airflow sends as seconds"
    if not all(shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")):
        pytest.skip("not installed: `sh ops/install_debian.sh prometheus prometheus-alertmanager`")
    with alert_watch.watchers(tmp_path, {"loop": exporter}) as listener:
        asked = {query for _, _, query in dashboards.queries("airflow")}
        assert not alert_watch.unanswered(listener.prometheus, asked)


def test_up__again_changes_nothing_and_down_leaves_no_process(airflow: Airflow, place: Place) -> None:
    again = place.services("up", "airflow")
    assert (again.returncode, "runs already" in again.stdout) == (0, True)
    assert _processes(place.settings.var)
    stopped = place.services("down")
    assert stopped.returncode == 0
    assert _processes(place.settings.var) == []
    assert "nothing was running" in place.services("down").stdout


def _wait_until_still(path: Path, seconds: float = 3) -> None:
    """The scheduler sends a run's last event from a process of its own, some time after the run is over."""
    size = -1
    while size != (size := path.stat().st_size):
        time.sleep(seconds)


def _backfill(airflow: Airflow, dag: str, logical_date: str) -> None:
    body = {"dag_id": dag, "from_date": logical_date, "to_date": logical_date, "reprocess_behavior": "none"}
    body |= {"max_active_runs": 1, "run_backwards": False, "dag_run_conf": {}}
    deadline = time.monotonic() + 60
    # Airflow refuses a backfill while its SQLite is locked, and takes back what it had begun of it
    while (answer := airflow.http.post("/backfills", json=body)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(1)
    answer.raise_for_status()


def _events(airflow: Airflow, asset: str) -> list[tuple[str, str]]:
    events = airflow.http.get("/assets/events", params={"limit": 100}).json()["asset_events"]
    return [(event["source_dag_id"], event["source_run_id"]) for event in events if event["name"] == asset]


def _instance(airflow: Airflow, dag: str, run_id: str, task: str) -> dict[str, Any]:
    return dict(airflow.http.get(f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}").json())


def _kill_when_running(airflow: Airflow, dag: str, run_id: str, task: str, seconds: float = 120) -> int:
    """kill -9 of the task's own process, as soon as it runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        instance = _instance(airflow, dag, run_id, task)
        if instance.get("state") == "running" and instance["pid"]:
            os.kill(instance["pid"], signal.SIGKILL)
            return int(instance["pid"])
        time.sleep(0.02)
    raise AssertionError(f"{task} did not run within {seconds} s")


def _releasable(place: Place, version: str) -> dict[str, Any]:
    """A registered version, as if its gate had promoted it: so small a model may not pass."""
    found = place.python(f"from ml import tracking; print(tracking.version_ref({version!r}).model_dump_json())")
    return {**json.loads(found), "verdict": "promote", "backfill": False}


def _serving(place: Place) -> str:
    """Champion, canary and its share."""
    return place.python(
        "from ml.serving import manifest; now = manifest.current(); print(now.champion.version, now.canary, now.canary_share)"
    )


def _release_notes(place: Place) -> tuple[list[list[str | None]], dict[str, list[list[str]]]]:
    """Champion and canary of every manifest; and what the ledger notes of releases, by their time: verdict, person, reason."""
    code = """
import json
from ml import ledger
from ml.serving import manifest
notes = {}
for e in ledger.entries("canary"):
    notes.setdefault(e.as_of.isoformat(), []).append([e.verdict, e.evidence["by"], e.reason])
named = lambda deployed: deployed and deployed.version
print(json.dumps([[[named(d.champion), named(d.canary)] for d in manifest.history()], notes]))
"""
    manifests, notes = json.loads(place.python(code))
    return manifests, notes


def _parse_again(airflow: Airflow, dag: str, done: Callable[[set[str]], bool], seconds: float = 120) -> None:
    """Has a DAG file parsed with the present parameters, as the button *reparse* does, until its tasks are as wanted."""
    token = airflow.http.get(f"/dags/{dag}").json()["file_token"]
    airflow.http.put(f"/parseDagFile/{token}").raise_for_status()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = {task["task_id"] for task in airflow.http.get(f"/dags/{dag}/tasks").json()["tasks"]}
        if done(found):
            return
        time.sleep(0.3)
    raise AssertionError(f"{dag} was not parsed again within {seconds} s; its tasks: {sorted(found)}")


def _answer(airflow: Airflow, dag: str, run_id: str, task: str, option: str, seconds: float = 120) -> None:
    """Answers a question as a person does, who has read it.

    An answer within milliseconds resumes the task before Airflow has booked that it paused: it takes it for killed, and asks again.
    """
    deadline = time.monotonic() + seconds
    while (state := _instance(airflow, dag, run_id, task).get("state")) != "awaiting_input":
        if time.monotonic() > deadline:
            raise AssertionError(f"{task} did not ask within {seconds} s: {state}")
        time.sleep(0.2)
    time.sleep(1.5)
    body = {"chosen_options": [option], "params_input": {}}
    airflow.http.patch(f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/-1/hitlDetails", json=body).raise_for_status()


def _versions(place: Place) -> str:
    return place.python(
        "from ml import tracking; from ml.config import load_params; print(tracking.versions(load_params().problem.name))"
    )


def _processes(var: Path) -> list[str]:
    """Living processes that were started for this place: it is in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRFLOW_HOME") == str(var / "airflow") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
