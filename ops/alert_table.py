"""``make alert-table``: real Prometheus and Alertmanager watch a real service and exporter, while ten things go wrong in turn.

Each must raise its own alert at whom it is for, no other page, and be told as resolved after its cure. Rules, routes and
inhibitions are those of ``monitoring/``; only addresses differ, and durations are shortened, so that it takes minutes: a ``for``
to at most 20 s, as a window. The time to fire is from the fault to the message, beside the ``for`` that it really has.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from ml.errors import EvergreenError
from ml.settings import ROOT
from ops import environment
from ops.bench_features import say, show
from ops.fault_scene import Scene, eventually, scene
from ops.open_loop import Load
from ops.ports import free_port

MONITORING = ROOT / "monitoring"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST, SHORTEST_FOR = 20, 10
FIRES_SECONDS, RESOLVES_SECONDS = 90.0, 120.0
RATE = 30.0


# ---- the watchers


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
    """Rules with shorter durations; see the module."""
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
            eventually(partial(_ready, ports[name]), f"{name} is ready")
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


def _ready(port: int, path: str = "/-/ready") -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


class Exporter:
    """The exporter, that can be let to read another place."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self._running = contextlib.ExitStack()

    def read(self, case: str, data: Path | None = None) -> None:
        """Reads the place of `case` (see `ops.alert_place`), which is made first; `data`: a tenth of a disk is free there."""
        env, prefix = place(self._folder, case), []
        if data is not None:
            fill = 'mount -t tmpfs -o size=8m tmpfs "$0" && head -c 7800000 /dev/zero >"$0/filler" && exec "$@"'
            prefix, env = ["unshare", "-rm", "sh", "-c", fill, str(data)], env | {"EVERGREEN_DATA": str(data)}
        self.start(env, prefix)

    def start(self, env: dict[str, str], prefix: Sequence[str] = ()) -> None:
        """Reads the place that `env` names; `prefix`: a command that runs the command after it in its own way."""
        self._running.close()
        env = env | {"EVERGREEN_EXPORTER_PORT": str(self.port)}
        command = [*prefix, sys.executable, "-c", "from ml.cli import main; main()", "exporter"]
        self._running.enter_context(process(command, self._folder / "exporter.log", **env))
        eventually(lambda: _ready(self.port, "/metrics"), "the exporter answers")

    def close(self) -> None:
        self._running.close()


def place(folder: Path, case: str) -> dict[str, str]:
    """Environment of the place of a case, which is made when it is not there."""
    home = folder / case
    env = {
        "EVERGREEN_VAR": str(home / "var"),
        "EVERGREEN_DATA": str(home / "data"),
        "EVERGREEN_PARAMS": str(home / "params.yaml"),
    }
    env |= {"EVERGREEN_STORE": "", "EVERGREEN_LEDGER": "", "EVERGREEN_AIRFLOW_PORT": "1"}
    if not home.exists():
        home.mkdir(parents=True)
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["schedule"] |= {"end": None}
        (home / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", "ops.alert_place", case]
        subprocess.run(command, cwd=ROOT, env=environment.common() | env, check=True)
    return env


# ---- what goes wrong


@dataclass
class Stage:
    """What a fault may touch."""

    at: Scene
    exporter: Exporter
    folder: Path
    versions: Iterator[str]


Fault = Callable[[Stage], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _service_down(stage: Stage) -> Iterator[None]:
    stage.at.service.stop()
    yield
    stage.at.service.start()


@contextlib.contextmanager
def _errors(stage: Stage) -> Iterator[None]:
    """The champion's bundle is damaged, and then the service starts again: it has no model."""
    at = stage.at
    made = at.make(next(stage.versions))
    (archive,) = [path for path in (at.home / "store").rglob("*") if path.name.endswith(made.bundle[2:]) and path.is_file()]
    archive.write_bytes(archive.read_bytes()[:1000])
    at.publish("half a bundle", champion=made, previous=None)
    at.service.kill()
    yield
    at.promote(next(stage.versions))


@contextlib.contextmanager
def _slow(stage: Stage) -> Iterator[None]:
    at = stage.at
    at.publish("too large a model", champion=at.make(next(stage.versions), kind="slow", turns=300_000), previous=None)
    yield
    at.promote(next(stage.versions))


@contextlib.contextmanager
def _log_full(stage: Stage) -> Iterator[None]:
    """The prediction log's disk is full."""
    at = stage.at
    folder = at.home / "predictions"
    folder.mkdir(exist_ok=True)
    at.service.stop()
    mount = f'mount -t tmpfs -o size=2m tmpfs "{folder}" && exec "$@"'
    at.service.start(["unshare", "-rm", "sh", "-c", mount, "-"])
    filler = Path(f"/proc/{at.service.pid}/root{folder}/filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    rows = b"[" + b",".join(itertools.islice(itertools.cycle(body for _, body in at.rows), 250)) + b"]"
    dropped = lambda: at.counted("evergreen_predictions_dropped_total") > 0
    eventually(lambda: httpx.post(f"{at.service.url}/predict", content=rows, timeout=10) and dropped(), "the queue overflows", 60)
    yield
    filler.unlink()


def _read(case: str, full: bool = False) -> Fault:
    @contextlib.contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        data = stage.folder / "full" if full else None
        if data is not None:
            data.mkdir(exist_ok=True)
        stage.exporter.read(case, data)
        yield
        stage.exporter.read("well")

    return fault


FAULTS: dict[str, tuple[str, Fault]] = {
    "service down": ("ServingDown", _service_down),
    "error burst": ("ServingErrors", _errors),
    "slow": ("ServingSlow", _slow),
    "stale data": ("DataStale", _read("stale")),
    "missed nightly": ("NightlyMissed", _read("missed")),
    "drift harm": ("ModelHarms", _read("harm")),
    "frozen policy": ("PolicyFrozen", _read("frozen")),
    "model too old": ("ModelTooOld", _read("old")),
    "queue drops": ("PredictionsDropped", _log_full),
    "disk nearly full": ("DiskNearlyFull", _read("well", full=True)),
}
"""Fault → the alert that must be raised, and how it is caused and cured."""


# ---- the table


@dataclass
class Row:
    fault: str
    alert: str
    severity: str
    pending: str
    """The real ``for``."""
    receiver: str = "nobody was told"
    fires: float = float("nan")
    resolved: float = float("nan")
    pages: list[str] = field(default_factory=list)
    """Other alerts that paged meanwhile."""

    @property
    def well(self) -> bool:
        return self.receiver == f"{self.severity}s" and self.resolved == self.resolved and not self.pages


def play(name: str, stage: Stage, listener: Listener) -> Row:
    """Causes a fault, waits until its alert is told, cures it, waits until that is told."""
    alert, fault = FAULTS[name]
    rules = [
        rule for group in yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    rule = next(each for each in rules if each["alert"] == alert)
    row, heard = Row(name, alert, rule["labels"]["severity"], rule.get("for", "0s")), len(listener.told)

    def told(status: str) -> Told | None:
        return next((each for each in listener.told[heard:] if (each.alert, each.status) == (alert, status)), None)

    began = time.monotonic()
    with fault(stage):
        fired = _waited(lambda: told("firing"), FIRES_SECONDS)
        if fired is not None:
            row.receiver, row.fires = fired.receiver, fired.at - began
        cured = time.monotonic()
    ended = _waited(lambda: told("resolved"), RESOLVES_SECONDS) if fired else None
    if ended is not None:
        row.resolved = ended.at - cured
    row.pages = sorted({each.alert for each in listener.told[heard:] if each.receiver == "pages" and each.alert != alert})
    return row


def _waited(check: Callable[[], Told | None], seconds: float) -> Told | None:
    deadline = time.monotonic() + seconds
    while (found := check()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def watched() -> Iterator[tuple[Stage, Listener]]:
    """A service under load and an exporter, watched, in good order for long enough that windows are full."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-alerts-")))
        at = stack.enter_context(scene())
        exporter = Exporter(folder)
        stack.callback(exporter.close)
        exporter.read("well")
        listener = stack.enter_context(watchers(folder / "watchers", {"serving": at.service.port, "loop": exporter.port}))
        stack.enter_context(Load(at.service.port, at.rows, RATE))
        time.sleep(LONGEST)
        yield Stage(at, exporter, folder, map(str, itertools.count(2))), listener


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.alert_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help=f"of: {', '.join(FAULTS)}; default all", default=[])
    asked = parser.parse_args(arguments)
    if unknown := set(asked.faults) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rows = []
    with watched() as (stage, listener):
        for name in asked.faults or FAULTS:
            say(f"{name} …")
            rows.append(play(name, stage, listener))
            say(f"  {rows[-1].alert}: {rows[-1].receiver} after {rows[-1].fires:.0f} s")
    heads = ["fault", "alert", "told to", "fires after, s", "its real for", "resolved after, s", "other pages"]
    shown = [
        [r.fault, r.alert, r.receiver, f"{r.fires:.0f}", r.pending, f"{r.resolved:.0f}", ", ".join(r.pages) or "none"]
        for r in rows
    ]
    show(heads, shown)
    wrong = [row.fault for row in rows if not row.well]
    say(f"WRONG: {', '.join(wrong)}" if wrong else "Each raised its alert and no other page, and was resolved after its cure.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
