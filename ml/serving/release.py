"""Changes of what serves: canary shares, promotion, withdrawal, rollback.

Each is one change of the manifest (which the services follow within a second), then the registry's alias, then a note in the
ledger; each may be done again after a crash at any point, with the same effect. A release is named by version and data time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ml import ledger, store, tracking
from ml.config import load_params
from ml.errors import EvergreenError, NotFoundError, NothingToDo
from ml.refs import Decision, VersionRef
from ml.serving import endings, manifest
from ml.serving.manifest import Deployed, Manifest

KIND = "canary"
"""Kind of ledger entry."""
PASSED, REFUSED, SKIPPED, APPROVED = "passed", "refused", "skipped", "approved"
FINAL = {PASSED, REFUSED, SKIPPED, APPROVED}
"""Verdicts after which a release's canary is not looked at again."""
YES, NO = "promote", "roll back"
"""What a person may say to a canary that is inconclusive."""
GRANT, DENY = "Approve", "Reject"
"""What a person may say before any traffic, where `release.approval` asks for it."""


def identity(version: VersionRef, as_of: datetime) -> str:
    return f"{version.version}-{as_of:%Y%m%dT%H%M%S}"


def deployable(version: VersionRef) -> Deployed:
    return Deployed(version=version.version, bundle=version.bundle, model=version.model)


def require_releasable(version: VersionRef) -> None:
    """Raises:
    EvergreenError: the version did not pass its gate, or comes from a backfill.
    """
    if version.backfill or version.verdict != "promote":
        raise EvergreenError(
            f"version {version.version} has verdict {version.verdict!r}, backfill {version.backfill}",
            "release a version that passed its gate",
        )


# ---- notes in the ledger


def note(
    version: VersionRef, as_of: datetime, share: float, verdict: str, reason: str, decision: Decision | None = None, by: str = ""
) -> ledger.Entry:
    """Writes what a canary came to at one share, once; returns the entry (`recorded_at`: the wall clock of the first time)."""
    release, subject = identity(version, as_of), f"v{version.version}"
    key = f"{KIND}-{release}-{share:g}-{verdict}"
    evidence = {"release": release, "share": share, "manifest": manifest.current_version(), "by": by}
    ledger.record(KIND, key, as_of, subject, verdict, reason, evidence | {"decision": decision.to_xcom() if decision else None})
    return next(entry for entry in ledger.entries(KIND, subject=subject) if entry.key == key)


def hear(version: VersionRef, as_of: datetime, said: str, by: str) -> None:
    """Notes what a person said before any traffic, once; a no is the release's final verdict.

    Args:
        said: `GRANT` or `DENY`.
        by: who said it; empty: nobody did until the time was over.

    Raises:
        EvergreenError: it was something else.
    """
    if said not in (GRANT, DENY):
        raise EvergreenError(f"{said!r} is no answer to whether a candidate shall get traffic", f"say {GRANT} or {DENY}")
    if said == GRANT:
        note(version, as_of, 0.0, "allowed", f"{by or 'a person'} said yes before any traffic", by=by)
    else:
        told = f"{by} said no" if by else "nobody said yes in time"
        note(version, as_of, 0.0, REFUSED, f"{told}, before any traffic", by=by)


def outcome(version: VersionRef, as_of: datetime) -> ledger.Entry | None:
    """The final verdict of a release's canary; None while there is none."""
    mine = [e for e in ledger.entries(KIND, subject=f"v{version.version}") if e.evidence["release"] == identity(version, as_of)]
    return next((e for e in reversed(mine) if e.verdict in FINAL), None)


# ---- canary


def expose(version: VersionRef, as_of: datetime, share: float) -> Manifest:
    """Gives the canary of a release its share of entities.

    Raises:
        EvergreenError: another canary or an experiment runs.
        StaleWriteError: another change came in between.
    """
    now, deployed = manifest.current(), deployable(version)
    if now is not None and now.experiment is not None:
        raise EvergreenError(
            f"experiment {now.experiment.name!r} runs, and a canary beside it would disturb both",
            "end it with `evergreen experiment stop`, then release again",
        )
    if now is not None and now.canary is not None and not owns(version, as_of):
        raise EvergreenError(
            f"version {now.canary.version} is a canary already, since manifest {begun(now).version}",
            "take it out with `evergreen rollback`, or look at it with the as_of of its own release",
        )
    key, reason = f"{KIND}-{identity(version, as_of)}-{share:g}", f"canary of version {version.version}"
    return manifest.change(key, as_of, KIND, reason, canary=deployed, canary_share=share)


def owns(version: VersionRef, as_of: datetime) -> bool:
    """Whether the canary in the manifest is that of this release."""
    now = manifest.current()
    return now is not None and now.canary == deployable(version) and _of_release(begun(now), version, as_of)


def begun(now: Manifest) -> Manifest:
    """The manifest that brought in the canary of manifest `now`."""
    documents = [document for document in manifest.history() if document.version <= now.version]
    last = max((i for i, document in enumerate(documents) if document.canary != now.canary), default=-1)
    return documents[last + 1]


def ended_by(version: VersionRef, as_of: datetime) -> Manifest | None:
    """The manifest that took the release's canary out; None when it never was in one, or still is."""
    documents = manifest.history()
    begun = [i for i, document in enumerate(documents) if _of_release(document, version, as_of)]
    after = documents[begun[-1] :] if begun else []
    return next((document for document in after if document.canary != deployable(version)), None)


def withdraw(version: VersionRef, as_of: datetime, by: str, reason: str) -> Manifest | None:
    """Takes a release's canary out, if it is still in; the champion answers all again. Goes to the ledger as a rollback."""
    if owns(version, as_of):
        key = f"{KIND}-{identity(version, as_of)}-out"
        manifest.change(key, as_of, by, reason, canary=None, canary_share=0.0)
    out = ended_by(version, as_of)
    if out is not None:
        _note_rollback(out, as_of, f"v{version.version}", "withdrawn", reason)
    return out


# ---- promotion


def promote(version: VersionRef, as_of: datetime, said: str = "", by: str = "") -> Manifest:
    """Makes a version the champion, if its canary passed, was skipped, or a person said yes.

    Args:
        as_of: as for the canary: the two name the release.
        said: what a person said to an inconclusive canary, `YES` or `NO`; no is carried out, too.
        by: who said it.

    Raises:
        EvergreenError: it did not pass its gate, comes from a backfill, or its canary has not passed; an experiment runs; the
            newest watched day's data broke.
        NothingToDo: its canary was refused, or a person said no.
        StaleWriteError: another change came in between.
    """
    require_releasable(version)
    key = f"promote-{identity(version, as_of)}"
    done = next((document for document in manifest.history() if document.key == key), None)
    if done is None:
        _require_leave(version, as_of, said, by)
    reason = next((e.reason for e in ledger.entries("gate", subject=f"v{version.version}")), "released by hand")
    published = done or manifest.promote(deployable(version), as_of, "release", reason, key)
    endings.note()
    _name_champion("promotion", f"promotion-{published.version}", published, as_of, reason)
    return published


def adopt(deployed: Deployed, as_of: datetime, by: str, reason: str, key: str) -> Manifest:
    """Makes an arm of an experiment, which has served already, the champion."""
    published = manifest.promote(deployed, as_of, by, reason, key)
    _name_champion("promotion", f"promotion-{published.version}", published, as_of, reason)
    return published


def _require_leave(version: VersionRef, as_of: datetime, said: str, by: str) -> None:
    now, limits = manifest.current(), load_params().release
    entry = outcome(version, as_of)
    if entry is not None and entry.verdict == REFUSED:  # first: a person may refuse where there is no champion, and no canary
        raise NothingToDo(f"the release of version {version.version} was refused: {entry.reason}")
    if now is None or now.champion is None or now.champion == deployable(version):
        return
    _require_whole()
    if now.experiment is not None:
        raise EvergreenError(f"experiment {now.experiment.name!r} runs", "end it with `evergreen experiment stop`")
    if said == YES and entry is None and owns(version, as_of):
        entry = note(version, as_of, now.canary_share, APPROVED, f"{by or 'a person'} said yes", by=by)
    if said == NO and (entry is None or entry.verdict != PASSED):
        reason = f"{by or 'nobody'} said yes to an inconclusive canary" if not by else f"{by} said no"
        note(version, as_of, now.canary_share, REFUSED, reason, by=by)
        withdraw(version, as_of, by or "release", reason)
        raise NothingToDo(reason)
    if not limits.steps or (entry is not None and (entry.verdict == SKIPPED or owns(version, as_of))):
        return
    state = f"{entry.verdict}, but it was taken out since" if entry else "no verdict yet"
    raise EvergreenError(
        f"version {version.version} has not passed its canary as of {as_of:%Y-%m-%dT%H:%M:%S}: {state}",
        f"call `evergreen canary --as-of {as_of:%Y-%m-%dT%H:%M:%S}` until it says pass",
    )


def _require_whole() -> None:
    """Raises:
    EvergreenError: on the newest day that was watched the data broke: what a candidate was judged by may be wrong.
    """
    days = [entry for entry in ledger.entries("retrain") if entry.verdict != "reported" and "line" in entry.evidence]
    newest = max(days, key=lambda entry: (entry.as_of, entry.id)).evidence["line"] if days else {}
    if broken := newest.get("broken"):
        raise EvergreenError(
            f"promotion is frozen: the data of {newest['day']} broke ({', '.join(broken)})",
            "mend the data, clear the run of DAG drift for that day, then promote again; a rollback is possible at any time",
        )


# ---- rollback


def rollback(to: str | None, by: str, reason: str, as_of: datetime | None = None) -> Manifest:
    """Takes back the newest change: a running canary or experiment ends; without one, the previous champion serves again.

    Args:
        to: the version that shall serve all instead; it must have served before.
        as_of: data time of the change; default: the present, or for a source that has ended, the latest time in the ledger.

    Returns:
        The manifest that serves now; a rollback that was done already changes nothing.

    Raises:
        NotFoundError: nothing serves, there is no previous champion, or `to` never served.
        EvergreenError: `to` comes from a backfill, or its bundle is not in the store.
        StaleWriteError: another change came in between.
    """
    now = manifest.current()
    if now is None or now.champion is None:
        raise NotFoundError("nothing was ever deployed", "release a version first")
    as_of = as_of or ledger.data_now()
    if to is None and now.key.startswith("rollback-"):
        published = now
    elif to is None and (now.canary or now.experiment):
        published = _end_trial(now, as_of, by, reason)
    else:
        published = _serve_again(now, _target(now, to), as_of, by, reason)
    if published.champion is None:
        raise NotFoundError(f"manifest {published.version} names no champion", "promote a version")
    endings.note()
    _name_champion("rollback", f"rollback-{published.version}", published, published.changed_at, published.reason)
    return published


def _end_trial(now: Manifest, as_of: datetime, by: str, reason: str) -> Manifest:
    key = f"rollback-{now.version}"
    return manifest.change(key, as_of, by, reason, canary=None, canary_share=0.0, shadow=None, experiment=None)


def _serve_again(now: Manifest, target: Deployed, as_of: datetime, by: str, reason: str) -> Manifest:
    """The version rolled back from is under suspicion: it is not kept as `previous`, which answers when the champion fails."""
    if not store.exists(target.bundle):
        raise EvergreenError(
            f"the bundle of version {target.version}, {target.bundle}, is not in the store", "mend the store, or choose another"
        )
    when = [document for document in manifest.history() if document.champion == target]
    previous = when[-1].previous if when and when[-1].previous not in (now.champion, target) else None
    nobody: dict[str, Any] = {"canary": None, "canary_share": 0.0, "shadow": None, "experiment": None}
    if now.champion == target:
        previous = now.previous
    return manifest.change(f"rollback-{now.version}", as_of, by, reason, champion=target, previous=previous, **nobody)


def _target(now: Manifest, to: str | None) -> Deployed:
    if to is None:
        if now.previous is None:
            raise NotFoundError(
                f"version {now.champion.version if now.champion else None} has no previous champion",
                f"name one with --to; served before: {_shown(_served())}",
            )
        return now.previous
    number, served = tracking.number(to), _served()
    if number in served:
        return served[number]
    if tracking.version_ref(number).backfill:
        raise EvergreenError(
            f"version {number} comes from a backfill and must not serve", f"choose one that served: {_shown(served)}"
        )
    raise NotFoundError(f"version {number} never served", f"choose one that did: {_shown(served)}; a new one needs a release")


def _served() -> dict[str, Deployed]:
    """Every champion there ever was, by version."""
    return {document.champion.version: document.champion for document in manifest.history() if document.champion is not None}


def _shown(served: dict[str, Deployed]) -> str:
    return ", ".join(sorted(served, key=int)) or "none"


# ---- what they share


def _name_champion(kind: str, key: str, published: Manifest, as_of: datetime, reason: str) -> None:
    """Registry and ledger after a change of the manifest. A repeated call must not name a champion that is none any more."""
    champion, now = published.champion, manifest.current()
    assert champion is not None  # callers have checked
    if now is not None and now.champion == champion:
        tracking.set_alias(load_params().problem.name, "champion", champion.version)
    ledger.record(kind, key, as_of, f"v{champion.version}", "champion", reason, published.to_xcom())


def _note_rollback(out: Manifest, as_of: datetime, subject: str, verdict: str, reason: str) -> None:
    ledger.record("rollback", f"rollback-{out.version}", as_of, subject, verdict, reason, out.to_xcom())


def _of_release(document: Manifest, version: VersionRef, as_of: datetime) -> bool:
    return document.key.startswith(f"{KIND}-{identity(version, as_of)}-") and document.canary is not None
