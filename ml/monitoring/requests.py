"""The memory of the retrain policy, in the ledger: what it decided, what became of its requests, and what people told it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import uuid4

from ml import ledger
from ml.config import load_params
from ml.errors import ConfigError
from ml.monitoring import policy
from ml.monitoring.looks import KIND, REPORTED, last_look
from ml.monitoring.policy import Evidence, Order, Outcome, State
from ml.refs import Decision, run_key
from ml.serving import release

ORDER = "order"
"""Kind of ledger entry: what a person told the policy."""


def give(kind: Literal["hold", "resume", "force"], by: str, reason: str, as_of: datetime) -> Order:
    """Writes a person's order into the ledger; the policy follows it from its next day on.

    Raises:
        ConfigError: no reason was given.
    """
    if not reason.strip():
        raise ConfigError(f"{kind} without a reason", "say why (--reason); it is what others will read")
    order = Order(kind=kind, at=as_of, by=by, reason=reason)
    ledger.record(ORDER, f"{ORDER}-{uuid4()}", as_of, "retrains", kind, f"{by}: {reason}", order.to_xcom())
    return order


def orders(until: datetime) -> list[Order]:
    """All orders up to a time, oldest first."""
    found = [Order.model_validate(entry.evidence) for entry in ledger.entries(ORDER, until=until)]
    return sorted(found, key=lambda order: order.at)


def remembered(before: datetime) -> State:
    """The state that the last day before left."""
    return last_look(entry for entry in ledger.entries(KIND, until=before) if entry.as_of < before)[1]


def outcomes(state: State, as_of: datetime) -> list[Outcome]:
    """What became of the request in flight: by its gate, and for a promoted candidate by its release. None while that runs."""
    key = f"gate-{run_key(state.in_flight)}"
    gate = next((entry for entry in ledger.entries("gate", until=as_of) if entry.key == key), None)
    if not state.in_flight or gate is None:
        return []
    if gate.verdict != "promote":
        return [Outcome(request=state.in_flight, verdict="rejected", at=gate.as_of)]
    for entry in ledger.entries(subject=gate.subject, until=as_of):
        if entry.verdict == "champion":
            return [Outcome(request=state.in_flight, verdict="accepted", at=entry.as_of)]
        if entry.kind == release.KIND and entry.verdict == release.REFUSED:
            return [Outcome(request=state.in_flight, verdict="rejected", at=entry.as_of)]
    return []


@dataclass(frozen=True)
class Step:
    """The policy's step over one day: what it saw, what it remembered, what it decided."""

    seen: Evidence
    before: State
    after: State
    decision: Decision


def advance(seen: Evidence) -> Step:
    """Advances the policy from the state of the day before. Orders and outcomes are read here; nothing is written."""
    before = remembered(seen.as_of)
    seen = seen.model_copy(update={"orders": orders(seen.as_of), "outcomes": outcomes(before, seen.as_of)})
    after, decision = policy.advance(before, seen, load_params().policy)
    return Step(seen, before, after, decision)


def shown(decision: Decision, trigger: str) -> Decision:
    """The decision as people and the ledger see it: of a backfill, which asks for nothing, what it would have been."""
    if trigger != "backfill":
        return decision
    reason = f"backfill, asks for nothing; it would say {decision.verdict}: {decision.reason}"
    return decision.model_copy(update={"verdict": REPORTED, "reason": reason})


def record(step: Step, day: date, trigger: str, told: dict[str, Any]) -> str:
    """Writes a step into the ledger, and returns the name of the retrain that is asked for, if one is. Twice is once.

    Args:
        day: the first day after those that were watched.
        trigger: why the run exists; a ``backfill`` asks for nothing, and the policy forgets it.
        told: what else goes into the entry's evidence.
    """
    decision, backfill = shown(step.decision, trigger), trigger == "backfill"
    evidence = {"decision": step.decision, "state": step.after, "before": step.before, "seen": step.seen}
    digest = run_key(step.seen.model_dump_json() + step.before.model_dump_json())
    key = f"{KIND}-{day}-v{step.seen.version}-{'backfill-' * backfill}{digest}"
    dumped = {name: part.to_xcom() for name, part in evidence.items()}
    ledger.record(KIND, key, step.seen.as_of, f"v{step.seen.version}", decision.verdict, decision.reason, dumped | told)
    return step.after.in_flight if decision.verdict == policy.RETRAIN else ""


def newest(as_of: datetime) -> tuple[State, Decision | None]:
    """The policy's state at a time, and its last decision; orders that it has not met yet do not show."""
    last, state = last_look(ledger.entries(KIND, until=as_of))
    return state, Decision.model_validate(last.evidence["decision"]) if last else None
