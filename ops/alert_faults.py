"""What goes wrong under the eyes of `ops.alert_table`: ten faults, each with the alert that it must raise and its cure."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from ml.settings import ROOT
from ops import environment
from ops.alert_watch import process, ready
from ops.fault_scene import Scene, eventually
from ops.ports import free_port

# ---- what is read


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
        eventually(lambda: ready(self.port, "/metrics"), "the exporter answers")

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
