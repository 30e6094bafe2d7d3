"""Places whose ledgers tell of a good month, or of one thing that is wrong: what `ops.alert_faults` lets an exporter read.

    python -m ops.alert_place well|stale|missed|harm|frozen|old

Writes into the place that the environment names; the last day is yesterday.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from unittest import mock

from ml import ledger, store
from ops import history

DAYS = 30
CASES = ("well", "stale", "missed", "harm", "frozen", "old")


class Late(datetime):
    """A clock that is 30 hours late."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a plain one
        return datetime.now(tz) - timedelta(hours=30)


def make(case: str) -> None:
    """Thirty nights up to the last one. *stale*: up to three nights ago; *missed*: written down 30 hours ago, as by a clock that
    is late; *old*: with a single model, of the first night.
    """
    late = 3 if case == "stale" else 0
    start = datetime.now(UTC).date() - timedelta(days=DAYS + late)
    clock = Late if case == "missed" else datetime
    with mock.patch.object(ledger, "datetime", clock), ledger.locked(ledger.engine()) as connection:
        history.Maker(connection, DAYS, 1 if case == "old" else 6, start=start).make()
    if case == "harm":
        _look_again(harm={"verdict": "harmed", "excess": 0.05, "low": 0.02, "high": 0.08})
    elif case == "frozen":
        _look_again(phase="frozen")


def _look_again(phase: str = "", **changes: Any) -> None:
    """Another look at the newest day, that finds something else."""
    newest = ledger.query(["retrain"], limit=1)[0]
    document = json.loads(store.get(newest.evidence["report"])) | changes
    state = newest.evidence["state"] | ({"phase": phase} if phase else {})
    told = newest.evidence | {"report": store.put(json.dumps(document).encode()), "state": state}
    ledger.record("retrain", f"{newest.key}-again", newest.as_of, newest.subject, newest.verdict, newest.reason, told)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    make(parser.parse_args().case)
