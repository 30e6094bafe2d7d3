"""The ledger: once per key, in order, as of a moment."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from ml import ledger

FIRST, SECOND = datetime(2013, 4, 1), datetime(2013, 4, 2)


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
