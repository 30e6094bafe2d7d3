"""BigQuery tables as input and output of engine `beam`: ``bigquery://project.dataset.table``.

A table has no order, so answers to its rows go to a table; Parquet files may be answered into one too. The output is replaced
whole by one load job (WRITE_TRUNCATE), so a run after a kill leaves no duplicates; ``table$20130418`` replaces one partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.bigquery import BigQueryDisposition, ReadFromBigQuery, WriteToBigQuery
from apache_beam.metrics import Metrics

from ml.batch import job as jobs
from ml.batch.answer import BLOCK, PASSED_ON, Scorer
from ml.batch.engines.on_beam import pipeline
from ml.batch.job import SCHEME, Job, Part, Task
from ml.errors import ConfigError, EvergreenError
from ml.serving.segments import SCHEMA

TYPES = {pa.string(): "STRING", pa.float64(): "FLOAT", pa.int64(): "INTEGER", pa.timestamp("us"): "TIMESTAMP"}
COUNTER = ("evergreen", "rows")


def run(job: Job, part: Part, address: str) -> int:
    """Answers into the part's table; returns their number.

    Raises:
        ConfigError: the output is no table, or tables and files are mixed as inputs.
    """
    tables = [name for name in part.inputs if name.startswith(SCHEME)]
    if not part.output.startswith(SCHEME):
        raise ConfigError(f"{part.output} is a file, and {tables[0]} has no order of rows", f"name a table as output: {SCHEME}…")
    if tables and len(tables) < len(part.inputs):
        raise ConfigError(f"inputs are tables and files: {', '.join(part.inputs)}", "score them in two runs")
    made = pipeline(address)
    if tables:
        columns = jobs.scorer_of(job).columns
        sources = [made | name >> source(name, columns) for name in tables]
        rows = sources | beam.Flatten() | beam.BatchElements(1, BLOCK) | beam.Map(batch_of, job.model_dump_json())
    else:
        rows = made | beam.Create(jobs.tasks(job.model_copy(update={"parts": [part]})), reshuffle=False)
        rows = rows | beam.Reshuffle() | beam.FlatMap(_blocks, job.model_dump_json())
    _ = rows | "score" >> beam.FlatMap(answered, job.model_dump_json()) | "write" >> sink(part.output)
    outcome = made.run()
    if (state := outcome.wait_until_finish()) not in (None, "DONE"):
        raise EvergreenError(f"the pipeline into {part.output} ended as {state}", "look at the runner's log, and run it again")
    counters = outcome.metrics().query()["counters"]
    return sum(c.result for c in counters if (c.key.metric.namespace, c.key.metric.name) == COUNTER)


def source(table: str, columns: list[str]) -> beam.PTransform:
    """Rows of a table as dictionaries, of these columns only."""
    method = ReadFromBigQuery.Method.DIRECT_READ
    return ReadFromBigQuery(table=_named(table), method=method, selected_fields=columns, use_native_datetime=True)


def sink(table: str, **doubles: Any) -> beam.PTransform:
    """Replaces a table, or one partition of it, by the rows, in one load job; `doubles`: Beam's own, for tests."""
    return WriteToBigQuery(
        _named(table),
        schema={"fields": [_field(field) for field in SCHEMA]},
        method=WriteToBigQuery.Method.FILE_LOADS,
        create_disposition=BigQueryDisposition.CREATE_IF_NEEDED,
        write_disposition=BigQueryDisposition.WRITE_TRUNCATE,
        **doubles,
    )


def batch_of(rows: list[dict[str, Any]], job: str) -> pa.RecordBatch:
    """Rows of a table as a record batch of the columns that the model needs."""
    scorer = jobs.scorer_of(Job.model_validate_json(job))
    schema = pa.schema([(name, _kind(name, scorer)) for name in scorer.columns])
    plain = [{name: _moment(value) if name in PASSED_ON[1:] else value for name, value in row.items()} for row in rows]
    return pa.RecordBatch.from_pylist(plain, schema)


def answered(rows: pa.RecordBatch, job: str) -> Iterator[dict[str, Any]]:
    """The answers as a load job takes them."""
    answers = jobs.scorer_of(Job.model_validate_json(job)).answer(rows)
    Metrics.counter(*COUNTER).inc(len(answers))
    for row in answers.to_pylist():
        yield {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _blocks(task: Task, job: str) -> Iterator[pa.RecordBatch]:
    return jobs.blocks(task, jobs.scorer_of(Job.model_validate_json(job)).columns)


def _kind(name: str, scorer: Scorer) -> pa.DataType:
    if name in PASSED_ON:
        return SCHEMA.field(name).type
    return pa.float64() if name in scorer.numeric else pa.string()


def _moment(value: datetime | str | None) -> datetime | None:
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.replace(tzinfo=None) if found else None  # tables have UTC


def _field(field: pa.Field) -> dict[str, str]:
    if pa.types.is_list(field.type):
        return {"name": field.name, "type": "STRING", "mode": "REPEATED"}
    return {"name": field.name, "type": TYPES[field.type], "mode": "NULLABLE"}


def _named(table: str) -> str:
    """``project:dataset.table``, as Beam has it."""
    project, _, rest = table.removeprefix(SCHEME).partition(".")
    if rest.count(".") != 1:
        raise ConfigError(f"{table} names no table", f"write {SCHEME}project.dataset.table")
    return f"{project}:{rest}"
