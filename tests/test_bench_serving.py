"""The serving benchmark: its generator counts from the planned moment and misses no error, its search finds the edge."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from ml.settings import ROOT
from ops import bench_serving, serving_turns
from ops.load import Point, offer, post
from ops.serving_case import Case

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
Reply = Callable[[int], list[bytes]]
"""From the number of the request on its connection: the pieces of the answer; none: the connection is closed."""


@contextlib.contextmanager
def server(reply: Reply, turn: threading.Lock | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A real server with a thread for each connection. `turn`: held while it answers, so that it answers one at a time."""
    seen: list[bytes] = []

    def converse(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for number in range(100_000):
                if not (request := connection.recv(65536)):
                    return
                seen.append(request)
                with turn or contextlib.nullcontext():
                    pieces = reply(number)
                if not pieces:
                    return
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.001 * (len(pieces) > 1))

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=converse, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], seen


def test_offer__all_is_well__every_request_is_answered_and_counted() -> None:
    requests = [post("/x", b"first"), post("/x", b"second")]
    with server(lambda number: [OK]) as (port, seen):
        point = offer(port, requests, 500, 300, connections=8)
    assert (point.planned, point.answered, point.errors, point.stopped) == (300, 300, 0, False)
    assert sorted(seen) == sorted(requests * 150)
    assert 0 < point.p50 <= point.p99 <= point.worst


def test_offer__answers_in_pieces__are_put_together() -> None:
    with server(lambda number: [OK[:10], OK[10:-1], OK[-1:]]) as (port, _):
        point = offer(port, [post("/x", b"")], 200, 50, connections=4)
    assert (point.answered, point.errors) == (50, 0)


def test_offer__server_is_slower_than_the_plan__latency_counts_from_the_planned_moment() -> None:
    def slow(number: int) -> list[bytes]:
        time.sleep(0.02)
        return [OK]

    with server(slow, threading.Lock()) as (port, _):
        point = offer(port, [post("/x", b"")], 1000, 50, connections=1)
    # the last is planned after 50 ms and answered after 1 s; a closed loop would call each one 20 ms
    assert point.p50 > 200
    assert point.worst > 800
    assert not point.within(100)
    assert point.lag < 500  # waiting for a connection is the server's delay, not the generator's


def test_offer__limit__given_up_when_p99_is_above_it_for_certain() -> None:
    def slow(number: int) -> list[bytes]:
        time.sleep(0.02)
        return [OK]

    with server(slow, threading.Lock()) as (port, seen):
        point = offer(port, [post("/x", b"")], 1000, 2000, connections=2, limit=10)
    assert point.stopped and not point.within(10)
    assert len(seen) < 100


def test_offer__status_is_not_200__an_error_with_its_text() -> None:
    with server(lambda number: [BUSY if number == 3 else OK]) as (port, _):
        point = offer(port, [post("/x", b"")], 500, 40, connections=4)
    assert (point.answered, point.errors) == (36, 4)
    assert "503" in point.first_error
    assert not point.within(1e6)


def test_offer__connection_closed_under_a_request__an_error_and_a_new_connection() -> None:
    with server(lambda number: [] if number == 5 else [OK]) as (port, _):
        point = offer(port, [post("/x", b"")], 500, 60, connections=2)
    assert point.answered + point.errors == 60
    assert 5 <= point.errors <= 10
    assert "closed" in point.first_error


def test_offer__no_content_length__an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(lambda number: [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"]) as (port, _):
        point = offer(port, [post("/x", b"")], 500, 10, connections=2)
    assert (point.answered, point.errors) == (0, 10)
    assert "content-length" in point.first_error


def test_offer__an_answer_never_comes__counted_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.load.PATIENCE", 0.3)
    hold = threading.Event()

    def stuck(number: int) -> list[bytes]:
        if number == 2:
            hold.wait(20)
        return [OK]

    with server(stuck) as (port, _):
        point = offer(port, [post("/x", b"")], 500, 20, connections=2)
        hold.set()
    assert point.errors == 20 - point.answered > 0
    assert "without an answer" in point.first_error


@pytest.mark.parametrize("edge", [7.0, 99.0, 100.0, 3170.0])
def test_search__finds_the_edge_within_its_precision(edge: float) -> None:
    tried: list[float] = []

    def passes(rate: float, number: int) -> bool:
        tried.append(rate)
        return rate <= edge

    found = bench_serving.search(passes, 1.05)
    assert edge / 1.05 <= found <= edge
    assert len(tried) < 40


def test_search__one_bad_probe__is_forgiven_and_two_are_not() -> None:
    assert bench_serving.search(lambda rate, number: rate <= 1000 and number % 2 == 0, 1.05) > 950
    assert bench_serving.search(lambda rate, number: False, 1.05) == 0


def test_report__ratios_are_ours_to_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    def found(name: str, rate: float) -> bench_serving.Result:
        contender = next(c for c in bench_serving.contenders.CONTENDERS if c.name == name)
        point = Point(rate, 30_000, 30_000, 0, 1.0, 9.0, 12.0, 10.0, 0.1, False)
        measured = bench_serving.Measured(point, 300.0)
        return bench_serving.Result(contender, measured, measured)

    results = [found("predict", 3000), found("mlflow", 250), found("bentoml", 1500)]
    bench_serving.report(results)
    assert not bench_serving.summary(results)
    shown = capsys.readouterr().out
    assert "| 250 | 12.00 |" in shown
    assert "against mlflow: 12.00 times, wanted 10: met" in shown
    assert "against bentoml: 2.00 times, wanted 3: MISSED" in shown
    broken = bench_serving.Result(results[1].contender, problem="it does not start")
    assert bench_serving.summary([results[0], broken])
    assert "mlflow was not measured: it does not start" in capsys.readouterr().out


def test_confirmed__steps_down_further_each_time_until_a_rate_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def measured(server: object, rate: float, plan: object, seed: int, limit: float) -> bench_serving.Measured:
        tried.append(rate)
        return bench_serving.Measured(Point(rate, 100, 100, 0, 1.0, 9.0 if rate <= edge else 11.0, 12.0, 1.0, 0.1, False), 1.0)

    monkeypatch.setattr(bench_serving, "server_point", measured)
    plan, server = bench_serving.Plan(100, 1, 1, 1.05), cast("bench_serving.contenders.Server", None)  # not looked at
    edge = 800.0
    found = bench_serving.confirmed(server, 1000.0, plan, 10.0)
    assert found is not None and found.point.rate == tried[-1] <= edge < tried[-2]
    steps = [after / before for before, after in pairwise(tried)]
    assert tried[0] == 1000 and steps == sorted(steps, reverse=True)
    edge = 1.0
    tried.clear()
    assert bench_serving.confirmed(server, 1000.0, plan, 10.0) is None
    assert (len(tried), 200 < tried[-1] < 250) == (bench_serving.CONFIRMATIONS, True)


def test_in_turns__each_server_is_asked_at_each_rate_in_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []
    ticks = itertools.count(step=0.05)

    def offered(port: int, requests: list[bytes], rate: float, count: int, seed: int = 0) -> Point:
        asked.append((port, rate))
        return offer(port, requests, rate, min(count, 50), seed=seed)

    monkeypatch.setattr(serving_turns, "offer", offered)
    # the kernel counts CPU in hundredths of a second, which fifty requests need not reach: each look finds 0.05 s more
    monkeypatch.setattr(bench_serving.contenders, "cpu_seconds", lambda pid: bench_serving.contenders.Cpu(next(ticks), 0.0))
    case = Case(tmp_path, b"", [{}], [{"a": 1.0}], np.zeros(1), np.zeros(1), ["a"], [], "echo")
    echo = next(c for c in bench_serving.contenders.CONTENDERS if c.name == "echo")
    cores = os.sched_getaffinity(0)
    serving_turns.in_turns([echo, replace(echo, name="other")], case, min(cores), [100.0, 200.0], 2, 1e6)
    ports = list(dict.fromkeys(port for port, _ in asked))
    assert asked[2:] == [(port, rate) for _ in range(2) for rate in (100.0, 200.0) for port in ports], "after a warm-up of each"
    assert os.sched_getaffinity(0) == cores
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 100", "| 200"))]
    assert [row[:2] for row in rows] == [[rate, name] for rate in ("100", "200") for name in ("echo", "other")]
    for row in rows:
        assert 0 < float(row[2]) <= float(row[3])
        assert row[4:] == ["2 of 2", "1,000", "0"]


def test_bench_serving__teaches_and_refuses_an_unknown_contender() -> None:
    command = [sys.executable, "-m", "ops.bench_serving"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--quick" in shown.stdout and "fastapi-raw" in shown.stdout
    refused = subprocess.run([*command, "flask"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, "unknown contender 'flask'" in refused.stderr) == (2, True)
