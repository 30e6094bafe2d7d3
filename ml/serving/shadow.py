"""Shadow models: they answer copies of what was answered, unseen, and may stall or die without being felt."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import replace

from ml.serving.answering import Serving
from ml.serving.lane import quiet_options
from ml.serving.log import Entry
from ml.serving.predictor import PredictionError
from ml.serving.router import SHADOW

CAPACITY = 2000
TOGETHER = 32
NICE = 10

logger = logging.getLogger(__name__)

Copy = tuple[Serving, Entry]


class Shadows:
    """A bounded queue and a thread of low priority.

    Args:
        answered: given entries of cohort "shadow", for the log. Called on the thread.
        counted: told an outcome (answered, failed, dropped) and a number of rows.
    """

    def __init__(self, answered: Callable[[list[Entry]], object], counted: Callable[[str, int], object]) -> None:
        self._answered, self._counted = answered, counted
        self._copies: queue.Queue[Copy] = queue.Queue(CAPACITY)
        self._stopping, self._options = threading.Event(), quiet_options()
        self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
        self._thread.start()

    def copy(self, servings: tuple[Serving, ...], entry: Entry) -> None:
        """Has each of these models answer what `entry` was the answer to; never waits."""
        for serving in servings:
            try:
                self._copies.put_nowait((serving, entry))
            except queue.Full:
                self._counted("dropped", 1)

    def stop(self) -> None:
        """Ends the thread and what it runs; what waits is dropped."""
        self._stopping.set()
        self._options.terminate = True
        self._thread.join(2.0)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a hint, no more
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Empty):
                copies = [self._copies.get(timeout=0.2)]
                copies += [self._copies.get_nowait() for _ in range(min(self._copies.qsize(), TOGETHER - 1))]
                for serving in {id(serving): serving for serving, _ in copies}.values():
                    self._answer(serving, [entry for asked, entry in copies if asked is serving])

    def _answer(self, serving: Serving, entries: list[Entry]) -> None:
        """With the features that were used; rows that fail together are asked one by one."""
        try:
            needed = (*serving.predictor.numeric, *serving.predictor.text)
            if absent := [name for name in needed if name not in entries[0].features]:
                raise PredictionError(f"the features that were used lack {absent}")
            y_proba = serving.predictor.predict([entry.features for entry in entries], self._options).tolist()
        except PredictionError as error:
            if len(entries) > 1 and not self._stopping.is_set():
                for entry in entries:
                    self._answer(serving, [entry])
                return
            logger.debug("shadow version %s: %s", serving.version, error)
            self._counted("failed", len(entries))
            return
        except Exception:
            logger.exception("shadow version %s", serving.version)
            self._counted("failed", len(entries))
            return
        self._counted("answered", len(entries))
        self._answered(
            [
                replace(entry, model_version=serving.version, probability=y, cohort=SHADOW)
                for entry, y in zip(entries, y_proba, strict=True)
            ]
        )
