"""Batch scoring: the same features and the same graph as online, one Parquet partition per day, replaced whole."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml import shared
from ml.config import load_params
from ml.packaging.bundle import Bundle
from ml.packaging.parity import predict, session
from ml.serving.segments import SCHEMA, completed, named
from ml.settings import settings


def folder() -> Path:
    """Where the partitions are."""
    return settings().var / "predictions" / "batch"


def score_features(bundle: Bundle, features: pa.Table, version: str, as_of: datetime) -> pa.Table:
    """Answers for feature rows, in the shape of the online prediction log.

    Args:
        features: made by `ml.features.offline.compute`, n rows.
        as_of: written as ``logged_at``, so that scoring the same again gives the same bytes.
    """
    X = features.to_pandas()
    names = [*bundle.card.numeric, *bundle.card.text]
    probability = predict(session(bundle.model), bundle.card.numeric, bundle.card.text, X)
    served = features.select(names).to_pylist()
    n = len(features)
    columns = {
        "entity_id": features["entity_id"],
        "event_time": features["event_time"],
        "prediction_time": features["prediction_time"],
        "logged_at": pa.array([as_of] * n, pa.timestamp("us")),
        "model_version": pa.array([version] * n),
        "probability": pa.array(probability),
        "flags": pa.array([[]] * n, pa.list_(pa.string())),
        "request_id": pa.array([f"score-{version}-{entity}" for entity in features["entity_id"].to_pylist()]),
        "tick": features["tick"],
        "features": pa.array([json.dumps(values) for values in served]),
        "cohort": pa.array(["batch"] * n, pa.string()),
        "manifest": pa.array([0] * n, pa.int64()),
        "seconds": pa.array([0.0] * n, pa.float64()),
        "model": pa.array([load_params().problem.name] * n, pa.string()),
    }
    return pa.table(columns, schema=SCHEMA)


def write_partitions(answers: pa.Table, days: Sequence[date]) -> list[str]:
    """Writes one partition per day, written aside and renamed; returns their names. A day without rows gets an empty
    partition.
    """
    folder().mkdir(parents=True, exist_ok=True)
    day_of = pc.cast(answers["event_time"], pa.date32())
    written: dict[Path, bytes] = {}
    for day in days:
        target = folder() / f"{day.isoformat()}.parquet"
        aside = target.with_suffix(f".{uuid.uuid4().hex}")
        pq.write_table(answers.filter(pc.equal(day_of, pa.scalar(day))), aside)
        written[target] = aside.read_bytes()
        aside.rename(target)
    shared.share(written)
    return [target.name for target in written]


def read_batch(start: datetime, end: datetime) -> pd.DataFrame:
    """Batch answers to rows whose event time is in [start, end)."""
    shared.add(folder())
    days = [p for p in sorted(folder().glob("*.parquet")) if start.date().isoformat() <= p.stem <= end.date().isoformat()]
    parts = [pq.read_table(path, schema=SCHEMA) for path in days]
    found = completed(pa.concat_tables(parts) if parts else SCHEMA.empty_table())
    answers = named(found, load_params().problem.name).to_pandas()
    return answers[(answers["event_time"] >= start) & (answers["event_time"] < end)]


def answers_by(version: str) -> dict[str, Any]:
    """What the partitions hold of a model version's answers; a day that was scored again holds the later version's.

    Returns:
        count, days (partitions with any), first and last event time (None when there are none).
    """
    shared.add(folder())
    count, days, first, last = 0, 0, datetime.max, datetime.min
    for path in sorted(folder().glob("*.parquet")):
        answers = pq.read_table(path, columns=["model_version", "event_time"])
        times = answers.filter(pc.equal(answers["model_version"], version))["event_time"]
        if len(times):
            span = pc.min_max(times).as_py()
            count, days, first, last = count + len(times), days + 1, min(first, span["min"]), max(last, span["max"])
    return {"count": count, "days": days, "first": first if count else None, "last": last if count else None}
