"""What the champion's answers were worth: realised where labels have matured, estimated where not, and whether it does harm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from ml import ledger, metrics, store
from ml.data import rows
from ml.errors import NotEnoughDataError
from ml.evaluation.report import scoring_of
from ml.features.definitions import code_digest
from ml.features.inputs import midnight
from ml.monitoring import collect, estimate, fresh, harm, performance
from ml.monitoring.estimate import Answers, Figure, Labelled
from ml.monitoring.harm import DayLoss, Harm
from ml.monitoring.scene import DAY, Scene, digest, remembered
from ml.packaging.artifacts import Artifacts
from ml.packaging.parity import predict, session
from ml.refs import Ref, Window
from ml.significance import jackknife_by_day
from ml.training.fit import labelled


class Losses(Ref):
    """Days' losses beside the yardstick's."""

    days: list[DayLoss]


class Held(Ref):
    """What the judged twin answered on its holdout: four lists of one length."""

    entities: list[str]
    times: list[datetime]
    y_proba: list[float]
    y_true: list[float]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "entity_id": self.entities,
                "event_time": pd.to_datetime(self.times),
                "probability": self.y_proba,
                "label": self.y_true,
            }
        )

    @property
    def labelled(self) -> Labelled:
        return Labelled(np.array(self.y_proba), np.array([time.date() for time in self.times]), np.array(self.y_true))


def measure(scene: Scene, outside: float | None) -> dict[str, Any]:
    """Parts of the day's document: realised, overall, slices, cost_curve, harm, estimate, settled.

    Args:
        outside: share of importance in values that the reference does not have; None: not measured.
    """
    params, scoring = scene.params, scoring_of(scene.params)
    matured = scene.mine[scene.mine["label"].notna()]
    shown = matured[matured["event_time"] >= scene.matured_end - params.monitoring.performance_days * DAY]
    found = judged_harm(scene)
    parts: dict[str, Any] = {
        "metric": "log_loss",
        "realised": [day.model_dump(mode="json") for day in performance.by_day(shown)],
        "harm": found.to_xcom(),
    }
    held = holdout(scene)
    parts["expected"] = float(metrics.losses(params.problem.task, np.array(held.y_true), np.array(held.y_proba)).mean())
    if len(shown):
        parts["overall"] = _overall(shown, scene)
        X = collect.served_features(shown)
        parts["slices"] = [one.to_xcom() for one in performance.by_slice(shown, X, params.evaluation, params.problem.task)]
        y_true, y_proba = shown["label"].to_numpy(float), shown["probability"].to_numpy(float)
        parts["cost_curve"] = performance.cost_curve(y_true, y_proba, params.evaluation, params.serving.threshold).to_xcom()
    waiting = scene.mine[scene.mine["event_time"] >= scene.matured_end]
    since = _labelled(matured[matured["event_time"] >= scene.matured_end - params.monitoring.estimate.learned_days * DAY])
    guessed = estimate.estimate(
        Answers(waiting["probability"].to_numpy(float), waiting["day"].to_numpy()),
        held.labelled,
        since if len(since.days) else None,
        outside,
        scoring,
        params.monitoring.estimate,
    )
    parts["estimate"] = guessed.to_xcom() | {"start": str(scene.matured_end.date()), "end": str(scene.end.date())}
    return parts | _settled(scene, matured)


def new_labels(scene: Scene) -> tuple[int, float]:
    """Rows with a matured label that the champion did not learn from, and days since the newest that it did learn from."""
    learned = midnight(date.fromisoformat(scene.bundle.card.lineage["learned"].split("/")[1]))
    age = (scene.as_of - learned) / DAY
    if learned >= scene.matured_end:
        return 0, age
    labels = rows.problem_rows(scene.root, learned, scene.matured_end, scene.as_of).column("label")
    return len(labels) - labels.null_count, age


# ---- the holdout


def holdout(scene: Scene) -> Held:
    """What the champion's judged twin answered on its holdout, with the labels as they were known then; made once a champion."""

    def make() -> Held:
        window, as_of = _holdout(scene)
        parts, X = Artifacts.load(scene.bundle.card.lineage["twin"]), labelled(scene.features(window, as_of), window)
        y_proba = predict(session(parts.onnx), parts.fitted.encoding.numeric, parts.fitted.encoding.text, X)
        return Held(
            entities=X["entity_id"].tolist(),
            times=[moment.to_pydatetime() for moment in X["event_time"]],
            y_proba=y_proba.tolist(),
            y_true=X["label"].tolist(),
        )

    return remembered(Held, f"holdout-{digest(scene.champion.bundle)}", make)


def _holdout(scene: Scene) -> tuple[Window, datetime]:
    """The champion's holdout, and the moment of its training."""
    first, last = (date.fromisoformat(day) for day in scene.bundle.card.lineage["holdout"].split(".."))
    return Window(start=first, end=last + DAY), datetime.fromisoformat(scene.bundle.card.lineage["as_of"])


# ---- harm


def judged_harm(scene: Scene) -> Harm:
    """The verdict on all matured days of the champion, held against its holdout."""
    task, held = scene.params.problem.task, holdout(scene)
    limit = harm.limit_of(task, np.array(held.y_true), np.array(held.y_proba))
    matured = scene.mine[scene.mine["label"].notna()]
    window, as_of = _holdout(scene)

    def make() -> Losses:
        # the yardstick of a holdout's day learns from days before it, as on any other day
        return Losses(days=harm.day_losses(_beside(held.table, _yardstick(scene, window.days(), as_of)), task, limit))

    key = digest(scene.champion.bundle, scene.params.monitoring.harm.digest(), fresh.SHAPE, code_digest(scene.params))
    expected = remembered(Losses, f"losses-{key}", make)
    days = sorted(set(matured["day"]))
    return harm.judge(harm.day_losses(_beside(matured, _yardstick(scene, days, scene.as_of)), task, limit), expected.days,
                      scene.params.monitoring.harm)  # fmt: skip


def _beside(judged: pd.DataFrame, yardstick: pd.Series) -> pd.DataFrame:
    return judged.join(yardstick, on="entity_id")


def _yardstick(scene: Scene, days: Sequence[date], as_of: datetime) -> pd.Series:
    """Its answers to the rows of these days, by entity id; a day that has too little before it has none.

    Each day's are made once. Features of all days that lack them are computed together.
    """
    embargo = timedelta(hours=scene.params.train.embargo_hours)
    table: dict[str, pd.DataFrame] = {}

    def read(window: Window) -> pd.DataFrame:
        if not table:
            first = min(window.start, *(fresh.needed(day, scene.params).start for day in days))
            table["all"] = scene.features(Window(start=first, end=days[-1] + DAY), as_of)
        return table["all"]

    found = [pd.Series(dtype=float, name="fresh")]
    for day in days:
        try:
            found.append(fresh.remembered(day, scene.known(day, DAY + embargo)[0].digest, read, scene.params))
        except NotEnoughDataError:
            continue
    joined = pd.concat([part for part in found if len(part)] or found)
    return joined[~joined.index.duplicated()]


# ---- figures


def _labelled(matured: pd.DataFrame) -> Labelled:
    return Labelled(*(matured[name].to_numpy() for name in ("probability", "day", "label")))


def _overall(shown: pd.DataFrame, scene: Scene) -> dict[str, dict[str, float]]:
    """Realised metrics of all shown days together, with intervals by day where there are two."""
    y_true, y_proba, days = (shown[name].to_numpy() for name in ("label", "probability", "day"))
    scoring = scoring_of(scene.params)

    def summary(chosen: np.ndarray) -> dict[str, float]:
        return metrics.summary(y_true[chosen], y_proba[chosen], scoring)

    figures = {name: {"value": value} for name, value in summary(np.ones(len(days), bool)).items()}
    if len(np.unique(days)) < 2:
        return figures
    ends = jackknife_by_day(summary, days.astype(str), scene.params.gates.confidence)
    return {name: figure | dict(zip(("low", "high"), ends[name], strict=True)) for name, figure in figures.items()}


def _settled(scene: Scene, matured: pd.DataFrame) -> dict[str, Any]:
    """The champion's newest earlier estimate all of whose days have matured since, beside what came true; empty without one."""
    for entry in reversed(ledger.entries("retrain", until=scene.as_of, subject=f"v{scene.champion.version}")):
        earlier = json.loads(store.get(entry.evidence["report"])).get("estimate") if "report" in entry.evidence else None
        if not earlier or not earlier["metrics"]:
            continue
        start, end = (midnight(date.fromisoformat(earlier[at])) for at in ("start", "end"))
        known = matured[(matured["event_time"] >= start) & (matured["event_time"] < end)]
        if end > scene.matured_end or known.empty:
            continue
        figures = {name: Figure.model_validate(figure) for name, figure in earlier["metrics"].items()}
        found = estimate.settle(figures, estimate.realised(_labelled(known), scoring_of(scene.params)))
        span = {"start": earlier["start"], "end": earlier["end"], "valid": earlier["valid"], "n": len(known)}
        return {"settled": {name: one.to_xcom() for name, one in found.items()}, "settled_days": span}
    return {}
