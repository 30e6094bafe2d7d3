"""The steps of a canary: shares grow on pass, a failure takes it out, time runs out; killed anywhere, called again, same effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml

from ml import ledger, steps
from ml.config import Release
from ml.data import rows, snapshots
from ml.errors import EvergreenError, NothingToDo
from ml.monitoring import rollout
from ml.refs import CanaryState, Check, Decision, VersionRef, Window
from ml.serving import log, manifest, release, router
from ml.serving.log import Entry, PredictionLog
from ml.serving.manifest import Deployed, Experiment
from ml.settings import ROOT
from tests.conftest import forget

AS_OF = datetime(2013, 4, 1, 3)


def version(number: str) -> VersionRef:
    return VersionRef(version=number, bundle=number * 64, model=number * 64, verdict="promote", backfill=False, run_id="r")


ONE, TWO, THREE = version("1"), version("2"), version("3")
Verdicts = Callable[..., Decision]


def says(verdict: str) -> Verdicts:
    """An analysis with a verdict that is known beforehand, and the rows that it saw."""

    def analyse(entries: pd.DataFrame, labels: pd.Series, limits: Release, canary: str, champion: str, step: int) -> Decision:
        seen = sorted(set(entries["manifest"]))
        check = Check(name="seen", passed=True, value=None, threshold=None, n=len(entries), detail=f"{seen} {canary} {champion}")
        return Decision(kind="canary", verdict=verdict, reason=f"a test says {verdict} at step {step}", checks=[check])

    return analyse


def logged(since: int) -> pa.Table:
    """Two answers under each of the first nine manifest versions."""
    rows = [
        {"entity_id": f"e{i}", "event_time": AS_OF, "manifest": i // 2, "cohort": "canary"} for i in range(18) if i // 2 >= since
    ]
    return pa.Table.from_pylist(rows)


def look(verdict: str, candidate: VersionRef = TWO, as_of: datetime = AS_OF, skip: str = "") -> CanaryState:
    return rollout.look(candidate, as_of, skip, logged, says(verdict))


@pytest.fixture
def champion(workspace: Path) -> None:
    manifest.promote(release.deployable(ONE), AS_OF, "release", "", "first")


def limits(workspace: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Other release parameters."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["release"] |= changes
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("EVERGREEN_PARAMS", str(workspace / "params.yaml"))
    forget()


def shares() -> list[float]:
    return [document.canary_share for document in manifest.history()]


def verdicts() -> list[str]:
    return [entry.verdict for entry in ledger.entries("canary")]


def test_look__without_a_champion__passes_at_once(workspace: Path) -> None:
    state = look("fail")
    assert (state.verdict, state.share, manifest.current_version()) == ("pass", 0.0, 0)


def test_look__without_steps__passes_at_once(champion: None, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits(workspace, monkeypatch, steps=[])
    assert look("fail").verdict == "pass"
    assert manifest.current_version() == 1


def test_look__walks_through_its_shares_and_passes(champion: None) -> None:
    states = [look("pass") for _ in range(5)]
    assert [(state.verdict, state.share) for state in states] == [
        ("running", 0.05),
        ("running", 0.25),
        ("running", 0.5),
        ("pass", 0.5),
        ("pass", 0.5),
    ]
    assert shares() == [0.0, 0.05, 0.25, 0.5]
    assert verdicts() == ["running", "pass", "running", "pass", "running", "pass", "passed"]
    assert [state.manifest for state in states] == [2, 3, 4, 4, 4]


def test_look__sees_the_answers_of_this_release_only(champion: None) -> None:
    for _ in range(2):
        look("pass")
    decision = look("running").decision
    assert decision is not None
    assert (decision.checks[0].detail, decision.reason) == ("[2, 3] 2 1", "a test says running at step 3")


def test_look__while_it_runs__changes_and_writes_nothing_more(champion: None) -> None:
    look("pass")
    for _ in range(3):
        state = look("running")
        assert (state.verdict, state.share) == ("running", 0.05)
    assert (shares(), verdicts()) == ([0.0, 0.05], ["running"])


def test_look__failed__is_taken_out_once_and_stays_refused(champion: None) -> None:
    look("pass")
    look("pass")
    for verdict in ("fail", "pass", "pass"):
        state = look(verdict)
        assert (state.verdict, state.share) == ("fail", 0.0)
        assert "a test says fail" in state.reason
    assert shares() == [0.0, 0.05, 0.25, 0.0]
    now = manifest.current()
    assert now is not None and (now.canary, now.champion, now.by) == (None, release.deployable(ONE), "canary")
    (entry,) = ledger.entries("rollback")
    assert (entry.subject, entry.verdict, entry.reason) == ("v2", "withdrawn", "a test says fail at step 3")


def test_look__killed_between_note_and_withdrawal__withdraws_on_the_next(champion: None, monkeypatch: pytest.MonkeyPatch) -> None:
    look("pass")
    with monkeypatch.context() as patched:
        patched.setattr(release, "withdraw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            look("fail")
    assert shares()[-1] == 0.05
    assert look("pass").verdict == "fail"
    assert shares()[-1] == 0.0


def test_look__again_at_a_refused_release__leaves_a_later_one_alone(champion: None) -> None:
    look("pass")
    manifest.change("rollback-2", AS_OF, "anna", "complaints", canary=None, canary_share=0.0)
    assert look("pass").verdict == "fail"
    later = AS_OF + timedelta(days=1)
    assert look("pass", as_of=later).share == 0.05
    assert look("pass").verdict == "fail"
    assert look("running", as_of=later).share == 0.05


def test_look__time_is_over__inconclusive_and_keeps_its_share(
    champion: None, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(workspace, monkeypatch, max_hours=1e-6)
    look("pass")
    for _ in range(2):
        state = look("running")
        assert (state.verdict, state.share) == ("inconclusive", 0.05)
    assert verdicts() == ["running", "inconclusive"]
    assert look("pass").share == 0.25, "an inconclusive canary goes on when it is looked at again and has its verdict"


def test_look__taken_out_by_a_person__fails_and_says_by_whom(champion: None) -> None:
    look("pass")
    manifest.change("rollback-2", AS_OF, "anna", "complaints", canary=None, canary_share=0.0)
    state = look("pass")
    assert (state.verdict, state.reason) == ("fail", "taken out by anna, manifest 3: complaints")
    assert look("pass").verdict == "fail"
    assert shares() == [0.0, 0.05, 0.0]


def test_look__skipped__is_noted(champion: None) -> None:
    first = look("fail", skip="the old one is broken")
    assert first.verdict == "pass"
    assert look("fail", skip="the old one is broken") == first, "asked again it says the same"
    assert look("fail").verdict == "pass"
    assert [(e.verdict, e.reason) for e in ledger.entries("canary")] == [("skipped", "the old one is broken")]
    assert shares() == [0.0]


def test_look__the_champion_itself__passes(champion: None) -> None:
    assert look("fail", ONE).verdict == "pass"
    assert shares() == [0.0]


@pytest.mark.parametrize("candidate", [TWO.model_copy(update={"verdict": "keep"}), TWO.model_copy(update={"backfill": True})])
def test_look__not_releasable__refused(champion: None, candidate: VersionRef) -> None:
    with pytest.raises(EvergreenError, match="release a version that passed its gate"):
        look("pass", candidate)
    assert shares() == [0.0]


def test_look__beside_another_canary_or_an_experiment__refused(champion: None) -> None:
    look("pass")
    with pytest.raises(EvergreenError, match="version 2 is a canary already"):
        look("pass", THREE)
    look("fail")
    arms = {"control": release.deployable(ONE), "treatment": Deployed(version="9", bundle="9", model="9")}
    manifest.change("x", AS_OF, "test", "", experiment=Experiment(name="trees", share=0.2, arms=arms, started_at=AS_OF))
    with pytest.raises(EvergreenError, match="experiment 'trees' runs"):
        look("pass", THREE)


def ask(entities: range, shift: float, broken: bool = False, model: str | None = None) -> None:
    """What a service logs when these are asked for under the present manifest: answers, and copies by the other model."""
    now = manifest.current()
    assert now is not None and now.canary is not None and now.champion is not None
    entries = []
    for number in entities:
        name, chance = f"e{number}", random.Random(number)
        cohort = router.cohort_of(now, name)
        at, score = AS_OF + timedelta(minutes=number), chance.uniform(0.1, 0.5)
        answers = {now.champion.version: score, now.canary.version: score + shift + chance.gauss(0, 0.02)}
        answering = router.deployed_for(now, cohort)
        for deployed, label in ((answering, cohort), *((shadow, "shadow") for shadow in router.shadows_of(now, cohort))):
            assert deployed is not None
            flags = ["fallback_champion"] if broken and cohort == label == "canary" and number % 5 == 0 else []
            entries.append(
                Entry(
                    entity_id=name, event_time=at, prediction_time=at, logged_at=at, model_version=deployed.version,
                    probability=answers[deployed.version], flags=flags, request_id=name, tick=None, features={}, cohort=label,
                    manifest=now.version, seconds=0.002 + chance.gauss(0, 0.0002), model=model,
                )
            )  # fmt: skip
    writer = PredictionLog(log.folder())
    writer.append(entries)
    writer.close()


@pytest.fixture
def two_steps(champion: None, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits(workspace, monkeypatch, steps=[0.25, 0.5], min_answers=100)


def test_look__at_a_real_log__a_good_candidate_passes_its_steps(two_steps: None) -> None:
    assert rollout.look(TWO, AS_OF).share == 0.25
    ask(range(200), 0.0)
    few = rollout.look(TWO, AS_OF)
    assert (few.verdict, few.share) == ("running", 0.25)
    assert few.decision is not None and not few.decision.passed
    ask(range(200, 3_000), 0.0)
    assert rollout.look(TWO, AS_OF).share == 0.5
    assert rollout.look(TWO, AS_OF).verdict == "running", "answers of the step before do not count for this one"
    ask(range(3_000, 5_000), 0.0)
    assert rollout.look(TWO, AS_OF).verdict == "pass"


@pytest.mark.parametrize(("shift", "broken", "check"), [(0.2, False, "scores"), (0.0, True, "errors")])
def test_look__at_a_real_log__a_bad_candidate_is_taken_out(two_steps: None, shift: float, broken: bool, check: str) -> None:
    rollout.look(TWO, AS_OF)
    ask(range(3_000), shift, broken)
    state = rollout.look(TWO, AS_OF)
    assert (state.verdict, state.share) == ("fail", 0.0)
    assert check in state.reason
    now = manifest.current()
    assert now is not None and now.canary is None


def test_look__waiting_for_labels__the_last_step_keeps_its_share_until_time_runs_out(
    champion: None, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(workspace, monkeypatch, steps=[0.25, 0.5], wait_for_labels=500)
    rollout.look(TWO, AS_OF)
    ask(range(3_000), 0.0)
    assert rollout.look(TWO, AS_OF).share == 0.5, "the first step does not wait"
    ask(range(3_000, 6_000), 0.0)
    state = rollout.look(TWO, AS_OF)
    assert (state.verdict, state.share, state.reason) == ("running", 0.5, "at 50%: labels: 0 of 500 labels")
    began = [entry for entry in ledger.entries("canary") if entry.verdict == "running"][-1].recorded_at

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return (began + timedelta(hours=24, seconds=1)).replace(tzinfo=tz)

    monkeypatch.setattr(rollout, "datetime", Later)
    state = rollout.look(TWO, AS_OF)
    assert (state.verdict, state.share) == ("inconclusive", 0.5)
    assert state.reason == "no verdict after 24 h at 50%: labels: 0 of 500 labels"


@pytest.mark.parametrize(("by", "reason"), [("anna", "anna said no"), ("", "nobody said yes in time")])
def test_canary__a_person_or_silence_says_no__nothing_is_exposed_and_it_is_noted(champion: None, by: str, reason: str) -> None:
    for _ in range(2):
        state = steps.canary(TWO, AS_OF, said=release.DENY, by=by)
        assert (state.verdict, state.share, state.reason) == ("fail", 0.0, f"{reason}, before any traffic")
    assert manifest.current_version() == 1
    (entry,) = ledger.entries("canary")
    assert (entry.verdict, entry.evidence["by"]) == ("refused", by)
    with pytest.raises(NothingToDo, match=f"version 2 was refused: {reason}"):
        steps.promote(TWO, AS_OF)
    assert manifest.current_version() == 1


def test_canary__a_person_says_no_where_nothing_serves__nothing_is_promoted(workspace: Path) -> None:
    assert steps.canary(ONE, AS_OF, said=release.DENY, by="anna").verdict == "fail"
    with pytest.raises(NothingToDo, match="anna said no"):
        steps.promote(ONE, AS_OF)
    assert manifest.current_version() == 0


def test_canary__a_person_says_yes__it_begins_and_who_said_so_is_noted_once(champion: None) -> None:
    for _ in range(2):
        state = steps.canary(TWO, AS_OF, said=release.GRANT, by="anna")
    assert (state.verdict, state.share) == ("running", 0.05)
    assert [(e.verdict, e.evidence["by"]) for e in ledger.entries("canary")] == [("allowed", "anna"), ("running", "")]
    with pytest.raises(EvergreenError, match="'perhaps' is no answer"):
        steps.canary(TWO, AS_OF, said="perhaps")


def test_look__two_names_in_one_log__the_canary_of_one_is_not_judged_by_the_other(two_steps: None) -> None:
    rollout.look(TWO, AS_OF)
    now = manifest.current()
    assert now is not None
    ask(range(3_000), 0.3, broken=True, model="other")  # the same entities, cohorts, versions and number of the manifest
    assert len(log.since_manifest(now.version, name="other")) > 3_000
    assert len(log.since_manifest(now.version)) == 0
    state = rollout.look(TWO, AS_OF)
    assert (state.verdict, state.share) == ("running", 0.25)
    ask(range(3_000), 0.0)
    assert rollout.look(TWO, AS_OF).share == 0.5


def test_labels__of_landed_rows_that_have_matured(workspace: Path) -> None:
    window = Window(start="2013-01-01", end="2013-01-04")
    night = datetime(2013, 1, 4, 2)
    steps.validate(steps.land(window, night))
    steps.snapshot(night)
    newest = snapshots.find(datetime.max)
    root = snapshots.restore(newest)
    start = datetime.combine(window.start, datetime.min.time())
    landed = rows.problem_rows(root, start, start + timedelta(days=3), newest.as_of).select(["entity_id", "event_time", "label"])
    far = landed.slice(0, 1).set_column(0, "entity_id", [["unknown"]]).set_column(1, "event_time", [[start + timedelta(days=90)]])
    answered = pa.concat_tables([landed, far.cast(landed.schema)]).to_pandas()
    found = rollout.labels(answered)
    matured = (answered["event_time"] < newest.as_of - timedelta(hours=24)).to_numpy()
    assert 0 < matured.sum() < len(answered)
    known = answered.loc[matured].set_index("entity_id")["label"].astype(float)
    assert found.loc[known.index].equals(known)
    assert found.loc[answered.loc[~matured, "entity_id"]].isna().all()


def test_labels__nothing_landed_or_nothing_answered(workspace: Path) -> None:
    nobody = pd.DataFrame({"entity_id": pd.Series([], dtype=str), "event_time": pd.Series([], dtype="datetime64[us]")})
    assert rollout.labels(nobody).empty
    assert rollout.labels(pd.DataFrame({"entity_id": ["a"], "event_time": [AS_OF]})).isna().all()
