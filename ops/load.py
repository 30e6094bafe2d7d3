"""An open-loop HTTP load generator: requests leave when they are planned, and latency counts from the planned moment.

A generator that waits for an answer before it sends on slows down with the server and hides its queues ("coordinated omission").
Here a request that finds no free connection waits in line, and its waiting is part of its latency. One thread, plain sockets and
epoll: it polls without sleeping while requests are due, so give it a core of its own. `ops.open_loop` is the gentler one: it
reads what is answered, at rates where that costs nothing.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CONNECTIONS = 64
PATIENCE = 5.0
"""Seconds after the last planned moment in which answers are awaited; what is out then has failed."""
NAP = 0.002
"""Seconds before the next planned moment below which the generator does not sleep."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200"


@dataclass(frozen=True)
class Point:
    """What came of one rate. Latencies in milliseconds; NaN when nothing was answered."""

    rate: float
    """Requests a second, as planned."""
    planned: int
    answered: int
    errors: int
    """Answers other than 200, connections that broke, and requests without an answer."""
    p50: float
    p99: float
    worst: float
    seconds: float
    lag: float
    """99th percentile of how late the generator itself sent a request for which a connection was free."""
    stopped: bool
    """It was given up early: p99 was above the limit for certain, or requests failed."""
    first_error: str = ""

    def within(self, limit: float) -> bool:
        """No error, and p99 at most `limit` milliseconds."""
        return not self.errors and not self.stopped and self.p99 <= limit


def post(path: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 request with a JSON body, ready to be sent again and again."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class _Connection:
    """One keep-alive connection with at most one request on its way."""

    socket: socket.socket
    number: int = -1
    """Which request is on its way; -1: none."""
    received: bytes = b""


@dataclass
class _Run:
    """The books of one run."""

    planned: np.ndarray
    limit: float
    answered: list[tuple[int, float]] = field(default_factory=list)
    errors: int = 0
    late: int = 0
    first_error: str = ""

    def answer(self, number: int, now: float) -> None:
        self.answered.append((number, now))
        self.late += now - self.planned[number] > self.limit

    def fail(self, what: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or what

    @property
    def hopeless(self) -> bool:
        """More than one in a hundred is late already, so p99 will be; or many fail."""
        return self.late > len(self.planned) / 100 or self.errors > 20


def offer(
    port: int,
    requests: Sequence[bytes],
    rate: float,
    count: int,
    *,
    seed: int = 0,
    limit: float = float("inf"),
    connections: int = CONNECTIONS,
) -> Point:
    """Sends `count` requests at `rate` a second on average, at the moments of a Poisson process, and waits for the answers.

    Args:
        port: of a server on 127.0.0.1 that keeps connections open.
        requests: request i is ``requests[i % len(requests)]``, a whole HTTP/1.1 request made by `post`.
        seed: of the planned moments.
        limit: milliseconds; the run is given up as soon as p99 is above it for certain.
        connections: how many requests may be on their way at once.
    """
    moments = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    pool = [_connect(port) for _ in range(connections)]
    gc.collect()
    gc.disable()  # a collection would be counted as the server's latency
    began = time.perf_counter() + 0.02
    run = _Run(moments + began, limit / 1e3)
    try:
        lags = _drive(port, pool, requests, run)
    finally:
        gc.enable()
        for connection in pool:
            connection.socket.close()
    seconds = time.perf_counter() - began
    unanswered = 0 if run.hopeless else count - len(run.answered) - run.errors
    if unanswered:
        run.first_error = run.first_error or f"{unanswered} requests without an answer after {PATIENCE:g} s"
    numbers, times = np.array(run.answered or [(0, np.nan)]).T
    latencies = (times - run.planned[numbers.astype(int)]) * 1e3
    p50, p99 = np.percentile(latencies, [50, 99])
    return Point(
        rate=rate, planned=count, answered=len(run.answered), errors=run.errors + unanswered, p50=float(p50), p99=float(p99),
        worst=float(latencies.max()), seconds=seconds, lag=float(np.percentile(lags or [np.nan], 99)) * 1e3,
        stopped=run.hopeless, first_error=run.first_error,
    )  # fmt: skip


def _connect(port: int) -> _Connection:
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    return _Connection(made)


def _drive(port: int, pool: list[_Connection], requests: Sequence[bytes], run: _Run) -> list[float]:
    """The loop: send what is due, take what has come. Gives the generator's own delays in seconds."""
    poll = select.epoll()
    by_file = {connection.socket.fileno(): connection for connection in pool}
    for file in by_file:
        poll.register(file, select.EPOLLIN)
    free, lags, now, sent = deque(pool), [], time.perf_counter, 0
    planned, total, different = run.planned.tolist(), len(run.planned), len(requests)
    give_up, idle_since = planned[-1] + PATIENCE, 0.0
    while len(run.answered) + run.errors < total and not run.hopeless:
        moment = now()
        while sent < total and free and planned[sent] <= moment:
            connection = free.popleft()  # the one that has rested longest: none is left to the server's idle timeout
            connection.number = sent
            try:
                connection.socket.send(requests[sent % different])
            except OSError as error:
                _broken(port, connection, run, by_file, poll, f"sending: {error}")
                free.append(connection)
            lags.append(now() - max(planned[sent], idle_since))
            sent += 1
        pause = planned[sent] - moment - NAP if sent < total else 0.01
        for file, _ in poll.poll(pause if pause > 0 else 0):
            connection = by_file[file]
            if _receive(port, connection, run, by_file, poll):
                idle_since = idle_since if free else now()
                free.append(connection)
        if moment > give_up:
            break
    poll.close()
    return lags


def _receive(port: int, connection: _Connection, run: _Run, by_file: dict[int, _Connection], poll: select.epoll) -> bool:
    """Takes what has come; True when the connection has become free."""
    try:
        chunk = connection.socket.recv(65536)
    except BlockingIOError:
        return False
    except OSError as error:
        return _broken(port, connection, run, by_file, poll, f"receiving: {error}")
    if not chunk:
        return _broken(port, connection, run, by_file, poll, "the server closed the connection")
    received = connection.received = connection.received + chunk
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    if (length := _LENGTH.search(received, 0, end)) is None:
        return _broken(port, connection, run, by_file, poll, f"an answer without content-length: {received[:200]!r}")
    if len(received) < end + 4 + int(length[1]):
        return False
    if received.startswith(_OK):
        run.answer(connection.number, time.perf_counter())
    else:
        run.fail(received[:300].decode(errors="replace"))
    connection.number, connection.received = -1, b""
    return True


def _broken(
    port: int, connection: _Connection, run: _Run, by_file: dict[int, _Connection], poll: select.epoll, what: str
) -> bool:
    """Opens the connection again; its request, if there was one, has failed. True when it has become free by that."""
    had = connection.number >= 0
    if had:
        run.fail(what)
    file = connection.socket.fileno()
    poll.unregister(file)
    del by_file[file]
    connection.socket.close()
    fresh = _connect(port)
    connection.socket, connection.number, connection.received = fresh.socket, -1, b""
    by_file[fresh.socket.fileno()] = connection
    poll.register(fresh.socket.fileno(), select.EPOLLIN)
    return had
