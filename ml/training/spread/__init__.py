"""Training by several workers: each reads, encodes and keeps its own share of the rows, and their trees are one model's.

Workers add up their histograms by XGBoost's collective, so that every one of them grows the same trees. What carries them is
EVERGREEN_ENGINE, how many they are EVERGREEN_TRAIN_WORKERS; see docs/distributed-training.md.
"""

from __future__ import annotations

import importlib
import logging

from ml import engines
from ml.errors import ConfigError, EvergreenError, IntegrityError
from ml.training.spread.job import Job, Outcome

log = logging.getLogger(__name__)


def run(job: Job, engine: str, address: str = "") -> list[Outcome]:
    """Has the job done by one worker for each of its shares, all at the same time; returns what each did, in their order.

    Raises:
        ConfigError: the engine is not known, not installed here, or cannot start workers together.
        EvergreenError: a worker failed or died; all others have been stopped, and nothing was changed but the store.
        IntegrityError: workers do not agree on the model, or on the rows.
    """
    engines.check(engine)
    if engine == "beam":
        raise ConfigError(
            "engine beam cannot train: its workers do not start together, and know nothing of each other",
            "set EVERGREEN_TRAIN_WORKERS=1, or EVERGREEN_ENGINE to local, ray or spark",
        )
    carry = importlib.import_module(f"ml.training.spread.on_{engine}").carry
    try:
        done = sorted((Outcome.model_validate_json(said) for said in carry(job, address)), key=lambda outcome: outcome.rank)
    except EvergreenError:
        raise
    except Exception as error:  # engines wrap what a worker raised in kinds of their own
        raise EvergreenError(
            f"engine {engine}: a worker of {len(job.shares)} failed, the others were stopped: {engines.said(error)}",
            "mend that and run the step again",
        ) from error
    for outcome in done:
        log.info("worker %d of %d: %d rows, at most %d MB, %.1f s", outcome.rank + 1, len(done), outcome.rows, outcome.peak_mb,
                 outcome.seconds)  # fmt: skip
    if [outcome.rows for outcome in done] != [share.rows for share in job.shares]:
        raise IntegrityError(
            f"workers have read {[outcome.rows for outcome in done]} rows, of shares of {[share.rows for share in job.shares]}",
            "give all workers the same code and the same EVERGREEN_STORE",
        )
    if any(outcome.boosters != done[0].boosters for outcome in done):
        raise IntegrityError(
            f"{len(done)} workers have grown {len({tuple(o.boosters) for o in done})} different models",
            "give all workers the same version of xgboost",
        )
    return done
