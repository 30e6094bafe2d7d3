"""Engine `spark`: one barrier stage, a task for each worker."""

from __future__ import annotations

from collections.abc import Iterator

from pyspark import BarrierTaskContext

from ml.engines import spark_session
from ml.training.spread.job import Job, work

OWN = {
    "spark__barrier__sync__timeout": "600",
    "spark__python__worker__reuse": "false",
    "spark__scheduler__barrier__maxConcurrentTasksCheck__interval": "10s",
    "spark__scheduler__barrier__maxConcurrentTasksCheck__maxFailures": "6",
    "spark__stage__maxConsecutiveAttempts": "1",
    "spark__task__maxFailures": "1",
}
"""Of a session of our own: a worker that failed ends the stage at once, and its process."""


def carry(job: Job, address: str) -> list[str]:
    """See `ml.training.spread.run`. `address`: a master, ``spark://host:7077`` or ``yarn``; empty: processes here."""
    workers = len(job.shares)
    with spark_session(address, workers, **OWN) as session:
        given = [(job.model_dump_json(), rank) for rank in range(workers)]
        return list(session.sparkContext.parallelize(given, workers).barrier().mapPartitions(_work).collect())


def _work(given: Iterator[tuple[str, int]]) -> Iterator[str]:
    context = BarrierTaskContext.get()
    ((job, rank),) = given
    host = context.getTaskInfos()[rank].address.rpartition(":")[0]
    yield work(job, rank, host, lambda said: next(each for each in context.allGather(said) if each))
