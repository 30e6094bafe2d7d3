"""The ledger added up: counts that only grow, and the newest state of things. So metrics survive restarts.

Pure: entries are folded in the order in which they were written; whoever folds all of them has the same sums.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ml.ledger import Entry
from ml.monitoring.looks import last_look
from ml.monitoring.policy import Order, State
from ml.refs import SnapshotRef
from ml.serving.manifest import Manifest

Labels = tuple[str, ...]


@dataclass
class Tally:
    """What the entries so far come to. Keys are label values, in the order of the comment; times are UTC without a zone."""

    runs: Counter[Labels] = field(default_factory=Counter)  # dag, state, trigger
    run_seconds: defaultdict[Labels, float] = field(default_factory=lambda: defaultdict(float))  # dag
    ended: dict[Labels, datetime] = field(default_factory=dict)  # dag, state; wall clock, backfills apart
    step_seconds: defaultdict[Labels, float] = field(default_factory=lambda: defaultdict(float))  # dag, step
    cpu_seconds: defaultdict[Labels, float] = field(default_factory=lambda: defaultdict(float))  # dag, step
    peak_bytes: dict[Labels, float] = field(default_factory=dict)  # dag, step; the newest run's
    landed: Counter[Labels] = field(default_factory=Counter)  # table
    quarantined: Counter[Labels] = field(default_factory=Counter)  # table
    decisions: Counter[Labels] = field(default_factory=Counter)  # kind, verdict, reason
    alerts: Counter[Labels] = field(default_factory=Counter)  # dag, kind
    snapshot: SnapshotRef | None = None
    manifest: Manifest | None = None
    champion_since: datetime | None = None
    trained: dict[str, datetime] = field(default_factory=dict)
    """Version → as of when it was trained (data time)."""
    look: Entry | None = None
    """The retrain policy's last: that of the newest day."""
    state: State = field(default_factory=State)
    order: Order | None = None
    """The newest hold or resume."""
    entries: int = 0
    last: int = 0
    """Id of the newest entry."""

    def fold(self, written: Iterable[Entry], model: str) -> None:
        """Adds entries, oldest first.

        Args:
            model: registered name of the model that the manifest's figures are of.
        """
        for entry in written:
            self.entries, self.last = self.entries + 1, entry.id
            if entry.kind == "run":
                self._run(entry)
            elif entry.kind == "landing":
                self.landed.update({(table,): rows for table, rows in entry.evidence["rows"].items()})
                self.quarantined.update({(table,): rows for table, rows in entry.evidence["quarantined"].items()})
            elif entry.kind == "snapshot":
                self._snapshot(SnapshotRef.model_validate(entry.evidence))
            elif entry.kind == "manifest" and entry.evidence["name"] == model:
                self._manifest(entry)
            elif entry.kind == "alert":
                self.alerts[entry.subject, entry.verdict] += 1
            elif entry.kind == "order" and entry.verdict in ("hold", "resume"):
                self.order = Order.model_validate(entry.evidence)
            if entry.kind in DECISIONS:
                self.decisions[entry.kind, entry.verdict, reason_code(entry)] += 1
            if entry.kind == "gate":
                self.trained[entry.subject.removeprefix("v")] = datetime.fromisoformat(entry.evidence["plan"]["as_of"])
            elif entry.kind == "retrain":
                self.look, self.state = last_look(each for each in (self.look, entry) if each is not None)

    def _run(self, entry: Entry) -> None:
        dag, trigger = entry.subject, entry.actor.partition(":")[0]
        self.runs[dag, entry.verdict, trigger] += 1
        self.run_seconds[(dag,)] += entry.evidence["seconds"] or 0.0
        if trigger != "backfill":
            self.ended[dag, entry.verdict] = entry.recorded_at
        costs: Mapping[str, Mapping[str, float]] = entry.evidence.get("costs", {})
        for step, cost in costs.items():
            self.step_seconds[dag, step] += cost["seconds"]
            self.cpu_seconds[dag, step] += cost["cpu_seconds"]
            self.peak_bytes[dag, step] = cost["peak_bytes"]

    def _snapshot(self, ref: SnapshotRef) -> None:
        if self.snapshot is None or ref.last_day >= self.snapshot.last_day:
            self.snapshot = ref

    def _manifest(self, entry: Entry) -> None:
        document, before = Manifest.model_validate(entry.evidence), self.manifest
        if before is None or document.champion != before.champion:
            self.champion_since = entry.recorded_at
        self.manifest = document


DECISIONS = ("gate", "canary", "promotion", "rollback", "experiment", "retrain", "skew", "rebuild", "landing")
"""Kinds of entries that are verdicts."""


def reason_code(entry: Entry) -> str:
    """Why, in a word of a closed set: the code that a retrain decision begins with; else the first check that failed, or none."""
    if entry.kind == "retrain":
        return str(entry.evidence["decision"]["reason"]).partition(":")[0].replace(" ", "_")
    decision: Any = entry.evidence.get("decision") or {}
    return next((str(check["name"]) for check in decision.get("checks", ()) if not check["passed"]), "none")
