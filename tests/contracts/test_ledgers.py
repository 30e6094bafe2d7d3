"""The ledger's chain on each database that may hold it: appended at once, tampered with, and moved."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml import chain, ledger
from tests.conftest import forget

AS_OF = datetime(2013, 4, 1, 3, 0, 0, 123)
EACH = 200
DROP_TRIGGERS = {
    "sqlite": ["DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete"],
    "postgresql": ["DROP TRIGGER ledger_append_only ON ledger"],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database for the ledger."""
    address = f"sqlite:///{workspace}/other.db"
    if request.param == "postgresql":
        server, name = request.getfixturevalue("postgres_url"), f"ledger_{os.urandom(4).hex()}"
        with sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        address = server.rsplit("/", 1)[0] + "/" + name
    monkeypatch.setenv("EVERGREEN_LEDGER", address)
    forget()
    yield address
    ledger.engine().dispose()


def _fill(count: int = 5) -> list[ledger.Entry]:
    for number in range(1, count + 1):
        ledger.record("gate", f"key-{number}", AS_OF, f"v{number}", "promote", "better", {"n": number})
    return ledger.entries()


def _start_again() -> None:
    """What another process sees; no connection stays open, or the server could not end."""
    ledger.engine().dispose()
    forget()


def _tamper(url: str, *statements: str) -> None:
    """As somebody does who may do anything to the database."""
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        for statement in [*DROP_TRIGGERS[connection.dialect.name], *statements]:
            connection.exec_driver_sql(statement)


def _append(name: str, together: multiprocessing.synchronize.Barrier) -> None:
    together.wait()
    for number in range(EACH):
        with ledger.acting(name):
            assert ledger.record("gate", f"{name}-{number}", AS_OF, "v1", "promote", "better", {"n": number})
        if number % 10 == 0:
            ledger.record("gate", f"both-{number}", AS_OF, "v1", "promote", "whoever is first", {})


def test_record__by_two_processes_at_once__one_chain_without_gaps(url: str) -> None:
    spawned = multiprocessing.get_context("spawn")
    together = spawned.Barrier(2)
    processes = [spawned.Process(target=_append, args=(name, together)) for name in ("one", "two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    found = ledger.entries()
    count = 2 * EACH + EACH // 10
    assert [entry.id for entry in found] == list(range(1, count + 1))
    assert {name: [entry.actor for entry in found].count(name) for name in ("one", "two")} == {"one": EACH, "two": EACH}
    assert ledger.verify() == chain.Verified(count, found[-1].digest, None)


def test_record__whatever_it_is_given__reads_back_as_it_was_hashed(url: str) -> None:
    zoned = datetime(2013, 4, 1, 5, tzinfo=timezone(timedelta(hours=2)))
    odd = "naïve ✓ \0 \ud800 ' \\ \n end"
    ledger.record(
        "gate", "a", zoned, odd, "promote", odd, {"nan": float("nan"), "odd": odd, "at": AS_OF, "deep": {"b": [1.5, None]}}
    )
    ledger.record("gate", "b", datetime(2013, 4, 1), "v1", "promote", "no fraction of a second")
    ledger.record("gate", "c", AS_OF, "v1", "promote", "microseconds")
    _start_again()
    assert ledger.verify().count == 3
    first, _, last = ledger.entries()
    assert (first.as_of, last.as_of) == (datetime(2013, 4, 1, 3), AS_OF)
    assert first.evidence["odd"] == odd


def test_entries__copied_to_the_other_database__still_verify(url: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill()
    with ledger.engine().connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(sa.select(ledger.entries_table).order_by(sa.text("id")))]
    head = ledger.verify().head
    monkeypatch.setenv("EVERGREEN_LEDGER", f"sqlite:///{workspace}/copy.db")
    _start_again()
    with ledger.engine().begin() as connection:
        connection.execute(sa.insert(ledger.entries_table), rows)
    assert ledger.verify() == chain.Verified(5, head, None)


def test_verify__an_empty_ledger_holds(url: str) -> None:
    assert ledger.verify() == chain.Verified(0, chain.GENESIS, None)
    assert ledger.verify(head=chain.GENESIS).fault is None


@pytest.mark.parametrize(
    "change",
    [
        "reason = 'worse'",
        "evidence = '{}'",
        "actor = 'cli:mallory'",
        "as_of = '2013-04-01 03:00:00.000124'",
        "recorded_at = '2013-04-01 03:00:00.000124'",
        f"digest = '{'0' * 64}'",
    ],
)
def test_verify__an_edited_entry_is_named(url: str, change: str) -> None:
    before = _fill()
    _tamper(url, f"UPDATE ledger SET {change} WHERE id = 3")
    found = ledger.verify()
    assert (found.count, found.head) == (2, before[1].digest)
    assert found.fault is not None
    assert (found.fault.id, found.fault.key, found.fault.what) == (3, "key-3", "content edited")


@pytest.mark.parametrize(
    ("gone", "told"), [("id = 3", "id 3 before"), ("id IN (1, 2)", "ids 1 to 2 before"), ("id = 1", "id 1 before")]
)
def test_verify__a_removed_entry_is_missed(url: str, gone: str, told: str) -> None:
    _fill()
    _tamper(url, f"DELETE FROM ledger WHERE {gone}")
    fault = ledger.verify().fault
    assert fault is not None
    assert (fault.what, fault.detail.startswith(told)) == ("entry removed", True), fault


@pytest.mark.parametrize(("one", "other"), [(2, 3), (1, 2), (2, 5), (1, 5)])
def test_verify__two_swapped_entries_are_noticed(url: str, one: int, other: int) -> None:
    _fill()
    swap = [f"UPDATE ledger SET id = {new} WHERE id = {old}" for old, new in ((one, 99), (other, one), (99, other))]
    _tamper(url, *swap)
    found = ledger.verify()
    assert found.count == one - 1
    assert found.fault is not None
    assert (found.fault.id, found.fault.key, found.fault.what) == (one, f"key-{other}", "order changed")


def test_verify__the_last_entry_cut_off__shows_only_against_a_head_noted_before(url: str) -> None:
    _fill()
    head = ledger.verify().head
    _tamper(url, "DELETE FROM ledger WHERE id = 5")
    assert ledger.verify().fault is None
    fault = ledger.verify(head).fault
    assert fault is not None
    assert (fault.id, fault.what) == (5, "end cut off")
    assert ledger.record("gate", "another", AS_OF, "v9", "promote", "in its place")
    assert ledger.verify(head).fault is not None


def test_verify__an_earlier_head_is_still_found_when_more_was_written(url: str) -> None:
    _fill()
    head = ledger.verify().head
    ledger.record("gate", "more", AS_OF, "v9", "promote", "-")
    assert ledger.verify(head).fault is None


@pytest.mark.parametrize("statement", ["UPDATE ledger SET reason = 'x' WHERE id = 1", "DELETE FROM ledger WHERE id = 1"])
def test_database__refuses_what_would_change_the_past(url: str, statement: str) -> None:
    _fill(1)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), ledger.engine().begin() as connection:
        connection.exec_driver_sql(statement)
    assert ledger.verify().count == 1


def test_database__has_its_guard_again_after_the_next_start(url: str) -> None:
    _fill(1)
    _tamper(url)
    _start_again()
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), ledger.engine().begin() as connection:
        connection.exec_driver_sql("DELETE FROM ledger")


def _append_twice() -> None:
    with ledger.locked(ledger.engine()) as connection:
        for _ in range(2):
            ledger.append(connection, "gate", "half", AS_OF, "v1", "promote", "-")


def test_record__that_fails_halfway__leaves_nothing_and_no_lock(url: str) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        _append_twice()
    assert ledger.entries() == []
    assert ledger.record("gate", "whole", AS_OF, "v1", "promote", "-")
    assert [entry.id for entry in ledger.entries()] == [1]


def test_recorded_at__is_the_wall_clock_in_utc(url: str) -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    (entry,) = _fill(1)
    assert before <= entry.recorded_at <= datetime.now(UTC).replace(tzinfo=None)
