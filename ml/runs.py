"""What became of a DAG run, as an entry of the ledger; and whom a run acts for.

The scheduler must neither wait for the ledger nor hold its connections, and it keeps no code of `ml` (a task reads it anew):
it hands a run over as JSON to a process of its own, ``python -m ml.runs``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ml import costs, ledger
from ml.errors import EvergreenError
from ml.refs import naive_utc

KIND = "run"
TRIGGERS = {"scheduled": "schedule", "asset_triggered": "request", "backfill": "backfill"}
"""Airflow's type of a run → ours; all others are ``manual``."""
LONGEST_KEY = 255
TRIES, WAIT_SECONDS = 5, 10.0
"""How often, and how long after one another, a ledger that does not answer is asked."""


def trigger_of(run_type: Any) -> str:
    """``schedule``, ``request``, ``manual`` or ``backfill``, of Airflow's type of a run: its enum or that one's value."""
    return TRIGGERS.get(str(getattr(run_type, "value", run_type)), "manual")


def actor(run_type: Any, user: str | None) -> str:
    """Whom a run acts for: ``schedule``, ``request``, ``manual:admin``, ``backfill:admin``."""
    trigger = trigger_of(run_type)
    return f"{trigger}:{user}" if user and trigger in ("manual", "backfill") else trigger


def why(error: BaseException) -> str:
    """The last line of why a task failed: of what is wrong, not of its cure."""
    cause = error.__cause__ if isinstance(error.__cause__, EvergreenError) else error
    said = cause.what if isinstance(cause, EvergreenError) else str(cause)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = "" if isinstance(cause, EvergreenError) else f"{type(cause).__name__}: "
    return named + (lines[-1] if lines else "without a message")


def key(*parts: str) -> str:
    """A ledger key of parts that may be long: one that would not fit ends in a digest of the whole."""
    whole = "-".join(parts)
    return (
        whole if len(whole) <= LONGEST_KEY else f"{whole[: LONGEST_KEY - 17]}~{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
    )


def record(run: Mapping[str, Any]) -> bool:
    """Writes a finished run into the ledger, once per end (a run that was cleared ends again).

    Args:
        run: ``dag``, ``run_id``, ``state``, ``run_type``, ``user``, ``started``, ``ended``, ``interval`` (start and end, or
            None), ``run_after``, ``conf``, ``tasks`` (number by state), ``reason`` and ``costs`` (by task); times in ISO 8601.
    """
    started, ended = (datetime.fromisoformat(run[name]) if run[name] else None for name in ("started", "ended"))
    who = actor(run["run_type"], run["user"])
    evidence = {
        "run_id": run["run_id"],
        "run_type": run["run_type"],
        "who": who,
        "seconds": round((ended - started).total_seconds(), 3) if started and ended else None,
        "interval": run["interval"],
        "tasks": run["tasks"],
        "conf": run["conf"],
        "costs": {task: costs.together(each) for task, each in run["costs"].items()},
    }
    with ledger.acting(who):
        return ledger.record(
            KIND,
            key(KIND, run["dag"], run["run_id"], run["ended"] or "unended"),
            _as_of(run),
            run["dag"],
            run["state"],
            run["reason"],
            evidence,
        )


def _as_of(run: Mapping[str, Any]) -> datetime:
    """The end of the data interval; of a run without one, when it was asked for."""
    moment = datetime.fromisoformat(run["interval"][1] if run["interval"] else run["run_after"])
    return naive_utc(moment)


def main() -> int:
    """Reads a run from standard input and records it; says on standard error why it could not."""
    run = json.load(sys.stdin)
    for attempt in range(1, TRIES + 1):
        try:
            record(run)
            return 0
        except sa.exc.OperationalError as error:  # locked, or away for a moment
            problem = f"{error.orig}"
            if attempt < TRIES:
                time.sleep(WAIT_SECONDS)
        except (EvergreenError, sa.exc.SQLAlchemyError, OSError) as error:
            problem = str(error)
            break
    told = f"the ledger has no entry of {run['dag']}, run {run['run_id']} ({run['state']}: {run['reason']}): {problem}"
    print(f"error: {told}\n  → check EVERGREEN_LEDGER; the run itself is not affected, Airflow's grid shows it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
