"""The holdout report: what each contender answered, overall and by day, and the gate's decision."""

from __future__ import annotations

import json

import numpy as np

from ml import metrics, store
from ml.evaluation.plots import by_day, calibration
from ml.refs import Decision


def build_report(
    y_true: np.ndarray, days: np.ndarray, answers: dict[str, np.ndarray], decision: Decision
) -> tuple[bytes, dict[str, float]]:
    """Packs report and pictures.

    Args:
        y_true: labels of the holdout, shape (n,); `days`: ISO date of each row, shape (n,).
        answers: probabilities by contender (candidate first), each shape (n,).

    Returns:
        The archive (report.json, calibration.png, by_day.png) and flat metrics: ``<contender>_<metric>``.
    """
    overall = {name: metrics.summary(y_true, y_proba) for name, y_proba in answers.items()}
    names = sorted(set(days.tolist()))
    losses = {name: metrics.log_losses(y_true, y_proba) for name, y_proba in answers.items()}
    daily = {name: [float(loss[days == day].mean()) for day in names] for name, loss in losses.items()}
    report = {
        "rows": len(y_true),
        "overall": overall,
        "by_day": {"days": names, "rows": [int((days == day).sum()) for day in names], "log_loss": daily},
        "decision": decision.model_dump(mode="json"),
    }
    files = {
        "report.json": json.dumps(report, indent=2).encode(),
        "calibration.png": calibration(y_true, answers),
        "by_day.png": by_day(names, daily),
    }
    flat = {f"{name}_{metric}": value for name, values in overall.items() for metric, value in values.items()}
    return store.pack(files), flat
