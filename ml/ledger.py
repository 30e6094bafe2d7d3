"""The decision ledger: every verdict with its reasons, append-only, each entry once per idempotency key.

SQLite by default, any SQLAlchemy URL by ``EVERGREEN_LEDGER``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from ml.config import settings

metadata = sa.MetaData()
entries_table = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(255), nullable=False, unique=True),
    sa.Column("kind", sa.String(40), nullable=False, index=True),
    sa.Column("as_of", sa.DateTime, nullable=False, index=True),
    sa.Column("recorded_at", sa.DateTime, nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("verdict", sa.String(40), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. `as_of` is data time, `recorded_at` the wall clock, both UTC without a zone."""

    id: int
    key: str
    kind: str
    as_of: datetime
    recorded_at: datetime
    subject: str
    verdict: str
    reason: str
    evidence: dict[str, Any]


def engine() -> sa.Engine:
    """The engine of the ledger's database, with every table that a module has declared in `metadata` by now."""
    return _engine(settings().ledger, tuple(metadata.tables))


@cache
def _engine(url: str, tables: tuple[str, ...]) -> sa.Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    made = sa.create_engine(url, connect_args={"timeout": 30} if parsed.get_backend_name() == "sqlite" else {})
    # Not ``create_all``: two processes may do this at the same time.
    try:
        _create_tables(made)
    except (sa.exc.IntegrityError, sa.exc.ProgrammingError):  # PostgreSQL: IF NOT EXISTS itself can lose a race
        _create_tables(made)
    return made


def _create_tables(made: sa.Engine) -> None:
    with made.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def record(
    kind: str, key: str, as_of: datetime, subject: str, verdict: str, reason: str, evidence: Mapping[str, Any] | None = None
) -> bool:
    """Appends an entry once.

    Returns:
        True when it was written; False when an entry with this key is there already (nothing is changed).
    """
    row = dict(
        key=key,
        kind=kind,
        as_of=as_of,
        recorded_at=datetime.now(UTC).replace(tzinfo=None),
        subject=subject,
        verdict=verdict,
        reason=reason,
        evidence=json.dumps(evidence or {}, sort_keys=True, default=str),
    )
    try:
        with engine().begin() as connection:
            connection.execute(sa.insert(entries_table).values(**row))
    except sa.exc.IntegrityError:
        return False
    return True


def entries(kind: str | None = None, until: datetime | None = None, subject: str | None = None) -> list[Entry]:
    """Entries in the order in which they were written; with `until`, those whose `as_of` is not later."""
    query = sa.select(entries_table).order_by(entries_table.c.id)
    if kind is not None:
        query = query.where(entries_table.c.kind == kind)
    if until is not None:
        query = query.where(entries_table.c.as_of <= until)
    if subject is not None:
        query = query.where(entries_table.c.subject == subject)
    with engine().connect() as connection:
        return [Entry(**{**row._mapping, "evidence": json.loads(row.evidence)}) for row in connection.execute(query)]
