"""The landed folder ``<data>/raw/<table>/<day>.parquet``: who may write it, and which knowledge each file holds.

Publishing a day and taking a snapshot exclude each other by one file lock, which the system frees when its holder dies.
Readers need none: every file is replaced by rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from ml.config import load_params, settings

Outcome = Literal["landed", "unchanged", "stale"]


class Landed(TypedDict):
    """What is noted beside a landed file."""

    as_of: str
    """ISO 8601: the file holds what was known then."""
    rows: int


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
    """Waits for, and holds, the only right to change the landed folder."""
    settings().data.mkdir(parents=True, exist_ok=True)
    with open(settings().data / ".landed.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def notes() -> dict[str, dict[str, Landed]]:
    """What is noted about landed files: table → day → `Landed`."""
    try:
        return dict(json.loads((settings().data / "landed.json").read_text()))
    except FileNotFoundError:
        return {}


def newest_as_of() -> datetime | None:
    """The latest knowledge in any landed file."""
    moments = [datetime.fromisoformat(note["as_of"]) for days in notes().values() for note in days.values()]
    return max(moments, default=None)


def publish(files: dict[str, dict[str, Path]], as_of: datetime) -> dict[str, dict[str, Outcome]]:
    """Moves staged files into the landed folder, each by one rename.

    A file with the same content is not touched. A day that was landed with newer knowledge is left alone (``stale``): an older
    landing that comes late may not undo it. Doing it twice, or again after a kill half-way, ends the same.

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
            known = noted.setdefault(table, {})
            for day, staged in sorted(days.items()):
                outcomes.setdefault(table, {})[day] = _publish_one(table, day, staged, as_of, known)
        aside = settings().data / f".landed.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(noted, sort_keys=True, indent=1))
        aside.rename(settings().data / "landed.json")
    return outcomes


def _publish_one(table: str, day: str, staged: Path, as_of: datetime, known: dict[str, Landed]) -> Outcome:
    target = raw_file(table, day)
    if load_params().tables[table].event_time is None and not target.exists():
        current = current_static(table, date.fromisoformat(day))
        if current is not None and same_rows(current, staged):
            return "unchanged"
    note = known.get(day)
    if target.exists() and note and datetime.fromisoformat(note["as_of"]) > as_of:
        return "stale"
    changed = not (target.exists() and same_rows(target, staged))
    if changed:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = staged.with_name(f".{uuid.uuid4().hex}")  # beside the staged file: a snapshot never sees a half-made name
        os.link(staged, aside)
        aside.replace(target)
    known[day] = Landed(as_of=as_of.isoformat(), rows=pq.read_metadata(target).num_rows)
    return "landed" if changed else "unchanged"


def current_static(table: str, day: date) -> Path | None:
    """The file that a reader gets for a table without event time on `day`: the newest not after it, or else the oldest."""
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
