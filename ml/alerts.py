"""An alert: something failed or is late, what that means, and what to do. Told once per run and kind, through every channel.

A file and the log always hear of it; what else does, the caller brings (`plugins/alerting.py`: mail and Slack).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

import sqlalchemy as sa

from ml import ledger, runs
from ml.errors import EvergreenError
from ml.settings import settings

KIND, DELIVERY = "alert", "delivery"
"""Kinds of ledger entries: that an alert is told, and what its channels came to."""
DELIVERED, NOT_SET_UP = "delivered", "not set up"
PATIENCE_SECONDS = 60.0
"""For a channel; then it counts as down."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Care:
    """What it means when a DAG fails or is late, and what to do first."""

    impact: str
    action: str
    runbook: str


DOCS = "docs/alerts.md"
CARES = {
    "ingest": Care(
        "the newest days are not landed: training, scoring and watching go on with older data",
        "open the failed task: quarantined rows are named there; mend the source, clear the task",
        f"{DOCS}#ingest",
    ),
    "train": Care(
        "there is no new candidate tonight; the champion serves on and grows older",
        "open the failed task: its table in the DAG's documentation says what it means; clear it",
        f"{DOCS}#train",
    ),
    "release": Care(
        "the candidate was not promoted; who served before serves on, and a canary may keep its share",
        "see evergreen ledger show --kind canary; clear the task, or evergreen rollback",
        "docs/runbooks/rollback.md",
    ),
    "drift": Care(
        "nobody watched the champion today: harm would go unseen, and no retrain is asked for",
        "open the failed task; a skew is a finding, not a fault: evergreen ledger show --kind skew",
        f"{DOCS}#drift",
    ),
    "score": Care(
        "the coming day has no predictions: whoever reads the batch partition finds none",
        "open the failed task; without a champion run train and release first; clear the task",
        f"{DOCS}#score",
    ),
    "report": Care(
        "the week's summary is missing; nothing depends on it",
        "open the failed task; clear it once ledger and store answer",
        f"{DOCS}#report",
    ),
    "features": Care(
        "tonight's training builds the day's features itself and takes longer, or fails where they are needed",
        "open the failed task; run ingest for the day if it was not landed; clear the task",
        f"{DOCS}#features",
    ),
    "online": Care(
        "the online store holds old values: answers use them, or are flagged as degraded",
        "open the failed task; check the online store (EVERGREEN_ONLINE); clear the task",
        f"{DOCS}#online",
    ),
}
"""By DAG. One that is not here has `OTHER`."""
OTHER = Care("what the DAG makes is missing or old", "open the failed task; its DAG's documentation says what it means", DOCS)


@dataclass(frozen=True)
class Alert:
    """What a person needs at night: what happened, what it means, what to do, and where to look.

    `attempt`: how often the run was cleared before; a run that fails again after somebody mended it is told again.
    """

    kind: Literal["failed", "late"]
    dag: str
    run_id: str
    what: str
    impact: str
    action: str
    link: str
    runbook: str
    attempt: int = 0

    @property
    def subject(self) -> str:
        return f"[evergreen] {self.dag} {'failed' if self.kind == 'failed' else 'is late'}"

    @property
    def text(self) -> str:
        lines = {"What": self.what, "Impact": self.impact, "Do": self.action, "Run": self.link, "Runbook": self.runbook}
        return "\n".join(f"{name}: {line}" for name, line in lines.items())


def alert(kind: Literal["failed", "late"], dag: str, run_id: str, what: str, link: str, attempt: int = 0) -> Alert:
    """An alert about a run, with what its DAG declares in `CARES`."""
    care = CARES.get(dag, OTHER)
    return Alert(kind, dag, run_id, what, care.impact, care.action, link, care.runbook, attempt)


class NotSetUpError(Exception):
    """A channel that nobody has set up: no fault."""


class Channel(Protocol):
    """A way to tell people."""

    @property
    def name(self) -> str: ...

    async def send(self, alert: Alert) -> None:
        """
        Raises:
            NotSetUpError: nobody wants alerts this way.
            Exception: anything else: it was not delivered.
        """


@dataclass(frozen=True)
class File:
    """One JSON line in ``<var>/alerts.jsonl``. One write, so lines never mix."""

    name: str = "file"

    async def send(self, alert: Alert) -> None:
        path = settings().var / "alerts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(alert)}) + "\n"
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Log:
    """A warning in the log of whoever noticed."""

    name: str = "log"

    async def send(self, alert: Alert) -> None:
        log.warning("%s\n%s", alert.subject, alert.text)


async def tell(alert: Alert, channels: Sequence[Channel] = ()) -> dict[str, str] | None:
    """Tells an alert through file, log and `channels`, all at once; None when it was told before.

    It is noted in the ledger first: a crash in between may lose it, but nobody is called twice. Where the ledger does not
    answer it is told nevertheless, perhaps again.

    Returns:
        By channel: `DELIVERED`, `NOT_SET_UP`, or what went wrong.
    """
    if not await asyncio.to_thread(_first, alert):
        return None
    every: list[Channel] = [File(), Log(), *channels]
    outcomes = dict(
        zip((each.name for each in every), await asyncio.gather(*(_sent(each, alert) for each in every)), strict=True)
    )
    await asyncio.to_thread(_note, alert, outcomes)
    return outcomes


async def _sent(channel: Channel, alert: Alert) -> str:
    try:
        await asyncio.wait_for(channel.send(alert), PATIENCE_SECONDS)
    except NotSetUpError:
        return NOT_SET_UP
    except Exception as error:  # one channel that is down must not silence the others
        told = f"{type(error).__name__}: {error}"
        log.error("%s: not told by %s: %s; mend it, the other channels have it", alert.subject, channel.name, told)
        return told
    return DELIVERED


def _first(alert: Alert) -> bool:
    evidence = asdict(alert)
    key = runs.key(KIND, alert.kind, alert.dag, alert.run_id, str(alert.attempt))
    try:
        return ledger.record(KIND, key, _now(), alert.dag, alert.kind, alert.what, evidence)
    except (sa.exc.SQLAlchemyError, EvergreenError, OSError) as error:
        log.error("%s: the ledger does not answer (%s): this alert may come twice; check EVERGREEN_LEDGER", alert.subject, error)
        return True


def _note(alert: Alert, outcomes: dict[str, str]) -> None:
    key = runs.key(DELIVERY, alert.kind, alert.dag, alert.run_id, str(alert.attempt))
    down = {name: told for name, told in outcomes.items() if told not in (DELIVERED, NOT_SET_UP)}
    reason = "; ".join(f"{name}: {told}" for name, told in (down or outcomes).items())
    try:
        ledger.record(DELIVERY, key, _now(), alert.dag, "incomplete" if down else DELIVERED, reason, outcomes)
    except (sa.exc.SQLAlchemyError, EvergreenError, OSError) as error:
        log.error("%s: told, but the ledger has no note of it (%s); check EVERGREEN_LEDGER", alert.subject, error)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
