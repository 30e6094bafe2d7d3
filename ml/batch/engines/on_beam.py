"""Engine `beam`: the tasks of a job are the elements of a collection, on whatever runner the options name."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ml.batch.engines.spread import handed, work
from ml.batch.job import Job, Task
from ml.engines import cores


def pipeline(address: str) -> beam.Pipeline:
    """A pipeline by its options, ``--runner=DataflowRunner --project=…``; none: processes of this machine."""
    if address:
        return beam.Pipeline(options=PipelineOptions(shlex.split(address)))
    here = PipelineOptions([], direct_running_mode="multi_processing", direct_num_workers=cores())
    return beam.Pipeline(runner=FnApiRunner(), options=here)  # by name, Beam would look for a runner to download


def spread(job: Job, tasks: Sequence[Task], folders: Sequence[str], address: str) -> None:
    """See `ml.batch.engines.spread.Spread`. `address`: options of the pipeline. Workers elsewhere need EVERGREEN_STORE."""
    with pipeline(address) as made:
        given = made | "tasks" >> beam.Create(handed(job, tasks, folders), reshuffle=False)
        _ = given | "spread" >> beam.Reshuffle() | "score" >> beam.MapTuple(work)
