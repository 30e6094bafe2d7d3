"""Ledger entries as the lines of a page: a tone, and where a person reads more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ml import ledger
from ml.monitoring.looks import KIND, REPORTED

GOOD, WARN, BAD, NONE = "good", "warn", "bad", "none"
TONES = {
    "promote": GOOD, "champion": GOOD, "pass": GOOD, "passed": GOOD, "approved": GOOD, "equal": GOOD, "same": GOOD,
    "retrain": WARN, "wait": WARN, "running": WARN, "hold": WARN, "force": WARN, "inconclusive": WARN, "skipped": WARN,
    "keep": NONE, "made": NONE, "resume": NONE, "reported": NONE, "started": NONE,
    "fail": BAD, "failed": BAD, "refused": BAD, "reject": BAD, "differs": BAD, "differ": BAD, "unequal": BAD,
}  # fmt: skip
DECIDING = ("retrain", "gate", "canary", "promotion", "rollback", "order", "experiment")
"""Kinds of entries in which something was decided; the others note what was made or checked."""


@dataclass(frozen=True)
class Line:
    """What a page shows of an entry; `version`: the model version it is about, if it is about one."""

    id: int
    kind: str
    as_of: datetime
    recorded_at: datetime
    subject: str
    verdict: str
    tone: str
    reason: str
    actor: str
    version: str


def line(entry: ledger.Entry) -> Line:
    """The entry, with its tone: a rollback is never good news, and a kept champion is no bad one."""
    tone = BAD if entry.kind == "rollback" else tone_of(entry.verdict)
    return Line(
        entry.id, entry.kind, entry.as_of, entry.recorded_at, entry.subject, entry.verdict, tone, entry.reason, entry.actor,
        version_of(entry.subject),
    )  # fmt: skip


def tone_of(verdict: str) -> str:
    """Good, warn, bad or none; a word that is not known says nothing."""
    return TONES.get(verdict, NONE)


def version_of(subject: str) -> str:
    """The number in ``v12``; empty for a subject that is no version.

    >>> version_of("v12"), version_of("retrains")
    ('12', '')
    """
    return subject[1:] if subject[:1] == "v" and subject[1:].isdigit() else ""


def lines(found: Iterable[ledger.Entry]) -> list[Line]:
    return [line(entry) for entry in found]


def watched(since: datetime | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """Days of monitoring, oldest first, one for each: the overview's line of `ml.monitoring.overview` with ``report`` (digest of
    the day's document), ``entry``, ``as_of`` and ``backfill``: that only a backfill looked. A later look replaces an earlier one,
    but a backfill's look never a scheduled one. One query.

    Args:
        since: data time of the look.
        limit: the newest so many looks.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in reversed(ledger.query([KIND], since=since, limit=limit)):
        if "line" not in entry.evidence:
            continue
        backfill = entry.verdict == REPORTED
        day = entry.evidence["line"]["day"]
        if backfill and day in found and not found[day]["backfill"]:
            continue
        told = {"entry": entry.id, "as_of": entry.as_of, "report": entry.evidence.get("report"), "backfill": backfill}
        found[day] = entry.evidence["line"] | told
    return [found[day] for day in sorted(found)]


def checks(decision: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The decision's checks, failed ones first."""
    return sorted(decision.get("checks", []), key=lambda check: bool(check.get("passed")))
