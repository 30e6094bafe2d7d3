"""Realised performance: on matured labels, day by day."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from ml import metrics


class DayQuality(BaseModel):
    """One day of a model's answers that have their labels. `auc` is None when only one class came true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: date
    n: int
    log_loss: float
    auc: float | None
    positives: float
    mean_probability: float


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
