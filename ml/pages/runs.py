"""What one run of a DAG wrote into the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ml import ledger
from ml.pages import lines
from ml.refs import run_key

KINDS = {
    "ingest": ("landing", "snapshot"),
    "train": ("gate",),
    "release": ("canary", "promotion", "rollback"),
    "drift": ("retrain", "skew", "experiment"),
}
"""Kinds of entries that each DAG writes; other DAGs write none."""
MOST = 40


def written(dag: str, run: str, began: datetime | None, ended: datetime | None) -> dict[str, Any]:
    """lines, candidate (a version), watched (the day's line): what the run wrote, oldest first. One query, or none.

    A training run's entry is found by the run's key. Others are those of the DAG's kinds that were recorded while the run was at
    work: a DAG has one run at a time. So an entry that a person makes by hand meanwhile is among them.

    Args:
        began, ended: wall clock, UTC without a zone; None: not yet.
    """
    kinds = KINDS.get(dag, ())
    found: Sequence[ledger.Entry] = []
    if kinds and began is not None:
        newest = ledger.query(kinds, recorded_until=ended, limit=MOST)
        own = f"gate-{run_key(f'{dag}/{run}')}"
        found = [entry for entry in reversed(newest) if entry.recorded_at >= began or entry.key == own]
    versions = [version for entry in found if (version := lines.version_of(entry.subject))]
    return {
        "lines": lines.lines(found),
        "versions": list(dict.fromkeys(versions)),
        "watched": next((entry.evidence["line"] for entry in reversed(found) if "line" in entry.evidence), None),
    }


def newest(dag: str) -> dict[str, Any]:
    """The newest entries of a DAG's kinds, newest first; none for a DAG that writes none. Two queries."""
    kinds = KINDS.get(dag, ())
    return {"now": ledger.data_now(), "lines": lines.lines(ledger.query(kinds, limit=MOST)) if kinds else []}
