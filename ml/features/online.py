"""The online store: the values of every view at one tick. One read answers for all views, and never shows half a tick.

SQLite by default (a file), Redis by URL; both pass ``tests/contracts/test_online_stores.py``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ml.errors import EvergreenError

Payload = dict[str, float | None]
Key = tuple[str, str]
"""View and entity key."""


class StoreDownError(EvergreenError):
    """The online store cannot be read now."""


class OnlineStore(Protocol):
    """Values by (view, entity key) at one tick."""

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Payload]]) -> int:
        """Replaces all views by their values at `tick`, whole or not at all; an older tick than the stored one is refused.

        Returns:
            Rows written; 0 when the store holds a newer tick already.
        """
        ...

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        """The stored tick and the values found, all of one tick. A store that was never written has tick None.

        Raises:
            StoreDownError: it cannot be read.
        """
        ...

    def sizes(self) -> dict[str, tuple[int, int]]:
        """By view: entities, and bytes of their values."""
        ...


def open_store(url: str) -> OnlineStore:
    """The store at `url`: ``redis://…`` or ``rediss://…`` (a database of its own for each problem), or else a file of SQLite."""
    if url.startswith(("redis://", "rediss://")):
        return RedisStore(url)
    return SQLiteStore(Path(url))


class SQLiteStore:
    """One file, replaced in one transaction; a reader's connection stays open per thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Payload]]) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(view, key, json.dumps(values)) for view, keyed in views.items() for key, values in keyed.items()]
        connection = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS features (view TEXT, key TEXT, payload TEXT, PRIMARY KEY (view, key)) WITHOUT ROWID"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS tick (at TEXT)")
            connection.execute("BEGIN IMMEDIATE")
            stored = connection.execute("SELECT at FROM tick").fetchone()
            if stored and datetime.fromisoformat(stored[0]) > tick:
                connection.execute("ROLLBACK")
                return 0
            connection.execute("DELETE FROM features")
            connection.execute("DELETE FROM tick")
            connection.executemany("INSERT INTO features VALUES (?, ?, ?)", rows)
            connection.execute("INSERT INTO tick VALUES (?)", (tick.isoformat(),))
            connection.execute("COMMIT")
        finally:
            connection.close()
        return len(rows)

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        try:
            connection = self._reader()
            if connection is None:
                return None, {}
            found: dict[Key, Payload] = {}
            connection.execute("BEGIN")
            try:
                stored = connection.execute("SELECT at FROM tick").fetchone()
                for start in range(0, len(keys), 400):
                    part = keys[start : start + 400]
                    marks = ", ".join(["(?, ?)"] * len(part))
                    asked = f"SELECT view, key, payload FROM features WHERE (view, key) IN (VALUES {marks})"
                    for view, key, payload in connection.execute(asked, [x for pair in part for x in pair]):
                        found[view, key] = json.loads(payload)
            finally:
                connection.execute("ROLLBACK")
        except (sqlite3.Error, ValueError) as error:
            self._local.open = None
            raise StoreDownError(
                f"online store {self.path}: {error}", "run `evergreen materialise`; see EVERGREEN_ONLINE"
            ) from error
        return (datetime.fromisoformat(stored[0]) if stored else None), found

    def sizes(self) -> dict[str, tuple[int, int]]:
        connection = self._reader()
        if connection is None:
            return {}
        asked = "SELECT view, count(*), sum(length(key) + length(payload)) FROM features GROUP BY view"
        return {view: (entities, size) for view, entities, size in connection.execute(asked)}

    def _reader(self) -> sqlite3.Connection | None:
        """This thread's connection, opened again when another file has taken the place of the one that it reads."""
        try:
            identity = os.stat(self.path).st_ino
        except FileNotFoundError:
            return None
        if getattr(self._local, "open", None) is None or self._local.identity != identity:
            self._local.open = sqlite3.connect(self.path, timeout=0.05, isolation_level=None)
            self._local.identity = identity
        connection: sqlite3.Connection = self._local.open
        return connection


class RedisStore:
    """One hash: ``tick`` and a field per view and entity. It is written aside and renamed, and read by one HMGET.

    After a failure it is left alone for `PAUSE` seconds, so that an answer does not wait for a server that is gone.
    """

    PAUSE = 0.5
    TIMEOUT = 0.05  # seconds, of the 100 ms that an answer has
    ABANDONED = 600  # seconds after which a half-written hash of a killed writer is gone

    def __init__(self, url: str) -> None:
        self.key = "evergreen:features"
        self._reader = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=self.TIMEOUT,
            socket_connect_timeout=self.TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._writer = redis.Redis.from_url(url, decode_responses=True, socket_timeout=30)
        self._not_before = 0.0

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Payload]]) -> int:
        rows = {f"{view}\n{key}": json.dumps(values) for view, keyed in views.items() for key, values in keyed.items()}
        aside, fields = f"{self.key}:{uuid.uuid4().hex}", list({"tick": tick.isoformat(), **rows}.items())
        for start in range(0, len(fields), 5000):
            self._writer.hset(aside, mapping=dict(fields[start : start + 5000]))
        self._writer.expire(aside, self.ABANDONED)

        renamed = False

        def replace(pipe: redis.client.Pipeline) -> None:
            nonlocal renamed
            stored = pipe.hget(self.key, "tick")
            renamed = not (isinstance(stored, str) and datetime.fromisoformat(stored) > tick)
            pipe.multi()
            if renamed:
                pipe.rename(aside, self.key)
                pipe.persist(self.key)
            else:
                pipe.delete(aside)

        self._writer.transaction(replace, self.key)
        return len(rows) if renamed else 0

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        if time.monotonic() < self._not_before:
            raise StoreDownError("online store: Redis did not answer a moment ago", "start it again; see EVERGREEN_ONLINE")
        try:
            fields = ["tick", *(f"{view}\n{key}" for view, key in keys)]
            tick, *payloads = cast(list[str | None], self._reader.hmget(self.key, fields))
        except redis.RedisError as error:
            self._not_before = time.monotonic() + self.PAUSE
            raise StoreDownError(f"online store: Redis: {error}", "start it again; see EVERGREEN_ONLINE") from error
        found = {key: json.loads(payload) for key, payload in zip(keys, payloads, strict=True) if payload is not None}
        return (datetime.fromisoformat(tick) if tick else None), found

    def sizes(self) -> dict[str, tuple[int, int]]:
        totals: dict[str, tuple[int, int]] = {}
        for field, payload in self._writer.hscan_iter(self.key, count=1000):
            if field != "tick":
                view, key = field.split("\n", 1)
                entities, size = totals.get(view, (0, 0))
                totals[view] = (entities + 1, size + len(key) + len(payload))
        return totals
