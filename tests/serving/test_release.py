"""Promotion and rollback: one change of the manifest, the alias and a note each; twice is once; clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from ml import ledger, store, tracking
from ml.config import load_params
from ml.errors import EvergreenError, NotFoundError, NothingToDo
from ml.refs import VersionRef
from ml.serving import manifest, release

AS_OF = datetime(2013, 4, 1, 3)
Register = Callable[..., VersionRef]


def alias() -> str | None:
    return tracking.get_alias(load_params().problem.name, "champion")


def serving() -> tuple[str | None, str | None]:
    """Champion and previous."""
    now = manifest.current()
    assert now is not None
    return now.champion and now.champion.version, now.previous and now.previous.version


def released(version: VersionRef, day: int = 0) -> datetime:
    """Promotes a version whose canary a person has skipped."""
    as_of = AS_OF + timedelta(days=day)
    release.note(version, as_of, 0.0, release.SKIPPED, "a test needs it")
    release.promote(version, as_of)
    return as_of


def test_promote__the_first_needs_no_canary(register: Register) -> None:
    first = register()
    release.promote(first, AS_OF)
    assert (serving(), alias()) == (("1", None), "1")
    assert release.promote(first, AS_OF) == manifest.current()
    assert len(ledger.entries("promotion")) == 1


def test_promote__without_a_canary_that_passed__refused(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    with pytest.raises(EvergreenError, match=r"version 2 has not passed its canary .*no verdict yet"):
        release.promote(second, AS_OF)
    release.expose(second, AS_OF, 0.5)
    with pytest.raises(EvergreenError, match="no verdict yet"):
        release.promote(second, AS_OF)
    release.note(second, AS_OF, 0.5, release.PASSED, "good")
    release.promote(second, AS_OF)
    assert (serving(), alias()) == (("2", "1"), "2")


def test_promote__while_data_is_broken__frozen_until_a_whole_day_was_watched(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    release.note(second, AS_OF, 0.5, release.SKIPPED, "a test needs it")

    def watched(day: int, broken: list[str], verdict: str = "wait") -> None:
        line = {"line": {"day": f"2013-04-0{day}", "broken": broken}}
        ledger.record("retrain", f"day-{day}-{verdict}", AS_OF + timedelta(days=day), "v1", verdict, "", line)

    watched(1, ["flights.volume"])
    watched(2, [], "reported")  # a backfill's look changes nothing
    with pytest.raises(EvergreenError, match=r"promotion is frozen: the data of 2013-04-01 broke \(flights.volume\)"):
        release.promote(second, AS_OF)
    assert serving() == ("1", None)
    watched(3, [])
    release.promote(second, AS_OF)
    assert serving() == ("2", "1")


def test_promote__passed_but_taken_out_since__refused(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    release.expose(second, AS_OF, 0.5)
    release.note(second, AS_OF, 0.5, release.PASSED, "good")
    release.rollback(None, "anna", "complaints")
    with pytest.raises(EvergreenError, match="passed, but it was taken out since"):
        release.promote(second, AS_OF)
    assert serving() == ("1", None)


def test_promote__a_person_says_yes(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    release.expose(second, AS_OF, 0.05)
    release.promote(second, AS_OF, release.YES, "anna")
    assert serving() == ("2", "1")
    assert [(e.verdict, e.reason) for e in ledger.entries("canary")] == [("approved", "anna said yes")]


@pytest.mark.parametrize(("by", "reason"), [("anna", "anna said no"), ("", "nobody said yes to an inconclusive canary")])
def test_promote__a_person_or_nobody_says_no__canary_is_taken_out(register: Register, by: str, reason: str) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    release.expose(second, AS_OF, 0.05)
    for _ in range(2):
        with pytest.raises(NothingToDo, match=reason):
            release.promote(second, AS_OF, release.NO, by)
    now = manifest.current()
    assert now is not None and (now.version, now.canary, now.canary_share) == (3, None, 0.0)
    assert [e.verdict for e in ledger.entries("rollback")] == ["withdrawn"]


def test_promote__repeated_after_a_later_promotion__does_not_come_back(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    released(second, 1)
    release.promote(first, AS_OF)
    assert (serving(), alias()) == (("2", "1"), "2")


def test_expose__while_another_canary_runs__refused(register: Register) -> None:
    first, second, third = register(), register(), register()
    release.promote(first, AS_OF)
    release.expose(second, AS_OF, 0.05)
    for version, as_of in ((third, AS_OF), (second, AS_OF + timedelta(days=1))):
        with pytest.raises(EvergreenError, match="version 2 is a canary already, since manifest 2"):
            release.expose(version, as_of, 0.05)


def test_rollback__twice_is_once(register: Register) -> None:
    release.promote(register(), AS_OF)
    released(register(), 1)
    now = release.rollback(None, "anna", "complaints")
    assert release.rollback(None, "anna", "again") == now
    assert (now.version, now.by, now.reason, now.changed_at) == (3, "anna", "complaints", AS_OF + timedelta(days=1))
    assert (serving(), alias()) == (("1", None), "1"), "what is under suspicion does not stand in for the champion"
    (entry,) = ledger.entries("rollback")
    assert (entry.subject, entry.reason, entry.evidence["version"]) == ("v1", "complaints", 3)


def test_rollback__to_a_version_and_back(register: Register) -> None:
    for day in range(3):
        released(register(), day)
    release.rollback("v1", "anna", "")
    assert serving() == ("1", None)
    release.rollback("1", "anna", "")
    assert manifest.current_version() == 4
    release.rollback("3", "anna", "it was the weather")
    assert (serving(), alias()) == (("3", "2"), "3")


def test_rollback__what_is_rolled_back_from_is_no_fallback(register: Register) -> None:
    versions = register(), register()
    for day in range(4):
        released(versions[day % 2], day)
    assert serving() == ("2", "1")
    release.rollback(None, "anna", "")
    assert serving() == ("1", None), "when 1 served before, 2 was its previous"


def test_rollback__after_a_crash_before_the_alias__is_finished(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    release.promote(register(), AS_OF)
    released(register(), 1)
    with monkeypatch.context() as patched:
        patched.setattr(tracking, "set_alias", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            release.rollback(None, "anna", "complaints")
    assert (serving(), alias(), ledger.entries("rollback")) == (("1", None), "2", [])
    release.rollback(None, "anna", "complaints")
    assert (alias(), len(ledger.entries("rollback")), manifest.current_version()) == ("1", 1, 3)


def test_rollback__with_a_canary__ends_it_and_keeps_the_champion(register: Register) -> None:
    first, second = register(), register()
    release.promote(first, AS_OF)
    release.expose(second, AS_OF, 0.25)
    for _ in range(2):
        now = release.rollback(None, "anna", "complaints")
        assert (now.version, now.canary, serving()) == (3, None, ("1", None))
    with pytest.raises(NotFoundError, match=r"version 2 never served.*\n.*choose one that did: 1"):
        release.rollback("2", "anna", "")


def test_rollback__refusals(register: Register) -> None:
    with pytest.raises(NotFoundError, match="nothing was ever deployed"):
        release.rollback(None, "anna", "")
    release.promote(register(), AS_OF)
    with pytest.raises(NotFoundError, match="version 1 has no previous champion"):
        release.rollback(None, "anna", "")
    register(backfill="true")
    with pytest.raises(EvergreenError, match="version 2 comes from a backfill"):
        release.rollback("2", "anna", "")
    with pytest.raises(NotFoundError, match="has no version '9'"):
        release.rollback("9", "anna", "")
    assert manifest.current_version() == 1


def test_rollback__to_a_bundle_that_is_gone__refused(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    release.promote(register(), AS_OF)
    released(register(), 1)
    monkeypatch.setattr(store, "exists", lambda digest: False)
    with pytest.raises(EvergreenError, match=r"bundle of version 1, .* is not in the store"):
        release.rollback(None, "anna", "")
    assert serving() == ("2", "1")
