"""``make bench-metrics``: how many series there are after a year, what a scrape costs, and what counting costs a request.

The exporter reads a history of 365 days, 60 candidates and 53 features (`ops.history`); the service has served 60 versions, each
with a canary cohort. For the overhead two services stand side by side, one that counts and one whose counting is left out; they
are asked in turns, over one connection each, and their own CPU time is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil

from ml.settings import ROOT
from ops import environment
from ops.alert_faults import Exporter
from ops.bench_features import say, show
from ops.fault_scene import Scene, eventually, scene
from ops.ports import free_port

DAYS, VERSIONS, SCRAPES = 365, 60, 20
SILENT = "from ml.serving.telemetry import Telemetry as T; T.gave = T.answered = lambda *_: None; from ml.cli import main; main()"
COUNTING = "from ml.cli import main; main()"


def series(text: str) -> Counter[str]:
    """Samples of a scrape by metric."""
    names = (line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#"))
    return Counter(names)


def scrapes(url: str, count: int) -> tuple[str, list[float]]:
    """The text of the last of several scrapes, and the seconds of each."""
    seconds, text = [], ""
    for _ in range(count):
        began = time.perf_counter()
        text = httpx.get(url, timeout=120).text
        seconds.append(time.perf_counter() - began)
    return text, seconds


def loop(folder: Path, days: int, versions: int) -> list[str]:
    """A row of the table: the exporter over a history."""
    home = folder / f"{days}"
    env = {"EVERGREEN_VAR": str(home / "var"), "EVERGREEN_DATA": str(home / "data"), "EVERGREEN_AIRFLOW_PORT": "1"}
    command = [sys.executable, "-m", "ops.history", "--days", str(days), "--versions", str(versions)]
    subprocess.run(command, cwd=ROOT, env=environment.common() | env, check=True, stdout=subprocess.DEVNULL)
    exporter = Exporter(folder)
    try:
        exporter.start(env)
        text, seconds = scrapes(f"http://127.0.0.1:{exporter.port}/metrics", SCRAPES)
    finally:
        exporter.close()
    return _row(f"loop, {days} days, {versions} candidates", text, seconds)


def service(at: Scene, versions: int) -> list[str]:
    """A row of the table: the service after so many champions, each answering once."""
    for version in range(2, versions + 2):
        at.promote(str(version))
        eventually(partial(_serves, at, str(version)), f"version {version} serves")
    text, seconds = scrapes(f"{at.service.url}/metrics", SCRAPES)
    return _row(f"service, {versions} versions", text, seconds)


def _serves(at: Scene, version: str) -> bool:
    return at.ask().get("model_version") == version


def _row(name: str, text: str, seconds: list[float]) -> list[str]:
    found = series(text)
    largest = ", ".join(f"{metric.removeprefix('evergreen_')} {n}" for metric, n in found.most_common(3))
    return [name, f"{sum(found.values()):,}", f"{len(text) / 1024:.0f}", f"{1e3 * float(np.median(seconds)):.0f}", largest]


def overhead(at: Scene, turns: int, requests: int) -> list[float]:
    """By turn: CPU time a request of the service that counts, as a multiple of that of the one that does not."""
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(_started(code)) for code in (COUNTING, SILENT)]
        ratios = []
        for turn in range(turns + 1):
            used = [_asked(process, port, at, requests) for process, port in pair]
            if turn:  # the first warms up
                ratios.append(used[0] / used[1])
                say(f"  turn {turn}: {1e6 * used[0]:.0f} µs CPU a request with, {1e6 * used[1]:.0f} without: {ratios[-1]:.3f}")
    return ratios


@contextlib.contextmanager
def _started(code: str) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    env = environment.common() | {"EVERGREEN_SERVING_PORT": str(port), "EVERGREEN_HOST": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _ready(port), "the service is ready")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(30)


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _asked(process: psutil.Process, port: int, at: Scene, requests: int) -> float:
    """Seconds of CPU a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began = sum(process.cpu_times()[:2])
    for i in range(requests):
        connection.request("POST", "/predict", at.rows[i % len(at.rows)][1], {"content-type": "application/json"})
        connection.getresponse().read()
    connection.close()
    return (sum(process.cpu_times()[:2]) - began) / requests


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench_metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=10, help="of each service (default 10)")
    parser.add_argument("--requests", type=int, default=5000, help="a turn (default 5,000)")
    parser.add_argument("--days", type=int, default=DAYS)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="evergreen-metrics-") as folder:
        rows = [loop(Path(folder), days, versions) for days, versions in ((30, 6), (asked.days, VERSIONS))]
    with scene() as at:
        ratios = overhead(at, asked.turns, asked.requests)
        rows.append(service(at, VERSIONS))
    show(["scraped", "series", "KiB", "scrape, ms (median)", "most series"], rows)
    say(f"\n/predict with metrics takes {np.median(ratios):.3f} × the CPU without ({min(ratios):.3f}–{max(ratios):.3f} by turn)")


if __name__ == "__main__":
    main()
