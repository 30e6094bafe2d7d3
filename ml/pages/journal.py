"""The ledger: entries by kind, subject, actor and time; one entry whole; and what was in production at a moment."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ml import ledger
from ml.errors import ConfigError, NotFoundError
from ml.pages import lines, spans
from ml.refs import naive_utc
from ml.serving import manifest

PAGE = 50
"""Entries on one page."""


def collect(
    kind: str = "", subject: str = "", actor: str = "", since: datetime | None = None, until: datetime | None = None,
    before: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """now, lines (newest first), kinds and actors to choose from, older: the id before which the next page begins. Four queries.

    Args:
        kind, subject, actor: exactly these; empty: any.
        since, until: data time, both included.
        before: only entries written before the one with this id.
    """
    found = ledger.query(
        [kind] if kind else None, subject or None, actor or None, since=since, until=until, before_id=before, limit=PAGE + 1
    )
    column = ledger.entries_table.c
    with ledger.engine().connect() as connection:
        kinds = sorted(connection.execute(sa.select(column.kind).distinct()).scalars())
        actors = sorted(connection.execute(sa.select(column.actor).distinct()).scalars())
    return {
        "now": ledger.data_now(),
        "lines": lines.lines(found[:PAGE]),
        "kinds": kinds,
        "actors": actors,
        "older": found[PAGE - 1].id if len(found) > PAGE else None,
    }


def entry(number: int) -> dict[str, Any]:
    """One entry whole: line, key, digest, checks, evidence as text. Two queries.

    Raises:
        NotFoundError: there is none with this number.
    """
    found = next(iter(ledger.query(before_id=number + 1, limit=1)), None)
    if found is None or found.id != number:
        raise NotFoundError(f"the ledger has no entry {number}", "see the list")
    decision = found.evidence.get("decision") or {}
    return {
        "now": ledger.data_now(),
        "line": lines.line(found),
        "key": found.key,
        "digest": found.digest,
        "checks": lines.checks(decision),
        "evidence": json.dumps(found.evidence, indent=2, sort_keys=True, ensure_ascii=False),
    }


def production(moment: datetime) -> dict[str, Any]:
    """What was in production at a moment of data time: the manifest in force, and since when its champion served. One query."""
    documents = manifest.history()
    current = spans.at(documents, moment)
    champion = next((span for span in reversed(spans.spans(documents)) if span.since <= moment), None)
    if champion is not None and champion.until is not None and champion.until <= moment:
        champion = None
    return {"moment": moment, "manifest": current, "champion": champion}


def moment(text: str) -> datetime | None:
    """What a person filled in: a day or a time, ISO 8601, UTC; None for nothing.

    Raises:
        ConfigError: it is none.
    """
    if not text.strip():
        return None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"{text!r} is no time", "write it like 2013-04-19 or 2013-04-19T05:00") from None
    return naive_utc(found)
