"""What can be broken under a running service, each by real means, and how it is mended again."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ops.fault_models import Kind
from ops.fault_scene import TICK, RedisBehindProxy, Scene, eventually

Versions = Callable[[], str]
"""Gives a version number that was not yet used."""
Fault = Callable[[Scene, Versions], contextlib.AbstractContextManager[list[str]]]
"""Breaks something on entry and mends it on exit; the list is of notes, complete after the exit."""


@contextlib.contextmanager
def store_stopped(at: Scene, _: Versions) -> Iterator[list[str]]:
    at.store.stop()
    yield ["Redis" if isinstance(at.store, RedisBehindProxy) else "SQLite"]
    at.store.start()


@contextlib.contextmanager
def store_slow(at: Scene, _: Versions) -> Iterator[list[str]]:
    assert isinstance(at.store, RedisBehindProxy)
    at.store.slow(2.0)
    yield ["Redis, each read takes 2 s"]
    at.store.slow(0)


@contextlib.contextmanager
def ledger_away(at: Scene, version: Versions) -> Iterator[list[str]]:
    path = at.home / "ledger.db"
    away = path.with_suffix(".away")
    path.rename(away)
    notes = ["then a new champion"]
    yield notes
    away.replace(path)
    _promoted(at, version())


@contextlib.contextmanager
def ledger_locked(at: Scene, version: Versions) -> Iterator[list[str]]:
    with contextlib.closing(sqlite3.connect(at.home / "ledger.db", timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        yield ["then a new champion"]
        connection.execute("ROLLBACK")
    _promoted(at, version())


@contextlib.contextmanager
def manifest_garbage(at: Scene, version: Versions) -> Iterator[list[str]]:
    with contextlib.closing(sqlite3.connect(at.home / "ledger.db", timeout=30)) as connection:
        name, newest = connection.execute("SELECT name, max(version) FROM manifests GROUP BY name").fetchone()
        connection.execute("INSERT INTO manifests (name, version, key, document) VALUES (?, ?, 'x', '{]')", (name, newest + 1))
        connection.commit()
        yield ["then a new champion"]
        connection.execute("DELETE FROM manifests WHERE key = 'x'")
        connection.commit()
    _promoted(at, version())


@contextlib.contextmanager
def artifact_truncated(at: Scene, version: Versions) -> Iterator[list[str]]:
    made = at.make(version())
    (archive,) = [path for path in (at.home / "store").rglob("*") if path.name.endswith(made.bundle[2:]) and path.is_file()]
    archive.write_bytes(archive.read_bytes()[:1000])
    at.publish("half a bundle", champion=made)
    yield ["then a new champion"]
    _promoted(at, version())


@contextlib.contextmanager
def disk_full(at: Scene, _: Versions) -> Iterator[list[str]]:
    filler = Path(f"/proc/{at.service.pid}/root{at.home}/predictions/filler")
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        notes = [""]
        yield notes
        file.truncate(0)
    eventually(lambda: at.counted("evergreen_predictions_logged_total") > 0, "the log is written again")
    time.sleep(2)
    notes[0] = (
        f"logged {at.counted('evergreen_predictions_logged_total'):,.0f}, "
        f"dropped {at.counted('evergreen_predictions_dropped_total'):,.0f}"
    )


@contextlib.contextmanager
def shadow_hangs(at: Scene, version: Versions) -> Iterator[list[str]]:
    at.publish("shadow", shadow=at.make(version(), kind="slow", turns=3_000_000))
    yield ["each copy takes seconds of a core"]
    at.publish("no shadow", shadow=None)


@contextlib.contextmanager
def canary_raises(at: Scene, version: Versions) -> Iterator[list[str]]:
    with _canary(at, version(), "raises") as notes:
        yield notes


@contextlib.contextmanager
def canary_nan(at: Scene, version: Versions) -> Iterator[list[str]]:
    with _canary(at, version(), "nan") as notes:
        yield notes


@contextlib.contextmanager
def service_killed(at: Scene, _: Versions) -> Iterator[list[str]]:
    at.service.kill()
    yield ["one process; its supervisor starts it again"]


@contextlib.contextmanager
def worker_killed(at: Scene, _: Versions) -> Iterator[list[str]]:
    began = at.counted("evergreen_swaps_total")
    at.service.workers()[0].kill()
    yield ["the other answers, and the dead one is replaced"]
    eventually(lambda: at.counted("evergreen_swaps_total") > began, "a new worker serves")


@contextlib.contextmanager
def _canary(at: Scene, version: str, kind: Kind) -> Iterator[list[str]]:
    at.publish(f"canary: {kind}", canary=at.make(version, kind=kind), canary_share=0.5)
    yield ["canary of half of the entities"]
    at.publish("no canary", canary=None, canary_share=0.0)


def _promoted(at: Scene, version: str) -> None:
    at.promote(version)
    eventually(lambda: at.ask().get("model_version") == version, f"version {version} serves")


FAULTS: dict[str, tuple[str, Fault]] = {
    "store-away": ("feature store taken away", store_stopped),
    "store-stopped": ("feature store killed", store_stopped),
    "store-slow": ("feature store slow", store_slow),
    "ledger-away": ("ledger's database moved away", ledger_away),
    "ledger-locked": ("ledger's database locked", ledger_locked),
    "manifest-garbage": ("manifest is garbage", manifest_garbage),
    "artifact-truncated": ("champion's bundle truncated", artifact_truncated),
    "disk-full": ("disk full for the log", disk_full),
    "canary-raises": ("canary raises", canary_raises),
    "canary-nan": ("canary answers NaN", canary_nan),
    "shadow-hangs": ("shadow hangs", shadow_hangs),
    "worker-killed": ("one of two workers killed (-9)", worker_killed),
    "service-killed": ("the only process killed (-9)", service_killed),
}


@contextlib.contextmanager
def prepared(at: Scene, name: str) -> Iterator[str]:
    """What a fault needs before the load comes: why it cannot be played here, or nothing."""
    if name in ("store-stopped", "store-slow"):
        with _redis(at) as able:
            yield able
    elif name == "disk-full":
        if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
            yield "no user namespace may be made here"
            return
        folder = at.home / "predictions"
        folder.mkdir(exist_ok=True)
        at.service.stop()
        at.service.start(["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=2m tmpfs "{folder}" && exec "$@"', "-"])
        yield ""
        at.service.stop()
        at.service.start()
    elif name == "worker-killed":
        at.service.stop()
        at.service.start(EVERGREEN_SERVING_WORKERS="2")
        eventually(lambda: at.counted("evergreen_swaps_total") == len(at.service.workers()) == 2, "both workers serve")
        yield ""
        at.service.stop()
        at.service.start()
    elif name == "shadow-hangs":
        yield ""
        at.service.stop()  # what hangs would weigh on the next
        at.service.start()
    else:
        yield ""


@contextlib.contextmanager
def _redis(at: Scene) -> Iterator[str]:
    """The service with its features in Redis."""
    if not shutil.which("redis-server"):
        yield "redis-server is not installed"
        return
    from ml.features.online import open_store

    by_default, at.store = at.store, RedisBehindProxy(at.home)
    try:
        open_store(at.store.url).write(TICK, at.values)
        at.service.stop()
        at.service.start(EVERGREEN_ONLINE=at.store.url)
        yield ""
        at.service.stop()
    finally:
        at.store.close()
        at.store = by_default
    at.service.start()
