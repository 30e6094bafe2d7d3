"""Requests on their way: raw rows that go down the ladder until a rung answers, and tensors that one model answers.

The ladder of a row: the model of its cohort → the champion → the previous champion → the baseline rates of its group. Each rung
below the first is flagged. When the request's time is up, the baseline rates answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np

from ml.features.assembly import NOTHING, Assembled, Known, Prepared
from ml.features.definitions import Value
from ml.serving.answering import FALLBACK, Answered, Serving
from ml.serving.lane import Feed, Lane, Part
from ml.serving.log import Entry
from ml.serving.manifest import Manifest
from ml.serving.router import CHAMPION, cohort_of
from ml.serving.schema import RequestError

FALLBACK_CHAMPION, FALLBACK_PREVIOUS, DEADLINE = "fallback_champion", "fallback_previous", "deadline"
BULK = 64
"""A request of more rows waits behind smaller ones, and may take longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rung:
    """A model that a row may be answered by, and the flag that says so."""

    lane: Lane
    flag: str | None = None


@dataclass(frozen=True)
class Team:
    """The models behind one name, at one version of its manifest. Immutable: a request takes it once, and is never of two."""

    name: str
    manifest: Manifest | None
    """None: a fixed bundle, as in a Bento."""
    lead: Lane
    """Champion; its stand-in when the champion cannot be loaded."""
    ladders: MappingProxyType[str, tuple[Rung, ...]]
    """By cohort; a cohort that is not among them has the champion's."""
    by_version: MappingProxyType[str, Lane]
    shadows: MappingProxyType[str, tuple[Serving, ...]]
    """By cohort, who answers a copy unseen."""

    @property
    def version(self) -> int:
        return self.manifest.version if self.manifest else 0

    def cohort(self, entity_id: str) -> str:
        manifest = self.manifest
        if manifest is None or (manifest.canary is None and manifest.experiment is None):
            return CHAMPION
        return cohort_of(manifest, entity_id)


@dataclass(slots=True, eq=False)
class Asked:
    """A request for predictions of raw rows; done when each row is answered."""

    team: Team
    request_id: str
    many: bool
    started: float
    """By `time.perf_counter`: the body was read. The event loop's clock counts milliseconds, and an answer takes less."""
    deadline: float
    """On the event loop's clock."""
    answered: Callable[[Asked], object]
    done: asyncio.Future[Asked]
    traceparent: str = ""
    """W3C's header, as the caller sent it."""
    known_at: float = 0.0
    """Like `started`: the features were known."""
    rows: list[Row] = field(default_factory=list)
    left: int = 0
    seconds: float = 0.0
    answers: list[Answered] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def start(self, known: Known) -> None:
        """Sends the rows to their lanes. `known`: what the online store says of them."""
        self.known_at = time.perf_counter()
        lanes = []
        for row in self.rows:
            row.known = known
            lane = row.next_rung()
            if lane is not None and lane not in lanes:
                lanes.append(lane)
        for lane in lanes:
            lane.wake()

    def refuse(self, error: Exception) -> None:
        """The request is at fault."""
        if not self.done.done():
            self.done.set_exception(error)

    def row_done(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.done.done():
            try:
                self.finish()
            except Exception as error:
                self.done.set_exception(error)

    def finish(self) -> None:
        """Puts answers and log entries together."""
        self.seconds = time.perf_counter() - self.started
        logged_at = datetime.now(UTC).replace(tzinfo=None)
        for row in self.rows:
            flags = [*row.flags, *row.fallen]
            at, version, serving = row.prepared, row.lane.serving.version, row.lane.serving
            self.answers.append(
                {
                    "probability": row.probability,
                    "decision": int(row.probability >= serving.bundle.card.threshold),
                    "entity_id": at.entity_id,
                    "model_version": version,
                    "cohort": row.cohort,
                    "request_id": self.request_id,
                    "flags": flags,
                }
            )
            self.entries.append(
                Entry(
                    entity_id=at.entity_id,
                    event_time=at.event_time,
                    prediction_time=at.event_time - serving.assembler.lead,
                    logged_at=logged_at,
                    model_version=version,
                    probability=row.probability,
                    flags=flags,
                    request_id=self.request_id,
                    tick=row.known.tick,
                    features=row.features,
                    cohort=row.cohort,
                    manifest=self.team.version,
                    seconds=self.seconds,
                    model=self.team.name,
                )
            )
        self.answered(self)
        self.done.set_result(self)


class Row:
    """One raw row of a request. See `ml.serving.lane.Part`."""

    __slots__ = ("asked", "cohort", "fallen", "features", "flags", "known", "lane", "n", "prepared", "probability", "rungs")

    def __init__(self, asked: Asked, prepared: Prepared) -> None:
        self.asked, self.prepared, self.n = asked, prepared, 1
        self.cohort = asked.team.cohort(prepared.entity_id)
        ladders = asked.team.ladders
        self.rungs = iter(ladders.get(self.cohort) or ladders[CHAMPION])
        self.lane = asked.team.lead
        """Who answered; whose baseline rate it is when nobody did."""
        self.known = NOTHING
        self.features: dict[str, Value] = {}
        self.flags: list[str] = []
        """Of its features."""
        self.fallen: list[str] = []
        """Of the ladder."""
        self.probability = float("nan")

    @property
    def deadline(self) -> float:
        return self.asked.deadline

    def next_rung(self) -> Lane | None:
        """Queues the row at the next model that works, whose lane has to be woken; None when it is answered without."""
        for rung in self.rungs:
            if rung.lane.works():
                self.lane, self.fallen = rung.lane, [rung.flag] if rung.flag else []
                (rung.lane.bulk if len(self.asked.rows) > BULK else rung.lane.rows).append(self)
                return rung.lane
        self._baseline(self.asked.team.lead, [FALLBACK])
        return None

    def settle(self, lane: Lane, y_proba: np.ndarray) -> None:
        self.probability = float(y_proba[0])
        self.asked.row_done()

    def fail(self, lane: Lane) -> None:
        if (below := self.next_rung()) is not None:
            below.wake()

    def late(self, lane: Lane) -> None:
        self._baseline(lane, [DEADLINE, FALLBACK])

    def _baseline(self, lane: Lane, flags: list[str]) -> None:
        self.lane, self.fallen = lane, flags
        if not self.features:
            assembled = assemble_row(self, lane)
            if assembled is None:
                return
            self.features, self.flags = assembled.features[0], assembled.flags[0]
        self.probability = lane.serving.baseline(self.features)
        self.asked.row_done()


class Tensors:
    """Rows whose features are given, for one model. See `ml.serving.lane.Part`."""

    __slots__ = ("deadline", "done", "feed", "n")

    def __init__(self, feed: Feed, n: int, deadline: float, done: asyncio.Future[np.ndarray]) -> None:
        self.feed, self.n, self.deadline, self.done = feed, n, deadline, done

    def settle(self, lane: Lane, y_proba: np.ndarray) -> None:
        if not self.done.done():
            self.done.set_result(y_proba)

    def fail(self, lane: Lane) -> None:
        self._refuse(RequestError(500, f"version {lane.serving.version} gave no probability"))

    def late(self, lane: Lane) -> None:
        self._refuse(RequestError(504, f"version {lane.serving.version} did not answer in time"))

    def _refuse(self, error: RequestError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def gatherer(filled: Callable[[dict[str, int]], object]) -> Callable[[Lane, int], tuple[list[Part], Feed | None]]:
    """What a lane calls for its next turn. `filled` is told, by view, of how many rows the values were filled in."""

    def gather(lane: Lane, most: int) -> tuple[list[Part], Feed | None]:
        rows = _take(lane.rows, most)
        rows += _take(lane.bulk, max(most // 2, most - len(rows)))
        tensors: list[Any] = _take(lane.tensors, most)
        parts, feed = _with_features(lane, rows, filled) if rows else ([], None)
        if tensors:
            feeds = ([feed] if feed is not None else []) + [each.feed for each in tensors]
            parts = [*parts, *tensors]
            feed = feeds[0] if len(feeds) == 1 else {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}
        return [*parts], feed

    return gather


def _take(waiting: Any, most: int) -> list[Any]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]


def _with_features(lane: Lane, rows: list[Row], filled: Callable[[dict[str, int]], object]) -> tuple[list[Row], Feed | None]:
    """The rows that the model is to be asked, and its inputs for them; those that are late or at fault are dealt with."""
    try:
        rows, assembled = _assembled(lane, rows)
    except Exception as error:
        for row in rows:
            row.asked.refuse(error)
        return [], None
    if assembled is None:
        return [], None
    filled(assembled.filled)
    for row, features, flags in zip(rows, assembled.features, assembled.flags, strict=True):
        row.features, row.flags = features, flags
    now = asyncio.get_running_loop().time()
    late = [i for i, row in enumerate(rows) if row.deadline <= now]
    if late:
        in_time = [i for i, row in enumerate(rows) if row.deadline > now]
        for i in late:
            rows[i].late(lane)
        return [rows[i] for i in in_time], lane.serving.feed(assembled, in_time) if in_time else None
    return rows, lane.serving.feed(assembled)


def _assembled(lane: Lane, rows: list[Row]) -> tuple[list[Row], Assembled | None]:
    """Features of all rows together; when that fails, those rows that fail alone too are left out."""
    try:
        return rows, lane.serving.assembler.complete(_prepared(lane, rows), [row.known for row in rows])
    except Exception:
        logger.warning("features of %d rows failed; trying each alone", len(rows), exc_info=True)
    good = [row for row in rows if assemble_row(row, lane) is not None]
    if not good:
        return [], None
    return good, lane.serving.assembler.complete(_prepared(lane, good), [row.known for row in good])


def assemble_row(row: Row, lane: Lane) -> Assembled | None:
    """Features of one row; without what the store says when they cannot be made with it; else the request is at fault."""
    problem = ""
    for known in (row.known, NOTHING):
        try:
            assembled = lane.serving.assembler.complete(_prepared(lane, [row]), [known])
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
        else:
            row.known = known
            return assembled
    row.asked.refuse(at_fault(problem))
    return None


def _prepared(lane: Lane, rows: list[Row]) -> list[Prepared]:
    """Rows as this lane's model takes them: it may have been trained with other declarations than the champion."""
    assembler = lane.serving.assembler
    if all(row.asked.team.lead.serving.assembler is assembler for row in rows):
        return [row.prepared for row in rows]
    return [assembler.prepare(row.prepared.row) for row in rows]


def at_fault(problem: str) -> RequestError:
    detail = f"no features can be computed from these fields: {problem}"
    return RequestError(422, [{"loc": ["body"], "msg": detail, "type": "features"}])
