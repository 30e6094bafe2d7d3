"""Engine `ray`: each task of a job is a Ray task."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from ml.batch.engines.spread import handed, work
from ml.batch.job import Job, Task
from ml.engines import cores, ray_cluster

ATTEMPTS = 3
"""Times that Ray starts a task again whose worker or node died."""


def spread(job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None:
    """See `ml.batch.engines.spread.Spread`. `address`: ``auto`` or ``ray://host:10001``; empty: a cluster of its own, here."""
    with ray_cluster(address, cores()):
        remote = ray.remote(work).options(max_retries=ATTEMPTS)
        pending = [remote.remote(*given) for given in handed(job, tasks, folders)]
        while pending:  # one at a time, so that the first error ends it
            (done,), pending = ray.wait(pending, num_returns=1)
            ray.get(done)
