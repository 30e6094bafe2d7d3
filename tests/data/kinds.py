"""Four kinds of table, by when their rows become known, and how a landing of them looks; written apart from the code under test."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from ml.config import load_params
from ml.data.landed import publish, raw_folder, write_rows
from ml.data.rows import table_rows
from ml.data.schema import arrow_schema
from ml.settings import settings

FIRST = datetime(2024, 1, 1)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
EVER = datetime(2100, 1, 1)
Row = dict[str, Any]

TABLES: dict[str, Row] = {
    "bookings": {  # the outcome says when it became known
        "event_time": "moment",
        "known_at": "resolved",
        "outcomes": ["resolved", "late"],
        "key": ["id"],
        "columns": {"id": "string", "moment": "timestamp", "price": "int", "resolved": "timestamp", "late": "int"},
    },
    "loans": {  # it is known so long after the event, whether or not the source has it by then
        "event_time": "moment",
        "known_at": "moment + INTERVAL 6 HOUR",
        "outcomes": ["late"],
        "key": ["id", "moment"],
        "columns": {"id": "string", "moment": "timestamp", "price": "int", "late": "int"},
    },
    "readings": {  # an observation, known when it is published
        "event_time": "moment",
        "known_at": "resolved",
        "outcomes": [],
        "key": ["id", "moment"],
        "columns": {"id": "string", "moment": "timestamp", "price": "int", "resolved": "timestamp"},
    },
    "plans": {  # nothing is hidden, ever
        "event_time": "moment",
        "known_at": None,
        "outcomes": [],
        "key": ["id"],
        "columns": {"id": "string", "moment": "timestamp", "price": "int"},
    },
}


def own_account(table: str, row: Row) -> datetime | None:
    """When the row says that it was known; brute force of `known_at`."""
    moment: datetime = row["moment"]
    return {"bookings": row.get("resolved"), "loans": moment + 6 * HOUR, "readings": row.get("resolved"), "plans": moment}[table]


def delivered(table: str, rows: list[Row], as_of: datetime) -> dict[int, list[Row]]:
    """By day, the rows that a landing stages: outcomes that are not known are hidden, and observations left out."""
    spec, days = TABLES[table], dict[int, list[Row]]()
    for row in rows:
        at = own_account(table, row)
        known = spec["known_at"] is None or (at is not None and at <= as_of)
        if known or spec["outcomes"]:
            shown = {c: row[c] if known or c not in spec["outcomes"] else None for c in spec["columns"]}
            days.setdefault((row["moment"] - FIRST) // DAY, []).append(shown)
    return days


def key_of(table: str, row: Row) -> tuple[Any, ...]:
    return tuple(row[c] for c in TABLES[table]["key"])


def rank(table: str, row: Row) -> list[tuple[bool, Any]]:
    """The order of rows: key, then all columns; what is missing comes last."""
    columns = [*TABLES[table]["key"], *(c for c in TABLES[table]["columns"] if c not in TABLES[table]["key"])]
    return [(row[c] is None, "" if row[c] is None else row[c]) for c in columns]


def plain(table: str, rows: pa.Table | Iterable[Row]) -> list[Row]:
    listed = rows.to_pylist() if isinstance(rows, pa.Table) else list(rows)
    return sorted(({c: row[c] for c in TABLES[table]["columns"]} for row in listed), key=lambda row: rank(table, row))


def day_name(day: int) -> str:
    return (FIRST + day * DAY).date().isoformat()


def publish_rows(table: str, days: dict[int, list[Row]], as_of: datetime) -> dict[int, str]:
    """Stages the rows as they are, and publishes them; day → what became of it."""
    schema = arrow_schema(load_params().tables[table])
    staged = {day_name(day): settings().data / "staging" / table / f"{day_name(day)}.parquet" for day in days}
    for day, rows in days.items():
        write_rows(pa.Table.from_pylist(rows, schema=schema), staged[day_name(day)])
    outcomes = publish({table: staged}, as_of).get(table, {})
    return {(date.fromisoformat(name) - FIRST.date()).days: outcome for name, outcome in outcomes.items()}


def answer(table: str, day: int, as_of: datetime) -> pa.Table:
    return table_rows(raw_folder(), table, FIRST + day * DAY, FIRST + (day + 1) * DAY, as_of)
