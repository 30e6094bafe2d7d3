"""The landed folder ``<data>/raw/<table>/<day>.parquet``: who may write it, and which knowledge each file holds.

Publishing a day and taking a snapshot exclude each other by one file lock, which the system frees when its holder dies.
Readers need none: every file is replaced by rename.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from ml import shared
from ml.config import Table, load_params
from ml.data.versions import Merged, merge
from ml.settings import settings

log = logging.getLogger(__name__)

Outcome = Literal["landed", "unchanged", "stale"]


class Landed(TypedDict, total=False):
    """What is noted beside a landed file."""

    as_of: str
    """ISO 8601: the file holds what was known then."""
    rows: int
    """How many it holds, versions included."""
    coming: str
    """ISO 8601: a landing as of then was begun, and not ended."""


def raw_folder() -> Path:
    return settings().data / "raw"


def raw_file(table: str, day: str) -> Path:
    return raw_folder() / table / f"{day}.parquet"


def landed_days(table: str) -> list[str]:
    """Days with a file, ISO dates, ascending."""
    return sorted(path.stem for path in (raw_folder() / table).glob("*.parquet"))


def write_rows(rows: pa.Table, path: Path) -> None:
    """Writes Parquet whole or not at all, with the same bytes for the same rows: fixed settings, no metadata, one row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = rows.replace_schema_metadata(None).combine_chunks()
    aside = path.with_name(f".{uuid.uuid4().hex}")
    pq.write_table(plain, aside, compression="zstd", version="2.6", store_schema=False, row_group_size=max(1, plain.num_rows))
    aside.replace(path)


def read_rows(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read()


@contextmanager
def locked() -> Iterator[None]:
    """Waits for, and holds, the only right to change the landed folder.

    Of several machines, each finds what the last one left, and what it leaves itself is everybody's once all went well.
    """
    settings().data.mkdir(parents=True, exist_ok=True)
    with open(settings().data / ".landed.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with shared.lock("landed"):
            before = shared.pull(*_all())
            yield
            shared.push(before, *_all())


def refresh() -> None:
    """Brings the landed folder up to date, where several machines land."""
    if shared.wanted():
        settings().data.mkdir(parents=True, exist_ok=True)
        with open(settings().data / ".landed.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            shared.pull(*_all())


def _all() -> tuple[Path, Path]:
    return raw_folder(), settings().data / "landed.json"


def notes() -> dict[str, dict[str, Landed]]:
    """What is noted about landed files: table → day → `Landed`."""
    try:
        return dict(json.loads((settings().data / "landed.json").read_text()))
    except FileNotFoundError:
        return {}


def newest_as_of() -> datetime | None:
    """The latest knowledge in any landed file."""
    moments = [datetime.fromisoformat(note["as_of"]) for days in notes().values() for note in days.values() if "as_of" in note]
    return max(moments, default=None)


def publish(files: dict[str, dict[str, Path]], as_of: datetime) -> dict[str, dict[str, Outcome]]:
    """Brings staged files into the landed folder, each by one rename.

    Nothing that was known before is lost: where the source corrected a row, or delivered it late, its file holds the versions
    (see `ml.data.versions`); a row that the source no longer has is kept, with a warning. A file whose content stays the same is
    not touched. A day that was landed with newer knowledge is left alone (``stale``): an older landing that comes late may not
    undo it. Doing it twice, or again after a kill half-way, ends the same.

    Args:
        files: table → day → staged file, on the same file system. They are kept (linked, not moved), so that a retry finds them.
        as_of: the knowledge in them.

    Returns:
        table → day → what became of it.
    """
    outcomes: dict[str, dict[str, Outcome]] = {}
    with locked():
        noted = notes()
        for table, days in files.items():
            for day in days:
                _announce(noted.setdefault(table, {}).setdefault(day, {}), as_of.isoformat())
        _write_notes(noted)
        for table, days in files.items():
            found = {day: _publish_one(table, day, staged, as_of, noted[table]) for day, staged in sorted(days.items())}
            outcomes[table] = {day: outcome for day, (outcome, _) in found.items()}
            _report(table, {day: merged for day, (_, merged) in found.items() if merged}, as_of)
        _write_notes(noted)
    return outcomes


def _announce(note: Landed, moment: str) -> None:
    """Notes that a landing begins, so that after a kill it is known how new its file may be."""
    killed = note.get("coming", "")
    if "" < killed < moment:
        note["as_of"] = max(note.get("as_of", ""), killed)
    note["coming"] = max(killed, moment)


def _publish_one(table: str, day: str, staged: Path, as_of: datetime, known: dict[str, Landed]) -> tuple[Outcome, Merged | None]:
    target, spec = raw_file(table, day), load_params().tables[table]
    if spec.event_time is None and not target.exists():
        current = current_static(table, date.fromisoformat(day))
        if current is not None and same_rows(current, staged):
            del known[day]
            return "unchanged", None
    before = _knowledge(known[day], as_of)
    if target.exists() and before is None:
        if known[day].get("coming") == as_of.isoformat():
            del known[day]["coming"]
        return "stale", None
    changed, merged = not (target.exists() and same_rows(target, staged)), None
    if changed:
        merged = _merged(table, spec, staged, target, before or as_of, as_of)
        changed = _replace(target, staged, merged)
    known[day] = Landed(as_of=as_of.isoformat(), rows=pq.read_metadata(target).num_rows)
    return "landed" if changed else "unchanged", merged


def _knowledge(note: Landed, as_of: datetime) -> datetime | None:
    """As of when a file may at most have been written before this landing; None: with newer knowledge than this one's.

    A landing that was killed leaves its moment in ``coming``; the file may be its work or not. The same landing again, which is
    how it is retried, is not held against itself.
    """
    moments = [datetime.fromisoformat(note[name]) for name in ("as_of", "coming") if name in note]
    if any(moment > as_of for moment in moments):
        return None
    return max((m for m in moments if m < as_of), default=as_of)


def _merged(table: str, spec: Table, staged: Path, target: Path, before: datetime, as_of: datetime) -> Merged:
    rows = read_rows(staged)
    if spec.event_time is None:
        return Merged(rows)
    landed = None
    try:
        landed = read_rows(target) if target.exists() else None
    except pa.ArrowException as error:
        log.warning("%s cannot be read, and is replaced: %s", target, error)
    return merge(table, spec, rows, landed, before, as_of)


def _replace(target: Path, staged: Path, merged: Merged) -> bool:
    """Puts the rows in place unless they are there; made beside the staged file: a snapshot never sees a half-made name."""
    aside = staged.with_name(f".{uuid.uuid4().hex}")
    if merged.rows.equals(read_rows(staged)):
        os.link(staged, aside)
    else:
        write_rows(merged.rows, aside)
        if target.exists() and same_rows(target, aside):
            aside.unlink()
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(target)
    return True


def _report(table: str, merged: dict[str, Merged], as_of: datetime) -> None:
    """At most one line per table for each thing that a person should hear of."""

    def said(counts: dict[str, int]) -> str:
        days = [f"{count:,} of {day}" for day, count in sorted(counts.items()) if count]
        return ", ".join(days[:3]) + (f" and of {len(days) - 3} more days" if len(days) > 3 else "")

    if withdrawn := said({day: one.withdrawn for day, one in merged.items()}):
        log.warning("table '%s': the source no longer has rows that were landed (%s); they are kept", table, withdrawn)
    if copies := said({day: one.copies for day, one in merged.items()}):
        log.warning("table '%s': rows share their key with another (%s); one of each is landed", table, copies)
    if recorded := said({day: one.recorded for day, one in merged.items()}):
        log.info("table '%s': rows were corrected or came late (%s); they count from %s", table, recorded, as_of)


def _write_notes(noted: dict[str, dict[str, Landed]]) -> None:
    aside = settings().data / f".landed.{uuid.uuid4().hex}"
    aside.write_text(json.dumps(noted, sort_keys=True, indent=1))
    aside.rename(settings().data / "landed.json")


def there_from(day: str) -> datetime:
    """From when the file of a table without event time is there for readers: the midnight after its day."""
    return datetime.combine(date.fromisoformat(day) + timedelta(days=1), datetime.min.time())


def current_static(table: str, day: date) -> Path | None:
    """Of a table without event time, what a reader gets at the end of `day`: the newest file not after it, or else the oldest."""
    days = landed_days(table)
    chosen = [d for d in days if d <= day.isoformat()][-1:] or days[:1]
    return raw_file(table, chosen[0]) if chosen else None


def same_rows(one: Path, other: Path) -> bool:
    """Equal bytes; or equal rows, where another version of the Parquet writer made the bytes."""
    if one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes():
        return True
    try:
        return bool(read_rows(one).equals(read_rows(other)))
    except pa.ArrowException:  # a landed file that cannot be read is to be replaced
        return False
