"""The prediction log: every answer, off the request path.

A bounded queue and one writer thread append JSON lines to segment files in ``<var>/predictions/online``. A graceful stop writes
all that is queued; ``kill -9`` loses at most the queue and the last second. What does not fit is dropped and counted: a full
disk must not slow an answer.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ml.config import settings
from ml.features.definitions import Value

FLUSH_SECONDS = 1.0
SEGMENT_BYTES = 64 << 20
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
    ]
)
"""Columns of `read_online`; `features` holds the values as served, as a JSON object (which there are differs by model)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One answer. Times are UTC without a zone; `logged_at` is the wall clock, the others are data time."""

    entity_id: str
    event_time: datetime
    prediction_time: datetime
    logged_at: datetime
    model_version: str
    probability: float
    flags: list[str]
    request_id: str
    tick: datetime | None
    features: dict[str, Value]
    cohort: str = "champion"
    """Of `ml.serving.router`; "shadow" for an answer that nobody was given."""
    manifest: int = 0
    """Version of the manifest under which it was answered."""
    seconds: float = 0.0
    """Server time of its request, from body read to answer."""


def folder() -> Path:
    """Where the segments of online predictions are."""
    return settings().var / "predictions" / "online"


class PredictionLog:
    """Appends entries to segment files of this process.

    Args:
        target: folder of the segments; created when missing.
        capacity: entries that may wait; more are dropped.
        on_written: called with the number of entries after each write.
        on_dropped: called with the number of entries that were lost: the queue was full, or the disk refused them.
    """

    def __init__(
        self,
        target: Path,
        capacity: int = 50_000,
        on_written: Callable[[int], object] = lambda n: None,
        on_dropped: Callable[[int], object] = lambda n: None,
    ) -> None:
        self._target, self._on_written, self._on_dropped = target, on_written, on_dropped
        self._queue: queue.Queue[Entry] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._segment: IO[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, entries: list[Entry]) -> None:
        """Queues entries; never waits."""
        for position, entry in enumerate(entries):
            try:
                self._queue.put_nowait(entry)
            except queue.Full:
                self._on_dropped(len(entries) - position)
                return

    def close(self) -> None:
        """Writes all that is queued, syncs it to the disk and stops the writer."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._write_queued()
        self._write_queued()
        self._end_segment()

    def _write_queued(self) -> None:
        entries = [self._queue.get_nowait() for _ in range(self._queue.qsize())]  # this thread alone takes
        if not entries:
            return
        try:
            segment = self._open_segment()
            segment.write(b"".join(_line(entry) for entry in entries))
            segment.flush()
        except (OSError, ValueError, TypeError):
            logger.exception("prediction log: %d entries lost", len(entries))
            self._on_dropped(len(entries))
            self._segment = None  # what is half written there is a torn line; go on in a new file
            return
        self._on_written(len(entries))
        if segment.tell() > SEGMENT_BYTES:
            self._end_segment()

    def _open_segment(self) -> IO[bytes]:
        if self._segment is None:
            self._target.mkdir(parents=True, exist_ok=True)
            started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            self._segment = (self._target / f"{started}-{os.uname().nodename}-{os.getpid()}.jsonl").open("ab")
        return self._segment

    def _end_segment(self) -> None:
        if self._segment is None:
            return
        try:
            self._segment.flush()
            os.fsync(self._segment.fileno())
            self._segment.close()
        except OSError:
            logger.exception("prediction log: closing %s failed", self._segment.name)
        self._segment = None


def read_online(start: datetime, end: datetime, source: Path | None = None) -> pa.Table:
    """Logged answers to rows whose event time is in [start, end), of all processes, in the order (event_time, logged_at).

    A row that was asked for twice is in it twice. A torn line (the writer was killed while writing) is left out.

    Returns:
        Columns of `SCHEMA`; no rows when nothing was logged.
    """
    segments = sorted((source or folder()).glob("*.jsonl"))
    chosen = [entry for path in segments for entry in _entries(path, start, end)]
    return pa.Table.from_pylist(chosen, SCHEMA).sort_by([("event_time", "ascending"), ("logged_at", "ascending")])


def answers_by(version: str, source: Path | None = None) -> dict[str, Any]:
    """How many answers a model version gave, and to rows of which time.

    Returns:
        count, flagged (of them, the degraded ones), first and last event time (None when there are none).
    """
    count, flagged, first, last = 0, 0, datetime.max, datetime.min
    for path in sorted((source or folder()).glob("*.jsonl")):
        for entry in _entries(path, datetime.min, datetime.max):
            if entry["model_version"] == version:
                count, flagged = count + 1, flagged + bool(entry["flags"])
                first, last = min(first, entry["event_time"]), max(last, entry["event_time"])
    return {"count": count, "flagged": flagged, "first": first if count else None, "last": last if count else None}


def _entries(path: Path, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                logger.warning("prediction log: torn line in %s left out", path.name)
                continue
            if not start <= datetime.fromisoformat(entry["event_time"]) < end:
                continue
            for name in ("event_time", "prediction_time", "logged_at", "tick"):
                entry[name] = None if entry[name] is None else datetime.fromisoformat(entry[name])
            entry["features"] = json.dumps(entry["features"])
            yield entry


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), default=datetime.isoformat, separators=(",", ":")).encode() + b"\n"
