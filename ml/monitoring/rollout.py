"""The canary of a release, step by step: look at the log, decide, give it the next share or take it out.

`look` is called again and again, by Airflow's sensor or by hand. All it knows is in manifest, ledger and log, so it may be killed
at any point and called by anybody. The evidence are the answers that were given under the manifest versions of the release.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ml import config, ledger
from ml.config import load_params
from ml.data import rows, snapshots
from ml.errors import NotFoundError
from ml.monitoring import canary
from ml.refs import CanaryState, Decision, VersionRef
from ml.serving import log, manifest, release
from ml.serving.manifest import Manifest

Analyse = Callable[[pd.DataFrame, pd.Series, config.Release, str, str, int], Decision]
"""(entries of the release, labels by entity id, limits, canary's version, champion's version, manifest version of the present
step) → verdict running, pass or fail."""
Read = Callable[[int], pa.Table]
"""All log entries, shadows included, that were answered under this manifest version or a later one."""
VERDICTS = {release.PASSED: "pass", release.SKIPPED: "pass", release.APPROVED: "pass", release.REFUSED: "fail"}


def look(
    version: VersionRef, as_of: datetime, skip: str = "", read_log: Read | None = None, analyse: Analyse | None = None
) -> CanaryState:
    """One look at the canary of a release, and what follows from it.

    Nothing serves yet, or `release.steps` is empty: pass. Not begun: it gets the first share. Begun: passed at its share, it gets
    the next, after the last it has passed; failed, it is taken out (the automatic rollback); longer than `release.max_hours` at
    one share (wall clock, since traffic is live) without a verdict, it is inconclusive and keeps its share.

    Args:
        version: the candidate; it must have passed its gate.
        as_of: names the release, with the version. A verdict is final: to try again, release with another `as_of`.
        skip: why there shall be no canary (an emergency); noted in the ledger.
        read_log: reads the log; default: that of the service.
        analyse: judges; default: `ml.monitoring.canary.analyse`.

    Raises:
        EvergreenError: not releasable, or another canary or an experiment runs.
        StaleWriteError: another change of the manifest came in between; look again.
    """
    release.require_releasable(version)
    limits, now = load_params().release, manifest.current()
    done = release.outcome(version, as_of)
    if done is not None:
        if done.verdict == release.REFUSED:
            release.withdraw(version, as_of, release.KIND, done.reason)
        reason = f"canary skipped: {done.reason}" if done.verdict == release.SKIPPED else done.reason
        return _state(version, VERDICTS[done.verdict], reason, _decision(done))
    if now is None or now.champion is None:
        return _state(version, "pass", "no champion to compare with")
    if now.champion == release.deployable(version):
        return _state(version, "pass", "it is the champion")
    if skip:
        release.note(version, as_of, now.canary_share, release.SKIPPED, skip)
        return _state(version, "pass", f"canary skipped: {skip}")
    if not limits.steps:
        return _state(version, "pass", "release.steps is empty")
    if not release.owns(version, as_of):
        return _begin(version, as_of, limits.steps[0])
    return _judge(version, as_of, now, (read_log or log.since_manifest)(release.begun(now).version), analyse or _analyse)


def _begin(version: VersionRef, as_of: datetime, share: float) -> CanaryState:
    if (out := release.ended_by(version, as_of)) is not None:
        reason = f"taken out by {out.by}, manifest {out.version}: {out.reason}"
        release.note(version, as_of, share, release.REFUSED, reason)
        return _state(version, "fail", reason)
    release.expose(version, as_of, share)
    return _exposed(version, as_of, share, None)


def _judge(version: VersionRef, as_of: datetime, now: Manifest, logged: pa.Table, analyse: Analyse) -> CanaryState:
    limits, share = load_params().release, now.canary_share
    assert now.champion is not None  # `look` has checked
    began = release.note(version, as_of, share, "running", f"answers {share:.0%} of entities").recorded_at
    entries = logged.filter(pc.less_equal(logged["manifest"], now.version)).to_pandas()
    at_step = canary.at_step(limits, share)
    decision = analyse(entries, labels(entries), at_step, version.version, now.champion.version, now.version)
    if decision.verdict == "fail":
        release.note(version, as_of, share, release.REFUSED, decision.reason, decision)
        release.withdraw(version, as_of, release.KIND, decision.reason)
        return _state(version, "fail", f"at {share:.0%}: {decision.reason}", decision)
    if decision.verdict == "pass":
        release.note(version, as_of, share, "pass", decision.reason, decision)
        higher = [step for step in limits.steps if step > share]
        if not higher:
            release.note(version, as_of, share, release.PASSED, f"at {share:.0%}: {decision.reason}", decision)
            return _state(version, "pass", f"at {share:.0%}: {decision.reason}", decision)
        release.expose(version, as_of, higher[0])
        return _exposed(version, as_of, higher[0], decision)
    if datetime.now(UTC).replace(tzinfo=None) - began > timedelta(hours=limits.max_hours):
        reason = f"no verdict after {limits.max_hours:g} h at {share:.0%}: {decision.reason}"
        release.note(version, as_of, share, "inconclusive", reason, decision)
        return _state(version, "inconclusive", reason, decision)
    return _state(version, "running", f"at {share:.0%}: {decision.reason}", decision)


def _exposed(version: VersionRef, as_of: datetime, share: float, decision: Decision | None) -> CanaryState:
    release.note(version, as_of, share, "running", f"answers {share:.0%} of entities")
    return _state(version, "running", f"answers {share:.0%} of entities from now on", decision)


def _state(version: VersionRef, verdict: str, reason: str, decision: Decision | None = None) -> CanaryState:
    now = manifest.current()
    mine = now is not None and now.canary == release.deployable(version)
    return CanaryState(
        version=version.version,
        verdict=verdict,
        share=now.canary_share if now is not None and mine else 0.0,
        manifest=now.version if now is not None else 0,
        reason=reason,
        decision=decision,
    )


def _decision(entry: ledger.Entry) -> Decision | None:
    found = entry.evidence["decision"]
    return None if found is None else Decision.model_validate(found)


def labels(entries: pd.DataFrame) -> pd.Series:
    """What came true for the rows that were answered, as known to the newest data version: by entity id, NaN = not matured.

    A row has matured when its event is `train.embargo_hours` before that version: outcomes that become known sooner than others
    are left out until then, because they are not like the others.

    Args:
        entries: log entries (``entity_id``, ``event_time``).
    """
    named = pd.Series(float("nan"), index=pd.Index(entries["entity_id"].unique(), name="entity_id"), name="label")
    try:
        newest = snapshots.find(datetime.max)
    except NotFoundError:  # nothing was landed: nothing came true yet
        return named
    if entries.empty:
        return named
    first, last = entries["event_time"].min().to_pydatetime(), entries["event_time"].max().to_pydatetime()
    end = min(last + timedelta(microseconds=1), newest.as_of - timedelta(hours=load_params().train.embargo_hours))
    if end <= first:
        return named
    known = rows.problem_rows(snapshots.restore(newest), first, end, newest.as_of)
    outcomes = known.select(["entity_id", "label"]).to_pandas().drop_duplicates("entity_id").set_index("entity_id")["label"]
    return outcomes.reindex(named.index).astype(float)


def _analyse(
    entries: pd.DataFrame, known: pd.Series, limits: config.Release, candidate: str, champion: str, step: int
) -> Decision:
    return canary.analyse(entries, known, limits, candidate, champion, step, load_params().problem.task)
