"""``make bench-serving``: the highest rate that one core answers with p99 <= 10 ms, beside other ways to serve the same model.

One model, learned here from a month of the shipped data, stands behind this service, a stock BentoML service, `mlflow models
serve`, FastAPI with ONNX Runtime and a bare echo. Server and generator get a core each; load is an open loop (see ops/load.py),
one row a request. Rates are found by doubling and bisection, and confirmed on a long run. Last, those whose rates are near each
other are asked in turns at the same rates: a machine that others share is not the same for two searches.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np
import psutil

from ops import serving_contenders as contenders
from ops.bench_features import landed_days, say, show
from ops.load import Point, offer
from ops.serving_case import Case, ContenderError, make
from ops.serving_turns import in_turns
from ops.serving_where import where

LIMIT_MS, LOOSE_MS = 10.0, (100.0, 1000.0)
"""Of p99. The loose ones are for whoever never meets the other: its rate flatters it, and ratios to it are lower bounds."""
FIRST_RATE, LOWEST_RATE = 100.0, 5.0
STEP_DOWN = 0.95
CONFIRMATIONS = 8
"""Each step down is longer than the one before; the last is to a quarter."""
DAYS = (date(2013, 1, 1), date(2013, 2, 8))
TARGETS = {"mlflow": 10.0, "mlflow-tensors": 10.0, "bentoml": 3.0, "fastapi": 1.0}
"""By peer: by how much `POST /predict`, which also makes features, routes and logs, is to exceed it."""
QUIET = 0.05
IN_TURNS = ("predict", "infer", "fastapi", "fastapi-raw")
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Of plain FastAPI's highest rate, or of `TURN_RATE` where that was not found."""
TURN_RATE, ROUNDS = 2000.0, 5


@dataclass(frozen=True)
class Plan:
    """How long things are measured."""

    requests: int
    """Of a confirming point; fewer where they would take more than `seconds`."""
    seconds: float
    probe: float
    """Seconds of one probe of the search."""
    precision: float
    """The search ends when the failing rate is at most this many times the passing one."""


@dataclass(frozen=True)
class Measured:
    """A point, and CPU microseconds of the server for each request."""

    point: Point
    cpu: float


@dataclass(frozen=True)
class Result:
    """What was found of one contender. `problem`: why nothing was. `others`: share of all cores that other processes used."""

    contender: contenders.Contender
    top: Measured | None = None
    half: Measured | None = None
    problem: str = ""
    others: float = 0.0
    limit: float = LIMIT_MS

    @property
    def rate(self) -> float:
        return self.top.point.rate if self.top else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    names = [c.name for c in contenders.CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m ops.bench_serving", description=__doc__)
    parser.add_argument("contenders", nargs="*", help=f"of {', '.join(names)}; default all", default=[])
    parser.add_argument("--quick", action="store_true", help="three minutes: short probes, 2,000 requests a point; rough figures")
    parser.add_argument("--requests", type=int, help="a point; default 30,000, or as many as two minutes hold")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.contenders if name not in names]:
        parser.error(f"unknown contender {unknown[0]!r}; there are {', '.join(names)}")
    if asked.requests is not None and asked.requests < 200:
        parser.error(f"--requests {asked.requests} is less than 200: a 99th percentile would mean nothing")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("one core is not enough: the server and the generator need one each")
    plan = Plan(asked.requests or 2000, 10, 1, 1.15) if asked.quick else Plan(asked.requests or 30_000, 120, 3, 1.05)
    began = time.monotonic()
    with landed_days(*DAYS):
        made = make(*DAYS)
        os.sched_setaffinity(0, {cores[-1]})
        chosen = [c for c in contenders.CONTENDERS if c.name in (asked.contenders or names)]
        results = [measured(contender, made, plan, cores[0]) for contender in chosen]
        report(results)
        rivals = [c for c in chosen if c.name in IN_TURNS]
        if len(rivals) > 1:
            top = next((r.rate for r in results if r.contender.name == "fastapi" and r.top), TURN_RATE)
            in_turns(rivals, made, cores[0], [top * share for share in SHARES], 2 if asked.quick else ROUNDS, LIMIT_MS)
        where(made, {r.contender.name: r.half.cpu for r in results if r.half})
    failed = summary(results)
    say(f"\n{time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 0)


def measured(contender: contenders.Contender, made: Case, plan: Plan, core: int) -> Result:
    """Starts a contender on `core`, checks its answers, finds its rate, stops it."""
    say(f"\n## {contender.name}: {contender.about}\n")
    try:
        with contenders.started(contender, made, core) as server:
            say(f"its answers are right (largest difference {server.check():.1e})" if contender.probability else "answers")
            before, began = contenders.cpu_seconds(server.pid), time.perf_counter()
            found = rated(server, plan)
            return replace(found, others=share_of_others(server.pid, before, began))
    except ContenderError as error:
        say(f"FAILED: {error}")
        return Result(contender, problem=str(error))


def rated(server: contenders.Server, plan: Plan) -> Result:
    """The highest rate of a running server, and half of it; or why there is none."""
    send = partial(offer, server.port, server.requests)
    send(FIRST_RATE, int(2 * FIRST_RATE))
    for limit in (LIMIT_MS, *LOOSE_MS):
        rate = search(partial(probe, send, plan=plan, limit=limit), plan.precision)
        top = confirmed(server, rate, plan, limit) if rate else None
        if top is not None:
            half = server_point(server, top.point.rate / 2, plan, seed=77, limit=float("inf"))
            tell("half of it", half.point, limit)
            return Result(server.contender, top, half, limit=limit)
        say(f"no rate holds with p99 <= {limit:g} ms; the search ended at {rate:,.0f} a second")
    return Result(server.contender, problem=f"no rate holds with p99 <= {LOOSE_MS[-1]:g} ms")


def share_of_others(pid: int, before: contenders.Cpu, began: float) -> float:
    spent = contenders.cpu_seconds(pid) - before
    return max(0.0, spent.others) / ((time.perf_counter() - began) * (psutil.cpu_count() or 1))


def search(passes: Callable[[float, int], bool], precision: float) -> float:
    """The highest rate that passes, by doubling and then bisection; a rate fails when it fails twice. 0: none down to the lowest.

    Args:
        passes: of a rate and the number of the try, by which its planned moments differ.
        precision: the search ends when the failing rate is at most this many times the passing one.
    """
    tried = iter(range(1, 1000))

    def good(rate: float) -> bool:
        return passes(rate, next(tried)) or passes(rate, next(tried))

    low, high = 0.0, FIRST_RATE
    while good(high):
        low, high = high, 2 * high
    while low == 0:
        if high / 2 < LOWEST_RATE:
            return 0.0
        low, high = (high / 2, high) if good(high / 2) else (0.0, high / 2)
    while high / low > precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def probe(send: Callable[..., Point], rate: float, seed: int, plan: Plan, limit: float) -> bool:
    point = send(rate, max(200, int(rate * plan.probe)), seed=seed, limit=limit)
    tell("probe", point, limit)
    return point.within(limit)


def confirmed(server: contenders.Server, rate: float, plan: Plan, limit: float) -> Measured | None:
    """The first rate from `rate` downwards that holds on a long run; None: none does."""
    for attempt in range(CONFIRMATIONS):
        found = server_point(server, rate * STEP_DOWN ** (attempt * (attempt + 1) // 2), plan, seed=1000 + attempt, limit=limit)
        tell("long run", found.point, limit)
        if found.point.within(limit):
            return found
    return None


def server_point(server: contenders.Server, rate: float, plan: Plan, seed: int, limit: float) -> Measured:
    """A long run with the CPU that it took."""
    count = min(plan.requests, max(200, int(rate * plan.seconds)))
    before = contenders.cpu_seconds(server.pid)
    point = offer(server.port, server.requests, rate, count, seed=seed, limit=limit)
    spent = contenders.cpu_seconds(server.pid) - before
    return Measured(point, spent.server / max(point.answered, 1) * 1e6)


def tell(kind: str, point: Point, limit: float) -> None:
    found = "given up" if point.stopped else f"p50 {point.p50:.2f} ms, p99 {point.p99:.2f} ms"
    errors = f", {point.errors} errors: {point.first_error[:200]}" if point.errors else ""
    verdict = "holds" if point.within(limit) else "does not hold"
    say(f"{kind} at {point.rate:,.0f}/s, {point.planned:,} requests: {found}{errors}: {verdict}")


def report(results: Sequence[Result]) -> None:
    """The table of all contenders; ratios are ours to theirs."""
    ours = {name: next((r.rate for r in results if r.contender.name == name), float("nan")) for name in ("predict", "infer")}
    rows = []
    for r in results:
        if r.top is None or r.half is None:
            rows.append([r.contender.about, r.problem[:80], *[""] * 9])
            continue
        rows.append([
            r.contender.about, f"{r.rate:,.0f}" + loose(r), f"{ours['predict'] / r.rate:.2f}", f"{ours['infer'] / r.rate:.2f}",
            f"{r.top.point.p50:.2f}", f"{r.top.point.p99:.2f}", f"{r.half.point.p50:.2f}", f"{r.half.point.p99:.2f}",
            f"{r.top.cpu:,.0f}", f"{r.half.cpu:,.0f}", f"{r.top.point.planned:,} / {r.half.point.planned:,}",
        ])  # fmt: skip
    say(f"\n## Highest rate with p99 <= {LIMIT_MS:g} ms and no error, one core, one row a request\n")
    heads = ["", "requests/s", "`/predict` is x times it", "v2 infer is x times it", "p50, ms", "p99, ms", "at half: p50", "p99",
             "CPU, µs a request", "at half", "requests measured"]  # fmt: skip
    show(heads, rows)
    lags = [m.point.lag for r in results for m in (r.top, r.half) if m]
    if lags:
        say(f"\nThe generator sent 99 % of its requests within {max(lags):.2f} ms of the planned moment, in every long run.")
    busy = max((r.others for r in results), default=0.0)
    say(f"Other processes used up to {busy:.0%} of the cores: {'quiet enough' if busy <= QUIET else 'NOT QUIET, measure again'}.")


def loose(result: Result) -> str:
    return f" (p99 <= {result.limit:g} ms)" if result.limit > LIMIT_MS else ""


def summary(results: Sequence[Result]) -> bool:
    """What was aimed at and what came; True when a contender could not be measured."""
    rates = {r.contender.name: r.rate for r in results}
    say("\n## Summary\n")
    for peer, wanted in TARGETS.items():
        if peer in rates and "predict" in rates:
            ratio = rates["predict"] / rates[peer]
            verdict = "met" if ratio >= wanted else "MISSED" if np.isfinite(ratio) else "not measured"
            held = next(loose(r) for r in results if r.contender.name == peer)
            say(f"- POST /predict against {peer}{held}: {ratio:.2f} times, wanted {wanted:g}: {verdict}")
    for r in results:
        if r.problem:
            say(f"- {r.contender.name} was not measured: {r.problem}")
    return any(r.problem for r in results)


if __name__ == "__main__":
    main()
