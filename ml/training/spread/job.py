"""What the workers of one fit are given, and what each of them does: references travel, rows stay where they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from xgboost import collective
from xgboost.tracker import RabitTracker

from ml import store
from ml.features.batches import batches
from ml.refs import Ref, Window
from ml.training.encoding import Encoding, encode
from ml.training.fit import labelled

JOIN_SECONDS = 600
"""How long workers that have read their share wait for the others to come, and at the end to go."""
SILENT_SECONDS = 1800
"""How long a worker waits for the others within a round. One whose process ends is missed at once."""

Meet = Callable[[str], str]
"""Gives every worker what the first one says; the others say nothing. All call it once, when they have read their share."""


class Share(Ref):
    """Rows `first` to `last` (not included) of the feature set; `rows` of them are labelled and in the window."""

    first: int
    last: int
    rows: int


class Job(Ref):
    """One model, or `train.ensemble` of them, fitted on the labelled rows of a window, by a worker for each share."""

    features: str
    """Digest of the feature set."""
    window: Window
    shares: list[Share]
    encoding: str
    """Digest of the encoding's JSON."""
    settings: list[dict[str, Any]]
    """XGBoost's, of each model."""
    rounds: int


class Outcome(Ref):
    """What a worker did. `boosters`: digests of the models, which the first worker has left in the store."""

    rank: int
    rows: int
    boosters: list[str]
    peak_mb: int
    """The most memory that its process has held."""
    seconds: float
    cpu_seconds: float


def work(job: str, rank: int, host: str, meet: Meet) -> str:
    """The whole of one worker's part. A job comes as JSON, an outcome goes as JSON.

    Args:
        host: address of this worker that the others can reach.
    """
    began, cpu_began, given = time.monotonic(), time.process_time(), Job.model_validate_json(job)
    X, y_true = share(given, rank)
    tracker = None
    if rank == 0:
        tracker = RabitTracker(n_workers=len(given.shares), host_ip=host, sortby="task", timeout=JOIN_SECONDS)
        tracker.start()
    where = json.loads(meet(json.dumps(tracker.worker_args()) if tracker else ""))
    # No context manager: it waits for the others even where this one has failed, and they for it. A process that fails ends.
    collective.init(**where, dmlc_task_id=f"{rank:06d}", dmlc_timeout=SILENT_SECONDS)
    grown = [_grown(X, y_true, settings, given.rounds) for settings in given.settings]
    collective.finalize()
    if tracker:
        tracker.wait_for(timeout=JOIN_SECONDS)
    boosters = [store.put(raw) if rank == 0 else store.sha256(raw) for raw in grown]
    outcome = Outcome(
        rank=rank,
        rows=len(y_true),
        boosters=boosters,
        peak_mb=peak_mb(),
        seconds=round(time.monotonic() - began, 3),
        cpu_seconds=round(time.process_time() - cpu_began, 3),
    )
    return outcome.model_dump_json()


def share(job: Job, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A worker's own rows: the encoded matrix, and labels. No more than that and some thousands of rows is ever held."""
    mine, encoding = job.shares[rank], Encoding.model_validate_json(store.get(job.encoding))
    wanted = [*encoding.numeric, *encoding.text, "event_time", "label"]
    X, y_true, at = np.empty((mine.rows, len(encoding.columns)), np.float32), np.empty(mine.rows), 0
    for _, table in batches(job.features, wanted, mine.first, mine.last):
        rows = labelled(table, job.window)
        X[at : at + len(rows)], y_true[at : at + len(rows)] = encode(encoding, rows), rows["label"]
        at += len(rows)
    return X[:at], y_true[:at]


def _grown(X: np.ndarray, y_true: np.ndarray, settings: dict[str, Any], rounds: int) -> bytes:
    """As `ml.training.models.XGBoost.fit`; bins and sums are all workers'."""
    matrix = xgb.QuantileDMatrix(X, y_true, max_bin=int(settings.get("max_bin", 256)), nthread=int(settings["nthread"]))
    return bytes(xgb.train(settings, matrix, rounds, verbose_eval=False).save_raw("ubj"))


def peak_mb() -> int:
    """The most memory that this process has held. (`ru_maxrss` would count what its parent held when it started it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024
