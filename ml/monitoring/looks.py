"""The policy's looks in the ledger: one entry for each day that it looked at. Light: the pages import it."""

from __future__ import annotations

from collections.abc import Iterable

from ml.ledger import Entry
from ml.monitoring.policy import State

KIND = "retrain"
"""Kind of ledger entry."""
REPORTED = "reported"
"""The verdict on a day that a backfill looked at: it asks for nothing, and the policy forgets it."""


def last_look(days: Iterable[Entry]) -> tuple[Entry | None, State]:
    """Of entries of `KIND` the one of the newest day, and the state that it left; days that a backfill looked at do not count."""
    own = [entry for entry in days if entry.verdict != REPORTED and "state" in entry.evidence]
    last = max(own, key=lambda entry: (entry.as_of, entry.id), default=None)
    return last, State.model_validate(last.evidence["state"]) if last else State()
