"""The Models pages in a running Airflow: who may read them, and that Airflow took the plugin as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ops import environment
from ops.airflow_api import Airflow
from tests.e2e.conftest import Place

pytestmark = pytest.mark.e2e

PAGES = ("", "timeline", "versions", "drift", "dates", "ledger", "dag?dag_id=drift", "run?dag_id=drift&run_id=none")
VIEWER = "viewer"


@pytest.fixture(scope="module")
def place(place: Place) -> Place:
    """With a second user, who may read and no more."""
    environment.password(place.settings)
    path = environment.airflow_home(place.settings) / "passwords.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {VIEWER: "only-for-this-test"}))
    place.env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = f"{environment.USER}:admin,{VIEWER}:viewer"
    return place


@pytest.fixture(params=[environment.USER, VIEWER])
def reader(airflow: Airflow, place: Place, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A browser that is logged in: it has the cookie of the session."""
    passwords = json.loads(Path(environment.airflow_home(place.settings) / "passwords.json").read_text())
    who = {"username": request.param, "password": passwords[request.param]}
    token = httpx.post(f"{airflow.base}/auth/token", json=who, timeout=60).raise_for_status().json()["access_token"]
    with httpx.Client(base_url=airflow.base, cookies={"_token": token}, headers={"accept": "text/html"}, timeout=60) as client:
        yield client


def test_pages__answer_every_reader(reader: httpx.Client) -> None:
    for path in PAGES:
        answer = reader.get(f"/models/{path}")
        assert answer.status_code == 200, (path, answer.text[:500])
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert reader.get("/models/data/summary").json()["version"] is None  # nothing was trained in this place


def test_pages__refuse_a_stranger(airflow: Airflow) -> None:
    for path in (*PAGES, "data/summary", "static/models.js", "static/widget.js"):
        assert httpx.get(f"{airflow.base}/models/{path}", timeout=60).status_code == 401
    login = httpx.get(f"{airflow.base}/models/timeline", headers={"accept": "text/html"}, timeout=60)
    assert login.status_code == 303
    assert "/auth/login" in login.headers["location"]


def test_plugin__is_listed_without_import_errors(airflow: Airflow) -> None:
    assert airflow.http.get("/plugins/importErrors").json()["total_entries"] == 0
    plugins = {plugin["name"]: plugin for plugin in airflow.http.get("/plugins").json()["plugins"]}
    views = {view["destination"]: view["href"] for view in plugins["evergreen_models"]["external_views"]}
    assert set(views) == {"nav", "dag_run", "dag"}
    assert [card["destination"] for card in plugins["evergreen_models"]["react_apps"]] == ["dashboard"]
    for href in (views["nav"], plugins["evergreen_models"]["react_apps"][0]["bundle_url"]):
        found = httpx.get(f"{airflow.base}/{href}", headers={"authorization": airflow.http.headers["authorization"]}, timeout=60)
        assert found.status_code == 200
