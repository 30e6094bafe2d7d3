"""The policy's memory: what a day leaves for the next, what became of its requests, and that a backfill leaves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ml import ledger
from ml.config import load_params
from ml.errors import ConfigError
from ml.monitoring import looks, requests
from ml.monitoring.policy import State
from ml.refs import Decision, run_key
from tests.monitoring.test_policy import DAY, START, seen

pytestmark = pytest.mark.usefixtures("workspace")
HARMED = "x" * load_params().policy.window_days


@dataclass(frozen=True)
class Day:
    """What a day came to."""

    decision: Decision
    phase: str
    request: str


def day(number: int, harmed: str = HARMED, trigger: str = "schedule") -> Day:
    step = requests.advance(seen(number, harmed, new_labels=100_000 + number))
    request = requests.record(step, step.seen.as_of.date(), trigger, {"monitor": "abc"})
    return Day(step.decision, step.after.phase, request)


def gate(request: str, verdict: str, at: datetime) -> None:
    ledger.record("gate", f"gate-{run_key(request)}", at, "v9", verdict, "why")


def test_decide__a_day_remembers_the_one_before() -> None:
    first = day(0)
    assert (first.decision.verdict, first.phase, first.request) == ("retrain", "retraining", "retrain-2013-06-01T05:00-v7-harm")
    second = day(1)
    assert (second.decision.verdict, second.phase, second.request) == ("wait", "retraining", "")
    assert [(e.verdict, e.subject) for e in ledger.entries("retrain")] == [("retrain", "v7"), ("wait", "v7")]
    assert ledger.entries("retrain")[0].evidence["monitor"] == "abc"


def test_decide__twice__is_once(workspace: Path) -> None:
    first = day(0)
    day(1)
    assert day(0) == first, "the days after do not change what it saw"
    assert len(ledger.entries("retrain")) == 2


def test_decide__in_a_backfill__reports_and_is_forgotten() -> None:
    reported = day(0, trigger="backfill")
    assert (reported.decision.verdict, reported.request) == ("retrain", "")
    (entry,) = ledger.entries("retrain")
    assert entry.verdict == "reported"
    assert entry.reason.startswith("backfill, asks for nothing; it would say retrain: harm")
    assert requests.newest(START + 9 * DAY)[1] is None
    assert day(1).decision.verdict == "retrain", "a backfill puts nothing in flight"


def test_last_look__an_older_day_that_was_looked_at_later__does_not_count() -> None:
    day(5)
    day(3, harmed="." * len(HARMED), trigger="manual")
    look, state = looks.last_look(reversed(ledger.entries(looks.KIND)))
    assert look is not None
    assert (look.as_of, state.phase) == (START + 5 * DAY, "retraining")


def test_last_look__nobody_looked__is_a_fresh_state() -> None:
    day(5, trigger="backfill")
    assert looks.last_look(ledger.entries(looks.KIND)) == (None, State())


def test_decide__a_past_day_in_a_backfill__sees_the_state_of_then() -> None:
    day(5)
    assert day(3, trigger="backfill").phase == "retraining"
    assert day(6).phase == "retraining", "the request of day 5 is in flight still"


def test_outcomes__rejected_by_the_gate() -> None:
    request = day(0).request
    gate(request, "keep", START + DAY / 24)
    second = day(1)
    assert (second.phase, requests.newest(START + DAY)[0].rejected) == ("confirmed", 1)


def test_outcomes__promoted_counts_when_it_serves() -> None:
    request = day(0).request
    gate(request, "promote", START + DAY / 24)
    assert day(1).phase == "retraining", "its canary runs"
    ledger.record("promotion", "p9", START + 1.1 * DAY, "v9", "champion", "it passed")
    (found,) = requests.outcomes(requests.newest(START + DAY)[0], START + 2 * DAY)
    assert (found.verdict, found.at) == ("accepted", START + 1.1 * DAY)


def test_outcomes__promoted_and_taken_out_by_its_canary() -> None:
    request = day(0).request
    gate(request, "promote", START + DAY / 24)
    ledger.record("canary", "c9", START + 0.2 * DAY, "v9", "refused", "errors")
    (found,) = requests.outcomes(requests.newest(START)[0], START + DAY)
    assert found.verdict == "rejected"


def test_outcomes__what_is_not_known_yet_is_invisible() -> None:
    gate(day(0).request, "keep", START + 2 * DAY)
    assert requests.outcomes(requests.newest(START)[0], START + DAY) == []


def test_give__orders_are_heard_from_their_time_on() -> None:
    requests.give("hold", "ada", "new airports", START + DAY / 2)
    assert day(0).decision.verdict == "retrain"
    held = day(1)
    assert {"hold", "in_flight"} <= {check.name for check in held.decision.checks if not check.passed}
    assert [order.kind for order in requests.orders(START + DAY)] == ["hold"]
    assert requests.orders(START + timedelta(hours=1)) == []


def test_give__without_a_reason__is_refused() -> None:
    with pytest.raises(ConfigError, match="without a reason"):
        requests.give("force", "ada", " ", START)
    assert ledger.entries("order") == []


def test_give__hold_resume_hold_at_one_moment__holds() -> None:
    for kind in ("hold", "resume", "hold"):
        requests.give(kind, "ada", "why", START)
    held = day(1)
    assert (held.phase, held.decision.verdict) == ("frozen", "wait")
