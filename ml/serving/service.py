"""The running service behind the routes: who serves now, online features, the log, and the way of a request through them."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ml.config import load_params
from ml.features.assembly import Known, Prepared
from ml.features.online import open_store
from ml.packaging.bundle import Bundle
from ml.serving import hot
from ml.serving.answering import Answered, Serving
from ml.serving.asked import BULK, Asked, Row, Team, Tensors, at_fault, gatherer
from ml.serving.explaining import MAX_EXPLAINED, MISSING
from ml.serving.follower import Follower, Loaded
from ml.serving.hot import HotFeatures
from ml.serving.lane import Feed, Lane
from ml.serving.log import PredictionLog, sink
from ml.serving.manifest import Manifest
from ml.serving.schema import RequestError
from ml.serving.shadow import Shadows
from ml.serving.team import team_of, team_of_one
from ml.serving.telemetry import Telemetry
from ml.serving.tracing import Tracing, tracing
from ml.settings import settings

SWITCH_SECONDS = 0.0005
"""How long another thread's Python may keep the event loop waiting; the interpreter's own 5 ms would be felt."""
LARGE_BODY = 16 << 10
"""Bytes; a larger body is parsed aside."""
MOST_WAITING = 10_000
"""Rows; when more wait for a model, new requests are turned away."""

logger = logging.getLogger(__name__)


def new_id() -> str:
    """Of a request whose caller gave none."""
    return f"{random.getrandbits(128):032x}"


class NotReadyError(Exception):
    """No model is loaded; the message says why."""


class Service:
    """Answers requests with the models that the manifests name.

    Args:
        fixed: reads the one bundle to serve (inside a Bento); without it, the service follows the deployment manifests.
        write_log: False inside a sandbox, whose answers are not predictions.
    """

    def __init__(self, fixed: Callable[[], Bundle] | None = None, write_log: bool = True) -> None:
        self.telemetry = Telemetry()
        self.teams: dict[str, Team] = {}
        """By name; replaced whole, and a request takes its team once."""
        self.problems: dict[str, str] = {}
        """By name, why what should serve does not."""
        self.default = ""
        """The name that `/predict` means."""
        self._fixed, self._write_log = fixed, write_log
        self._log: PredictionLog | None = None
        self._tracing: Tracing | None = None
        self._follower: Follower | None = None
        self._gather = gatherer(self.telemetry.filled_in)
        self._aside = ThreadPoolExecutor(1, "aside")  # large bodies are parsed here
        self._explaining = ThreadPoolExecutor(1, "explain")  # explanations are slow: no answer waits behind one

    @property
    def serving(self) -> Serving | None:
        """The champion of the default name, or its stand-in."""
        team = self.teams.get(self.default)
        return team.lead.serving if team else None

    @property
    def problem(self) -> str:
        """Why what should serve does not; empty when it does."""
        return self.problems.get(self.default, "" if self.teams else "starting")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens store and log and takes models into service; returns at once when there are none yet."""
        self._loop = loop
        sys.setswitchinterval(SWITCH_SECONDS)
        bundle = self._fixed() if self._fixed else None
        if bundle is not None:
            self.default, budget_ms = bundle.card.name, bundle.card.params["serving"].get("budget_ms", 100)
        else:
            self.default, budget_ms = load_params().problem.name, load_params().serving.budget_ms
        self.budget = budget_ms / 1000
        self.features = HotFeatures(open_store(settings().online), hot.PATIENCE * self.budget)
        self.features.start()
        if self._write_log:
            self._log = PredictionLog(sink(), on_written=self.telemetry.logged.inc, on_dropped=self.telemetry.dropped.inc)
        self._tracing = tracing()
        self._shadows = Shadows(self._write, lambda outcome, n: self.telemetry.shadowed.labels(outcome).inc(n))
        if bundle is not None:
            self._put(team_of_one(Serving.of(bundle, bundle.digest[:12]), self._lane))
        else:
            self._follower = Follower(self)
            self._follower.start()
        gc.collect()
        gc.freeze()  # a full collection must not look through all modules while requests wait

    def stop(self) -> None:
        """Ends the follower, the models' threads and the shadows, and writes the log. Requests have ended before."""
        if self._follower is not None:
            self._follower.stop()
        self._explaining.shutdown(wait=True)
        self._aside.shutdown(wait=True)
        self._shadows.stop()
        self.features.stop()
        for team in self.teams.values():
            _close(team, self._loop)
        if self._log is not None:
            self._log.close()
        if self._tracing is not None:
            self._tracing.close()
        gc.unfreeze()

    # What the follower calls

    def serves(self, name: str) -> bool:
        return name in self.teams

    def swap(self, document: Manifest, loaded: Loaded) -> None:
        """Takes a manifest and its loaded and probed models into service; requests that hold the old ones finish with them."""
        self._put(team_of(document, loaded, self.teams.get(document.name), self._lane))

    def drop(self, name: str) -> None:
        self.problems.pop(name, None)
        teams = dict(self.teams)
        gone = teams.pop(name, None)
        self.teams = teams
        if gone is not None:
            _close(gone, self._loop)

    def refuse(self, name: str, problem: str) -> None:
        """Reports that what should serve cannot; what serves now stays."""
        if problem != self.problems.get(name):
            self.telemetry.refused.inc()
            logger.error("refused: %s", problem)
        self.problems[name] = problem

    def clear(self, name: str) -> None:
        """What should serve does."""
        self.problems.pop(name, None)

    # What the routes call

    def team(self, name: str | None = None) -> Team:
        """Who serves a name (default: the problem's) now.

        Raises:
            RequestError: 404, no manifest has this name.
            NotReadyError: nothing serves it yet; the message says why.
        """
        name = name or self.default
        if (team := self.teams.get(name)) is not None:
            return team
        if name == self.default or name in self.problems:
            raise NotReadyError(self.problems.get(name) or "starting")
        raise RequestError(404, f"there is no model {name!r}; there are: {', '.join(sorted(self.teams)) or 'none'}")

    async def predict(
        self, name: str | None, body: bytes, request_id: str, explain: bool = False, traceparent: str = ""
    ) -> list[Answered] | Answered:
        """Answers a request body: one row or a list of rows.

        Args:
            name: of the model; None: the problem's.
            request_id: the caller's; empty: one is made.
            explain: each answer gets its explanation.
            traceparent: W3C's header of the caller's trace; used where requests are traced.

        Raises:
            NotReadyError: no model is loaded.
            RequestError: the request is at fault; 422 also when more than `MAX_EXPLAINED` rows are to be explained.
        """
        started, status = time.perf_counter(), 500
        try:
            asked = await self._asked(name, body, request_id, started, MAX_EXPLAINED if explain else None, traceparent)
            answers = asked.answers
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except NotReadyError:
            status = 503
            raise
        finally:
            self.telemetry.answered(status, time.perf_counter() - started)
        if explain and answers:
            answers = await self._loop.run_in_executor(self._explaining, _explained, asked)
            if missing := sum(MISSING in answer["flags"] for answer in answers):
                self.telemetry.flags.labels(MISSING).inc(missing)
        asked.rows.clear()  # they refer to each other: so they go at once, and no collection has to look for them
        return answers if asked.many else answers[0]

    async def infer(self, lane: Lane, feed: Feed, n: int) -> Any:
        """Probabilities, float64 of shape (n,), of rows whose features are given; nothing is logged.

        Raises:
            RequestError: 500 or 504, the model did not answer (in time).
        """
        deadline = self._loop.time() + self._budget(n)
        tensors = Tensors(feed, n, deadline, self._loop.create_future())
        if not lane.works():
            raise RequestError(503, f"version {lane.serving.version} was too slow a moment ago")
        lane.tensors.append(tensors)
        lane.wake()
        return await tensors.done

    async def _asked(
        self, name: str | None, body: bytes, request_id: str, started: float, most: int | None, traceparent: str
    ) -> Asked:
        team = self.team(name)
        if len(body) > LARGE_BODY:
            prepared, many = await self._loop.run_in_executor(self._aside, _parsed, team.lead.serving, body, most)
        else:
            prepared, many = _parsed(team.lead.serving, body, most)
        if len(team.lead.rows) > MOST_WAITING or len(team.lead.bulk) > MOST_WAITING:
            raise RequestError(503, "too many requests wait already; ask again in a moment")
        budget = self._budget(len(prepared))
        done = self._loop.create_future()
        deadline, request_id = self._loop.time() + budget, request_id or new_id()
        asked = Asked(team, request_id, many, started, deadline, self._answered, done, traceparent)
        asked.rows = [Row(asked, each) for each in prepared]
        asked.left = len(asked.rows)
        if not asked.rows:
            return asked
        known = self.features.lookup(key for each in prepared for key in each.keys)
        if known is not None:
            asked.start(known)
        else:
            self._read(asked, prepared)
        return await done

    def _budget(self, rows: int) -> float:
        return self.budget * max(1, -(-rows // BULK))

    def _read(self, asked: Asked, prepared: list[Prepared]) -> None:
        """Starts a request when the store has been read for it, or when it has waited long enough."""
        started = False

        def arrived(known: Known) -> None:
            nonlocal started
            if not started:
                started = True
                timer.cancel()
                asked.start(known)

        def enough() -> None:
            if not started:
                self.features.distrust()
                arrived(hot.NOTHING)

        def almost() -> None:
            self._loop.call_soon(enough)  # what has arrived while the loop was busy comes first

        timer = self._loop.call_later(self.features.patience, almost)
        keys = [key for each in prepared for key in each.keys if key is not None]
        self.features.read(keys, lambda known: self._loop.call_soon_threadsafe(arrived, known))

    def _answered(self, asked: Asked) -> None:
        """Logs and counts what is about to be answered, and has shadows answer it too."""
        self._write(asked.entries)
        self.telemetry.gave(asked.entries)
        if self._tracing is not None:
            self._tracing.answered(asked)
        if asked.team.shadows:
            for entry in asked.entries:
                if servings := asked.team.shadows.get(entry.cohort):
                    self._shadows.copy(servings, entry)

    def _write(self, entries: list[Any]) -> None:
        if self._log is not None:
            self._log.append(entries)

    def _lane(self, serving: Serving) -> Lane:
        return Lane(serving, self._gather, lambda version, reason, n: self.telemetry.failures.labels(version, reason).inc(n))

    def _put(self, team: Team) -> None:
        before = self.teams.get(team.name)
        self.problems.pop(team.name, None)
        self.teams = self.teams | {team.name: team}
        self.telemetry.swaps.inc()
        self.telemetry.manifest.labels(team.name).set(team.version)
        if before is not None:
            _close(before, self._loop, team)
        lead = team.lead.serving
        about = (team.name, lead.version, lead.bundle.digest[:12], team.version, sorted(team.by_version))
        logger.info("serving %s: version %s, bundle %s, manifest %d, models %s", *about)


def _close(team: Team, loop: asyncio.AbstractEventLoop, after: Team | None = None) -> None:
    """Closes the lanes of a team that the one after it does not have."""
    kept = set(after.by_version.values()) if after else set()
    for lane in set(team.by_version.values()) - kept:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lane.close)


def _parsed(serving: Serving, body: bytes, most: int | None) -> tuple[list[Prepared], bool]:
    rows, many = serving.schema.parse(body)
    if most is not None and len(rows) > most:
        raise RequestError(422, f"{len(rows)} rows to explain in one request, at most {most} are allowed; ask in parts")
    try:
        return [serving.assembler.prepare(row) for row in rows], many
    except Exception as error:
        raise at_fault(" ".join(str(error).split())[:200]) from error


def _explained(asked: Asked) -> list[Answered]:
    """Each answer explained by the model that gave it."""
    explained: list[Answered] = list(asked.answers)
    for serving in {row.lane: row.lane.serving for row in asked.rows}.values():
        mine = [i for i, row in enumerate(asked.rows) if row.lane.serving is serving]
        found = serving.explain([asked.answers[i] for i in mine], [asked.entries[i] for i in mine])
        for i, answer in zip(mine, found, strict=True):
            explained[i] = answer
    return explained
