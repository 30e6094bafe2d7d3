"""The online store: the values of every view at one tick, and the features of a request.

One SQLite file, replaced view by view in one transaction, so that a reader sees one tick and never half of one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from ml.config import Params
from ml.data.query import query
from ml.data.schema import ARROW
from ml.features.definitions import FeatureModule, Value, View, load_module
from ml.features.history import values_at
from ml.features.offline import source_table

EPOCH = datetime(2000, 1, 1)


def floor_to_tick(moment: datetime, tick_minutes: int) -> datetime:
    """The last tick at or before `moment`.

    >>> floor_to_tick(datetime(2013, 4, 18, 9, 59), 60)
    datetime.datetime(2013, 4, 18, 9, 0)
    """
    step = timedelta(minutes=tick_minutes)
    return EPOCH + (moment - EPOCH) // step * step


class OnlineStore:
    """Values by (view, entity key) at one tick."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, tick: datetime, views: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> int:
        """Replaces all views by their values at `tick`, whole or not at all; an older tick than the stored one is refused.

        Returns:
            Rows written; 0 when the store holds a newer tick already.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(view, key, json.dumps(values)) for view, keyed in views.items() for key, values in keyed.items()]
        with self._connect() as connection:
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
        return len(rows)

    def read(self, keys: Sequence[tuple[str, str]]) -> tuple[datetime | None, dict[tuple[str, str], dict[str, float | None]]]:
        """The stored tick and the values found; all in one read transaction. A store that was never written has tick None."""
        if not self.path.exists():
            return None, {}
        with self._connect() as connection:
            connection.execute("BEGIN")
            stored = connection.execute("SELECT at FROM tick").fetchone()
            found = {}
            for start in range(0, len(keys), 400):
                part = keys[start : start + 400]
                marks = ", ".join(["(?, ?)"] * len(part))
                query = f"SELECT view, key, payload FROM features WHERE (view, key) IN (VALUES {marks})"
                for view, key, payload in connection.execute(query, [x for pair in part for x in pair]):
                    found[view, key] = json.loads(payload)
        return (datetime.fromisoformat(stored[0]) if stored else None), found

    def _connect(self) -> _Closing:
        return _Closing(self.path)


class _Closing:
    """A connection that closes on leaving the block (sqlite3's own block only commits)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> sqlite3.Connection:
        self.connection = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def snapshot_views(module: FeatureModule, tables: Mapping[str, pa.Table], problem_table: str, tick: datetime
                   ) -> dict[str, dict[str, dict[str, float | None]]]:  # fmt: skip
    """The values of every view at `tick` for every entity with any history: what `OnlineStore.write` takes."""
    return {view.name: _values(view, tables[source_table(view, problem_table)], tick) for view in module.views}


def _values(view: View, table: pa.Table, tick: datetime) -> dict[str, dict[str, float | None]]:
    keys, present = ", ".join(view.entity), " AND ".join(f"{c} IS NOT NULL" for c in view.entity)
    entities = query(f"SELECT DISTINCT {keys} FROM rows WHERE {present} ORDER BY ALL", rows=table)
    points = entities.append_column("tick", pa.array([tick] * len(entities), pa.timestamp("us")))
    named = entities.to_pylist()
    values = values_at(view, points, table).to_pylist()
    return {entity_key(view, e): v for e, v in zip(named, values, strict=True) if v != view.defaults}


def entity_key(view: View, row: Mapping[str, Any]) -> str:
    """The key of a row's entity: ``UA|1545``; empty when a part is missing (and nothing is stored under it)."""
    parts = [row[c] for c in view.entity]
    return "" if any(p is None for p in parts) else "|".join(str(p) for p in parts)


@dataclass(frozen=True)
class Assembled:
    """Features of some requests; lists are in the order of the requests."""

    features: list[dict[str, Value]]
    flags: list[list[str]]
    entity_ids: list[str]
    event_times: list[datetime]
    prediction_times: list[datetime]
    tick: datetime | None


class Assembler:
    """From raw request fields to features, for one problem. Safe to share between threads."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.module = load_module(params)
        self.spec = params.tables[params.problem.table]

    def assemble(self, store: OnlineStore, rows: Sequence[Mapping[str, Any]]) -> Assembled:
        """Reads the store once for all rows and views.

        Flags: ``features_missing`` when the store cannot be read or was never written (declared defaults are used),
        ``features_stale`` when its tick is older than the last one before the row's prediction time.
        """
        event_times = self._event_times(rows)
        lead, minutes = timedelta(hours=self.params.problem.lead_hours), self.params.features.tick_minutes
        wanted = sorted({(v.name, entity_key(v, r)) for r in rows for v in self.module.views})
        try:
            tick, found = store.read(wanted)
        except sqlite3.Error:
            tick, found = None, {}  # answered from defaults and flagged: see the fallback rule in the docstring
        features, flags = [], []
        for row, event_time in zip(rows, event_times, strict=True):
            looked_up: dict[str, float | None] = {}
            for view in self.module.views:
                looked_up |= found.get((view.name, entity_key(view, row)), view.defaults)
            computed = self.module.request({**row, "event_time": event_time}, looked_up)
            features.append({f.name: computed[f.name] if f.name in computed else looked_up[f.name] for f in self.module.features})
            due = floor_to_tick(event_time - lead, minutes)
            late = "features_missing" if tick is None else "features_stale" if tick < due else None
            flags.append([late] if late and self.module.views else [])
        ids = [
            "-".join([*(str(row[c]) for c in self.params.problem.id), f"{at:%Y%m%dT%H%M}"])
            for row, at in zip(rows, event_times, strict=True)
        ]
        return Assembled(features, flags, ids, event_times, [at - lead for at in event_times], tick)

    def _event_times(self, rows: Sequence[Mapping[str, Any]]) -> list[datetime]:
        """The declared expression over the raw fields, by the engine that evaluates it on landed data."""
        names = [c for c in self.spec.columns if c not in self.spec.outcomes]
        raw = pa.table({c: pa.array([r[c] for r in rows], ARROW[self.spec.columns[c]]) for c in names})
        return query(f"SELECT ({self.spec.event_time})::TIMESTAMP AS moment FROM rows", rows=raw)["moment"].to_pylist()
