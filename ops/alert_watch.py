"""Who is told of what: real Prometheus and Alertmanager on the project's own rules and routes, and an ear at every receiver.

Only addresses differ, and durations are shortened: see `shortened`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from ml.errors import EvergreenError
from ml.settings import ROOT
from ops import environment
from ops.fault_scene import eventually
from ops.ports import free_port

MONITORING = ROOT / "monitoring"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST, SHORTEST_FOR = 20, 10


@dataclass(frozen=True)
class Told:
    """One message of Alertmanager about one alert."""

    at: float
    receiver: str
    status: str
    alert: str


class Listener(ThreadingHTTPServer):
    """Hears what Alertmanager tells each receiver."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.prometheus = ""
        """Where the Prometheus is that all comes from."""
        super().__init__(("127.0.0.1", 0), _Heard)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Heard(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        now, who = time.monotonic(), self.path.strip("/")
        self.server.told += [Told(now, who, each["status"], each["labels"]["alertname"]) for each in message["alerts"]]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """What is heard is in `told`."""


def shortened(text: str) -> str:
    """Rules that take minutes: a ``for`` is at most 20 s, and so is a window."""
    capped = lambda length, unit, most: f"{max(SHORTEST_FOR, min(int(length) * UNITS[unit] // 30, most))}s"
    text = re.sub(r"for: (\d+)([smhdw])", lambda m: f"for: {capped(m[1], m[2], LONGEST)}", text)
    text = re.sub(r"\[(\d+)([smhdw])\]", lambda m: f"[{min(int(m[1]) * UNITS[m[2]], LONGEST)}s]", text)
    return re.sub(r"interval: \w+", "interval: 1s", text)


@contextlib.contextmanager
def watchers(folder: Path, targets: dict[str, int]) -> Iterator[Listener]:
    """Prometheus and Alertmanager on the project's own files.

    Args:
        targets: job → port on 127.0.0.1.

    Raises:
        EvergreenError: one of the two is not installed, or does not get ready.
    """
    for program in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            raise EvergreenError(f"{program} is not installed", "sh ops/install_debian.sh prometheus prometheus-alertmanager")
    listener, ports = Listener(), {"prometheus": free_port(), "alertmanager": free_port()}
    (folder / "rules").mkdir(parents=True)
    for path in (MONITORING / "rules").glob("*.yml"):
        (folder / "rules" / path.name).write_text(shortened(path.read_text()))
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    routes = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    for route in (routes["route"], *routes["route"]["routes"]):
        route |= {"group_wait": "2s", "group_interval": "1s"}
    hook = f"http://127.0.0.1:{listener.server_port}/"
    routes["receivers"] = [
        {"name": each["name"], "webhook_configs": [{"url": hook + each["name"], "send_resolved": True}]}
        for each in routes["receivers"]
    ]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(routes))
    commands = {
        "alertmanager": ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", "--cluster.listen-address=",
                         f"--storage.path={folder}/alertmanager", f"--web.listen-address=127.0.0.1:{ports['alertmanager']}"],
        "prometheus": ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                       f"--web.listen-address=127.0.0.1:{ports['prometheus']}"],
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(listener.shutdown)
        for name, command in commands.items():
            stack.enter_context(process(command, folder / f"{name}.log"))
            eventually(partial(ready, ports[name]), f"{name} is ready")
        listener.prometheus = f"http://127.0.0.1:{ports['prometheus']}"
        yield listener


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        started = subprocess.Popen(command, cwd=ROOT, env=environment.common() | env, stdout=out, stderr=out)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


def ready(port: int, path: str = "/-/ready") -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def unanswered(prometheus: str, queries: Iterable[str], seconds: float = 60.0) -> list[str]:
    """Those of the queries that a Prometheus has no answer to; it is given time to get one.

    Raises:
        EvergreenError: one is no PromQL.
    """
    left, deadline = list(queries), time.monotonic() + seconds
    while True:
        left = [query for query in left if not _result(prometheus, query)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def _result(prometheus: str, query: str) -> list[Any]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=20).json()
    if answer["status"] != "success":
        raise EvergreenError(f"{query}: {answer['error']}", "mend the query")
    return list(answer["data"]["result"])
