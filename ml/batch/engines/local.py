"""Engine `local`: this process; a thread for each core answers blocks, while this one reads the next and writes the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from ml.batch import job as jobs
from ml.batch import partition
from ml.batch.job import Job, Task
from ml.engines import cores


def run(job: Job) -> list[int]:
    """Writes every part; returns the rows of each."""
    todo = jobs.tasks(job)
    with ThreadPoolExecutor(cores(), "score") as pool:
        return [
            partition.publish(_answers(job, [task for task in todo if task.part == i], pool), part, partition.aside(job, part))
            for i, part in enumerate(job.parts)
        ]


def _answers(job: Job, todo: list[Task], pool: ThreadPoolExecutor) -> Iterator[pa.RecordBatch]:
    """Answers in order. So many blocks are under way as keep every thread busy: memory does not grow with the rows."""
    scorer, ahead = jobs.scorer_of(job), 2 * cores()
    under_way: deque[Future[pa.RecordBatch]] = deque()
    for task in todo:
        for batch in jobs.blocks(task, scorer.columns):
            under_way.append(pool.submit(scorer.answer, batch))
            if len(under_way) > ahead:
                yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
