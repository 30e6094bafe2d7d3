"""When to ask for a retrain: a state machine over days. It answers to harm, not to movement, and it remembers what it asked for.

    healthy → suspect → confirmed → retraining → cooling → healthy
    frozen: data broke, a person holds it, or candidates were rejected too often.

Pure: `advance` sees one day's evidence and the state that the day before left. Nothing here reads a clock, a file or the ledger.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Literal

from pydantic import Field

from ml.config import Policy
from ml.refs import Check, Decision, Ref

Phase = Literal["healthy", "suspect", "confirmed", "retraining", "cooling", "frozen"]
Cause = Literal["harm", "stale", "forced"]
RETRAIN, WAIT, KEEP = "retrain", "wait", "keep"
WEEK = timedelta(days=7)
BINDING = ("cause", "data", "hold", "in_flight")
"""What a person's order does not overrule either."""


class Order(Ref):
    """A person's word: to hold retrains, to let them go on (which also closes the breaker), or to ask for one now."""

    kind: Literal["hold", "resume", "force"]
    at: datetime
    by: str
    reason: str


class Outcome(Ref):
    """What became of a retrain: its gate accepted or rejected the candidate, or the run failed."""

    request: str
    verdict: Literal["accepted", "rejected", "failed"]
    at: datetime


class Evidence(Ref):
    """What one day knows, at `as_of`.

    `version`: the champion's. `harmed`: by matured day of its answers whether that day was harmed, oldest first; `proven`: the
    sequential test shows harm in all of them (see `ml.monitoring.harm`). `new_labels`: rows with a label that the champion did
    not learn from; `age_days`: of the newest day that it learned from. `broken`: data checks that failed. `outcomes`: of retrains
    that have ended. `orders`: a person's, oldest first.
    """

    as_of: datetime
    version: str
    harmed: dict[date, bool]
    proven: bool
    new_labels: int = Field(ge=0)
    age_days: float
    broken: list[str]
    outcomes: list[Outcome]
    orders: list[Order]


class Answered(Ref):
    """What the newest request was for: the same cause in the same champion is not asked again before as many new labels came."""

    version: str
    cause: Cause
    new_labels: int


class State(Ref):
    """What the policy remembers from one day to the next.

    `since`: when the phase began. `requests`: of the last week and the one in flight, with their times. `rejected`: retrains in a
    row that brought no champion. `heard`: by kind, the time of the newest order that took effect once (``resume``, ``force``).
    """

    phase: Phase = "healthy"
    since: datetime | None = None
    requests: dict[str, datetime] = Field(default_factory=dict)
    in_flight: str = ""
    rejected: int = Field(0, ge=0)
    cool_until: datetime | None = None
    answered: Answered | None = None
    heard: dict[str, datetime] = Field(default_factory=dict)


def advance(state: State, seen: Evidence, params: Policy) -> tuple[State, Decision]:
    """The state after a day, and what it decided.

    Returns:
        Verdict ``retrain`` (ask now: every check passed), ``wait`` (there is a cause, a retrain in flight, or a freeze) or
        ``keep`` (no cause). The reason begins with a code: the cause of a retrain, or the name of the check that forbids one.
    """
    state = _resumed(_settled(state, seen, params), seen)
    cause, told = _cause(state, seen, params)
    checks = _checks(state, seen, params, cause, told)
    forbidding = [check for check in checks if not check.passed]
    if cause is not None and not forbidding:
        return _asked(state, seen, cause), _decision(RETRAIN, f"{cause}: {told}", checks)
    after = _entered(state, _phase(state, seen, params, cause), seen.as_of)
    # what forbids is told before the lack of a cause: a freeze matters also while nothing is wrong
    blamed = next((check for check in forbidding if check.name != "cause"), None)
    frozen_or_wanted = cause is not None or after.phase in ("frozen", "retraining")
    if blamed is None or not frozen_or_wanted:
        return after, _decision(KEEP, f"no cause: {told}", checks)
    wanted = f"; wanted for {cause}: {told}" if cause else ""
    return after, _decision(WAIT, f"{blamed.name}: {blamed.detail}{wanted}", checks)


def next_allowed(state: State, as_of: datetime, params: Policy) -> datetime | None:
    """From when on time alone forbids no request; None: a freeze or a retrain in flight forbids it."""
    if state.phase == "frozen" or state.in_flight:
        return None
    recent = sorted(at for at in state.requests.values() if as_of - at < WEEK)
    budget = recent[-params.weekly_budget] + WEEK if len(recent) >= params.weekly_budget else as_of
    return max(as_of, budget, state.cool_until or as_of)


# ---- the parts of a day


def _settled(state: State, seen: Evidence, params: Policy) -> State:
    """Brings the retrain in flight to its end: accepted, rejected, failed, or never heard of again. Forgets old requests."""
    recent = {name: at for name, at in state.requests.items() if seen.as_of - at < WEEK or name == state.in_flight}
    state = state.model_copy(update={"requests": recent})
    if not state.in_flight:
        return state
    ended = next((outcome for outcome in seen.outcomes if outcome.request == state.in_flight), None)
    if ended is None and seen.as_of - state.requests[state.in_flight] <= timedelta(hours=params.flight_hours):
        return state
    accepted = ended is not None and ended.verdict == "accepted"
    update = {
        "in_flight": "",
        "rejected": 0 if accepted else state.rejected + 1,
        "cool_until": (ended.at if ended else seen.as_of) + timedelta(days=params.cooldown_days),
    }
    return state.model_copy(update=update)


def _resumed(state: State, seen: Evidence) -> State:
    """A new ``resume`` closes the breaker."""
    new = _unheard(state, seen, "resume")
    return state.model_copy(update={"rejected": 0, "heard": state.heard | {"resume": new[-1].at}}) if new else state


def _unheard(state: State, seen: Evidence, kind: str) -> list[Order]:
    """Orders of a kind that have not taken effect, oldest first."""
    return [o for o in seen.orders if o.kind == kind and (kind not in state.heard or o.at > state.heard[kind])]


def _held(seen: Evidence) -> Order | None:
    """The hold that is in force: the newest word on holding is ``hold``."""
    words = [order for order in seen.orders if order.kind in ("hold", "resume")]
    return words[-1] if words and words[-1].kind == "hold" else None


def _cause(state: State, seen: Evidence, params: Policy) -> tuple[Cause | None, str]:
    """Why a retrain is wanted, or None; and the words for it."""
    if forced := _unheard(state, seen, "force"):
        return "forced", f"{forced[-1].by}: {forced[-1].reason}"
    newest = list(seen.harmed.values())[-params.window_days :]
    days = f"{sum(newest)} of the last {len(newest)} matured days harmed, {params.confirm_days} wanted, the newest among them"
    told = f"{days}; the test over all its days {'shows' if seen.proven else 'does not show'} harm"
    if newest and newest[-1] and sum(newest) >= params.confirm_days and seen.proven:
        return "harm", told
    if seen.age_days > params.stale_days:
        return "stale", f"it learned nothing of the last {seen.age_days:.0f} days, {params.stale_days} are allowed"
    return None, told


def _checks(state: State, seen: Evidence, params: Policy, cause: Cause | None, told: str) -> list[Check]:
    """Every check, whether it matters today or not; a person's order passes all but `BINDING`."""
    n, harmed, recent = len(seen.harmed), sum(seen.harmed.values()), sum(seen.as_of - at < WEEK for at in state.requests.values())
    cooling = max(0.0, (state.cool_until - seen.as_of) / timedelta(days=1)) if state.cool_until else 0.0
    found = [
        _check("cause", cause is not None, harmed, params.confirm_days, n, told),
        _check("data", not seen.broken, len(seen.broken), 0, n, f"broken: {', '.join(seen.broken)}" if seen.broken else "whole"),
        _hold(seen),
        _check("in_flight", not state.in_flight, bool(state.in_flight), 0, recent, f"not ended: {state.in_flight or 'none'}"),
        _check("breaker", state.rejected < params.breaker, state.rejected, params.breaker, state.rejected,
               f"{state.rejected} retrains in a row brought no champion; from {params.breaker} on a person has to say "
               "`evergreen policy resume`"),
        _check("cool_down", not cooling, cooling, 0, recent,
               f"until {state.cool_until:%Y-%m-%d %H:%M}" if cooling and state.cool_until else "over"),
        _check("budget", recent < params.weekly_budget, recent, params.weekly_budget, recent,
               f"{recent} requests in seven days, {params.weekly_budget} are allowed"),
        _check("new_labels", seen.new_labels >= params.min_new_labels, seen.new_labels, params.min_new_labels, seen.new_labels,
               f"{seen.new_labels:,} labels that the champion did not learn from, {params.min_new_labels:,} wanted"),
        _same_cause(state, seen, params, cause),
    ]  # fmt: skip
    return [_overruled(check) for check in found] if cause == "forced" else found


def _hold(seen: Evidence) -> Check:
    held, n = _held(seen), len(seen.orders)
    if held is None:
        return _check("hold", True, 0, 0, n, "nobody holds retrains")
    return _check("hold", False, 1, 0, n, f"{held.by} holds retrains since {held.at:%Y-%m-%d %H:%M}: {held.reason}")


def _same_cause(state: State, seen: Evidence, params: Policy, cause: Cause | None) -> Check:
    """A cause that a retrain has answered in this champion wants as many new labels again."""
    last = state.answered
    if last is None or (last.version, last.cause) != (seen.version, cause):
        return _check("same_cause", True, seen.new_labels, params.min_new_labels, seen.new_labels, "not asked for this before")
    since = seen.new_labels - last.new_labels
    told = f"asked for {cause} in v{seen.version} before, {since:,} labels ago; {params.min_new_labels:,} wanted"
    return _check("same_cause", since >= params.min_new_labels, since, params.min_new_labels, seen.new_labels, told)


def _overruled(check: Check) -> Check:
    if check.passed or check.name in BINDING:
        return check
    return check.model_copy(update={"passed": True, "detail": f"overruled by a person: {check.detail}"})


def _check(name: str, passed: bool, value: float, threshold: float, n: int, detail: str) -> Check:
    return Check(name=name, passed=passed, value=float(value), threshold=float(threshold), n=n, detail=detail)


def _phase(state: State, seen: Evidence, params: Policy, cause: Cause | None) -> Phase:
    """Where a day ends on which nothing is asked for."""
    if state.in_flight:
        return "retraining"
    if seen.broken or _held(seen) or state.rejected >= params.breaker:
        return "frozen"
    if cause is not None:
        return "confirmed"
    if state.cool_until is not None and seen.as_of < state.cool_until:
        return "cooling"
    return "suspect" if any(list(seen.harmed.values())[-params.window_days :]) else "healthy"


def _asked(state: State, seen: Evidence, cause: Cause) -> State:
    request = f"retrain-{seen.as_of:%Y-%m-%dT%H:%M}-v{seen.version}-{cause}"
    update = {
        "requests": state.requests | {request: seen.as_of},
        "in_flight": request,
        "answered": Answered(version=seen.version, cause=cause, new_labels=seen.new_labels),
    }
    if cause == "forced":
        update["heard"] = state.heard | {"force": _unheard(state, seen, "force")[-1].at}
    return _entered(state.model_copy(update=update), "retraining", seen.as_of)


def _entered(state: State, phase: Phase, as_of: datetime) -> State:
    if state.phase == phase and state.since is not None:
        return state
    return state.model_copy(update={"phase": phase, "since": as_of})


def _decision(verdict: str, reason: str, checks: list[Check]) -> Decision:
    return Decision(kind="retrain", verdict=verdict, reason=reason, checks=checks)
