"""Engine `spark`: the tasks of a job are the elements of an RDD, one a partition; Spark's executors run Python beside the JVM."""

from __future__ import annotations

from collections.abc import Sequence

from ml.batch.engines.spread import handed, work
from ml.batch.job import Job, Task
from ml.engines import cores, spark_session


def spread(job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None:
    """See `ml.batch.engines.spread.Spread`. `address`: a master, ``spark://host:7077`` or ``yarn``; empty: processes here.

    A session that is there already is used, and left running.
    """
    with spark_session(address, cores()) as session:
        given = handed(job, tasks, folders)
        session.sparkContext.parallelize(given, len(given)).foreach(_work)


def _work(given: tuple[str, str, str]) -> None:
    work(*given)
