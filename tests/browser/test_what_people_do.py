"""What people do by the buttons: the ledger has it with their name, and nobody else may.

The tests go on from one another: a candidate waits, is refused, is let through, is promoted and taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, expect

from tests.browser.conftest import Visit, Visitor
from tests.browser.history import House, parse_again, wait_for_question

pytestmark = pytest.mark.e2e

ROUTES = {
    "hold": {"reason": "not mine to say"},
    "resume": {"reason": "not mine to say"},
    "rollback": {"reason": "not mine to say", "manifest": 1},
    "retrain": {"reason": "not mine to say"},
    "answer": {"reason": "not mine to say", "run_id": "", "task_id": "approve", "option": "Approve"},
}
QUESTION = "Shall the candidate get traffic?"
NEWEST = "(lambda e: [e.subject, e.verdict, e.actor, e.reason])(ledger.query([{!r}], limit=1)[0])"
SERVES = "(lambda now: [now.champion.version, now.canary and now.canary.version])(manifest.current())"


def test_viewer__sees_no_button_and_gets_403_from_every_route(visit: Visitor, house: House) -> None:
    before = _state(house)
    token = _token(visit("admin"))
    window = visit("viewer")
    frame = window.models()
    expect(frame.get_by_role("link", name=QUESTION)).to_be_visible()
    expect(frame.get_by_role("button")).to_have_count(0)
    for headers in ({}, {"x-evergreen-token": token}):
        assert _statuses(window, house, headers) == {403}
    assert _state(house) == before


def test_admin__without_the_pages_token_gets_403_from_every_route(visit: Visitor, house: House) -> None:
    before, window = _state(house), visit("admin")
    assert _statuses(window, house, {}) == {403}
    assert _statuses(window, house, {"x-evergreen-token": "made-up"}) == {403}
    assert _state(house) == before


def test_stranger__is_sent_to_the_login_and_gets_401_from_every_route(visit: Visitor, house: House) -> None:
    window = visit("stranger")
    window.expected.add(401)
    assert _statuses(window, house, {}) == {401}
    for path in ("models/data/summary", "models/static/models.css"):
        assert window.page.request.get(f"{house.base}/{path}").status == 401
    page = window.open("/models/ledger")
    expect(page.locator("input[name=username]")).to_be_visible()


def test_hold__is_in_the_ledger_with_name_and_reason_until_somebody_resumes(visit: Visitor, house: House) -> None:
    frame = visit().models()
    _do(frame, "Hold retrains", "the source is being moved")
    card = frame.locator("section", has=frame.get_by_role("heading", name="Retraining"))
    expect(card).to_contain_text("the source is being moved")
    _, verdict, actor, reason = house.ask(NEWEST.format("order"))
    assert (verdict, actor) == ("hold", "ui:admin")
    assert "the source is being moved" in reason
    _do(frame, "Let retrains go on", "it has moved")
    expect(card).to_contain_text("nobody holds retrains")
    assert house.ask(NEWEST.format("order"))[1:3] == ["resume", "ui:admin"]


def test_button__without_a_reason_does_nothing(visit: Visitor, house: House) -> None:
    before, frame = _state(house), visit().models()
    frame.get_by_role("button", name="Hold retrains").click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_role("button", name="Hold retrains").click()
    expect(dialog).to_be_visible()
    assert dialog.get_by_label("Reason").evaluate("field => field.validity.valueMissing")
    assert _state(house) == before


def test_reject__ends_the_release_and_the_champion_stays(visit: Visitor, house: House) -> None:
    wait_for_question(house.airflow, house.waiting, "approve")
    _do(visit().models(), "Answer", "too small a gain", option="Reject")
    assert house.airflow.follow("release", house.waiting).states["promote"] == "skipped"
    assert house.ask(SERVES) == ["1", None]
    assert house.ask(NEWEST.format("canary"))[1] == "refused"
    assert house.ask(NEWEST.format("action"))[1:] == ["Reject", "ui:admin", "admin: too small a gain"]


def test_approve__gives_traffic_and_promote_makes_the_champion(visit: Visitor, house: House) -> None:
    run_id, frame = house.release("2", 7), visit().models()
    for task, option in (("approve", "Approve"), ("ask", "promote")):
        wait_for_question(house.airflow, run_id, task)
        frame.locator("html").evaluate("() => window.location.reload()")
        _do(frame, "Answer", f"looked at it, {option}", option=option)
    assert house.airflow.follow("release", run_id).states["promote"] == "success"
    assert house.ask(SERVES) == ["2", None]
    assert house.ask(NEWEST.format("action"))[1:3] == ["promote", "ui:admin"]
    expect(visit("viewer").models().get_by_role("heading", level=1)).to_have_text("v2 serves")


def test_rollback__brings_the_previous_champion_back_with_name_and_reason(visit: Visitor, house: House) -> None:
    frame = visit().models()
    _do(frame, "Roll back", "it is worse at night")
    expect(frame.get_by_role("heading", level=1)).to_contain_text("v1 serves")
    assert house.ask(SERVES) == ["1", None]
    subject, _, actor, reason = house.ask(NEWEST.format("manifest"))
    assert (subject, actor) == ("v1", "ui:admin")
    assert "it is worse at night" in reason


def test_silence__is_a_no(visit: Visitor, house: House) -> None:
    house.set_release(approval_hours=0.003)
    parse_again(house.airflow, "release")
    run = house.airflow.follow("release", house.release("2", 8))
    assert run.states["promote"] == "skipped"
    assert house.ask(SERVES) == ["1", None]
    said = house.ask(NEWEST.format("canary"))
    assert (said[1], said[3]) == ("refused", "nobody said yes in time, before any traffic")
    frame = visit("viewer").models()
    expect(frame.get_by_role("link", name=QUESTION)).to_have_count(0)
    expect(frame.get_by_role("main")).to_contain_text("nobody said yes in time")


def test_retrain_now__starts_a_run_with_the_reason(visit: Visitor, house: House) -> None:
    before, window = house.airflow.run_ids("train"), visit()
    frame = window.models()
    _do(frame, "Retrain now", "a holiday is near")
    expect(frame.get_by_role("status")).to_contain_text("Training has started")
    (run_id,) = house.airflow.run_ids("train") - before
    assert house.airflow.http.get(f"/dags/train/dagRuns/{run_id}").json()["conf"]["reason"] == "a holiday is near"
    assert house.ask(NEWEST.format("action"))[1:3] == ["retrain", "ui:admin"]
    frame.get_by_role("link", name="Open it").click()
    expect(window.page).to_have_url(re.compile("/dags/train/runs/"))


def _do(frame: FrameLocator, button: str, reason: str, option: str = "") -> None:
    """Presses a button, answers its dialog, and waits until the page has been read anew."""
    frame.get_by_role("button", name=button, exact=True).click()
    dialog = frame.get_by_role("dialog")
    if option:
        dialog.get_by_label(option, exact=True).check()
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button").last.click()
    expect(frame.get_by_role("status").filter(has_text=re.compile("."))).to_be_visible()


def _token(window: Visit) -> str:
    window.open("/models/")
    return str(window.page.locator("meta[name=evergreen-token]").get_attribute("content"))


def _statuses(window: Visit, house: House, headers: dict[str, str]) -> set[int]:
    """What the routes answer to the user's cookie."""
    post: Callable[..., Any] = window.page.request.post
    bodies = {route: body | ({"run_id": house.waiting} if "run_id" in body else {}) for route, body in ROUTES.items()}
    return {post(f"{house.base}/models/actions/{route}", data=body, headers=headers).status for route, body in bodies.items()}


def _state(house: House) -> list[Any]:
    """What nobody but the right person may change: orders, actions, manifest; runs of `train`."""
    written = house.ask("[[e.kind, e.key] for e in ledger.query(['order', 'action', 'manifest'], limit=1000)]")
    return [written, sorted(house.airflow.run_ids("train"))]
