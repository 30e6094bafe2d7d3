"""How long the Models pages take, after ten days and after a year of nights: time on the server, size, and queries of each page.

    make bench-pages

Makes two histories in a temporary place, serves each with Airflow's own authentication over loopback, and asks for every page in
turn, logged in as a viewer. The time is that of a request at its client, one at a time. Ends by itself after about two minutes;
its exit code is 1 when a page takes more queries after a year than after ten days, or when a page's p95 is above the limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from ops import pages_server

DAYS = (10, 365)
PAGES = {
    "overview": "/models/",
    "timeline, 90 days": "/models/timeline?days=90",
    "timeline, all": "/models/timeline?days=0",
    "versions": "/models/versions",
    "candidate": "/models/versions/2",
    "drift, 60 days": "/models/drift?days=60",
    "drift, 120 days, all": "/models/drift?days=120&whole=true",
    "feature": "/models/drift/feature_07",
    "dates": "/models/dates",
    "ledger": "/models/ledger",
    "ledger, filtered": "/models/ledger?kind=gate&since=2013-01-02",
    "production at": "/models/ledger?at=2013-01-05T12:00",
    "entry": "/models/ledger/9",
    "tab of a run": "/models/run?dag_id=drift&run_id=scheduled__2013-01-03T00:00:00%2B00:00",
    "tab of a DAG": "/models/dag?dag_id=drift",
    "card": "/models/data/summary",
}
LIMIT_MS = 500.0


@dataclass(frozen=True)
class Measured:
    """Milliseconds; `first`: of the first request, which finds nothing in memory; `cpu95`: of the server's processor, p95.

    `queries`: median; Airflow looks a permission up again every minute or so, which is one more.
    """

    first: float
    p50: float
    p95: float
    cpu95: float
    queries: int
    kilobytes: float


def measure(client: httpx.Client, path: str, requests: int) -> Measured:
    """Asks for a page so many times, and once before."""
    times: list[float] = []
    cpu: list[float] = []
    queries: list[int] = []
    for _ in range(requests + 1):
        began = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - began))
        cpu.append(float(answer.headers.get("x-cpu-ms", 0)))
        queries.append(int(answer.headers.get("x-queries", 0)))
        if answer.status_code != 200:
            raise SystemExit(f"{path} answered {answer.status_code}: {answer.text[:400]}")
    p50, p95 = np.quantile(times[1:], [0.5, 0.95])
    cpu95 = float(np.quantile(cpu[1:], 0.95))
    return Measured(times[0], float(p50), float(p95), cpu95, int(np.median(queries[1:])), len(answer.content) / 1000)


def measured(days: int, versions: int, requests: int) -> dict[str, Measured]:
    print(f"{days} days of each DAG, {versions} candidates: making the history and starting the server …", flush=True)
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="pages-") as folder,
        pages_server.running(Path(folder), days, versions) as server,
        server.client("viewer") as client,
    ):
        client.get("/models/data/summary")  # what is imported once is imported now
        for name, path in PAGES.items():
            found[name] = measure(client, path, requests)
            print(f"  {name:22} p50 {found[name].p50:6.1f} ms  p95 {found[name].p95:6.1f} ms", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40, help="requests of each page (40)")
    parser.add_argument("--versions", type=int, default=60, help="candidates in the year (60)")
    asked = parser.parse_args()
    few, many = (measured(days, max(2, asked.versions * days // DAYS[1]), asked.requests) for days in DAYS)
    days = f"p50 ms, {DAYS[0]} and {DAYS[1]} days"
    print(f"\n{'page':22} {'queries':>11} {days:>26} {'ratio':>6} {'p95 ms':>8} {'cpu p95':>8} {'first ms':>9} {'kB':>7}")
    for name in PAGES:
        a, b = few[name], many[name]
        counts, times = f"{a.queries} and {b.queries}", f"{a.p50:.1f} and {b.p50:.1f}"
        figures = f"{b.p50 / a.p50:6.1f} {b.p95:8.1f} {b.cpu95:8.1f} {b.first:9.1f} {b.kilobytes:7.0f}"
        print(f"{name:22} {counts:>11} {times:>26} {figures}")
    grown = [name for name in PAGES if many[name].queries > few[name].queries]
    slow = [name for name in PAGES if many[name].p95 > LIMIT_MS]
    print(f"\nafter {DAYS[1]} days: slowest p95 {max(m.p95 for m in many.values()):.0f} ms (limit {LIMIT_MS:.0f}); "
          f"pages with more queries than after {DAYS[0]} days: {', '.join(grown) or 'none'}")  # fmt: skip
    return 1 if grown or slow else 0


if __name__ == "__main__":
    sys.exit(main())
