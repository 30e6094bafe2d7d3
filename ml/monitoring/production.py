"""What was in production at a moment of the wall clock, told from the ledger alone: its chain proves what it says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from ml import ledger
from ml.config import load_params
from ml.errors import NotFoundError
from ml.monitoring import requests
from ml.monitoring.looks import KIND, last_look
from ml.monitoring.policy import Order, State
from ml.serving import manifest
from ml.serving.manifest import Manifest


@dataclass(frozen=True)
class Production:
    """What served, and what the retrain policy thought. Times are the wall clock's, UTC without a zone.

    Attributes:
        document: the manifest that was current; it says by whom and why it was changed.
        changed: when it was published.
        actor: through which door that came.
        champion_since: since when its champion served without a break.
        state: the policy's; as of `looked`, when it had last looked at a day; None: it had not yet.
        order: the newest hold or resume by a person, or None; `holds` says whether it holds retrains.
    """

    document: Manifest
    changed: datetime
    actor: str
    champion_since: datetime
    state: State
    looked: datetime | None
    order: Order | None

    @property
    def holds(self) -> bool:
        return self.order is not None and self.order.kind == "hold"


def at(moment: datetime) -> Production:
    """What was in production at `moment` (wall clock, UTC without a zone).

    Raises:
        NotFoundError: nothing served yet.
    """
    name = load_params().problem.name
    written = ledger.query(kinds=[manifest.KIND], recorded_until=moment, limit=None)
    published = [(entry, Manifest.model_validate(entry.evidence)) for entry in written if entry.evidence["name"] == name]
    if not published or published[0][1].champion is None:
        raise NotFoundError(f"nothing served at {moment:%Y-%m-%d %H:%M:%S} UTC", _first(name))
    entry, document = published[0]
    unbroken = list(takewhile(lambda each: each[1].champion == document.champion, published))
    looked, state = last_look(ledger.query(kinds=[KIND], recorded_until=moment, limit=None))
    orders = ledger.query(kinds=[requests.ORDER], recorded_until=moment, limit=None)
    order = next((Order.model_validate(each.evidence) for each in orders if each.verdict in ("hold", "resume")), None)
    since = unbroken[-1][0].recorded_at
    return Production(document, entry.recorded_at, entry.actor, since, state, looked.recorded_at if looked else None, order)


def _first(name: str) -> str:
    for entry in ledger.entries(manifest.KIND):
        if entry.evidence["name"] == name and entry.evidence["champion"] is not None:
            return f"the first model served from {entry.recorded_at:%Y-%m-%d %H:%M:%S} UTC on; ask for a time after that"
    return "release a version first (DAG release, or evergreen promote)"
