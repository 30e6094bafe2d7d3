"""The decision ledger: every verdict with its reasons and who it came from, append-only, each entry once per idempotency key.

Entries are a hash chain (`ml.chain`): appends wait for each other, so ids and chain have one order, without gaps.
SQLite by default, PostgreSQL by ``EVERGREEN_LEDGER``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from ml import chain
from ml.config import load_params
from ml.errors import ConfigError
from ml.refs import naive_utc
from ml.settings import settings

metadata = sa.MetaData()
entries_table = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(255), nullable=False, unique=True),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("as_of", sa.DateTime, nullable=False),
    sa.Column("recorded_at", sa.DateTime, nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("verdict", sa.String(40), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    *(sa.Index(f"ix_ledger_{name}", name, "id") for name in ("kind", "subject", "actor", "as_of", "recorded_at")),
)

OPERATIONS = ("run", "alert", "delivery")
"""Kinds that tell of runs, not of data: where a run had no data interval, their `as_of` is the wall clock."""
NOBODY = "process"
"""The actor where nobody said who acts."""
_actor: ContextVar[str] = ContextVar("actor", default=NOBODY)


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
    actor: str
    """``cli:anna``, ``ui:admin``, ``schedule``, ``request``, ``manual:admin``, ``backfill:admin``; ``process``: nobody said."""
    digest: str
    """Of this entry and all before it: see `ml.chain`."""


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Entries that are recorded within come from `actor`, in this thread; the innermost counts."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def engine() -> sa.Engine:
    """The engine of the ledger's database, with every table that a module has declared in `metadata` by now."""
    return _engine(settings().ledger, tuple(metadata.tables))


@cache
def _engine(url: str, tables: tuple[str, ...]) -> sa.Engine:
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"EVERGREEN_LEDGER={parsed!r}: {backend} cannot hold the ledger", "use sqlite:///… or postgresql+psycopg2://…"
        )
    if backend == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    made = sa.create_engine(url, connect_args={"timeout": 30} if backend == "sqlite" else {}, pool_pre_ping=backend != "sqlite")
    _require_layout(made)
    with locked(made) as connection:  # two processes may do this at the same time
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
        _refuse_changes(connection)
    return made


def _require_layout(made: sa.Engine) -> None:
    """
    Raises:
        ConfigError: the database holds a ledger of an earlier layout.
    """
    found = sa.inspect(made)
    if not found.has_table(entries_table.name):
        return
    lacking = {column.name for column in entries_table.columns} - {each["name"] for each in found.get_columns(entries_table.name)}
    if lacking:
        raise ConfigError(
            f"the ledger at {made.url!r} has an earlier layout, without column {', '.join(sorted(lacking))}",
            "keep that database for reading, and start a new one: move its file away, or set EVERGREEN_LEDGER to another",
        )


@contextmanager
def locked(made: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other `locked` one of any process overlaps; readers go on."""
    if made.dialect.name == "sqlite":
        with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver's own BEGIN would let two read the same end of the chain
            try:
                yield connection
            except BaseException:
                with suppress(sa.exc.OperationalError):  # a full disk has ended the transaction already
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
    else:
        with made.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.ledger'))"))
            yield connection


_SQLITE_TRIGGER = """CREATE TRIGGER IF NOT EXISTS ledger_no_{verb} BEFORE {verb} ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
_POSTGRESQL_FUNCTION = """CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"""
_POSTGRESQL_TRIGGER = """CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()"""
_POSTGRESQL_HAS_TRIGGER = "SELECT 1 FROM pg_trigger WHERE tgname = 'ledger_append_only' AND tgrelid = 'ledger'::regclass"


def _refuse_changes(connection: sa.Connection) -> None:
    """Has the database refuse what would change the past: a guard against accidents; against intent there is the chain."""
    if connection.dialect.name == "sqlite":
        for verb in ("update", "delete"):
            connection.exec_driver_sql(_SQLITE_TRIGGER.format(verb=verb))
    elif connection.exec_driver_sql(_POSTGRESQL_HAS_TRIGGER).first() is None:
        connection.exec_driver_sql(_POSTGRESQL_FUNCTION)
        connection.exec_driver_sql(_POSTGRESQL_TRIGGER)


def record(
    kind: str, key: str, as_of: datetime, subject: str, verdict: str, reason: str, evidence: Mapping[str, Any] | None = None
) -> bool:
    """Appends an entry once.

    Returns:
        True when it was written; False when an entry with this key is there already (nothing is changed).
    """
    made = engine()
    if has(key):
        return False  # the usual repetition: no lock is waited for
    try:
        with locked(made) as connection:
            append(connection, kind, key, as_of, subject, verdict, reason, evidence)
    except sa.exc.IntegrityError:
        return False
    return True


def append(
    connection: sa.Connection,
    kind: str,
    key: str,
    as_of: datetime,
    subject: str,
    verdict: str,
    reason: str,
    evidence: Mapping[str, Any] | None = None,
) -> None:
    """Appends an entry within a `locked` transaction, for writers whose own row must be there if and only if the entry is.

    Raises:
        sqlalchemy.exc.IntegrityError: an entry with this key is there already.
    """
    row: dict[str, Any] = dict(
        key=key,
        kind=kind,
        as_of=naive_utc(as_of),
        recorded_at=datetime.now(UTC).replace(tzinfo=None),
        subject=_storable(subject),
        verdict=verdict,
        reason=_storable(reason),
        evidence=json.dumps(evidence or {}, sort_keys=True, default=str),
        actor=_storable(_actor.get()),
    )
    end = sa.select(entries_table.c.id, entries_table.c.digest).order_by(entries_table.c.id.desc()).limit(1)
    last, previous = connection.execute(end).one_or_none() or (0, chain.GENESIS)
    connection.execute(sa.insert(entries_table).values(id=last + 1, digest=chain.digest(row, previous), **row))


def _storable(text: str) -> str:
    """Without what PostgreSQL or UTF-8 cannot hold (NUL, lone surrogates), so that all backends give back the same."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def entries(kind: str | None = None, until: datetime | None = None, subject: str | None = None) -> list[Entry]:
    """Entries in the order in which they were written; with `until`, those whose `as_of` is not later."""
    return _read(_where([kind] if kind is not None else None, subject, None, None, until).order_by(entries_table.c.id))


def has(key: str) -> bool:
    """Whether an entry with this key was written."""
    with engine().connect() as connection:
        return connection.execute(sa.select(entries_table.c.id).where(entries_table.c.key == key)).first() is not None


def after(last: int) -> list[Entry]:
    """Entries that were written after the one with this id, in the order in which they were written."""
    return _read(sa.select(entries_table).where(entries_table.c.id > last).order_by(entries_table.c.id))


def query(
    kinds: Sequence[str] | None = None,
    subject: str | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before_id: int | None = None,
    limit: int | None = 100,
    recorded_until: datetime | None = None,
) -> list[Entry]:
    """The newest entries, newest first; filtered and cut in the database.

    Args:
        kinds: of one of these kinds; None: of any.
        subject: about exactly this.
        actor: from exactly this actor.
        since: whose `as_of` is not earlier.
        until: whose `as_of` is not later.
        before_id: written before the entry with this id: the last id of a page gives the next page.
        limit: at most so many; None: all.
        recorded_until: written not later than this, by the wall clock.
    """
    chosen = _where(kinds, subject, actor, since, until)
    if before_id is not None:
        chosen = chosen.where(entries_table.c.id < before_id)
    if recorded_until is not None:
        chosen = chosen.where(entries_table.c.recorded_at <= recorded_until)
    return _read(chosen.order_by(entries_table.c.id.desc()).limit(limit))


def latest() -> datetime | None:
    """The latest data time that was noted, whatever it was about but `OPERATIONS`; None: nothing was."""
    chosen = sa.select(sa.func.max(entries_table.c.as_of)).where(entries_table.c.kind.not_in(OPERATIONS))
    with engine().connect() as connection:
        return connection.execute(chosen).scalar()


def data_now() -> datetime:
    """The present in data time, UTC without a zone: the wall clock; for a source that has ended, the latest time noted."""
    clock, end = datetime.now(UTC).replace(tzinfo=None, microsecond=0), load_params().schedule.end
    return clock if end is None or clock.date() <= end else latest() or clock


def _where(
    kinds: Sequence[str] | None, subject: str | None, actor: str | None, since: datetime | None, until: datetime | None
) -> sa.Select[Any]:
    column, chosen = entries_table.c, sa.select(entries_table)
    if kinds is not None:
        chosen = chosen.where(column.kind.in_(kinds))
    if subject is not None:
        chosen = chosen.where(column.subject == subject)
    if actor is not None:
        chosen = chosen.where(column.actor == actor)
    if since is not None:
        chosen = chosen.where(column.as_of >= since)
    if until is not None:
        chosen = chosen.where(column.as_of <= until)
    return chosen


def _read(chosen: sa.Select[Any]) -> list[Entry]:
    with engine().connect() as connection:
        return [Entry(**{**row._mapping, "evidence": json.loads(row.evidence)}) for row in connection.execute(chosen)]


def verify(head: str | None = None) -> chain.Verified:
    """Follows the chain of all entries; `head`: a digest noted earlier, which must still be there."""
    with engine().connect().execution_options(yield_per=1000) as connection:
        rows = connection.execute(sa.select(entries_table).order_by(entries_table.c.id)).mappings()
        return chain.verify(map(dict, rows), head)
