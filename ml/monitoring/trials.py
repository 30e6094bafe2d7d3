"""A/B experiments: which model gets which share of the entities, until when, and what came of it.

The manifest says who is in which arm; what was asked (metric, smallest effect that matters) stands in the ledger, under the
experiment's name. Names are used once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ml import ledger, store, tracking
from ml.config import load_params
from ml.errors import ConfigError, EvergreenError, NotEnoughDataError, NotFoundError, NothingToDo
from ml.evaluation.report import scoring_of
from ml.monitoring import experiment, rollout
from ml.monitoring.experiment import CONTROL, Forecast, Metric, Report
from ml.serving import endings, log, manifest, release
from ml.serving.manifest import Deployed, Experiment, Manifest
from ml.serving.router import SHADOW

KIND = endings.KIND
TRAFFIC_DAYS = 7
"""The newest days of the log (event time) that a forecast is made from."""


@dataclass(frozen=True)
class Plan:
    """What an experiment is to find out."""

    name: str
    arms: Mapping[str, str]
    """Registered version by arm; the control arm is the champion."""
    share: float
    """Of entities, in (0, 1], split evenly between the arms."""
    metric: Metric
    minimum_effect: float
    """Difference to control, in the metric's unit, below which nobody would care."""
    power: float = 0.8
    per_day: float | None = None
    """Entities that are asked for a day; None: as in the newest days of the log."""
    sd: float | None = None
    """Standard deviation of the metric over entities; None: as in the log."""


def forecast(plan: Plan) -> Forecast:
    """How many entities and days the experiment will need, from the newest days of the log unless they are given.

    Raises:
        ConfigError: an argument is out of range.
        NotEnoughDataError: the log does not tell.
    """
    _require_sense(plan)
    per_day, sd = plan.per_day, plan.sd
    if per_day is None or sd is None:
        recent = _recent()
        per_day = per_day or len(recent) / recent["event_time"].dt.date.nunique()
        sd = sd or experiment.spread_of(recent, rollout.labels(recent), plan.metric, scoring_of(load_params()))
    confidence = load_params().release.confidence
    return experiment.plan(per_day, plan.share, len(plan.arms) + 1, plan.minimum_effect, confidence, plan.power, sd=sd)


def _recent() -> pd.DataFrame:
    """One answer per entity, of the newest `TRAFFIC_DAYS` of the log that have wholly passed."""
    logged = log.since_manifest(0)
    if len(logged):
        newest = pc.max(logged["event_time"]).as_py().replace(hour=0, minute=0, second=0, microsecond=0)
        inside = pc.and_(
            pc.greater_equal(logged["event_time"], newest - timedelta(days=TRAFFIC_DAYS)), pc.less(logged["event_time"], newest)
        )
        recent = logged.filter(pc.and_(inside, pc.not_equal(logged["cohort"], SHADOW))).to_pandas()
        if len(recent):
            return recent.drop_duplicates("entity_id")
    raise NotEnoughDataError("the log holds no whole day of answers", "give the traffic and the spread: --per-day and --sd")


def start(plan: Plan, by: str, reason: str, as_of: datetime | None = None) -> tuple[Manifest, Forecast]:
    """Begins an experiment; the same one again changes nothing. Returns the manifest that holds it, and how long it will take.

    Raises:
        ConfigError: metric, share, effect or arms make no sense.
        EvergreenError: an arm comes from a backfill, was kept back by its gate, or has no bundle; a canary or another experiment
            runs; the name was used.
        NotEnoughDataError: the log does not tell how long it will take.
        StaleWriteError: another change came in between.
    """
    _require_sense(plan)
    endings.note()
    now = _require_champion()
    if now.canary is not None:
        raise EvergreenError(
            f"version {now.canary.version} is a canary", "wait for its verdict, or take it out: evergreen rollback"
        )
    if now.experiment is not None and now.experiment.name != plan.name:
        raise EvergreenError(f"experiment {now.experiment.name!r} runs", "end it with `evergreen experiment stop`")
    if now.experiment is None and _notes(plan.name):
        raise EvergreenError(
            f"there was an experiment {plan.name!r} already", "choose another name: it decides on who is in which arm"
        )
    assert now.champion is not None  # _require_champion
    arms = {CONTROL: now.champion} | {arm: _arm(arm, version) for arm, version in plan.arms.items()}
    if now.experiment is not None and (now.experiment.arms, now.experiment.share) != (arms, plan.share):
        raise EvergreenError(
            f"experiment {plan.name!r} runs with other arms or another share", "stop it, and choose another name"
        )
    if now.experiment is not None and _notes(plan.name):
        return now, Forecast.model_validate(begun().evidence["forecast"])
    needs = forecast(plan)
    if now.experiment is not None:  # it was killed before it could note the start
        _note_start(plan, needs, now)
        return now, needs
    at, clock = as_of or ledger.data_now(), datetime.now(UTC).replace(tzinfo=None)
    trial = Experiment(name=plan.name, share=plan.share, arms=arms, started_at=clock)
    published = manifest.change(f"{KIND}-{plan.name}", at, by, reason or f"experiment {plan.name}", experiment=trial)
    _note_start(plan, needs, published)
    return published, needs


def status(name: str | None = None) -> Report:
    """What `ml.monitoring.experiment.status` makes of all answers since the start: of the running experiment, or of a past one,
    which also says how it ended.

    Raises:
        NotFoundError: no experiment runs, or none had this name.
    """
    entry = begun(name)
    trial = Experiment.model_validate(entry.evidence["experiment"])
    found, asked = answers(trial, entry.evidence["manifest"]), entry.evidence
    known, limits = rollout.labels(found), load_params().release
    per_arm = asked["forecast"]["per_arm"]
    said = experiment.status(
        found, known, trial, asked["metric"], asked["minimum_effect"], limits, per_arm, scoring_of(load_params())
    )
    return said.model_copy(update={"ended": ending(entry.subject)})


def stop(by: str, reason: str, adopt: str | None = None, as_of: datetime | None = None) -> Manifest:
    """Ends the running experiment; with `adopt`, that arm's model becomes the champion.

    Raises:
        NothingToDo: none runs.
        NotFoundError: it has no such arm.
    """
    endings.note()
    now, at = _require_champion(), as_of or ledger.data_now()
    if now.experiment is None:
        raise NothingToDo("no experiment runs")
    trial = now.experiment
    if adopt is not None and adopt not in trial.arms:
        raise NotFoundError(f"experiment {trial.name!r} has no arm {adopt!r}", f"choose one of: {', '.join(sorted(trial.arms))}")
    why = reason or (f"experiment {trial.name}: arm {adopt} adopted" if adopt else f"experiment {trial.name} ended")
    key = endings.key(trial.name)
    if adopt is None or trial.arms[adopt] == now.champion:
        published = manifest.change(key, at, by, why, experiment=None)
    else:
        published = release.adopt(trial.arms[adopt], at, by, why, key)
    verdict = f"adopted {adopt}" if adopt else "stopped"
    ledger.record(KIND, key, at, trial.name, verdict, why, {"manifest": published.version, "by": by})
    return published


def ending(name: str) -> str | None:
    """How an experiment ended, in words; None while it runs."""
    endings.note()
    last = next((e for e in ledger.entries(KIND, subject=name) if e.key == endings.key(name)), None)
    if last is None:
        return None
    return last.reason if last.reason.startswith(last.verdict) else f"{last.verdict} by {last.evidence['by']}: {last.reason}"


def begun(name: str | None = None) -> ledger.Entry:
    """The ledger's entry of an experiment's start.

    Raises:
        NotFoundError: no experiment runs, or none had this name.
    """
    if name is None:
        now = manifest.current()
        if now is None or now.experiment is None:
            past = [f"{name} ({ending(name)})" for name in dict.fromkeys(e.subject for e in ledger.entries(KIND))]
            raise NotFoundError("no experiment runs", f"name a past one: {'; '.join(past) or 'none'}")
        name = now.experiment.name
    if not (notes := _notes(name)):
        raise NotFoundError(f"there was no experiment {name!r}", "see `evergreen ledger show --kind experiment`")
    return notes[0]


def answers(trial: Experiment, since: int) -> pd.DataFrame:
    """Log entries of the experiment's arms, from the manifest version that began it to the one that ended it."""
    versions = [d.version for d in manifest.history() if d.experiment == trial]
    logged = log.since_manifest(since)
    return logged.filter(pc.is_in(logged["manifest"], pa.array(versions, logged["manifest"].type))).to_pandas()


def _arm(arm: str, version: str) -> Deployed:
    ref = tracking.version_ref(tracking.number(version))
    if ref.backfill or ref.verdict != "promote":
        raise EvergreenError(
            f"arm {arm!r}: version {ref.version} has verdict {ref.verdict!r}, backfill {ref.backfill}",
            "try a version that passed its gate: live entities get its answers",
        )
    if not store.exists(ref.bundle):
        raise EvergreenError(f"arm {arm!r}: the bundle of version {ref.version} is not in the store", "mend the store")
    return release.deployable(ref)


def _require_sense(plan: Plan) -> None:
    if plan.metric not in get_args(Metric):
        raise ConfigError(f"metric {plan.metric!r} is not known", f"choose one of: {', '.join(get_args(Metric))}")
    if not plan.arms or CONTROL in plan.arms:
        raise ConfigError(
            f"arms {dict(plan.arms)}: at least one is needed, and {CONTROL!r} is the champion", "--arm treatment=VERSION"
        )
    if not 0 < plan.share <= 1 or plan.minimum_effect <= 0:
        raise ConfigError(
            f"share {plan.share}, minimum effect {plan.minimum_effect}", "a share lies in (0, 1], an effect is above 0"
        )


def _require_champion() -> Manifest:
    now = manifest.current()
    if now is None or now.champion is None:
        raise NotFoundError("nothing serves yet", "release a version first")
    return now


def _note_start(plan: Plan, needs: Forecast, published: Manifest) -> None:
    evidence = {
        "experiment": published.experiment.to_xcom() if published.experiment else None,
        "metric": plan.metric,
        "minimum_effect": plan.minimum_effect,
        "forecast": needs.to_xcom(),
        "manifest": published.version,
        "by": published.by,
    }
    key = f"{KIND}-{plan.name}-start"
    ledger.record(KIND, key, published.changed_at, plan.name, "started", published.reason, evidence)


def _notes(name: str) -> list[ledger.Entry]:
    return [entry for entry in ledger.entries(KIND, subject=name) if entry.verdict == "started"]
