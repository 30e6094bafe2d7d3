"""The first page: what serves, what was decided and why, what comes next, and what waits for a person."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from ml import ledger
from ml.config import load_params
from ml.monitoring import policy
from ml.monitoring.looks import KIND, REPORTED, last_look
from ml.monitoring.policy import Order
from ml.pages import dates, lines, spans, timeline
from ml.serving import manifest
from ml.serving.manifest import Manifest

DECISIONS = 10
WEEKS = 8
"""Weeks of the small calendar."""
DAYS = 30
"""Looks that the small picture of quality is made from."""


def collect() -> dict[str, Any]:
    """now, name, serving, manifest, canary, decisions, policy, waiting, weeks, counts, quality, last: see the template.

    Six queries and four folder listings, whatever the history's length.
    """
    now, documents = ledger.data_now(), manifest.history()
    looks = [entry for entry in ledger.query([KIND], limit=DAYS) if entry.verdict != REPORTED]
    found = dates.days(now)
    thought = _policy(looks, now)
    current = documents[-1] if documents else None
    return {
        "now": now,
        "name": load_params().problem.name,
        "manifest": current,
        "serving": _serving(documents, looks, now),
        "decisions": lines.lines(ledger.query(lines.DECIDING, limit=DECISIONS)),
        "policy": thought,
        "waiting": _waiting(thought, current),
        "weeks": dates.weeks(found[-7 * WEEKS :]),
        "counts": {status: sum(day.status == status for day in found) for status in ("quarantined", "missing")},
        "last": next((day for day in reversed(found) if day.rows), None),
        "quality": timeline.small([entry.evidence["line"] for entry in reversed(looks) if "line" in entry.evidence]),
        "watched": looks[0].evidence.get("line") if looks else None,
    }


def summary() -> dict[str, Any]:
    """What fits into Airflow's first page: plain JSON values. Six queries."""
    documents, now = manifest.history(), ledger.data_now()
    looks = [entry for entry in ledger.query([KIND], limit=5) if entry.verdict != REPORTED]
    current, serving = (documents[-1] if documents else None), _serving(documents, looks, now)
    thought, newest = _policy(looks, now), next(iter(lines.lines(ledger.query(lines.DECIDING, limit=1))), None)
    realised = (looks[0].evidence.get("line", {}).get("realised") or {}) if looks else {}
    return {
        "name": load_params().problem.name,
        "version": serving and serving["version"],
        "since": serving and f"{serving['since']:%Y-%m-%d}",
        "age_days": serving and serving["age_days"],
        "canary": current.canary.version if current and current.canary else None,
        "canary_share": current.canary_share if current else 0.0,
        "phase": thought["phase"],
        "waiting": [one["what"] for one in _waiting(thought, current)],
        "realised": realised,
        "last": newest and {"what": f"{newest.kind} {newest.verdict}", "reason": newest.reason, "tone": newest.tone},
    }


def _serving(documents: list[Manifest], looks: list[ledger.Entry], now: datetime) -> dict[str, Any] | None:
    """The champion: since when, what it learned from and how old that is; None when nothing was ever deployed."""
    found = spans.spans(documents)
    if not found or found[-1].until is not None:
        return None
    span = found[-1]
    gate = next(iter(ledger.query(["gate"], subject=f"v{span.version}", limit=1)), None)
    plan = gate.evidence.get("plan", {}) if gate else {}
    look = next((entry for entry in looks if entry.subject == f"v{span.version}"), None)
    learned = look.as_of - timedelta(days=look.evidence["seen"]["age_days"]) if look and "seen" in look.evidence else None
    return {
        "version": span.version,
        "since": span.since,
        "days": (now - span.since) / timedelta(days=1),
        "by": span.by,
        "reason": span.reason,
        "again": span.again,
        "train": plan.get("train"),
        "holdout": plan.get("holdout"),
        "snapshot": plan.get("snapshot"),
        "trigger": plan.get("trigger"),
        "learned": learned,
        "age_days": (now - learned) / timedelta(days=1) if learned else None,
        "metrics": gate.evidence.get("metrics", {}) if gate else {},
        "previous": documents[-1].previous.version if documents[-1].previous else None,
    }


def _policy(looks: list[ledger.Entry], now: datetime) -> dict[str, Any]:
    """What the policy thinks: its last look, and orders that it has not met yet."""
    last, state = last_look(looks)
    told = reversed(ledger.query(["order"], limit=50))  # oldest first: of two at one time the later one counts
    orders = sorted((Order.model_validate(entry.evidence) for entry in told), key=lambda one: one.at)
    words = [order for order in orders if order.kind in ("hold", "resume")]
    params = load_params().policy
    return {
        "phase": state.phase,
        "since": state.since,
        "as_of": last.as_of if last else None,
        "verdict": last.verdict if last else None,
        "reason": last.reason if last else "",
        "checks": lines.checks(last.evidence["decision"]) if last else [],
        "in_flight": state.in_flight,
        "rejected": state.rejected,
        "breaker": params.breaker,
        "next_allowed": policy.next_allowed(state, now, params),
        "hold": words[-1] if words and words[-1].kind == "hold" else None,
        "unmet": [order for order in orders if last is None or order.at > last.as_of],
        "broken": last.evidence.get("seen", {}).get("broken", []) if last else [],
    }


def _waiting(thought: dict[str, Any], current: Manifest | None) -> list[dict[str, str]]:
    """What stands still until a person does something, as far as the ledger knows: what, and what to do."""
    hold, trial, found = thought["hold"], current.experiment if current else None, []
    if hold:
        found.append((f"{hold.by} holds retrains since {hold.at:%Y-%m-%d %H:%M}: {hold.reason}", "evergreen policy resume"))
    if thought["rejected"] >= thought["breaker"]:
        told = f"{thought['rejected']} retrains in a row brought no champion: no retrain is asked for any more"
        found.append((told, "evergreen policy resume"))
    if thought["broken"]:
        found.append(
            (
                f"data is broken ({', '.join(thought['broken'])}): no retrain is asked for",
                "mend the data; the checks of the last look name it",
            )
        )
    if trial:
        told = f"experiment {trial.name} runs since {trial.started_at:%Y-%m-%d}; no canary can start"
        found.append((told, "evergreen experiment stop"))
    return [{"what": what, "do": do} for what, do in found]
