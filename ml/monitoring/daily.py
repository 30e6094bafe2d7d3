"""One day of watching: what the champion answered, what came true, how far its inputs have moved."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date, datetime, timedelta
from pathlib import Path

import pandas as pd

from ml import metrics, store
from ml.config import load_params
from ml.data import rows
from ml.features.inputs import midnight
from ml.monitoring import collect, drift, performance
from ml.monitoring.profiles import Profile
from ml.packaging.bundle import Bundle
from ml.refs import MonitorRef
from ml.serving.manifest import Deployed


def measure(champion: Deployed, expected_log_loss: float, root: Path, window_end: date, as_of: datetime) -> MonitorRef:
    """Drift over the last `drift_days`, realised quality over the last `window_days` matured days; the whole goes to the store.

    Args:
        champion: whose answers are judged, and whose reference the inputs of all answers are held against.
        expected_log_loss: its log-loss on its own holdout.
        root: a restored snapshot that holds the labels.
        window_end: first day after the days that are looked at.
        as_of: a day is matured when it ended `train.embargo_hours` before; labels that became known later are not used.
    """
    params = load_params()
    end = midnight(window_end)
    matured_end = min(end, midnight((as_of - timedelta(hours=params.train.embargo_hours)).date()))
    matured_start = matured_end - timedelta(days=params.monitoring.window_days)
    drift_start = end - timedelta(days=params.monitoring.drift_days)
    start = min(matured_start, drift_start)
    answers = collect.predictions(start, end)
    mine = answers[answers["model_version"] == champion.version].reset_index(drop=True)
    judged = collect.with_labels(mine, rows.problem_rows(root, start, end, as_of))
    judged = judged[(judged["event_time"] >= matured_start) & (judged["event_time"] < matured_end)]
    quality = performance.by_day(judged)
    recent = answers[answers["event_time"] >= drift_start]  # whoever answered: the inputs are the same
    profile = Profile.model_validate_json(Bundle.load(champion.bundle).profile)
    drifts = drift.feature_drift(profile, collect.served_features(recent)) if len(recent) else []
    report = {
        "champion": champion.to_xcom(),
        "expected_log_loss": expected_log_loss,
        "days": [d.model_dump(mode="json") for d in quality],
        "drifts": [asdict(d) for d in drifts],
        "answers": {"all": len(answers), "champion": len(mine), "flagged": int((mine["flags"].str.len() > 0).sum())},
    }
    return MonitorRef(
        day=window_end,
        as_of=as_of,
        version=champion.version,
        predictions=len(mine),
        matured=sum(d.n for d in quality),
        report=store.put(json.dumps(report, sort_keys=True).encode()),
        metrics={f"psi_{d.name}": d.psi for d in drifts[:10]} | _pooled(judged),
    )


def _pooled(judged: pd.DataFrame) -> dict[str, float]:
    """Metrics over all matured rows together; none without any."""
    matured = judged[judged["label"].notna()]
    if matured.empty:
        return {}
    return metrics.summary(matured["label"].to_numpy(float), matured["probability"].to_numpy(float))
