"""Data health and movement of one day: facts and profiles, each made once per day and then remembered."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import date, datetime
from typing import Any

import pandas as pd
import pyarrow as pa

from ml import ledger
from ml.data import rows, snapshots
from ml.errors import NotEnoughDataError
from ml.features.inputs import midnight
from ml.monitoring import collect, drift, health, multivariate, profiles
from ml.monitoring.profiles import LABEL, PREDICTION, DayProfile, Profile
from ml.monitoring.scene import DAY, Scene, digest, digest_of, remembered
from ml.refs import Check, SnapshotRef

SEED = 0


def checks(scene: Scene, broken_before: Collection[tuple[str, date]]) -> list[Check]:
    """Health of the landed day, table by table, and of its answers.

    Args:
        broken_before: tables and days whose checks failed on their own day: they are not what is usual.
    """
    params, past = scene.params.monitoring.health, scene.days(7 * scene.params.monitoring.health.weeks, scene.last)
    since, found = _landings(), []
    due: dict[date, int] = {}
    for table, spec in scene.params.tables.items():
        if spec.event_time is None:
            continue
        facts = {day: _landed(scene, table, day, since) for day in [*past, scene.last]}
        if table == scene.params.problem.table:
            due = {day: one.rows for day, one in facts.items() if one is not None}
        earlier = [one for day in past if (one := facts[day]) is not None and (table, day) not in broken_before]
        found += health.landed_checks(table, scene.last, facts[scene.last], earlier, spec, scene.as_of, params)
    answered = {day: _answered(scene, day, due.get(day, 0)) for day in [*past, scene.last]}
    return found + health.answer_checks(answered[scene.last], [answered[day] for day in past], params)


def _landings() -> list[tuple[datetime, SnapshotRef]]:
    refs = [SnapshotRef.model_validate(entry.evidence) for entry in ledger.entries(snapshots.KIND)]
    return sorted(((ref.as_of, ref) for ref in refs), key=lambda one: one[0])


def _landed(scene: Scene, table: str, day: date, landings: list[tuple[datetime, SnapshotRef]]) -> health.DayFacts | None:
    """The facts of a day as it was when it was first looked at; None: it had not landed by now."""
    if not (scene.root / table / f"{day}.parquet").exists():
        return None
    at = next((when for when, ref in landings if ref.first_day <= day <= ref.last_day), scene.as_of)
    version, moment = scene.known(day)

    def make() -> health.DayFacts:
        there = rows.table_rows(scene.root, table, midnight(day), midnight(day) + DAY, max(moment, at))
        return health.facts(there, scene.params.tables[table], table=table, day=day, landed_at=at)

    key = f"facts-{digest(table, day, version.digest, moment, scene.params.tables[table].digest())}"
    return remembered(health.DayFacts, key, make)


def _answered(scene: Scene, day: date, due: int) -> health.AnswerFacts:
    that_day = scene.answers[scene.answers["day"] == day]
    key = f"answered-{digest(day, due, digest_of(that_day))}"
    return remembered(health.AnswerFacts, key, lambda: health.answer_facts(day, due, that_day))


# ---- movement


def movement(scene: Scene) -> dict[str, Any]:
    """Drift of features, answers and labels against both references, and a model's view of all features together: parts of the
    day's document (`ml.monitoring.page.Day`).
    """
    params, reference = scene.params.monitoring, Profile.read(scene.bundle.profile)
    window = scene.days(params.drift_days)
    recent = drift.same_weekdays(window, params.drift.weeks)
    now, before = (_profile(scene, reference, days) for days in (window, recent))
    if now is None:
        return {}
    found = drift.feature_drift(reference, now, params.drift)
    told = drift.summary(found)
    parts: dict[str, Any] = {
        "drifts": [_row(one, reference.as_day(), now) for one in found if one.name not in profiles.ANSWERS],
        "moved": told.share,
        "outside": outside(found),
        **{one.name: _row(one, reference.as_day(), now) for one in found if one.name == PREDICTION},
    }
    if before is not None:
        parts["recent"] = [asdict(one) for one in drift.feature_drift(reference, now, params.drift, against=before)]
        if (apart := _apart(scene, window, recent)) is not None:
            parts["two_sample"] = apart.to_xcom()
    labelled = scene.days(params.drift_days, scene.matured_end.date())
    if (labels := _labels(scene, reference, labelled)) is not None:
        (one,) = drift.feature_drift(reference, labels, params.drift)
        parts[LABEL] = _row(one, reference.as_day(), labels)
    return parts


def outside(found: list[drift.FeatureDrift]) -> float:
    """Share of the model's importance that lies in values which the reference does not have: out of range, or unseen; 0-1."""
    features = [one for one in found if one.name not in profiles.ANSWERS]
    weights = [one.importance or 0.0 for one in features]
    if not any(weights):
        weights = [1.0] * len(features)
    strange = sum(weight * (one.unseen + one.out_of_range) for weight, one in zip(weights, features, strict=True))
    return strange / sum(weights) if features else 0.0


def _profile(scene: Scene, reference: Profile, days: list[date]) -> DayProfile | None:
    """The sum of the days' profiles; None when none of them has an answer."""
    found, named = [], reference.digest()
    for day in days:
        that_day = scene.answers[scene.answers["day"] == day]
        if that_day.empty:
            continue

        def make(answers: pd.DataFrame = that_day) -> DayProfile:
            said = answers["probability"].where(answers["model_version"] == scene.champion.version)
            return profiles.profile_day(reference, collect.served_features(answers).assign(**{PREDICTION: said}))

        found.append(profiles.remembered(named, day, f"{scene.champion.version}/{digest_of(that_day)}", make))
    return profiles.merge(found) if found else None


def _labels(scene: Scene, reference: Profile, days: list[date]) -> DayProfile | None:
    """The labels of all landed rows of these days, whether they were asked for or not."""
    if LABEL not in reference.numeric:
        return None
    known = rows.problem_rows(scene.root, midnight(days[0]), midnight(days[-1]) + DAY, scene.as_of)
    labels = known.column("label").drop_null()
    if not len(labels):
        return None
    return profiles.profile_day(reference, pa.table({LABEL: labels}).to_pandas(), names=[LABEL])


def _apart(scene: Scene, window: list[date], recent: list[date]) -> multivariate.Apart | None:
    """The same weekdays of recent weeks against the window; None without answers on two days of each."""
    params = scene.params.monitoring.estimate
    sides = [scene.answers[scene.answers["day"].isin(days)] for days in (recent, window)]
    sides = [side.sample(min(len(side), params.apart_rows // 2), random_state=SEED).sort_index() for side in sides]
    try:
        X, now = (collect.served_features(side) for side in sides)
        return multivariate.tell_apart(X, now, sides[0]["day"].to_numpy(), sides[1]["day"].to_numpy(), params, SEED)
    except NotEnoughDataError:
        return None


def _row(one: drift.FeatureDrift, reference: DayProfile, window: DayProfile) -> dict[str, Any]:
    """A drift with the counts that its picture is made of."""
    sides = [(day.numeric.get(one.name) or day.text[one.name]).counts for day in (reference, window)]
    return asdict(one) | dict(zip(("reference", "window"), sides, strict=True))
