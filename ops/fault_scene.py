"""What ``make fault-table`` and ``make api-cases`` play on: a scratch home with a day of real rows, and the real service under a
supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from ml.errors import EvergreenError
from ops import environment
from ops.fault_models import deployed

FIRST, TICK = date(2013, 1, 1), datetime(2013, 1, 3, 12)
START_SECONDS = 30.0


def eventually(check: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
    """Waits until `check` gives something true, and returns it.

    Raises:
        EvergreenError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise EvergreenError(f"{what}: not within {seconds:.0f} s", "read the service's last words, above")
        time.sleep(0.01)
    return found


@dataclass
class Scene:
    """A scratch home and what a fault needs to know of it."""

    home: Path
    rows: list[tuple[str, bytes]]
    """Entity id and request body, of one hour of rows; every feature of them is in the store."""
    make: Callable[..., Any]
    """`ops.fault_models.deployed` for this problem: version, kind, turns."""
    values: Any
    """What the online store holds, by view."""
    store: SQLiteFile | RedisBehindProxy
    service: Supervised

    def promote(self, version: str) -> None:
        """Version `version`, a good model, becomes champion, all trials end."""
        self.publish(f"version {version}", champion=self.make(version), canary=None, canary_share=0.0, shadow=None)

    def publish(self, reason: str, **changes: Any) -> None:
        """The next manifest, with these changes."""
        from ml.serving import manifest

        manifest.change(f"fault-{time.time_ns()}", TICK, "fault table", reason, **changes)

    def ask(self) -> dict[str, Any]:
        """The answer to the first row; empty when there is none."""
        try:
            found = httpx.post(f"{self.service.url}/predict", content=self.rows[0][1], timeout=5)
        except httpx.TransportError:
            return {}
        answer: dict[str, Any] = found.json() if found.status_code == 200 else {}
        return answer

    def counted(self, name: str) -> float:
        """A counter of ``/metrics``, summed over its labels; 0 when it is not there."""
        lines = httpx.get(f"{self.service.url}/metrics", timeout=5).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """Days of the shipped data landed in a temporary folder, the online store filled, version 1 serving."""
    from ops.bench_features import landed_days

    with landed_days(FIRST, TICK.date() + timedelta(days=1)), contextlib.ExitStack() as stack:
        from ml.settings import settings

        home = settings().var
        store = SQLiteFile(home)
        rows, make, values = _filled(store)
        service = Supervised(home)
        stack.callback(service.close)
        made = Scene(home, rows, make, values, store, service)
        try:
            made.promote("1")
            service.start()
            eventually(lambda: made.ask().get("flags") == [], "an answer without a flag")
            yield made
        except EvergreenError:
            print("".join((home / "serving.log").read_text().splitlines(keepends=True)[-40:]), file=sys.stderr)
            raise


def _filled(store: SQLiteFile) -> tuple[list[tuple[str, bytes]], Callable[..., Any], Any]:
    """Writes the tick's values of every view to the store; gives the rows due in the hour, a maker of models, and the values."""
    from ml.config import load_params
    from ml.data import rows
    from ml.features import days, history, inputs
    from ml.features.assembly import Assembler
    from ml.features.definitions import load_module
    from ml.features.online import open_store
    from ops.bench_features import landed

    params = load_params()
    module = load_module(params)
    root, version = landed(TICK.date() + timedelta(days=1))
    found = days.histories(params, inputs.landed(root, version.last_day), TICK, TICK)
    online = open_store(store.url)
    values = {view.name: history.last_values(view, found[view.name], TICK) for view in module.views}
    online.write(TICK, values)
    start = TICK + timedelta(hours=params.problem.lead_hours)
    spec = params.tables[params.problem.table]
    due = rows.problem_rows(root, start, start + timedelta(hours=1), TICK)
    asked = due.select([c for c in spec.columns if c not in spec.outcomes]).to_pylist()
    bodies = [json.dumps(row, default=datetime.isoformat).encode() for row in asked]
    example = json.loads(bodies[0])
    features = Assembler(params).assemble(online, asked[:1]).features[0]

    def make(version: str, **how: Any) -> Any:
        return deployed(params, module, example, features, version, **how)

    return list(zip(due["entity_id"].to_pylist(), bodies, strict=True)), make, values


class Supervised:
    """``evergreen serve`` as a unit of systemd or a pod would be run: started again as soon as it has died."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (home / "serving.log").open("ab")
        self._prefix: list[str] = []
        self._settings: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, prefix: list[str] | None = None, **settings: str) -> None:
        """Starts it and waits until it is ready.

        Args:
            prefix: a command that runs the command after it in its own place.
            settings: environment variables.
        """
        self._stopping.clear()
        self._prefix, self._settings = prefix or [], settings
        self._spawn()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        eventually(self.ready, "the service is ready")

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """``kill -9``; the supervisor notices."""
        os.kill(self.pid, signal.SIGKILL)

    def workers(self) -> list[psutil.Process]:
        """Its processes that answer, where there are several."""
        children = psutil.Process(self.pid).children()
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]

    def stop(self) -> float:
        """Asks it to end, for good; seconds until it has, or was killed after 30."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        began = time.monotonic()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        return time.monotonic() - began

    def close(self) -> None:
        self.stop()
        self._log.close()

    def _spawn(self) -> None:
        env = environment.common() | {"EVERGREEN_SERVING_PORT": str(self.port), "EVERGREEN_HOST": "127.0.0.1"}
        env |= self._settings
        command = [*self._prefix, sys.executable, "-c", "from ml.cli import main; main()", "serve"]
        self._process = subprocess.Popen(command, env=env, stdout=self._log, stderr=self._log)

    def _watch(self) -> None:
        while not self._stopping.wait(0.02):
            if self._process is not None and self._process.poll() is not None:
                self._spawn()


class SQLiteFile:
    """The online store as it is by default; it can be taken away."""

    def __init__(self, home: Path) -> None:
        self.url = str(home / "online.db")

    def stop(self) -> None:
        Path(self.url).rename(self.url + ".away")

    def start(self) -> None:
        Path(self.url + ".away").rename(self.url)


class RedisBehindProxy:
    """A redis-server, and before it a proxy that can hold answers back."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._home = home
        self._delay = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self._pass, sock=self._listener), self._loop).result()
        self.start()

    def start(self) -> None:
        options = f"--port {self._port} --bind 127.0.0.1 --dir {self._home} --appendonly yes --save".split()
        self._server = subprocess.Popen(["redis-server", *options, ""], stdout=subprocess.DEVNULL)

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(7) == b"+PONG\r\n"
            return False

        eventually(answers, "redis-server answers")

    def stop(self) -> None:
        self._server.kill()
        self._server.wait()

    def slow(self, seconds: float) -> None:
        self._delay = seconds

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the server is down: so is this connection
            writer.close()
            return
        await asyncio.gather(self._copy(reader, upstream[1], held=False), self._copy(upstream[0], writer, held=True))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if held and self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(data)
                await writer.drain()
        writer.close()
