"""The prediction log: every answer, off the request path.

A bounded queue and one writer thread give JSON lines to segment files below ``<var>/predictions/online``
(`ml.serving.segment_files`), or to a Kafka topic (`ml.serving.log_topic`). A graceful stop writes all that is queued; ``kill -9``
loses at most the queue: what came in the last twentieth of a second. What disk or brokers refuse waits in the queue; what does
not fit there is dropped and counted: a full disk must not slow an answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ml import shared
from ml.config import load_params
from ml.features.definitions import Value
from ml.serving import segments
from ml.serving.segment_files import SegmentFiles, folder
from ml.serving.segments import SCHEMA
from ml.settings import settings

__all__ = ["SCHEMA", "SHADOW", "Entry", "PredictionLog", "answers_by", "folder", "read_online", "since_manifest", "sink"]

FLUSH_SECONDS = 0.05
"""Often and little: a second of entries at once takes ten milliseconds from the answers."""
SHADOW = "shadow"
"""Cohort of answers that nobody was given: readers leave them out unless they ask."""
CHUNK = 64
"""Entries written at once: after that many, some 0.3 ms, the writer lets the answering threads in."""

_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE

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
    model: str | None = None
    """The name under which it was served; None: the problem's."""


class Sink(Protocol):
    """Where the lines go; one thread calls it."""

    def start(self) -> None: ...

    def write(self, lines: list[bytes]) -> None:
        """Takes all of them, or none.

        Raises:
            OSError: none, for now.
        """
        ...

    def settled(self) -> tuple[int, int]:
        """Since the last call: lines that are safe now, and lines that are lost."""
        ...

    def flushed(self) -> None:
        """Called when all that waited was written, or refused."""
        ...

    def close(self) -> None: ...


def sink() -> Sink:
    """Where the settings say that the log goes."""
    if topic := settings().kafka_log:
        from ml.serving.log_topic import LogTopic

        return LogTopic(topic)
    return SegmentFiles(folder())


class PredictionLog:
    """Writes entries, off the request path.

    Args:
        sink: where to; a folder stands for segment files in it.
        capacity: entries that may wait; more are dropped.
        on_written: called with the number of entries that are safe.
        on_dropped: called with the number of entries that were lost: the queue was full, or they cannot be written.
    """

    def __init__(
        self,
        sink: Sink | Path,
        capacity: int = 50_000,
        on_written: Callable[[int], object] = lambda n: None,
        on_dropped: Callable[[int], object] = lambda n: None,
    ) -> None:
        self._sink, self._capacity = SegmentFiles(sink) if isinstance(sink, Path) else sink, capacity
        self._on_written, self._on_dropped = on_written, on_dropped
        self._waiting: deque[Entry] = deque()  # its ends are atomic: no lock on the request path
        self._closing = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, entries: Sequence[Entry]) -> None:
        """Queues entries; never waits."""
        room = 0 if self._closing.is_set() else max(self._capacity - len(self._waiting), 0)
        if room < len(entries):
            self._on_dropped(len(entries) - room)
            entries = entries[:room]
        self._waiting.extend(entries)

    def close(self) -> None:
        """Writes all that is queued, and stops the writer."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        self._sink.start()
        while not self._closing.wait(FLUSH_SECONDS):
            self._write_waiting()
            self._sink.flushed()
            self._settle()
        self._write_waiting()
        if lost := len(self._waiting):
            self._on_dropped(lost)
        self._sink.close()
        self._settle()

    def _write_waiting(self) -> None:
        """Writes what waits, chunk by chunk; what is refused goes back, and is tried again at the next flush."""
        while self._waiting:
            chunk = [self._waiting.popleft() for _ in range(min(CHUNK, len(self._waiting)))]  # this thread alone takes
            lines = _lines(chunk)
            try:
                self._sink.write(lines)
            except OSError as error:
                self._waiting.extendleft(reversed(chunk))
                self._report(f"{type(error).__name__}: {error}")
                return
            self._report("")
            self._settle()
            if len(lines) < len(chunk):
                self._on_dropped(len(chunk) - len(lines))

    def _settle(self) -> None:
        written, lost = self._sink.settled()
        if written:
            self._on_written(written)
        if lost:
            self._on_dropped(lost)

    def _report(self, problem: str) -> None:
        if problem and not self._problem:
            logger.error("prediction log: entries wait in memory, %s", problem)
        if self._problem and not problem:
            logger.info("prediction log: writes again")
        self._problem = problem


def read_online(
    start: datetime, end: datetime, source: Path | None = None, shadows: bool = False, name: str | None = None
) -> pa.Table:
    """Logged answers to rows whose event time is in [start, end), of all processes, in the order (event_time, logged_at).

    A row that was asked for twice is in it twice. A torn line (the writer was killed while writing) is left out.

    Args:
        shadows: True adds the copies that shadow models answered (cohort "shadow").
        name: of the model, as it is served; default: the problem's. Others' answers are left out.

    Returns:
        Columns of `SCHEMA`; no rows when nothing was logged.
    """
    time_of = pc.field("event_time")
    inside = (time_of >= pa.scalar(start, pa.timestamp("us"))) & (time_of < pa.scalar(end, pa.timestamp("us")))
    found = _read(source, inside if shadows else inside & (pc.field("cohort") != SHADOW), name)
    return found.sort_by([("event_time", "ascending"), ("logged_at", "ascending")])


def since_manifest(version: int, source: Path | None = None, name: str | None = None) -> pa.Table:
    """All that was answered under a version of a model's manifest or a later one, shadow copies too, in the order it was logged.

    Args:
        name: as in `read_online`; each name counts its manifests by itself, so that the same number is another's too.

    Returns:
        Columns of `SCHEMA`; no rows when there are none.
    """
    return _read(source, pc.field("manifest") >= version, name).sort_by("logged_at")


def answers_by(version: str, source: Path | None = None, name: str | None = None) -> dict[str, Any]:
    """How many answers a model version gave (shadow copies are none), and to rows of which time.

    Args:
        name: as in `read_online`.

    Returns:
        count, flagged (of them, the degraded ones), first and last event time (None when there are none).
    """
    its_own = (pc.field("model_version") == version) & (pc.field("cohort") != SHADOW)
    found = _read(source, its_own, name, ["event_time", "flags", "model"])
    span = pc.min_max(found["event_time"]).as_py()
    flagged = pc.sum(pc.greater(pc.list_value_length(found["flags"]), 0)).as_py()
    return {"count": len(found), "flagged": flagged or 0, "first": span["min"], "last": span["max"]}


def _read(source: Path | None, condition: pc.Expression, name: str | None, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
    """Entries of one model name; those that name none are of the problem's."""
    default = load_params().problem.name
    wanted = name or default
    its_own = pc.field("model") == wanted
    if wanted == default:
        its_own |= pc.field("model").is_null()
    if source is None:
        shared.add(folder())
    return segments.named(segments.read(source or folder(), condition & its_own, columns), wanted)


def _lines(entries: list[Entry]) -> list[bytes]:
    """A line for each entry; one that is no JSON is left out, with an error."""
    try:
        return [_line(entry) for entry in entries]
    except TypeError as error:
        if len(entries) > 1:
            return [line for entry in entries for line in _lines([entry])]
        logger.error("prediction log: answer to %s in request %s lost: %s", entries[0].entity_id, entries[0].request_id, error)
        return []


def _line(entry: Entry) -> bytes:
    """One line of JSON; `features` is a string in it, so that a segment is a table of fixed columns to Arrow."""
    features = orjson.dumps(entry.features, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return orjson.dumps(vars(entry) | {"features": features}, option=_JSON)
