"""Batch predictions: the same features and the same graph as online, one Parquet partition per day, replaced whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml import shared, store
from ml.batch.job import Job, Part
from ml.config import load_params
from ml.serving.segments import SCHEMA, completed, named
from ml.settings import settings


def folder() -> Path:
    """Where the partitions are."""
    return settings().var / "predictions" / "batch"


def job(bundle: str, version: str, features: pa.Table, days: Sequence[date], as_of: datetime) -> Job:
    """What an engine is to do to score feature rows: one partition per day; the rows go to the store, where workers find them.

    A day without rows gets an empty partition.

    Args:
        bundle: its digest.
        features: made by `ml.features.offline.compute`.
        as_of: written as ``logged_at``, so that scoring the same again gives the same bytes.
    """
    folder().mkdir(parents=True, exist_ok=True)
    day_of = pc.cast(features["event_time"], pa.date32())
    parts = []
    for day in days:
        rows = features.filter(pc.equal(day_of, pa.scalar(day)))
        inputs = [store.put(_parquet(rows))] if len(rows) else []
        parts.append(Part(inputs=inputs, output=str(folder() / f"{day.isoformat()}.parquet")))
    return Job(bundle=bundle, version=version, name=load_params().problem.name, as_of=as_of, parts=parts)


def _parquet(rows: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd")
    return bytes(buffer.getvalue())


def share(job: Job) -> None:
    """Lets other machines have the partitions of a job that is done; nothing where there are none."""
    if shared.wanted():
        outputs = [Path(part.output) for part in job.parts]
        shared.share({path: path.read_bytes() for path in outputs})


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
