"""The retrain policy: what it asks for and when, and that no sequence of days makes it break its promises."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.config import Policy
from ml.monitoring.policy import Evidence, Order, Outcome, State, advance, next_allowed
from ml.refs import Decision

START = datetime(2013, 6, 1, 5)
DAY = timedelta(days=1)
PARAMS = Policy(window_days=5, confirm_days=2, cooldown_days=2, weekly_budget=2, min_new_labels=1000, breaker=3, stale_days=60,
                flight_hours=30)  # fmt: skip


def seen(day: int = 0, harmed: str = ".....", **given: Any) -> Evidence:
    """Evidence of a day; `harmed`: a letter for each matured day, ``x`` harmed."""
    as_of = START + day * DAY
    marks = {(as_of - (len(harmed) - i) * DAY).date(): mark == "x" for i, mark in enumerate(harmed)}
    known: dict[str, Any] = {
        "as_of": as_of, "version": "7", "harmed": marks, "proven": "x" in harmed, "new_labels": 5000 + 900 * day, "age_days": 8.0,
        "broken": [], "outcomes": [], "orders": [],
    }  # fmt: skip
    return Evidence(**known | given)


def order(kind: str, day: float) -> Order:
    return Order.model_validate({"kind": kind, "at": START + day * DAY, "by": "ada", "reason": "because"})


def ended(request: str, verdict: str, day: float) -> Outcome:
    return Outcome.model_validate({"request": request, "verdict": verdict, "at": START + day * DAY})


def walk(days: Sequence[Evidence], state: State | None = None, params: Policy = PARAMS) -> tuple[State, list[Decision]]:
    state, told = state or State(), []
    for each in days:
        state, decision = advance(state, each, params)
        told.append(decision)
    return state, told


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def asked(day: int = 0) -> State:
    """The state after a day that asked for a retrain."""
    state, (decision,) = walk([seen(day, "...xx")])
    assert decision.verdict == "retrain"
    return state


# ---- causes


@pytest.mark.parametrize(
    ("harmed", "phase", "verdict"),
    [(".....", "healthy", "keep"), ("....x", "suspect", "keep"), ("xx...", "suspect", "keep"), ("xxxx.", "suspect", "keep"),
     ("x...x", "retraining", "retrain"), ("...xx", "retraining", "retrain"), ("xx......x", "suspect", "keep"), ("", "healthy", "keep")],
)  # fmt: skip
def test_advance__harm__m_of_n_with_the_newest(harmed: str, phase: str, verdict: str) -> None:
    state, decision = advance(State(), seen(0, harmed), PARAMS)
    assert (state.phase, decision.verdict, state.since) == (phase, verdict, START)


def test_advance__harm_that_is_not_proven__keeps() -> None:
    state, decision = advance(State(), seen(0, "xxxxx", proven=False), PARAMS)
    assert (state.phase, decision.verdict) == ("suspect", "keep")
    assert decision.reason.startswith("no cause") and "does not show harm" in decision.reason


def test_advance__retrain__reason_begins_with_the_cause_and_the_request_is_remembered() -> None:
    state, decision = advance(State(), seen(0, "...xx"), PARAMS)
    assert decision.reason == ("harm: 2 of the last 5 matured days harmed, 2 wanted, the newest among them; the test over all its "
                               "days shows harm")  # fmt: skip
    assert decision.passed
    assert state.requests == {"retrain-2013-06-01T05:00-v7-harm": START}
    assert state.in_flight == "retrain-2013-06-01T05:00-v7-harm"


def test_advance__stale__is_a_cause_without_harm() -> None:
    assert advance(State(), seen(age_days=60.0), PARAMS)[1].verdict == "keep"
    _, decision = advance(State(), seen(age_days=60.1), PARAMS)
    assert (decision.verdict, decision.reason.split(":")[0]) == ("retrain", "stale")


# ---- what forbids


def test_advance__data_break__freezes_and_says_what_broke() -> None:
    for harmed in (".....", "...xx"):
        state, decision = advance(State(), seen(0, harmed, broken=["volume", "nulls"]), PARAMS)
        assert (state.phase, decision.verdict) == ("frozen", "wait")
        assert decision.reason.startswith("data: broken: volume, nulls")
    state, decision = advance(state, seen(1, "...xx"), PARAMS)
    assert decision.verdict == "retrain", "a break that is over forbids nothing"


def test_advance__few_new_labels__waits_confirmed() -> None:
    state, decision = advance(State(), seen(0, "...xx", new_labels=999), PARAMS)
    assert (state.phase, decision.verdict) == ("confirmed", "wait")
    assert decision.reason.startswith("new_labels: 999") and "wanted for harm" in decision.reason


def test_advance__one_in_flight__until_its_outcome_is_known_or_its_time_is_up() -> None:
    state = asked()
    running, decision = advance(state, seen(1, "...xx"), PARAMS)
    assert (running.phase, decision.verdict) == ("retraining", "wait")
    assert "in_flight" in failed(decision)
    done, _ = advance(state, seen(1, outcomes=[ended(state.in_flight, "accepted", 0.2)]), PARAMS)
    assert (done.phase, done.in_flight, done.rejected, done.cool_until) == ("cooling", "", 0, START + 2.2 * DAY)
    lost, _ = advance(state, seen(2), PARAMS)
    assert (lost.in_flight, lost.rejected, lost.cool_until) == ("", 1, START + 4 * DAY)


def test_advance__an_outcome_of_another_request__changes_nothing() -> None:
    state, _ = advance(asked(), seen(1, outcomes=[ended("nightly", "rejected", 0.5)]), PARAMS)
    assert state.phase == "retraining"


def test_advance__cooling_down__then_the_same_cause_waits_for_new_labels() -> None:
    state = asked()
    rejected = [ended(state.in_flight, "rejected", 0.2)]
    state, decision = advance(state, seen(1, "..xxx", outcomes=rejected), PARAMS)
    assert (state.phase, failed(decision)) == ("confirmed", ["cool_down", "same_cause"])
    _, decision = advance(state, seen(3, "..xxx", new_labels=5999), PARAMS)
    assert failed(decision) == ["same_cause"]
    assert "asked for harm in v7 before, 999 labels ago" in decision.reason
    assert advance(state, seen(3, "..xxx", new_labels=6000), PARAMS)[1].verdict == "retrain"
    other = advance(state, seen(3, "..xxx", new_labels=1000, version="8"), PARAMS)[1]
    assert other.verdict == "retrain", "another champion is another case"


def test_advance__budget__of_seven_days() -> None:
    busy = State(requests={"a": START - 6 * DAY, "b": START - 2 * DAY})
    _, decision = advance(busy, seen(0, "...xx"), PARAMS)
    assert (decision.verdict, failed(decision)) == ("wait", ["budget"])
    assert next_allowed(busy, START, PARAMS) == START + DAY
    assert advance(busy, seen(1, "...xx"), PARAMS)[1].verdict == "retrain"


def test_advance__breaker__stays_open_until_a_person_resumes() -> None:
    state = State(rejected=3)
    frozen, decision = advance(state, seen(0, "...xx"), PARAMS)
    assert (frozen.phase, decision.verdict, failed(decision)) == ("frozen", "wait", ["breaker"])
    assert "evergreen policy resume" in decision.reason
    assert next_allowed(frozen, START, PARAMS) is None
    closed, decision = advance(frozen, seen(1, "...xx", orders=[order("resume", 0.5)]), PARAMS)
    assert (decision.verdict, closed.rejected) == ("retrain", 0)
    # the same word does not close it a second time
    again, _ = advance(closed.model_copy(update={"rejected": 3, "in_flight": ""}), seen(9, orders=[order("resume", 0.5)]), PARAMS)
    assert again.phase == "frozen"


# ---- people


def test_advance__hold__until_resumed_and_says_who() -> None:
    state, decision = advance(State(), seen(0, "...xx", orders=[order("hold", -1)]), PARAMS)
    assert (state.phase, decision.verdict) == ("frozen", "wait")
    assert decision.reason.startswith("hold: ada holds retrains since 2013-05-31 05:00: because")
    assert advance(state, seen(0, "...xx", orders=[order("hold", -1), order("resume", -0.5)]), PARAMS)[1].verdict == "retrain"


def test_advance__force__overrules_all_but_what_binds_and_once_only() -> None:
    busy = State(requests={"a": START - 6 * DAY, "b": START - 2 * DAY}, rejected=3, cool_until=START + DAY)
    given = {"orders": [order("force", -0.1)], "new_labels": 0}
    state, decision = advance(busy, seen(**given), PARAMS)
    assert (decision.verdict, decision.reason) == ("retrain", "forced: ada: because")
    overruled = [check.name for check in decision.checks if "overruled" in check.detail]
    assert overruled == ["breaker", "cool_down", "budget", "new_labels"]
    rejected = [ended(state.in_flight, "rejected", 0.2)]
    assert advance(state, seen(1, outcomes=rejected, **given), PARAMS)[1].verdict != "retrain"
    for stop in ({"broken": ["volume"]}, {"orders": [order("hold", -2), order("force", -0.1)]}):
        waiting, decision = advance(busy, seen(**given | stop), PARAMS)
        assert (decision.verdict, waiting.phase) == ("wait", "frozen")


def test_advance__force_before_a_resume__is_still_heard() -> None:
    held = [order("hold", -2), order("force", -1), order("resume", -0.5)]
    assert advance(State(), seen(orders=held), PARAMS)[1].reason.startswith("forced")


# ---- promises


def test_storm__thirty_days_of_harm_ask_for_the_budget_at_most() -> None:
    """Each retrain is rejected at once or accepted at once; harm never ends."""
    for verdict, breaker in (("accepted", 3), ("rejected", 1000)):
        params = PARAMS.model_copy(update={"cooldown_days": 0.0, "min_new_labels": 0, "breaker": breaker})
        state, requests, outcomes = State(), [], []
        for day in range(30):
            state, decision = advance(state, seen(day, "xxxxx", outcomes=outcomes), params)
            if decision.verdict == "retrain":
                requests.append(day)
                outcomes = [ended(state.in_flight, verdict, day + 0.1)]
        assert all(sum(day <= other < day + 7 for other in requests) <= params.weekly_budget for day in requests)
        assert len(requests) == 10


DAYS = st.lists(
    st.tuples(st.text(".x", max_size=6), st.booleans(), st.integers(0, 4000), st.floats(0, 90), st.booleans(),
              st.sampled_from(["", "accepted", "rejected", "failed"]), st.sampled_from(["", "", "", "hold", "resume", "force"])),
    max_size=40,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(DAYS)
def test_advance__any_days__no_promise_is_broken(days: list[tuple[str, bool, int, float, bool, str, str]]) -> None:
    state, orders, requests = State(), [], []
    for number, (harmed, proven, labels, age, broken, verdict, word) in enumerate(days):
        orders = [*orders, order(word, number - 0.5)] if word else orders
        outcomes = [ended(state.in_flight, verdict, number - 0.1)] if verdict and state.in_flight else []
        found = seen(number, harmed, proven=proven, new_labels=labels, age_days=age, broken=["volume"] if broken else [],
                     outcomes=outcomes, orders=orders)  # fmt: skip
        before, (state, decision) = state, advance(state, found, PARAMS)
        assert (state, decision) == advance(State.model_validate_json(before.model_dump_json()), found, PARAMS), (
            "pure, and JSON both ways"
        )
        words = [o.kind for o in orders if o.kind != "force"]
        asks, forced = decision.verdict == "retrain", decision.reason.startswith("forced")
        assert asks == (bool(state.in_flight) and state.in_flight != before.in_flight)
        assert (decision.verdict == "retrain") == decision.passed
        if state.phase == "frozen":
            assert broken or state.rejected >= PARAMS.breaker or (words and words[-1] == "hold")
        if not asks:
            assert decision.reason.split(":")[0] in {"no cause", *(c.name for c in decision.checks if not c.passed)}
            continue
        assert not broken and (not words or words[-1] == "resume")
        assert not before.in_flight or verdict or found.as_of - before.requests[before.in_flight] > timedelta(hours=30)
        if forced:
            assert any(o.kind == "force" for o in orders)
            continue
        recent = [at for at in requests if found.as_of - at < 7 * DAY]
        assert len(recent) < PARAMS.weekly_budget and labels >= PARAMS.min_new_labels
        assert age > PARAMS.stale_days or (proven and harmed.endswith("x") and harmed[-5:].count("x") >= 2)
        requests.append(found.as_of)
