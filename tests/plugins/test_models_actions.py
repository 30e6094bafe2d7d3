"""What people do on the Models pages: only those who may, only from a page made for them, and always with a reason.

Starting a training and answering a question need a whole Airflow: tests/browser does both.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import httpx
import pytest

from ml.settings import ROOT
from ops.pages_server import Server

REASON = "the new airport codes come on Friday"
ROUTES: dict[str, dict[str, Any]] = {
    "hold": {}, "resume": {}, "retrain": {}, "rollback": {"manifest": 1},
    "answer": {"run_id": "manual__1", "task_id": "approve", "option": "Approve"},
}  # fmt: skip


def page(client: httpx.Client) -> str:
    return client.get("/models/").raise_for_status().text


def token(client: httpx.Client) -> str:
    found = re.search(r'name="evergreen-token" content="([^"]+)"', page(client))
    assert found
    return found[1]


def act(client: httpx.Client, route: str, token: str, **body: Any) -> httpx.Response:
    return client.post(f"/models/actions/{route}", json={"reason": REASON} | body, headers={"x-evergreen-token": token})


def entries(server: Server, kind: str) -> list[dict[str, Any]]:
    code = (
        "import json; from ml import ledger; "
        f"print(json.dumps([[e.verdict, e.reason, e.actor] for e in ledger.query(['{kind}'], limit=1000)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=server.env, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.fixture
def admin(server: Server) -> httpx.Client:
    return server.client("admin")


@pytest.fixture
def viewer(server: Server) -> httpx.Client:
    return server.client("viewer")


def test_hold_and_resume__go_to_the_ledger_with_name_and_reason_and_show(server: Server, admin: httpx.Client) -> None:
    mine, before = token(admin), entries(server, "order")
    assert 'data-act="hold"' in page(admin)
    assert act(admin, "hold", mine).json()["message"].startswith("Retraining is on hold")
    assert 'data-act="resume"' in page(admin)
    assert "admin since" in page(admin) and REASON in page(admin)
    assert act(admin, "resume", mine, reason="they have come").status_code == 200
    assert 'data-act="hold"' in page(admin)
    written = entries(server, "order")
    assert written[: len(written) - len(before)] == [
        ["resume", "admin: they have come", "ui:admin"], ["hold", f"admin: {REASON}", "ui:admin"],
    ]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_actions__refuse_a_viewer_even_with_a_token(
    server: Server, admin: httpx.Client, viewer: httpx.Client, route: str
) -> None:
    assert act(viewer, route, token(admin), **ROUTES[route]).status_code == 403
    own = subprocess.run(
        [sys.executable, "-c", "from types import SimpleNamespace as N; from plugins.models.actions import action_token; "
                               "print(action_token(N(get_id=lambda: 'viewer')))"],
        cwd=ROOT, env=server.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert act(viewer, route, own.stdout.split()[-1], **ROUTES[route]).status_code == 403


@pytest.mark.parametrize("route", ROUTES)
def test_actions__refuse_whoever_is_not_logged_in(server: Server, admin: httpx.Client, route: str) -> None:
    assert act(server.client(), route, token(admin), **ROUTES[route]).status_code == 401


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("forged", ["", "x", "ImFkbWluIg.aRtQ.abc"])
def test_actions__refuse_a_request_that_comes_from_no_page_of_ours(admin: httpx.Client, route: str, forged: str) -> None:
    answer = act(admin, route, forged, **ROUTES[route])
    assert (answer.status_code, "load it again" in answer.text) == (403, True)


def test_token__is_its_users_and_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import HTTPException

    from plugins.models import actions

    class User:
        def __init__(self, name: str) -> None:
            self.get_id = lambda: name

    made: Any = actions.action_token(User("anna"))
    actions.require_token(User("anna"), made)  # type: ignore[arg-type]
    with pytest.raises(HTTPException, match="403"):
        actions.require_token(User("bert"), made)  # type: ignore[arg-type]
    monkeypatch.setattr(actions, "TOKEN_SECONDS", -1)
    with pytest.raises(HTTPException, match="403"):
        actions.require_token(User("anna"), made)  # type: ignore[arg-type]


def test_pages__show_a_viewer_no_button_and_no_token(viewer: httpx.Client) -> None:
    shown = page(viewer)
    assert "<button" not in shown
    assert "evergreen-token" not in shown
    assert "actions.js" not in shown


@pytest.mark.parametrize("reason", ["", "  ", "ok", "x" * 501])
def test_actions__want_a_reason(server: Server, admin: httpx.Client, reason: str) -> None:
    before = entries(server, "order")
    assert act(admin, "hold", token(admin), reason=reason).status_code == 422
    assert entries(server, "order") == before


def test_rollback__of_what_the_page_no_longer_shows_does_nothing(server: Server, admin: httpx.Client) -> None:
    answer = act(admin, "rollback", token(admin), manifest=1)
    assert answer.status_code == 409
    assert "load the page again" in answer.text


def test_rollback__whose_registry_fails_has_rolled_back_and_says_so(server: Server, admin: httpx.Client) -> None:
    """The made history has no registry; pressed again, nothing is rolled back twice."""
    shown = re.search(r'data-act="rollback"[^>]*?manifest&#34;: (\d+)', page(admin))
    assert shown
    answer = act(admin, "rollback", token(admin), manifest=int(shown[1]))
    assert answer.status_code == 409
    assert re.match(
        r"version \d+ serves all, but registry or ledger do not know yet: .+\n  → press the button again", answer.text
    )
    again = act(admin, "rollback", token(admin), manifest=int(shown[1]) + 1)
    assert again.text == answer.text
