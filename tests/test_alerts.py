"""Alerts: once, through every channel that is set up, whatever else is down. Real servers for mail and Slack."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from ml import alerts, ledger
from ml.alerts import DELIVERED, NOT_SET_UP, Alert
from ml.config import load_params
from ml.settings import ROOT, settings
from tests.conftest import forget

pytestmark = pytest.mark.usefixtures("workspace", "airflow_home")


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        yield


def alarm(run_id: str = "r1", what: str = "run r1 failed") -> Alert:
    return alerts.alert("failed", "score", run_id, what, "http://airflow/dags/score/runs/r1")


def told() -> list[dict[str, Any]]:
    path = settings().var / "alerts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- servers


class _Smtp(StreamRequestHandler):
    """As much of SMTP as a client needs to hand over a mail."""

    def handle(self) -> None:
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "DATA":
                self._say("354 go on")
                body = b""
                while (more := self.rfile.readline()) not in (b".\r\n", b""):
                    body += more
                self.server.mails.append(body.decode())  # type: ignore[attr-defined]  # ours, set in the fixture
            if verb == "RCPT":
                self.server.recipients.append(line)  # type: ignore[attr-defined]  # ours, set in the fixture
            self._say("221 bye" if verb == "QUIT" else "250 ok")
            if verb == "QUIT":
                return

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


class _Slack(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append(json.loads(body))  # type: ignore[attr-defined]  # ours, set in the fixture
        self.send_response(self.server.status)  # type: ignore[attr-defined]  # ours, set in the fixture
        self.end_headers()
        self.wfile.write(b"ok" if self.server.status == 200 else b"no_service")  # type: ignore[attr-defined]  # ours, set in the fixture

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An SMTP server, named by the connection."""
    with ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.daemon_threads = True
        server.mails, server.recipients = [], []  # type: ignore[attr-defined]  # ours, set in the fixture
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        extra = {
            "from_email": "evergreen@example.org",
            "to": "ada@example.org, bob@example.org",
            "disable_ssl": True,
            "disable_tls": True,
        }
        _connect(
            monkeypatch, "smtp", {"conn_type": "smtp", "host": "127.0.0.1", "port": server.server_address[1], "extra": extra}
        )
        yield server
        server.shutdown()


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An incoming webhook, named by the connection."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slack) as server:
        server.posts, server.status = [], 200  # type: ignore[attr-defined]  # ours, set in the fixture
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/services/T/B/secret"
        _connect(monkeypatch, "slack", {"conn_type": "http", "password": url})
        yield server
        server.shutdown()


def _connect(monkeypatch: pytest.MonkeyPatch, name: str, connection: dict[str, Any]) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_EVERGREEN_{name.upper()}", json.dumps(connection))


@pytest.fixture
def channels() -> list[alerts.Channel]:
    from plugins.alerting import Mail, Slack

    return [Mail(), Slack()]


# ---- telling


def test_tell__by_file_and_log_where_nothing_is_set_up(channels: list[alerts.Channel], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        outcomes = asyncio.run(alerts.tell(alarm(), channels))
    assert outcomes == {"file": DELIVERED, "log": DELIVERED, "evergreen_smtp": NOT_SET_UP, "evergreen_slack": NOT_SET_UP}
    (line,) = told()
    assert (line["kind"], line["dag"], line["run_id"], line["what"]) == ("failed", "score", "r1", "run r1 failed")
    assert line["impact"].startswith("the coming day has no predictions")
    assert line["runbook"] == "docs/alerts.md#score"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "[evergreen] score failed" in record.getMessage()
    assert "Do: open the failed task" in record.getMessage()


def test_tell__by_mail_and_slack(mail: Any, slack: Any, channels: list[alerts.Channel]) -> None:
    outcomes = asyncio.run(alerts.tell(alarm(what="5 < 6 & <script>"), channels))
    assert outcomes is not None and set(outcomes.values()) == {DELIVERED}
    (body,) = mail.mails
    assert "Subject: [evergreen] score failed" in body
    assert [line.split(":")[1] for line in mail.recipients] == ["<ada@example.org>", "<bob@example.org>"]
    (post,) = slack.posts
    assert post["text"].startswith("*[evergreen] score failed*\nWhat: 5 &lt; 6 &amp; &lt;script&gt;\nImpact: the coming day")
    assert "Run: http://airflow/dags/score/runs/r1\nRunbook: docs/alerts.md#score" in post["text"]
    assert ledger.entries("delivery")[0].verdict == DELIVERED


def test_tell__twice__is_told_once(slack: Any, channels: list[alerts.Channel]) -> None:
    assert asyncio.run(alerts.tell(alarm(), channels)) is not None
    assert asyncio.run(alerts.tell(alarm(what="the same again"), channels)) is None
    assert (len(slack.posts), len(told()), len(ledger.entries("alert"))) == (1, 1, 1)
    assert asyncio.run(alerts.tell(alarm("r2"), channels)) is not None, "another run is another alert"
    cleared = alerts.alert("failed", "score", "r1", "failed again", "", attempt=1)
    assert asyncio.run(alerts.tell(cleared, channels)) is not None, "somebody mended it, and it failed again"


def test_tell__many_at_once__one_of_them_tells(channels: list[alerts.Channel]) -> None:
    ledger.engine()

    async def together() -> list[dict[str, str] | None]:
        return await asyncio.gather(*(alerts.tell(alarm(), channels) for _ in range(5)))

    assert sum(outcome is not None for outcome in asyncio.run(together())) == 1
    assert len(told()) == 1


def test_tell__a_channel_that_is_down_does_not_stop_the_others_and_is_reported(
    mail: Any, slack: Any, channels: list[alerts.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    mail.shutdown()
    mail.server_close()
    outcomes = asyncio.run(alerts.tell(alarm(), channels))
    assert outcomes is not None
    assert [outcomes[name] for name in ("file", "log", "evergreen_slack")] == [DELIVERED] * 3
    assert len(slack.posts) == 1
    assert "not told by evergreen_smtp" in caplog.text
    (entry,) = ledger.entries("delivery")
    assert (entry.verdict, entry.reason.startswith("evergreen_smtp: ")) == ("incomplete", True)


def test_slack__that_refuses__is_reported_without_its_secret_address(
    slack: Any, channels: list[alerts.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    slack.status = 404
    outcomes = asyncio.run(alerts.tell(alarm(), channels))
    assert outcomes is not None
    assert outcomes["evergreen_slack"] == "ConnectionError: the webhook answered 404: no_service"
    assert "secret" not in caplog.text + ledger.entries("delivery")[0].reason


@pytest.mark.parametrize(
    ("name", "told_by"), [("smtp", "names nobody: add"), ("slack", "has no password: put the webhook's URL there")]
)
def test_connection__that_lacks_something__says_what(
    name: str, told_by: str, channels: list[alerts.Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    _connect(monkeypatch, name, {"conn_type": name, "host": "127.0.0.1"})
    outcomes = asyncio.run(alerts.tell(alarm(), channels))
    assert outcomes is not None and told_by in outcomes[f"evergreen_{name}"]


@dataclass
class _Hanging:
    name: str = "hanging"
    begun: list[bool] = field(default_factory=list)

    async def send(self, alert: Alert) -> None:
        self.begun.append(True)
        await asyncio.Event().wait()


def test_tell__a_channel_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "PATIENCE_SECONDS", 0.05)
    hanging = _Hanging()
    outcomes = asyncio.run(alerts.tell(alarm(), [hanging]))
    assert outcomes is not None and outcomes["hanging"].startswith("TimeoutError")
    assert (hanging.begun, len(told())) == ([True], 1)


def test_tell__without_a_ledger__is_told_nevertheless(
    slack: Any, channels: list[alerts.Channel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERGREEN_LEDGER", "mysql://nowhere/db")
    forget()
    assert asyncio.run(alerts.tell(alarm(), channels)) is not None
    assert (len(slack.posts), len(told())) == (1, 1)
    assert "the ledger does not answer" in caplog.text
    assert "this alert may come twice" in caplog.text


# ---- what Airflow calls


def _context(**more: Any) -> dict[str, Any]:
    run = SimpleNamespace(run_type="manual", triggering_user_name="admin", clear_number=0)
    return {
        "dag": SimpleNamespace(dag_id="train"),
        "run_id": "manual__2013-04-01T03:00:00+00:00",
        "reason": "task_failure",
        "dag_run": run,
    } | more


def test_failed__names_the_task_and_why__and_links_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins import alerting

    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:8080/")
    task = SimpleNamespace(
        task_id="tune", map_index=1, xcom_pull=lambda **asked: f"no trial ended {sorted(asked.values(), key=str)}"
    )
    alerting.failed(_context(ti=task))
    alerting.failed(_context(ti=task))
    (line,) = told()
    run = "manual__2013-04-01T03:00:00+00:00"
    assert line["what"] == f"run {run} failed (task_failure): task tune: no trial ended [1, 'tune', 'why']"
    assert line["link"] == f"http://127.0.0.1:8080/dags/train/runs/{quote(run, safe='')}"
    assert [entry.actor for entry in ledger.entries()] == ["manual:admin", "manual:admin"]


def test_failed__with_the_least_that_airflow_gives() -> None:
    from plugins import alerting

    alerting.failed({"dag": SimpleNamespace(dag_id="unknown"), "run_id": "r", "reason": "timed_out"})
    (line,) = told()
    assert (line["what"], line["impact"]) == ("run r failed (timed_out)", alerts.OTHER.impact)


def test_failed__where_why_cannot_be_read__is_told_without() -> None:
    from plugins import alerting

    def broken(**_: Any) -> str:
        raise ConnectionError("no API server")

    alerting.failed(_context(ti=SimpleNamespace(task_id="tune", map_index=-1, xcom_pull=broken)))
    assert told()[0]["what"].endswith("(task_failure): task tune")


def _late(**more: Any) -> dict[str, Any]:
    run = {
        "dag_id": "score",
        "dag_run_id": "scheduled__1",
        "run_type": "scheduled",
        "state": "running",
        "triggering_user_name": None,
    }
    return {"dag_run": run | more, "deadline": {"id": "1", "deadline_time": "2026-01-01 04:30:00+00:00"}}


def test_late__is_told_once_and_is_not_the_failure_of_the_same_run(slack: Any) -> None:
    from plugins import alerting

    assert "delivered" in asyncio.run(alerting.late(_late()))
    assert asyncio.run(alerting.late(_late())) == "told before"
    asyncio.run(alerts.tell(alerts.alert("failed", "score", "scheduled__1", "failed at last", "")))
    assert [line["kind"] for line in told()] == ["late", "failed"]
    assert told()[0]["what"] == "run scheduled__1 was due to have ended by 2026-01-01 04:30 UTC and is running"
    assert "[evergreen] score is late" in slack.posts[0]["text"]
    assert ledger.entries("alert")[0].actor == "schedule"


@pytest.mark.parametrize("more", [{"run_type": "backfill"}, {"state": "failed"}], ids=str)
def test_late__of_a_backfill_or_a_run_that_failed__is_not_told(more: dict[str, str]) -> None:
    from plugins import alerting

    assert asyncio.run(alerting.late(_late(**more))).startswith("not told")
    assert (told(), ledger.entries()) == ([], [])


# ---- what is declared


def _dags() -> list[str]:
    return sorted(path.stem for path in (ROOT / "dags").glob("*.py") if "\n@dag(" in path.read_text())


def test_cares__every_dag_has_its_own_and_its_runbook_exists() -> None:
    assert set(_dags()) <= set(alerts.CARES)
    for name, care in alerts.CARES.items():
        path, _, anchor = care.runbook.partition("#")
        text = (ROOT / path).read_text()
        assert not anchor or f"## {anchor}\n" in text, f"{path} has no section {anchor} ({name})"


def test_deadlines__are_those_of_the_parameters() -> None:
    asked = load_params().alerts.late_after_minutes.model_dump()
    for name in _dags():
        dag = getattr(importlib.import_module(f"dags.{name}"), name.upper())
        deadlines = [each.interval / 60 for each in dag.deadline or []]
        assert deadlines == ([asked[name]] if asked[name] else []), name
        assert dag.on_failure_callback.__module__ == "plugins.alerting"
    assert {name for name, minutes in asked.items() if minutes} >= {"ingest", "train", "score", "drift"}


# ---- the weekly page


def test_mail_page__once__to_whom_the_connection_names(mail: Any, workspace: None) -> None:
    from plugins.alerting import mail_page

    assert asyncio.run(mail_page("report-1", "the week", b"<h1>A good week</h1>")) == "mailed to ada@example.org, bob@example.org"
    assert asyncio.run(mail_page("report-1", "the week", b"<h1>A good week</h1>")) == "mailed before"
    assert len(mail.mails) == 1
    assert base64.b64encode(b"<h1>A good week</h1>").decode() in mail.mails[0]
    assert asyncio.run(mail_page("report-2", "the next", b"-")).startswith("mailed to")


def test_mail_page__nobody_set_mail_up__says_so(workspace: None) -> None:
    from plugins.alerting import mail_page

    assert asyncio.run(mail_page("report-1", "the week", b"-")) == NOT_SET_UP
    assert ledger.entries() == []


def test_mail_page__server_refuses__is_not_noted_as_mailed(workspace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.alerting import mail_page

    extra = {"from_email": "e@example.org", "to": "ada@example.org", "disable_ssl": True, "disable_tls": True}
    _connect(monkeypatch, "smtp", {"conn_type": "smtp", "host": "127.0.0.1", "port": 1, "extra": extra})
    with pytest.raises(OSError):
        asyncio.run(mail_page("report-1", "the week", b"-"))
    assert ledger.entries() == []
