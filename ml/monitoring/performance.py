"""Realised performance, on matured labels: day by day, slice by slice, and what other thresholds would have cost."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from ml import metrics
from ml.config import Evaluation, Task
from ml.evaluation import slices
from ml.refs import Ref

GRID = 100
"""`cost_curve` tries the thresholds 0, 1 / GRID, … 1, and the one in use."""


class DayQuality(BaseModel):
    """One day of a model's answers that have their labels. `auc` is None when only one class came true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: date
    n: int
    log_loss: float
    auc: float | None
    positives: float
    mean_probability: float


class SliceQuality(Ref):
    """One slice of the judged rows. `loss`: mean of `metrics.losses`; `score`: the task's (`metrics.SCORE`), None where it is
    undefined; `judged`: it has the rows that a slice needs (`evaluation.min_slice_rows`).
    """

    name: str
    n: int
    days: int
    loss: float
    score: float | None
    label: float
    answer: float
    judged: bool


class CostCurve(Ref):
    """Mean business cost a row by threshold. `best` is the cheapest one *on these rows*, so `best_cost` flatters it; compare it
    with `calibrated`, the cheapest one if probabilities are true: false_alarm_cost / (false_alarm_cost + miss_cost).
    """

    thresholds: list[float]
    costs: list[float]
    threshold: float
    cost: float
    best: float
    best_cost: float
    calibrated: float
    n: int


def by_day(judged: pd.DataFrame) -> list[DayQuality]:
    """Quality of each event day.

    Args:
        judged: ``event_time``, ``probability``, ``label``; rows without a label are left out and not counted in `n`.
    """
    matured = judged[judged["label"].notna()]
    days = []
    for day, rows in matured.groupby(matured["event_time"].dt.date):
        y_true, y_proba = rows["label"].to_numpy(float), rows["probability"].to_numpy(float)
        area = metrics.auc(y_true, y_proba)
        days.append(
            DayQuality(day=day, n=len(rows), log_loss=metrics.log_loss(y_true, y_proba), auc=None if math.isnan(area) else area,
                       positives=float(y_true.mean()), mean_probability=float(np.mean(y_proba)))
        )  # fmt: skip
    return days


def by_slice(judged: pd.DataFrame, X: pd.DataFrame, params: Evaluation, task: Task = "binary") -> list[SliceQuality]:
    """Quality of each slice that params.yaml declares, as on the model's card; worst loss first, those with too few rows last.

    Args:
        judged: ``event_time``, ``probability``, ``label``; rows without a label are left out.
        X: the features of the same rows, with the same index.
        task: ``binary`` or ``regression``.

    Raises:
        ConfigError: a feature that `evaluation.slices` names is not among the columns of `X`.
    """
    rows = judged[judged["label"].notna()]
    if rows.empty:
        return []
    y_true, answers = rows["label"].to_numpy(float), rows["probability"].to_numpy(float)
    losses, days = metrics.losses(task, y_true, answers), rows["event_time"].dt.date.to_numpy()
    found = []
    for part in slices.declared(params, X.loc[rows.index]):
        inside = part.rows
        score = metrics.summary(y_true[inside], answers[inside], metrics.Scoring(task=task))[metrics.SCORE[task]]
        found.append(
            SliceQuality(name=part.name, n=int(inside.sum()), days=len(np.unique(days[inside])),
                         loss=float(losses[inside].mean()), score=None if math.isnan(score) else score,
                         label=float(y_true[inside].mean()), answer=float(answers[inside].mean()),
                         judged=bool(inside.sum() >= params.min_slice_rows))
        )  # fmt: skip
    return sorted(found, key=lambda s: (not s.judged, -s.loss))


def cost_curve(y_true: np.ndarray, y_proba: np.ndarray, params: Evaluation, threshold: float) -> CostCurve:
    """What deciding 1 from a threshold on would have cost a row, for `GRID` thresholds and the one in use.

    Args:
        y_true: 0 or 1, shape (n,), no NaN, n > 0; `y_proba`: probabilities of 1, same shape.
        params: prices of a false alarm and of a miss.
        threshold: the one in use; a row is decided 1 when its probability is at least that.

    Raises:
        ValueError: NaN, no rows, or shapes that differ.
    """
    scoring = metrics.Scoring(false_alarm_cost=params.false_alarm_cost, miss_cost=params.miss_cost)
    thresholds = np.unique(np.append(np.arange(GRID + 1) / GRID, threshold))
    costs = np.array([metrics.cost(y_true, y_proba, replace(scoring, threshold=float(t))) for t in thresholds])
    cheapest, both = int(costs.argmin()), params.false_alarm_cost + params.miss_cost
    return CostCurve(
        thresholds=thresholds.tolist(),
        costs=costs.tolist(),
        threshold=threshold,
        cost=float(costs[np.searchsorted(thresholds, threshold)]),
        best=float(thresholds[cheapest]),
        best_cost=float(costs[cheapest]),
        calibrated=params.false_alarm_cost / both if both else 0.5,
        n=len(y_true),
    )
