"""The ledger: once per key, in order, as of a moment, by somebody."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml import ledger
from ml.errors import ConfigError
from ml.settings import settings
from tests.conftest import forget

FIRST, SECOND, THIRD = datetime(2013, 4, 1), datetime(2013, 4, 2), datetime(2013, 4, 3)


def test_record__keeps_the_first_entry_of_a_key(workspace: Path) -> None:
    assert ledger.record("gate", "key", FIRST, "v1", "promote", "better", {"n": 1})
    assert not ledger.record("gate", "key", SECOND, "v1", "keep", "worse")
    (entry,) = ledger.entries()
    assert (entry.verdict, entry.reason, entry.evidence, entry.as_of) == ("promote", "better", {"n": 1}, FIRST)


def test_entries__by_kind_subject_and_moment(workspace: Path) -> None:
    ledger.record("gate", "a", SECOND, "v1", "keep", "-")
    ledger.record("gate", "b", FIRST, "v2", "keep", "-")
    ledger.record("retrain", "c", FIRST, "v1", "wait", "-")
    assert [e.key for e in ledger.entries("gate")] == ["a", "b"]
    assert [e.key for e in ledger.entries("gate", until=FIRST)] == ["b"]
    assert [e.key for e in ledger.entries(subject="v1")] == ["a", "c"]


def test_actor__is_whoever_acts_and_nobody_else(workspace: Path) -> None:
    ledger.record("gate", "a", FIRST, "v1", "keep", "-")
    with ledger.acting("cli:anna"):
        ledger.record("gate", "b", FIRST, "v1", "keep", "-")
        with ledger.acting("ui:admin"):
            ledger.record("gate", "c", FIRST, "v1", "keep", "-")
        ledger.record("gate", "d", FIRST, "v1", "keep", "-")
        other = threading.Thread(target=ledger.record, args=("gate", "e", FIRST, "v1", "keep", "-"))
        other.start()
        other.join()
    with pytest.raises(ZeroDivisionError), ledger.acting("cli:bob"):
        _ = 1 / 0
    ledger.record("gate", "f", FIRST, "v1", "keep", "-")
    assert {e.key: e.actor for e in ledger.entries()} == {
        "a": "process", "b": "cli:anna", "c": "ui:admin", "d": "cli:anna", "e": "process", "f": "process",
    }  # fmt: skip


@pytest.fixture
def several(workspace: Path) -> None:
    with ledger.acting("schedule"):
        ledger.record("gate", "a", FIRST, "v1", "keep", "-")
        ledger.record("retrain", "b", SECOND, "v1", "wait", "-")
    with ledger.acting("cli:anna"):
        ledger.record("order", "c", SECOND, "retrains", "hold", "-")
        ledger.record("gate", "d", THIRD, "v2", "promote", "-")


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({}, "dcba"),
        ({"kinds": ["gate", "order"]}, "dca"),
        ({"kinds": []}, ""),
        ({"subject": "v1"}, "ba"),
        ({"actor": "cli:anna"}, "dc"),
        ({"since": SECOND}, "dcb"),
        ({"until": SECOND}, "cba"),
        ({"since": SECOND, "until": SECOND, "actor": "schedule"}, "b"),
        ({"limit": 2}, "dc"),
        ({"limit": 2, "before_id": 3}, "ba"),
        ({"limit": None}, "dcba"),
        ({"recorded_until": FIRST}, ""),
        ({"recorded_until": datetime(2999, 1, 1)}, "dcba"),
    ],
    ids=str,
)
def test_query__newest_first(asked: dict[str, object], keys: str) -> None:
    assert "".join(entry.key for entry in ledger.query(**asked)) == keys  # type: ignore[arg-type]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("column", ["kind", "subject", "actor", "as_of", "recorded_at"])
def test_query__of_a_long_ledger_uses_an_index(column: str) -> None:
    with ledger.engine().connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM ledger WHERE {column} = '1'").all()
    assert f"ix_ledger_{column}" in str(plan)


@pytest.mark.usefixtures("several")
def test_latest__is_data_time_and_runs_do_not_count() -> None:
    assert ledger.latest() == THIRD
    for kind in ledger.OPERATIONS:
        ledger.record(kind, kind, datetime(2026, 1, 1), "train", "failed", "-")
    assert ledger.latest() == THIRD


def test_latest__of_an_empty_ledger(workspace: Path) -> None:
    assert ledger.latest() is None


def test_ledger__of_an_earlier_layout_is_refused_with_the_cure(workspace: Path) -> None:
    texts = ", ".join(
        f"{name} TEXT" for name in ("key", "kind", "as_of", "recorded_at", "subject", "verdict", "reason", "evidence")
    )
    with sa.create_engine(settings().ledger).begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE ledger (id INTEGER PRIMARY KEY, {texts})")
    with pytest.raises(ConfigError, match=r"earlier layout, without column actor, digest.*\n.*move its file away") as caught:
        ledger.record("gate", "a", FIRST, "v1", "keep", "-")
    assert "ledger.db" in str(caught.value)


def test_ledger__in_a_database_that_cannot_hold_it_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_LEDGER", "mysql://anna:secret@host/db")
    forget()
    with pytest.raises(ConfigError, match="mysql cannot hold the ledger") as caught:
        ledger.entries()
    assert "secret" not in str(caught.value)
