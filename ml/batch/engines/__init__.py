"""Engines of batch scoring: what carries a job's tasks to workers. They give the same rows in the same order; see docs/batch.md.

Rows never pass through an engine: a worker gets a task (names of files and digests), reads its own share, runs the one function
of `ml.batch.answer`, and leaves a shard beside the partition. Retries, placement and processes are the engine's.
"""

from __future__ import annotations

import importlib

from ml import engines
from ml.batch import job as jobs
from ml.batch import partition
from ml.batch.engines.spread import Spread
from ml.batch.job import Job
from ml.engines import NEEDS
from ml.errors import ConfigError, EvergreenError

__all__ = ["NEEDS", "run"]


def run(job: Job, engine: str, address: str = "") -> list[int]:
    """Writes every part of the job; returns the rows of each. A kill at any moment leaves whole partitions, old or new.

    Args:
        engine: one of `ml.engines.Engine`.
        address: of its cluster: a Ray address, a Spark master, options of a Beam pipeline. Empty: processes of this machine.

    Raises:
        ConfigError: there is no such engine, or it is not installed here.
        IntegrityError: bundle or rows do not fit together.
    """
    engines.check(engine)
    tables = [name for part in job.parts for name in (*part.inputs, part.output) if name.startswith(jobs.SCHEME)]
    if tables and engine != "beam":
        raise ConfigError(f"{tables[0]} is a table of BigQuery, which engine {engine} does not know", "set EVERGREEN_ENGINE=beam")
    if engine == "local":
        from ml.batch.engines import local

        return local.run(job)
    if tables:
        from ml.batch.engines import bigquery

        return [bigquery.run(job, part, address) for part in job.parts]
    spread: Spread = importlib.import_module(f"ml.batch.engines.on_{engine}").spread
    todo, folders = jobs.tasks(job), [partition.aside(job, part) for part in job.parts]
    if left := partition.missing(todo, folders):
        try:
            spread(job, left, folders, address)
        except EvergreenError:
            raise
        except Exception as error:  # engines wrap what a worker raised in kinds of their own
            raise EvergreenError(
                f"engine {engine}: {engines.said(error)}", "mend that and run it again: finished shards are kept"
            ) from error
    return [partition.commit(part, [task for task in todo if task.part == i], folders[i]) for i, part in enumerate(job.parts)]
