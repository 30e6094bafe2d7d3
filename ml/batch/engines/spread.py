"""What engines of many processes share: the shape of one, and what a worker is handed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ml.batch import partition
from ml.batch.job import Job, Task


class Spread(Protocol):
    """Has every task done by some worker, once or more often, and returns when all shards are there."""

    def __call__(self, job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None: ...


def work(job: str, task: str, folder: str) -> None:
    """One task, on a worker: a shard in `folder`. Arguments are the references' JSON."""
    partition.write_shard(Job.model_validate_json(job), Task.model_validate_json(task), folder)


def handed(job: Job, tasks: Sequence[Task], folders: Sequence[str]) -> list[tuple[str, str, str]]:
    """The arguments of `work` for each task."""
    said = job.model_dump_json()
    return [(said, task.model_dump_json(), folders[task.part]) for task in tasks]
