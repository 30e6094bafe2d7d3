"""Segment files of the prediction log: JSON lines while a process writes them, Parquet when they are closed.

The writer holds a lock on its segment, which the system lets go when the process ends, however it ends. A segment that can be
locked is therefore nobody's, and whoever finds it rotates it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.json as pj
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("entity_id", pa.string()),
        ("event_time", pa.timestamp("us")),
        ("prediction_time", pa.timestamp("us")),
        ("logged_at", pa.timestamp("us")),
        ("model_version", pa.string()),
        ("probability", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("request_id", pa.string()),
        ("tick", pa.timestamp("us")),
        ("features", pa.string()),
        ("cohort", pa.string()),
        ("manifest", pa.int64()),
        ("seconds", pa.float64()),
        ("model", pa.string()),
    ]
)
"""Columns of a prediction log; `features` holds the values as served, as a JSON object (which there are differs by model);
`model` is the name under which it was served, null in segments of before: the problem's."""
SINCE = {"cohort": "champion", "manifest": 0, "seconds": 0.0}
"""Columns that logs did not always have, and what they are where they are missing."""
ROWS = 10_000
"""Of a row group: as much as a reader must read when a group's statistics say that a wanted row may be in it."""
BLOCK = 4 << 20

logger = logging.getLogger(__name__)


def begin(folder: Path) -> tuple[IO[bytes], Path]:
    """A new segment, empty and locked. It gets its name when it is locked, so that nobody takes it for an abandoned one.

    Raises:
        OSError: the folder cannot be made or written, or its file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}-{os.uname().nodename}-{os.getpid()}"
    aside, path = folder / f".{stem}.new", folder / f"{stem}.jsonl"
    segment = aside.open("xb", buffering=0)
    try:
        fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside.rename(path)
    except OSError:
        segment.close()
        aside.unlink(missing_ok=True)
        raise
    return segment, path


def rotate(folder: Path) -> int:
    """Turns every segment that nobody writes into Parquet, rows by event time; a torn last line is left out, with a warning.

    Any number of processes may do so at once, and be killed at any moment. What cannot be rotated (a full disk) stays readable
    as it is, is reported, and is tried again by the next who comes.

    Returns:
        How many were rotated.
    """
    count = 0
    for path in sorted(folder.glob("*.jsonl")):
        try:
            count += _rotate(path)
        except (OSError, pa.ArrowException):
            logger.exception("prediction log: %s stays as it is", path.name)
    return count


def read(folder: Path, condition: pc.Expression, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
    """Entries of all segments, open and closed, for which `condition` on columns of `SCHEMA` holds; each once.

    Of Parquet files, only the row groups are read in which the statistics allow such an entry.
    """
    lines = sorted(folder.glob("*.jsonl"))  # listed first: what is rotated between the two listings is then in the second
    closed = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    parts = [pa.schema([SCHEMA.field(name) for name in columns]).empty_table()]
    for path in lines:
        if path.stem in closed:  # whoever rotated it was killed before removing it
            continue
        try:
            found = parsed(path.read_bytes(), path.name)
        except FileNotFoundError:  # rotated since it was listed
            closed[path.stem] = path.with_suffix(".parquet")
        else:
            parts.append(found.filter(condition).select(list(columns)))
    if closed:
        files = ds.dataset([str(path) for path in closed.values()], schema=SCHEMA)
        parts.append(files.to_table(columns=list(columns), filter=condition))
    return pa.concat_tables(parts).combine_chunks()


def parsed(lines: bytes, name: str) -> pa.Table:
    """Entries of a segment's bytes, up to the last whole line; a line that is no entry is left out, with a warning.

    Args:
        name: of the segment, for the warning.
    """
    whole = lines[: lines.rfind(b"\n") + 1]
    if not whole:
        return SCHEMA.empty_table()
    try:
        found = pj.read_json(
            pa.BufferReader(whole),
            pj.ReadOptions(use_threads=False, block_size=BLOCK),
            pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:  # damaged, or of the time when `features` was not yet a string
        found = pa.Table.from_pylist(_one_by_one(whole, name), SCHEMA)
    return completed(found.select(SCHEMA.names))


def completed(entries: pa.Table) -> pa.Table:
    """Fills the columns that a log of an earlier version did not have."""
    for column, value in SINCE.items():
        filled = pc.fill_null(entries[column], pa.scalar(value, SCHEMA.field(column).type))
        entries = entries.set_column(SCHEMA.get_field_index(column), SCHEMA.field(column), filled)
    return entries


def named(entries: pa.Table, name: str) -> pa.Table:
    """Fills `model`, where a log of an earlier version did not say it."""
    return entries.set_column(entries.column_names.index("model"), SCHEMA.field("model"), pc.fill_null(entries["model"], name))


def _rotate(path: Path) -> bool:
    try:
        segment = path.open("r+b")
    except FileNotFoundError:  # somebody else did it
        return False
    with segment:
        try:
            fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its writer lives, or somebody else is at it
            return False
        done = path.with_suffix(".parquet")
        if not done.exists():
            lines = segment.read()
            if not lines.endswith(b"\n") and lines:
                logger.warning("prediction log: torn line at the end of %s left out", path.name)
            write(parsed(lines, path.name).sort_by("event_time"), done)
        path.unlink(missing_ok=True)
    return True


def write(entries: pa.Table, target: Path) -> None:
    """Written aside, synced and renamed: the file is whole or not there."""
    aside = target.with_name(f".{target.name}.aside")
    try:
        with aside.open("wb") as file:
            pq.write_table(entries, file, compression="zstd", row_group_size=ROWS)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _one_by_one(lines: bytes, name: str) -> list[dict[str, Any]]:
    entries = []
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            for field in ("event_time", "prediction_time", "logged_at", "tick"):
                entry[field] = None if entry[field] is None else datetime.fromisoformat(entry[field])
            if not isinstance(entry["features"], str):
                entry["features"] = json.dumps(entry["features"])
        except (ValueError, KeyError, TypeError):
            logger.warning("prediction log: torn line in %s left out", name)
            continue
        entries.append(entry)
    return entries
