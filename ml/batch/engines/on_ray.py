"""Engine `ray`: each task of a job is a Ray task."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import ray

from ml.batch.engines.spread import cores, environment, handed, work
from ml.batch.job import Job, Task

ATTEMPTS = 3
"""Times that Ray starts a task again whose worker or node died."""


def spread(job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None:
    """See `ml.batch.engines.spread.Spread`. `address`: ``auto`` or ``ray://host:10001``; empty: a cluster of its own, here."""
    ours = not ray.is_initialized()
    if ours:
        here = {} if address else {"num_cpus": cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        runtime = {"env_vars": environment()} | ({} if address else {"py_executable": sys.executable})
        ray.init(address=address or "local", runtime_env=runtime, log_to_driver=False, configure_logging=False, **here)
    try:
        remote = ray.remote(work).options(max_retries=ATTEMPTS)
        pending = [remote.remote(*given) for given in handed(job, tasks, folders)]
        while pending:  # one at a time, so that the first error ends it
            (done,), pending = ray.wait(pending, num_returns=1)
            ray.get(done)
    finally:
        if ours:
            ray.shutdown()
