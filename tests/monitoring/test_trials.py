"""Experiments: who gets what, noted once; how long it will take and what came of it, from a real log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ml import ledger, tracking
from ml.config import load_params
from ml.errors import ConfigError, EvergreenError, NotEnoughDataError, NotFoundError, NothingToDo
from ml.monitoring import trials
from ml.refs import VersionRef
from ml.serving import endings, log, manifest, release, router
from ml.serving.log import Entry, PredictionLog
from ml.serving.manifest import Manifest
from ml.serving.router import cohort_of

AS_OF = datetime(2013, 4, 1, 3)
Register = Callable[..., VersionRef]


@pytest.fixture
def two(register: Register) -> tuple[VersionRef, VersionRef]:
    """Version 1 serves, version 2 is registered."""
    first, second = register(), register()
    release.promote(first, AS_OF)
    return first, second


def plan(**changes: Any) -> trials.Plan:
    asked: dict[str, Any] = {
        "name": "trees",
        "arms": {"treatment": "2"},
        "share": 0.4,
        "metric": "decision_rate",
        "minimum_effect": 0.05,
    }
    return trials.Plan(**(asked | {"per_day": 800.0, "sd": 0.4} | changes))


def answer(document: Manifest, number: int, probability: float) -> Entry:
    """What a service would log for an entity under a manifest."""
    name = f"e{number}"
    cohort = cohort_of(document, name)
    by = router.deployed_for(document, cohort)
    assert by is not None
    at = AS_OF + timedelta(minutes=2 * number)
    return Entry(
        entity_id=name, event_time=at, prediction_time=at, logged_at=at, model_version=by.version, probability=probability,
        flags=[], request_id=name, tick=None, features={}, cohort=cohort, manifest=document.version, seconds=0.002,
    )  # fmt: skip


def write(entries: list[Entry]) -> None:
    written = PredictionLog(log.folder())
    written.append(entries)
    written.close()


def test_start__splits_the_entities_and_notes_what_was_asked(two: tuple[VersionRef, VersionRef]) -> None:
    now, needs = trials.start(plan(), "anna", "deeper trees?", AS_OF)
    assert now.experiment is not None
    assert {arm: deployed.version for arm, deployed in now.experiment.arms.items()} == {"control": "1", "treatment": "2"}
    assert (now.version, now.by, now.reason, now.experiment.share) == (2, "anna", "deeper trees?", 0.4)
    assert needs.days == pytest.approx(2 * needs.per_arm / (800 * 0.4))
    (entry,) = ledger.entries("experiment")
    assert (entry.subject, entry.verdict, entry.evidence["metric"]) == ("trees", "started", "decision_rate")
    assert entry.evidence["forecast"]["per_arm"] == needs.per_arm


def test_start__twice_is_once(two: tuple[VersionRef, VersionRef]) -> None:
    assert trials.start(plan(), "anna", "", AS_OF) == trials.start(plan(), "anna", "", AS_OF)
    assert (manifest.current_version(), len(ledger.entries("experiment"))) == (2, 1)


def test_start__killed_before_its_note__is_finished(two: tuple[VersionRef, VersionRef], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(trials, "_note_start", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trials.start(plan(), "anna", "", AS_OF)
    assert ledger.entries("experiment") == []
    trials.start(plan(), "anna", "", AS_OF)
    assert (manifest.current_version(), len(ledger.entries("experiment"))) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "beauty"}, "metric 'beauty' is not known"),
        ({"arms": {}}, "at least one is needed"),
        ({"arms": {"control": "2"}}, "'control' is the champion"),
        ({"share": 0.0}, r"share 0\.0"),
        ({"minimum_effect": 0.0}, r"minimum effect 0\.0"),
    ],
)
def test_start__without_sense__refused(two: tuple[VersionRef, VersionRef], changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trials.start(plan(**changes), "anna", "", AS_OF)
    assert manifest.current_version() == 1


def test_start__of_versions_that_must_not_serve__refused(two: tuple[VersionRef, VersionRef], register: Register) -> None:
    register(backfill="true")
    register(verdict="keep")
    for number in ("3", "4"):
        with pytest.raises(EvergreenError, match=f"arm 'treatment': version {number}"):
            trials.start(plan(arms={"treatment": number}), "anna", "", AS_OF)
    assert manifest.current_version() == 1


def test_start__beside_a_canary_or_another_experiment__refused(two: tuple[VersionRef, VersionRef]) -> None:
    release.expose(two[1], AS_OF, 0.05)
    with pytest.raises(EvergreenError, match="version 2 is a canary"):
        trials.start(plan(), "anna", "", AS_OF)
    release.rollback(None, "anna", "")
    trials.start(plan(), "anna", "", AS_OF)
    with pytest.raises(EvergreenError, match="experiment 'trees' runs"):
        trials.start(plan(name="bushes"), "anna", "", AS_OF)
    with pytest.raises(EvergreenError, match="runs with other arms or another share"):
        trials.start(plan(share=0.1), "anna", "", AS_OF)
    trials.stop("anna", "", as_of=AS_OF)
    with pytest.raises(EvergreenError, match="there was an experiment 'trees' already"):
        trials.start(plan(), "anna", "", AS_OF)


def test_start__with_an_empty_log_and_no_figures__says_what_to_give(two: tuple[VersionRef, VersionRef]) -> None:
    with pytest.raises(NotEnoughDataError, match="--per-day and --sd"):
        trials.start(plan(per_day=None, sd=None), "anna", "", AS_OF)
    assert manifest.current_version() == 1


def test_forecast__from_the_whole_days_of_the_log(two: tuple[VersionRef, VersionRef]) -> None:
    now = manifest.current()
    assert now is not None
    write([answer(now, i, 0.9 if i % 5 == 0 else 0.1) for i in range(1_800)])  # one each two minutes, a fifth of them alarms
    needs = trials.forecast(plan(per_day=None, sd=None))
    assert needs.days == pytest.approx(
        2 * needs.per_arm / (675 * 0.4), rel=0.01
    )  # 21 hours, then a day, then half a day left out
    assert needs.per_arm == pytest.approx(trials.forecast(plan()).per_arm, rel=0.02)


def test_status__sees_the_arms_only_while_it_ran(two: tuple[VersionRef, VersionRef]) -> None:
    before = manifest.current()
    now, _ = trials.start(plan(), "anna", "", AS_OF)
    assert before is not None
    ended = trials.stop("anna", "", as_of=AS_OF)
    high = {"1": 0.1, "2": 0.9}

    def said(document: Manifest, number: int) -> Entry:
        entry = answer(document, number, 0.0)
        return Entry(**{**vars(entry), "probability": high[entry.model_version]})

    write([said(before, i) for i in range(500)] + [said(now, i) for i in range(500, 1_500)])
    write([said(ended, i) for i in range(1_500, 2_000)])
    found = trials.status("trees")
    assert found.decision.verdict == "higher"
    inside = [cohort_of(now, f"e{i}") for i in range(500, 1_500)]
    assert {arm.name: arm.n for arm in found.arms} == {
        name: inside.count(f"experiment:{name}") for name in ("control", "treatment")
    }
    assert [arm.mean for arm in found.arms] == [0.0, 1.0]


def test_status__nothing_runs__names_past_ones(two: tuple[VersionRef, VersionRef]) -> None:
    with pytest.raises(NotFoundError, match=r"no experiment runs\n.*: none"):
        trials.status()
    trials.start(plan(), "anna", "", AS_OF)
    assert trials.status().decision.verdict == "running"
    trials.stop("anna", "", as_of=AS_OF)
    with pytest.raises(NotFoundError, match=r"no experiment runs\n.*: trees"):
        trials.status()
    with pytest.raises(NotFoundError, match="there was no experiment 'bushes'"):
        trials.status("bushes")


@pytest.mark.parametrize(("adopt", "champion"), [(None, "1"), ("control", "1"), ("treatment", "2")])
def test_stop__the_champion_or_the_adopted_arm_serves(
    two: tuple[VersionRef, VersionRef], adopt: str | None, champion: str
) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    now = trials.stop("anna", "seen enough", adopt, AS_OF)
    assert (now.version, now.experiment, now.champion and now.champion.version) == (3, None, champion)
    assert tracking.get_alias(load_params().problem.name, "champion") == champion
    assert ledger.entries("experiment")[-1].verdict == (f"adopted {adopt}" if adopt else "stopped")
    with pytest.raises(NothingToDo, match="no experiment runs"):
        trials.stop("anna", "", as_of=AS_OF)


def test_rollback__ends_an_experiment__noted_once_with_who_and_why(two: tuple[VersionRef, VersionRef]) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    for _ in range(2):
        release.rollback(None, "ben", "complaints", AS_OF)
    assert trials.status("trees").ended == "stopped by rollback, manifest 3, by ben: complaints"
    started, stopped = ledger.entries("experiment")
    assert (started.verdict, stopped.verdict, stopped.subject) == ("started", "stopped", "trees")
    assert (stopped.as_of, stopped.evidence) == (AS_OF, {"manifest": 3, "by": "ben"})
    with pytest.raises(NotFoundError, match=r"trees \(stopped by rollback, manifest 3, by ben: complaints\)"):
        trials.status()
    with pytest.raises(NothingToDo):
        trials.stop("anna", "", as_of=AS_OF)
    assert len(ledger.entries("experiment")) == 2


def test_rollback__killed_before_the_note__noted_when_done_again(
    two: tuple[VersionRef, VersionRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    with monkeypatch.context() as patched:
        patched.setattr(endings, "note", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            release.rollback(None, "ben", "complaints", AS_OF)
    assert [entry.verdict for entry in ledger.entries("experiment")] == ["started"]
    release.rollback(None, "ben", "complaints", AS_OF)
    assert [entry.verdict for entry in ledger.entries("experiment")] == ["started", "stopped"]


def test_status__ended_by_some_other_change_of_the_manifest__says_so(two: tuple[VersionRef, VersionRef]) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    assert trials.status().ended is None
    manifest.change("by-hand-1", AS_OF, "carl", "a test of ours", experiment=None)
    assert trials.status("trees").ended == "stopped by change by-hand-1, manifest 3, by carl: a test of ours"
    assert ledger.entries("experiment")[-1].evidence == {"manifest": 3, "by": "carl"}


def test_rollback__to_a_version__ends_the_experiment_with_a_note(two: tuple[VersionRef, VersionRef]) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    release.rollback("1", "ben", "complaints", AS_OF)
    assert trials.status("trees").ended == "stopped by rollback, manifest 3, by ben: complaints"


@pytest.mark.parametrize(("adopt", "verdict"), [(None, "stopped"), ("treatment", "adopted treatment")])
def test_stop__killed_before_its_note__noted_when_somebody_looks(
    two: tuple[VersionRef, VersionRef], monkeypatch: pytest.MonkeyPatch, adopt: str | None, verdict: str
) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    with monkeypatch.context() as patched:
        patched.setattr(trials.ledger, "record", lambda kind, *_: kind == "experiment" and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trials.stop("anna", "seen enough", adopt, AS_OF)
    assert trials.status("trees").ended == f"{verdict} by anna: seen enough"
    assert ledger.entries("experiment")[-1].verdict == verdict


def test_stop__unknown_arm__refused(two: tuple[VersionRef, VersionRef], workspace: Path) -> None:
    trials.start(plan(), "anna", "", AS_OF)
    with pytest.raises(NotFoundError, match=r"no arm 'b'\n.*control, treatment"):
        trials.stop("anna", "", "b", AS_OF)
    assert manifest.current_version() == 2
