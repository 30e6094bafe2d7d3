"""A lane: one model, and who runs its graph. What comes while the graph runs is answered together in the next turn.

An idle lane answers at once; a busy one shares the fixed costs of a turn among all that wait, so nobody ever waits for a batch to
fill. All but the graph itself happens on the event loop: two threads that both run Python would wait for each other. A graph
whose time is bounded runs there too, 64 rows at most at a time: handing it to a thread costs more than it takes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort

from ml.serving.answering import Serving
from ml.serving.predictor import PredictionError

TURN_ROWS = 64
PAUSE = 1.0
"""Seconds for which a model is left alone that did not end in time twice in a row; once may be the machine's fault."""
STUCK = 2
"""Threads that may hang in a graph; then the model is left alone until one of them comes back."""

logger = logging.getLogger(__name__)

Feed = dict[str, np.ndarray]


class Part(Protocol):
    """What a lane answers: some rows that stand or fall together."""

    n: int

    @property
    def deadline(self) -> float:
        """On the event loop's clock."""

    def settle(self, lane: Lane, y_proba: np.ndarray) -> None:
        """The model's probabilities of its rows."""

    def fail(self, lane: Lane) -> None:
        """The model did not answer."""

    def late(self, lane: Lane) -> None:
        """The time is up."""


class Turn:
    """Parts that are answered by one run of the graph; `feed` holds their rows in order."""

    __slots__ = ("feed", "live", "options", "parts", "timer")

    def __init__(self, parts: Sequence[Part], feed: Feed, options: ort.RunOptions) -> None:
        self.parts, self.feed, self.options = parts, feed, options
        self.live = set(range(len(parts)))
        self.timer: asyncio.TimerHandle | None = None


def quiet_options() -> ort.RunOptions:
    """For a run that another thread may end; what goes wrong in it is for the caller to log."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


QUIET = quiet_options()
"""For runs that nobody ends."""
Gather = Callable[["Lane", int], tuple[list[Part], Feed | None]]


class Lane:
    """Answers for one model.

    Args:
        serving: the model.
        gather: takes at most so many rows of what waits for the lane; gives parts and their common feed. On the event loop.
        failed: told the model's version and the reason, once per part that it did not answer.
    """

    def __init__(self, serving: Serving, gather: Gather, failed: Callable[[str, str, int], object]) -> None:
        self.serving, self._gather, self._failed, self._graph = serving, gather, failed, _Graph(serving)
        self.rows: deque[Part] = deque()
        """Rows of small requests; they go before `bulk`."""
        self.bulk: deque[Part] = deque()
        self.tensors: deque[Part] = deque()
        self._busy = self._scheduled = self._closed = False
        self._broken_until, self._overruns = 0.0, 0
        self._stuck: list[threading.Thread] = []
        self._worker: _Worker | None = None

    def works(self) -> bool:
        """Whether it may be asked: it was not too slow a moment ago."""
        if time.monotonic() < self._broken_until:
            return False
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        return len(self._stuck) < STUCK

    def wake(self) -> None:
        """Something waits; it is answered at the end of this pass of the event loop, with what else the pass brings."""
        if not self._busy and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def close(self) -> None:
        """Ends the thread once nothing waits; a request that still holds the lane is answered by a thread of its own."""
        self._closed = True
        if not self._busy:
            self._release()

    def _release(self) -> None:
        if self._worker is not None:
            self._worker.end()
        self._worker = None

    def _turn(self) -> None:
        self._scheduled = False
        while not self._busy and (self.rows or self.bulk or self.tensors):
            parts, feed = self._gather(self, TURN_ROWS)
            if feed is None:
                continue
            if self.serving.predictor.bounded:
                turn = Turn(parts, feed, QUIET)
                self._settle(turn, self._graph.run(turn))
                self._again()
                return
            self._start(Turn(parts, feed, quiet_options()))
        if self._closed and not self._busy:
            self._release()

    def _again(self) -> None:
        """What still waits, after others had their turn at the event loop."""
        if self.rows or self.bulk or self.tensors:
            self.wake()
        elif self._closed:
            self._release()

    def _start(self, turn: Turn) -> None:
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = _Worker(self._graph, loop, self._done)
        self._busy = True
        turn.timer = loop.call_at(min(part.deadline for part in turn.parts), self._expired, turn)
        self._worker.put(turn)

    def _done(self, turn: Turn, outcomes: list[np.ndarray | None]) -> None:
        if not turn.live:  # all of it was too late, and another turn has begun since
            return
        if turn.timer is not None:
            turn.timer.cancel()
        self._busy, self._overruns = False, 0
        self._settle(turn, outcomes)
        self._turn()

    def _settle(self, turn: Turn, outcomes: list[np.ndarray | None]) -> None:
        failures = 0
        for i, (part, y_proba) in enumerate(zip(turn.parts, outcomes, strict=True)):
            if i not in turn.live:
                continue
            if y_proba is None:
                failures += part.n
                part.fail(self)
            else:
                part.settle(self, y_proba)
        if failures:
            self._failed(self.serving.version, "failed", failures)

    def _expired(self, turn: Turn) -> None:
        """Answers the parts whose time is up; when none is left, the thread is given up: the graph may hang for good."""
        loop = asyncio.get_running_loop()
        over = [i for i in turn.live if turn.parts[i].deadline <= loop.time()]
        turn.live.difference_update(over)
        if turn.live:
            turn.timer = loop.call_at(min(turn.parts[i].deadline for i in turn.live), self._expired, turn)
        else:
            turn.options.terminate = True
            if self._worker is not None:
                self._stuck.append(self._worker.end())
            self._worker, self._busy = None, False
            self._overruns += 1
            pause = PAUSE if self._overruns > 1 else 0.0
            self._broken_until = time.monotonic() + pause
            logger.error("model version %s did not end in time; it is left alone for %.0f s", self.serving.version, pause)
        self._failed(self.serving.version, "deadline", sum(turn.parts[i].n for i in over))
        for i in over:
            turn.parts[i].late(self)
        if not turn.live:
            self._turn()


class _Worker:
    """A thread that runs graphs, one after the other, and reports to the event loop."""

    def __init__(
        self,
        graph: _Graph,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Turn, list[np.ndarray | None]], None],
    ) -> None:
        self._graph, self._loop, self._done = graph, loop, done
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"model-{graph.version}", daemon=True)
        self._thread.start()

    def put(self, turn: Turn) -> None:
        self._turns.put(turn)

    def end(self) -> threading.Thread:
        """It stops after the turn that it is at."""
        self._turns.put(None)
        return self._thread

    def _run(self) -> None:
        while (turn := self._turns.get()) is not None:
            outcomes = self._graph.run(turn)
            try:
                self._loop.call_soon_threadsafe(self._done, turn, outcomes)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


class _Graph:
    """Runs a model's graph on the parts of a turn."""

    def __init__(self, serving: Serving) -> None:
        self._predictor, self.version, self._complained = serving.predictor, serving.version, 0.0

    def run(self, turn: Turn) -> list[np.ndarray | None]:
        """By part, its probabilities; None where the model gives none. When it fails on all, each part is asked alone."""
        n = sum(part.n for part in turn.parts)
        try:
            y_proba = self._predictor.run(turn.feed, n, turn.options)
        except PredictionError as error:
            if len(turn.parts) == 1 or turn.options.terminate:
                self._complain(error)
                return [None] * len(turn.parts)
            return self._one_by_one(turn)
        outcomes, start = [], 0
        for part in turn.parts:
            outcomes.append(y_proba[start : start + part.n])
            start += part.n
        return list(outcomes)

    def _one_by_one(self, turn: Turn) -> list[np.ndarray | None]:
        outcomes: list[np.ndarray | None] = []
        start = 0
        for part in turn.parts:
            feed = {name: values[start : start + part.n] for name, values in turn.feed.items()}
            start += part.n
            try:
                outcomes.append(self._predictor.run(feed, part.n, turn.options))
            except PredictionError as error:
                self._complain(error)
                outcomes.append(None)
        return outcomes

    def _complain(self, error: PredictionError) -> None:
        """Once a second at most: a model that fails on every row must not fill the log."""
        if time.monotonic() >= self._complained:
            self._complained = time.monotonic() + 1
            logger.error("model version %s failed: %s", self.version, error)
