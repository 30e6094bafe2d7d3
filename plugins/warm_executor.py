"""LocalExecutor whose workers have the heavy libraries in memory before the first task.

Tasks are forked from the workers and the workers from the scheduler, so one import there saves each task 1–8 s. Only third-party
libraries: the code of `ml` is read by every task anew, so a change needs no restart. ``EVERGREEN_PRELOAD`` names the modules.
"""

from __future__ import annotations

import importlib
import logging
import os
import time

from airflow.executors.local_executor import LocalExecutor

RUNNERS = ("airflow.sdk.execution_time.supervisor", "airflow.sdk.execution_time.task_runner")
"""What Airflow itself would import in each worker before its first task."""

log = logging.getLogger(__name__)


class WarmLocalExecutor(LocalExecutor):
    """Imports the modules named in ``EVERGREEN_PRELOAD`` (separated by commas), then starts its workers."""

    def start(self) -> None:
        started = time.perf_counter()
        names = [name.strip() for name in os.environ.get("EVERGREEN_PRELOAD", "").split(",") if name.strip()]
        logging.getLogger("great_expectations").setLevel(logging.WARNING)  # registers each of its methods aloud
        before = set(os.environ)
        for name in [*RUNNERS, *names]:
            try:
                importlib.import_module(name)
            except Exception:  # a task that needs it will fail with its own message; the others must run
                log.exception("cannot preload %s", name)
        for name in [n for n in os.environ if n.startswith("PROMETHEUS_MULTIPROC") and n not in before]:
            del os.environ[name]  # Feast sets it on import; in a task's children it would change what their counters mean
        log.info("preloaded %d modules in %.1f s", len(names) + len(RUNNERS), time.perf_counter() - started)
        super().start()
