"""Where people look: a backfill adds days to the overview, and leaves the pages of days that were decided about."""

from __future__ import annotations

import fcntl
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from ml import ledger, store
from ml.monitoring.daily import _publish
from ml.monitoring.looks import KIND, REPORTED
from ml.settings import settings


def watched(day: str, verdict: str, text: str = "") -> None:
    line = {"day": day, "text": text or verdict, "verdict": verdict, "metric": "log_loss"}
    ledger.record(KIND, f"{day}-{verdict}", datetime.fromisoformat(day), "v1", verdict, "why", {"line": line})


def published(day: str, trigger: str, content: str) -> None:
    document: dict[str, Any] = {"day": day, "title": "late"}
    _publish(document, store.put(content.encode()), trigger)


def page(name: str) -> str:
    return (settings().var / "monitoring" / f"{name}.html").read_text()


def test_backfill__leaves_the_page_of_a_day_that_was_decided_about(workspace: Path) -> None:
    watched("2013-04-18", "wait", "the decision")
    published("2013-04-18", "schedule", "decided")
    watched("2013-04-18", REPORTED, "the backfill")
    published("2013-04-18", "backfill", "backfilled")
    assert page("2013-04-18") == "decided"
    assert "the decision" in page("index")
    assert "the backfill" not in page("index")


def test_backfill__writes_the_page_of_a_day_that_nobody_watched(workspace: Path) -> None:
    watched("2013-04-18", REPORTED)
    published("2013-04-18", "backfill", "first")
    published("2013-04-18", "backfill", "again")
    assert page("2013-04-18") == "again"
    watched("2013-04-18", "wait")
    published("2013-04-18", "schedule", "decided")
    assert page("2013-04-18") == "decided"


def test_backfill__of_an_old_day_does_not_shorten_the_overview(workspace: Path) -> None:
    watched("2013-04-20", "wait")
    published("2013-04-20", "schedule", "new")
    watched("2013-04-18", REPORTED)
    published("2013-04-18", "backfill", "old")
    assert "2013-04-20.html" in page("index")
    assert "2013-04-18.html" in page("index")


def test_overview__is_made_by_one_at_a_time_from_what_the_ledger_says_then(workspace: Path) -> None:
    watched("2013-04-18", REPORTED)
    published("2013-04-18", "backfill", "first")
    with open(settings().var / "monitoring" / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=published, args=("2013-04-19", "backfill", "second"))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "another is at it"
        watched("2013-04-19", REPORTED)
        watched("2013-04-20", REPORTED)
    waiting.join(30)
    assert "2013-04-20.html" in page("index"), "the ledger was read after the wait"
