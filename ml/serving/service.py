"""The running service behind the routes: what serves now, the online store, the log, and one thread that answers."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ml.config import settings
from ml.features.online import StoreDownError, open_store
from ml.packaging.bundle import Bundle
from ml.serving.answering import Serving
from ml.serving.explaining import MAX_EXPLAINED, MISSING
from ml.serving.follower import Follower
from ml.serving.log import Entry, PredictionLog, folder
from ml.serving.schema import Answer, Explained, RequestError
from ml.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)


class NotReadyError(Exception):
    """No model is loaded; the message says why."""


@dataclass(frozen=True)
class Given:
    """The answers to one request, the same as log entries, and who gave them. `many`: the request was a list."""

    serving: Serving
    answers: list[Answer]
    entries: list[Entry]
    many: bool


class Service:
    """Answers requests with the model that the pointer names.

    Args:
        fixed: reads the one bundle to serve (inside a Bento); without it, the service follows the deployment manifest.
        write_log: False inside a sandbox, whose answers are not predictions.
    """

    def __init__(self, fixed: Callable[[], Bundle] | None = None, write_log: bool = True) -> None:
        self.telemetry = Telemetry()
        self.serving: Serving | None = None
        """The pointer. Requests take it once, so an answer is never of two models."""
        self.problem = "starting"
        """Why what should serve does not; empty when it does."""
        self._fixed, self._write_log = fixed, write_log
        self._log: PredictionLog | None = None
        self._follower: Follower | None = None
        self._executor = ThreadPoolExecutor(1, "predict")  # the graph is fast; one thread keeps the event loop free for probes
        self._explaining = ThreadPoolExecutor(1, "explain")  # and explanations are slow: no answer waits behind one

    def start(self) -> None:
        """Opens store and log and takes a model into service; returns at once when there is none yet."""
        self.store = open_store(settings().online)
        if self._write_log:
            self._log = PredictionLog(folder(), on_written=self.telemetry.logged.inc, on_dropped=self.telemetry.dropped.inc)
        if self._fixed is None:
            self._follower = Follower(self)
            self._follower.start()
        else:
            bundle = self._fixed()
            self.swap(Serving.of(bundle, bundle.digest[:12]))

    def stop(self) -> None:
        """Ends the follower, lets running requests end, writes the log."""
        if self._follower is not None:
            self._follower.stop()
        self._executor.shutdown(wait=True)
        self._explaining.shutdown(wait=True)
        if self._log is not None:
            self._log.close()

    def swap(self, serving: Serving) -> None:
        """Takes a loaded and probed model into service, atomically; requests that hold the old one finish with it."""
        self.problem = ""  # before the pointer: replacing that frees the old session, which lets other threads in
        self.serving = serving
        self.telemetry.swaps.inc()
        self.telemetry.manifest.set(serving.manifest_version)
        logger.info(
            "serving version %s, bundle %s, manifest %d", serving.version, serving.bundle.digest[:12], serving.manifest_version
        )

    def refuse(self, problem: str) -> None:
        """Reports that what should serve cannot; what serves now stays."""
        if problem != self.problem:
            self.telemetry.refused.inc()
            logger.error("refused: %s", problem)
        self.problem = problem

    def clear(self) -> None:
        """What should serve does."""
        self.problem = ""

    def ready(self) -> Serving:
        """What serves now.

        Raises:
            NotReadyError: nothing does; the message says why.
        """
        if (serving := self.serving) is None:
            raise NotReadyError(self.problem)
        return serving

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `work` on the answering thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def predict(self, body: bytes, request_id: str | None) -> list[Answer] | Answer:
        """Answers a request body: one row or a list of rows.

        Raises:
            NotReadyError: no model is loaded.
            RequestError: the request is at fault.
        """
        given = await self.run(self._answered, body, request_id)
        return given.answers if given.many else given.answers[0]

    async def explain(self, body: bytes, request_id: str | None) -> list[Explained] | Explained:
        """Answers as `predict` does, and then explains the answers; the answering thread is free meanwhile.

        Raises:
            NotReadyError: no model is loaded.
            RequestError: the request is at fault; 422 also when it has more than `MAX_EXPLAINED` rows.
        """
        given: Given = await self.run(self._answered, body, request_id, MAX_EXPLAINED)
        loop = asyncio.get_running_loop()
        explained = await loop.run_in_executor(self._explaining, given.serving.explain, given.answers, given.entries)
        if missing := sum(MISSING in answer.flags for answer in explained):
            self.telemetry.flags.labels(MISSING).inc(missing)
        return explained if given.many else explained[0]

    def _answered(self, body: bytes, request_id: str | None, most: int | None = None) -> Given:
        """Answers, logs and counts a request of at most `most` rows."""
        started, status = time.perf_counter(), "500"
        try:
            serving = self.ready()
            rows, many = serving.schema.parse(body)
            if most is not None and len(rows) > most:
                raise RequestError(422, f"{len(rows)} rows to explain in one request, at most {most} are allowed; ask in parts")
            answers, entries, filled = serving.answer(self.store, rows, request_id or uuid.uuid4().hex) if rows else ([], [], {})
            if self._log is not None:
                self._log.append(entries)
            self.telemetry.rows.labels(serving.version).inc(len(answers))
            for flag in (flag for answer in answers for flag in answer.flags):
                self.telemetry.flags.labels(flag).inc()
            for view, count in filled.items():
                self.telemetry.filled.labels(view).inc(count)
            status = "200"
            return Given(serving, answers, entries, many)
        except RequestError as error:
            status = str(error.status)
            raise
        except NotReadyError:
            status = "503"
            raise
        finally:
            self.telemetry.requests.labels(status).inc()
            self.telemetry.latency.observe(time.perf_counter() - started)

    def metadata(self) -> dict[str, Any]:
        """What serves, since when, from which data, and what was refused last."""
        tick, down = None, ""
        try:
            tick, _ = self.store.read([])
        except StoreDownError as error:
            down = str(error)
        about: dict[str, Any] = {
            "feature_tick": tick,
            "feature_store_problem": down or None,
            "problem": self.problem or None,
            "model_version": None,
        }
        if (serving := self.serving) is not None:
            card = serving.bundle.card
            about |= {
                "name": card.name,
                "task": card.task,
                "model_version": serving.version,
                "manifest_version": serving.manifest_version,
                "bundle": serving.bundle.digest,
                "model": card.model_digest,
                "since": serving.since,
                "threshold": card.threshold,
                "max_batch": serving.schema.max_batch,
                "explains": serving.bundle.explainer is not None,
                "features": card.numeric + card.text,
                "lineage": card.lineage,
            }
        return about
