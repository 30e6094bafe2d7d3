"""Which days have landed, were scored, are missing or in quarantine: from names of files and the landing's notes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ml import shared
from ml.config import load_params
from ml.settings import settings

Status = Literal["quarantined", "missing", "scored", "landed"]
ONE = timedelta(days=1)
REASONS = 20
"""Quarantine folders whose reasons are shown, newest first."""


@dataclass(frozen=True)
class Day:
    """`rows`: landed, by table with event time. `missing`: such tables without a file. `quarantined`: tables with refused rows.
    `as_of`: the newest knowledge in any of its files, ISO 8601.
    """

    day: date
    rows: dict[str, int]
    missing: list[str]
    scored: bool
    quarantined: list[str]
    as_of: str

    @property
    def status(self) -> Status:
        """The worst that is true of the day."""
        if self.quarantined:
            return "quarantined"
        if self.missing:
            return "missing"
        return "scored" if self.scored else "landed"


def days(now: datetime) -> list[Day]:
    """From the first day that landed or was scored to yesterday (of data time), or to the last of them if that is later."""
    if shared.wanted():
        from ml.data import landed as landings  # heavy, and on one machine not needed

        landings.refresh()
    shared.add(settings().var / "predictions" / "batch", _root())
    tables = [name for name, table in load_params().tables.items() if table.event_time is not None]
    landed = {table: _names(settings().data / "raw" / table) for table in tables}
    scored = _names(settings().var / "predictions" / "batch")
    refused = _refused()
    known = sorted({*scored, *(day for days in landed.values() for day in days), *refused})
    if not known:
        return []
    notes = _notes()
    last = max(known[-1], min(now.date() - ONE, known[-1] + 400 * ONE))
    return [
        Day(
            day,
            rows={
                table: notes.get(table, {}).get(day.isoformat(), {}).get("rows", 0) for table in tables if day in landed[table]
            },
            missing=[table for table in tables if day not in landed[table]],
            scored=day in scored,
            quarantined=sorted(refused.get(day, ())),
            as_of=max((notes.get(table, {}).get(day.isoformat(), {}).get("as_of", "") for table in tables), default=""),
        )
        for day in (known[0] + i * ONE for i in range((last - known[0]).days + 1))
    ]


def weeks(found: Sequence[Day]) -> list[list[Day | None]]:
    """Days in weeks from Monday; None where a week begins or ends outside."""
    if not found:
        return []
    padded: list[Day | None] = [None] * found[0].day.weekday() + list(found)
    padded += [None] * (-len(padded) % 7)
    return [padded[i : i + 7] for i in range(0, len(padded), 7)]


def reasons() -> list[dict[str, Any]]:
    """Why rows were refused, newest landing first: table, landing, rule or reason, count, first rows."""
    shared.add(_root())
    folders = sorted(_root().glob("*/*/reasons.json"), key=lambda path: path.stat().st_mtime, reverse=True)[:REASONS]
    return [
        {
            "table": path.parent.parent.name,
            "landing": path.parent.name,
            "rule": " ".join(str(one[key]) for key in ("column", "rule", "reason") if one.get(key)),
            "count": one.get("count"),
            "detail": one.get("detail") or one.get("file", ""),
            "rows": [str(row) for row in one.get("rows", [])[:3]],
        }
        for path in folders
        for one in json.loads(path.read_text())
    ]


def _root() -> Path:
    return settings().data / "quarantine"


def _refused() -> dict[date, set[str]]:
    found: dict[date, set[str]] = {}
    for path in _root().glob("*/*/*.parquet"):
        if (day := _day(path.stem)) is not None:
            found.setdefault(day, set()).add(path.parent.parent.name)
    return found


def _names(folder: Path) -> set[date]:
    return {day for path in folder.glob("*.parquet") if (day := _day(path.stem)) is not None}


def _day(name: str) -> date | None:
    """Names of other files, of a whole bad file in quarantine for instance, are no days."""
    try:
        return date.fromisoformat(name)
    except ValueError:
        return None


def _notes() -> dict[str, dict[str, dict[str, Any]]]:
    try:
        return dict(json.loads((settings().data / "landed.json").read_text()))
    except FileNotFoundError:
        return {}
