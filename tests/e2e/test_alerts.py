"""A failing and a late run on a real Airflow: somebody hears of each, once; and the ledger has what became of the runs."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from ops.airflow_api import Airflow, RunFailedError
from tests.e2e.conftest import Place

pytestmark = pytest.mark.e2e

DAYS = {"start": "2013-01-01", "end": "2013-01-11"}
AT_ONCE = 0.01
"""Minutes: shorter than any task takes."""


class _Webhook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append(json.loads(body)["text"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Webhook:
    """A server that stands for Slack: its address, and what it was told."""

    url: str
    posts: list[str]


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Webhook) as server:
        server.posts = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield Webhook(f"http://127.0.0.1:{server.server_address[1]}/services/x", server.posts)  # type: ignore[attr-defined]
        server.shutdown()


@pytest.fixture(scope="module")
def place(place: Place, webhook: Webhook) -> Place:
    """The place, where an ingest is late at once, and a webhook hears of alerts."""
    params = yaml.safe_load(place.settings.params.read_text())
    params["alerts"]["late_after_minutes"] = {"ingest": AT_ONCE, "score": 600}
    place.settings.params.write_text(yaml.safe_dump(params))
    connection = json.dumps({"conn_type": "http", "password": webhook.url})
    return dataclasses.replace(place, env=place.env | {"AIRFLOW_CONN_EVERGREEN_SLACK": connection})


def test_run__that_fails__alerts_once_and_the_ledger_says_which_task_and_why(
    airflow: Airflow, place: Place, webhook: Webhook
) -> None:
    with pytest.raises(RunFailedError, match="task score failed"):
        airflow.run("score", conf={"start": "2013-01-20", "end": "2013-01-21", "as_of": "2013-01-20T04:00:00"})
    (alert,) = _until(lambda: _alerts(place, "failed"))
    assert alert["dag"] == "score"
    assert "(task_failure): task score: " in alert["what"]
    assert alert["link"] == f"http://127.0.0.1:{place.settings.airflow_port}/dags/score/runs/{quote(alert['run_id'], safe='')}"
    (entry,) = _until(lambda: _entries(place, "run", "score"))
    assert (entry["verdict"], entry["actor"]) == ("failed", "manual:admin")
    assert entry["reason"].startswith("score failed: ")
    assert entry["evidence"]["tasks"] == {"failed": 1}
    assert entry["reason"].removeprefix("score failed: ") in alert["what"], "the same sentence"
    run = airflow.http.get(f"/dags/score/dagRuns/{alert['run_id']}").json()
    assert run["note"] == entry["reason"]
    (post,) = _until(lambda: [post for post in webhook.posts if "score failed" in post])
    assert "Impact: the coming day has no predictions" in post


def test_run__that_is_late__alerts_once_and_ends_well(airflow: Airflow, place: Place, webhook: Webhook) -> None:
    run = airflow.run("ingest", conf=DAYS)
    assert set(run.states.values()) == {"success"}
    (alert,) = _until(lambda: _alerts(place, "late"))
    assert (alert["dag"], alert["run_id"]) == ("ingest", run.run_id)
    (entry,) = _until(lambda: _entries(place, "run", "ingest"))
    assert (entry["verdict"], entry["actor"]) == ("success", "manual:admin")
    assert [entry["actor"] for entry in _entries(place, "snapshot", None)] == ["manual:admin"], (
        "the step's own entry says who, too"
    )
    assert len(_until(lambda: [post for post in webhook.posts if "ingest is late" in post])) == 1


def test_alerts__none_came_twice_and_the_chain_holds(airflow: Airflow, place: Place, webhook: Webhook) -> None:
    """After both runs: whatever was asked again meanwhile, it was told once."""
    assert sorted((line["kind"], line["dag"]) for line in _alerts(place)) == [("failed", "score"), ("late", "ingest")]
    assert len(webhook.posts) == 2
    assert {entry["verdict"] for entry in _entries(place, "delivery", None)} == {"delivered"}
    errors = airflow.http.get("/importErrors").json()["import_errors"]
    assert errors == []
    verified = place.python("from ml import ledger; print(ledger.verify().fault)")
    assert verified == "None"


def test_run__that_failed_before_it_was_late__is_cleared_and_told_again(airflow: Airflow, place: Place) -> None:
    """What the alert says to do. It comes last: the run fails again."""
    run_id = _alerts(place, "failed")[0]["run_id"]
    body = {"dry_run": False, "dag_run_id": run_id, "only_failed": True, "reset_dag_runs": True}
    answer = airflow.http.post("/dags/score/clearTaskInstances", json=body)
    assert answer.status_code == 200, answer.text
    with pytest.raises(RunFailedError, match="task score failed"):
        airflow.follow("score", run_id)
    assert len(_until(lambda: _alerts(place, "failed")[1:])) == 1


def _alerts(place: Place, kind: str | None = None) -> list[dict[str, Any]]:
    path = place.settings.var / "alerts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if kind in (None, line["kind"])]


def _entries(place: Place, kind: str, subject: str | None) -> list[dict[str, Any]]:
    code = f"""
import dataclasses, json
from ml import ledger
print(json.dumps([dataclasses.asdict(e) for e in ledger.entries({kind!r}, subject={subject!r})], default=str))
"""
    return list(json.loads(place.python(code)))


def _until(found: Callable[[], list[Any]], seconds: float = 60) -> list[Any]:
    """What comes in the end; callbacks run in other processes of Airflow."""
    deadline = time.monotonic() + seconds
    while not (now := found()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return now
