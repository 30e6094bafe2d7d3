"""The online store: the values of every view at one tick. One read answers for all views, and never shows half a tick.

SQLite by default (a file), Redis or a Kafka topic by URL; all pass ``tests/contracts/test_online_stores.py``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
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
TICK = "tick"
"""The field that holds the tick; no view's field lacks the line feed."""


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
    """The store at `url`: ``redis://…`` or ``rediss://…`` (a database of its own for each problem), ``kafka://<topic>``, or else
    a file of SQLite."""
    if url.startswith(("redis://", "rediss://")):
        return RedisStore(url)
    if url.startswith("kafka://"):
        from ml.features.online_topic import TopicStore

        return TopicStore(url.removeprefix("kafka://"))
    return SQLiteStore(Path(url))


class SQLiteStore:
    """One file, replaced in one transaction; a reader's connection stays open per thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Payload]]) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(_field(view, key), json.dumps(values)) for view, keyed in views.items() for key, values in keyed.items()]
        connection = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS features (field TEXT PRIMARY KEY, payload TEXT) WITHOUT ROWID")
            connection.execute("BEGIN IMMEDIATE")
            stored = connection.execute("SELECT payload FROM features WHERE field = ?", (TICK,)).fetchone()
            if stored and datetime.fromisoformat(stored[0]) > tick:
                connection.execute("ROLLBACK")
                return 0
            connection.execute("DELETE FROM features")
            connection.executemany("INSERT INTO features VALUES (?, ?)", [(TICK, tick.isoformat()), *rows])
            connection.execute("COMMIT")
        finally:
            connection.close()
        return len(rows)

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        """One statement, and so of one tick, whatever a writer does meanwhile."""
        try:
            connection = self._reader()
            if connection is None:
                return None, {}
            fields = [TICK, *(_field(view, key) for view, key in keys)]
            asked = "SELECT field, payload FROM features WHERE field IN (SELECT value FROM json_each(?))"
            found = dict(connection.execute(asked, (json.dumps(fields),)).fetchall())
            tick = datetime.fromisoformat(found[TICK]) if TICK in found else None
            payloads = {key: json.loads(found[f]) for key, f in zip(keys, fields[1:], strict=True) if f in found}
        except (sqlite3.Error, ValueError) as error:
            self._local.open = None
            raise StoreDownError(
                f"online store {self.path}: {error}", "run `evergreen materialise`; see EVERGREEN_ONLINE"
            ) from error
        return tick, payloads

    def sizes(self) -> dict[str, tuple[int, int]]:
        connection = self._reader()
        if connection is None:
            return {}
        return _sizes(connection.execute("SELECT field, payload FROM features"))

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
        rows = {_field(view, key): json.dumps(values) for view, keyed in views.items() for key, values in keyed.items()}
        aside, fields = f"{self.key}:{uuid.uuid4().hex}", list({TICK: tick.isoformat(), **rows}.items())
        for start in range(0, len(fields), 5000):
            self._writer.hset(aside, mapping=dict(fields[start : start + 5000]))
        self._writer.expire(aside, self.ABANDONED)

        renamed = False

        def replace(pipe: redis.client.Pipeline) -> None:
            nonlocal renamed
            stored = pipe.hget(self.key, TICK)
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
            fields = [TICK, *(_field(view, key) for view, key in keys)]
            tick, *payloads = cast(list[str | None], self._reader.hmget(self.key, fields))
        except redis.RedisError as error:
            self._not_before = time.monotonic() + self.PAUSE
            raise StoreDownError(f"online store: Redis: {error}", "start it again; see EVERGREEN_ONLINE") from error
        found = {key: json.loads(payload) for key, payload in zip(keys, payloads, strict=True) if payload is not None}
        return (datetime.fromisoformat(tick) if tick else None), found

    def sizes(self) -> dict[str, tuple[int, int]]:
        return _sizes(self._writer.hscan_iter(self.key, count=1000))


def _field(view: str, key: str) -> str:
    return f"{view}\n{key}"


def _sizes(rows: Iterable[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for field, payload in rows:
        if field != TICK:
            view, key = field.split("\n", 1)
            entities, size = totals.get(view, (0, 0))
            totals[view] = (entities + 1, size + len(key) + len(payload))
    return totals
