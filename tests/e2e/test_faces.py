"""What a person meets on a real Airflow: forms that refuse nonsense, notes, names, and buttons that open the right page."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ops.airflow_api import Airflow, Run
from tests.e2e.conftest import Place

pytestmark = pytest.mark.e2e

DAYS = {"start": "2013-01-01", "end": "2013-01-21"}
AS_OF = "2013-01-21T03:00:00"


@pytest.fixture(scope="module")
def landed(airflow: Airflow) -> Run:
    return airflow.run("ingest", conf=DAYS)


@pytest.fixture(scope="module")
def trained(airflow: Airflow, place: Place, landed: Run) -> Run:
    started = place.services("up", "mlflow")
    assert started.returncode == 0, started.stdout + started.stderr
    return airflow.run("train", conf={"as_of": AS_OF, "reason": "faces"})


@pytest.mark.parametrize(
    ("dag", "conf", "said"),
    [
        ("train", {"as_of": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
        ("train", {"as_of": 20130121}, "20130121 is not of type"),
        ("train", {"as_of": "2013-01-21"}, "'2013-01-21' does not match"),
        ("train", {"reason": "x" * 501}, "is too long"),
        ("ingest", {"start": "2013-01-32", "end": "2013-02-01"}, "2013-01-32"),
        ("ingest", {"start": "01/02/2013", "end": "2013-02-01"}, "01/02/2013"),
        ("ingest", {"start": "2013-01-02"}, "only one of the two was given"),
        ("score", {"start": "2013-01-02", "end": "2013-01-02"}, "start=2013-01-02 is not before end=2013-01-02"),
        ("features", {"end": "2013-01-02"}, "only one of the two was given"),
        ("release", {"version": "v3"}, "'v3' does not match"),
        ("release", {"version": 3}, "3 is not of type"),
        ("release", {"version": "3", "skip_canary": "hurry"}, "'hurry' is too short"),
    ],
    ids=["no-time", "number", "no-hour", "long", "no-day", "other-form", "half", "empty", "other-half", "word", "int", "short"],
)
def test_form__refuses_at_once_and_says_why(dag: str, conf: dict[str, Any], said: str, airflow: Airflow) -> None:
    before = airflow.run_ids(dag)
    answer = airflow.http.post(f"/dags/{dag}/dagRuns", json={"logical_date": None, "conf": conf})
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert airflow.run_ids(dag) == before


@pytest.mark.parametrize("dag", ["online", "release"])
def test_backfill__of_what_has_no_past_is_refused(dag: str, airflow: Airflow) -> None:
    body = {"dag_id": dag, "from_date": "2013-01-10T00:00:00Z", "to_date": "2013-01-11T00:00:00Z"}
    body |= {"reprocess_behavior": "none", "max_active_runs": 1, "run_backwards": False, "dag_run_conf": {}}
    answer = airflow.http.post("/backfills", json=body)
    assert 400 <= answer.status_code < 500
    assert "backfill" in answer.text
    assert airflow.run_ids(dag) == set()


def test_names__and_words_are_shown(airflow: Airflow) -> None:
    dag = airflow.http.get("/dags/train/details").json()
    assert dag["dag_display_name"] == "Train: one candidate, judged and registered"
    assert "| `tune` |" in dag["doc_md"]
    tasks = {task["task_id"]: task for task in airflow.http.get("/dags/train/tasks").json()["tasks"]}
    assert tasks["tune"]["task_display_name"] == "Search"
    assert "When it fails" in tasks["tune"]["doc_md"]
    assert airflow.http.get("/importErrors").json()["import_errors"] == []
    plugins = {plugin["name"] for plugin in airflow.http.get("/plugins").json()["plugins"]}
    assert {"evergreen_files", "evergreen_forms"} <= plugins


def test_ingest__says_what_landed_and_shows_data_docs(airflow: Airflow, landed: Run) -> None:
    assert airflow.note(landed).startswith("2013-01-01 until 2013-01-21: ")
    assert " flights, " in airflow.note(landed)
    page = _opened(airflow, landed, "data_docs", "Data Docs")
    assert page.url == _opened(airflow, landed, "validate", "Data Docs").url
    assert _outcome(airflow, landed, "land")["key"] in page.text
    assert "passed" in page.text
    (link,) = [part for part in page.text.split('"') if part.startswith("validations/flights/")]
    inner = airflow.http.get(f"{airflow.base}/evergreen/files/docs/{link}")
    assert inner.status_code == 200
    assert "Expectation Validation Result" in inner.text


def test_train__says_what_became_of_the_candidate_and_shows_it(airflow: Airflow, place: Place, trained: Run) -> None:
    assert airflow.note(trained).startswith(("v1 goes to release: ", "v1 is not released, the champion stays: "))
    links = _links(airflow, trained, "register")
    assert set(links) == {"MLflow run", "Evaluation report", "Bento"}
    version = _outcome(airflow, trained, "register")
    mlflow = f"http://127.0.0.1:{place.settings.mlflow_port}"
    assert links["MLflow run"].startswith(f"{mlflow}/#/experiments/")
    assert links["MLflow run"].endswith(f"/runs/{version['run_id']}")
    assert links["Evaluation report"] == links["MLflow run"] + "/artifacts/report.html"
    assert httpx.get(mlflow, timeout=30).status_code == 200
    report = httpx.get(f"{mlflow}/get-artifact", params={"path": "report.html", "run_uuid": version["run_id"]}, timeout=30)
    assert (report.status_code, report.text[:15].lower()) == (200, "<!doctype html>")
    bento = _opened(airflow, trained, "register", "Bento")
    assert version["bundle"] in bento.text
    assert "bento.yaml" in bento.text


def test_release_and_drift__say_what_they_came_to_and_show_it(airflow: Airflow, place: Place, trained: Run) -> None:
    version = _outcome(airflow, trained, "register") | {"verdict": "promote", "backfill": False}
    released = airflow.run("release", conf={"version": version, "as_of": "2013-01-21T04:00:00"})
    assert airflow.note(released).startswith("v1 is the champion as of 2013-01-21 04:00 (manifest ")
    assert _links(airflow, released, "canary") == _links(airflow, trained, "register")

    watched = airflow.run("drift", conf={"as_of": "2013-01-21T05:00:00"})
    assert airflow.note(watched).startswith("2013-01-20, champion 1")
    assert "2013-01-20" in _opened(airflow, watched, "decide", "Drift report").text
    address = f"{airflow.base}/evergreen/files/monitoring/"
    assert airflow.http.get(address + "2013-01-20.html").status_code == 200
    assert "2013-01-20.html" in airflow.http.get(address + "index.html").text


def test_page__wants_a_login(airflow: Airflow, landed: Run) -> None:
    link = _links(airflow, landed, "data_docs")["Data Docs"]
    assert httpx.get(link).status_code == 401
    assert httpx.get(link, headers={"Authorization": "Bearer nonsense"}).status_code in (401, 403)
    token = str(airflow.http.headers["Authorization"]).removeprefix("Bearer ")
    assert httpx.get(link, cookies={"_token": token}).status_code == 200, "as the browser asks"


def test_features_score_online__say_what_they_came_to(airflow: Airflow, trained: Run) -> None:
    conf = {"start": "2013-01-19", "end": "2013-01-20", "as_of": "2013-01-21T02:30:00"}
    assert "2013-01-19..2013-01-19: " in airflow.note(airflow.run("features", conf=conf))
    scored = airflow.run("score", conf={"as_of": "2013-01-21T05:00:00"})
    assert airflow.note(scored).endswith(" rows scored by v1")
    online = airflow.run("online", conf={"as_of": "2013-01-21T06:00:00"})
    assert airflow.note(online).endswith(" values as of 2013-01-21 06:00")
    late = airflow.run("online", conf={"as_of": "2013-01-20T06:00:00"})
    assert airflow.note(late) == "nothing was written: the store holds a later tick than 2013-01-20 06:00"


def _links(airflow: Airflow, run: Run, task: str) -> dict[str, str]:
    answer = airflow.http.get(f"/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances/{task}/links")
    return dict(answer.raise_for_status().json()["extra_links"])


def _outcome(airflow: Airflow, run: Run, task: str) -> dict[str, Any]:
    answer = airflow.http.get(f"/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances/{task}/xcomEntries/return_value")
    value = answer.raise_for_status().json()["value"]
    return dict(json.loads(value) if isinstance(value, str) else value)


def _opened(airflow: Airflow, run: Run, task: str, link: str) -> httpx.Response:
    """What the button opens."""
    answer = airflow.http.get(_links(airflow, run, task)[link])
    assert answer.status_code == 200, answer.text
    return answer
