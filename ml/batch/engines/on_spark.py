"""Engine `spark`: the tasks of a job are the elements of an RDD, one a partition; Spark's executors run Python beside the JVM."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from pyspark.sql import SparkSession

from ml.batch.engines.spread import cores, environment, handed, work
from ml.batch.job import Job, Task


def spread(job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None:
    """See `ml.batch.engines.spread.Spread`. `address`: a master, ``spark://host:7077`` or ``yarn``; empty: processes here.

    A session that is there already is used, and left running.
    """
    found = SparkSession.getActiveSession()
    session = found or _session(address)
    try:
        given = handed(job, tasks, folders)
        session.sparkContext.parallelize(given, len(given)).foreach(_work)
    finally:
        if found is None:
            session.stop()


def _work(given: tuple[str, str, str]) -> None:
    work(*given)


def _session(address: str) -> Any:
    builder = SparkSession.builder.appName("evergreen").master(address or f"local[{cores()}]")
    settings = {f"spark.executorEnv.{name}": value for name, value in environment().items()}
    if not address:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        settings |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()
