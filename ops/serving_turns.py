"""The same rates for several contenders in turns: what a noisy machine takes from one it takes from all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from ops import serving_contenders as contenders
from ops.bench_features import say, show
from ops.load import Point, offer
from ops.serving_case import Case

SECONDS = 3


def in_turns(
    chosen: Sequence[contenders.Contender], made: Case, core: int, rates: Sequence[float], rounds: int, limit: float
) -> None:
    """Starts all of them on `core`, asks one after the other at each rate, `rounds` times, and prints medians over rounds.

    Args:
        rates: requests a second.
        limit: of p99, milliseconds.
    """
    found: dict[tuple[float, str], list[tuple[Point, float]]] = {}
    say(f"\n## In turns: {', '.join(c.name for c in chosen)} at the same rates, {rounds} rounds of {SECONDS} s each\n")
    with ExitStack() as stack:
        servers = {c.name: stack.enter_context(contenders.started(c, made, core)) for c in chosen}
        for server in servers.values():
            offer(server.port, server.requests, 300, 600)
        for number in range(rounds):
            for rate in rates:
                for name, server in servers.items():
                    before = contenders.cpu_seconds(server.pid)
                    point = offer(server.port, server.requests, rate, int(rate * SECONDS), seed=number)
                    spent = contenders.cpu_seconds(server.pid) - before
                    found.setdefault((rate, name), []).append((point, spent.server / max(point.answered, 1) * 1e6))
            say(f"round {number + 1} of {rounds}")
    say("")
    show(
        ["requests/s", "", "p50, ms", "p99, ms", f"rounds with p99 <= {limit:g} ms", "CPU, µs a request", "errors"],
        [
            [f"{rate:,.0f}", name, f"{median(p.p50 for p, _ in points):.2f}", f"{median(p.p99 for p, _ in points):.2f}",
             f"{sum(p.within(limit) for p, _ in points)} of {rounds}", f"{median(cpu for _, cpu in points):,.0f}",
             str(sum(p.errors for p, _ in points))]
            for (rate, name), points in sorted(found.items())
        ],
    )  # fmt: skip
