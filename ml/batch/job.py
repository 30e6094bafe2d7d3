"""What an engine is asked to do, cut into tasks that any worker can do: references travel, rows stay where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO

import fsspec
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ml import store
from ml.batch.answer import BLOCK, Scorer, lacking
from ml.errors import IntegrityError, NotFoundError
from ml.packaging.bundle import Bundle
from ml.refs import Ref

TASK_ROWS = 250_000
"""Consecutive row groups make one task until they have so many rows."""

SCHEME = "bigquery://"
"""Of names that are tables of BigQuery: engine `beam` alone knows them."""
READ_AHEAD = 1 << 20
"""Bytes of a column that are read at once."""


class Part(Ref):
    """One partition: the answers to the rows of `inputs`, file by file, in the files' order."""

    inputs: list[str]
    """Of feature rows. Parquet files: digests of objects in the store, or fsspec URLs that every worker can read."""
    output: str
    """URL of the Parquet file that is replaced whole; every worker can write beside it."""


class Job(Ref):
    """Answers of one bundle, by digest, to the rows of every part."""

    bundle: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str
    name: str
    as_of: datetime
    parts: list[Part]
    log_features: bool = True


class Task(Ref):
    """Some consecutive row groups of one input; `shard` is its place in the part."""

    part: int
    shard: int
    input: str
    row_groups: list[int]
    rows: int


def tasks(job: Job) -> list[Task]:
    """The job's tasks in order: parts, their inputs, their row groups. Reads the files' footers only.

    Raises:
        NotFoundError: an input, or the bundle, is not there.
        IntegrityError: an input is no Parquet file, or has not the columns that the bundle needs.
    """
    made: list[Task] = []
    columns = scorer_of(job).columns
    for p, part in enumerate(job.parts):
        cut = [(name, groups, rows) for name in part.inputs for groups, rows in _cut(name, columns)]
        made += [Task(part=p, shard=i, input=name, row_groups=g, rows=n) for i, (name, g, n) in enumerate(cut)]
    return made


def answers(job: Job, task: Task) -> Iterator[pa.RecordBatch]:
    """The answers to a task's rows, in their order, a block at a time."""
    scorer = scorer_of(job)
    return (scorer.answer(batch) for batch in blocks(task, scorer.columns))


def blocks(task: Task, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The task's rows, at most `BLOCK` at a time; no more of the file is held in memory than its row group needs."""
    with opened(task.input) as file:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD)
        yield from parquet.iter_batches(BLOCK, row_groups=task.row_groups, columns=columns, use_threads=False)


def scorer_of(job: Job) -> Scorer:
    """The job's scorer; a process makes it once. The bundle comes from the store and is verified."""
    return _scorer(job.bundle, job.version, job.name, job.as_of, job.log_features)


@lru_cache(maxsize=2)
def _scorer(bundle: str, version: str, name: str, as_of: datetime, log_features: bool) -> Scorer:
    return Scorer(Bundle.load(bundle), version, name, as_of, log_features)


def key(job: Job, part: Part) -> str:
    """Names the part's content: bundle, inputs as they are now, and the code that answers. The same key, the same rows."""
    sha = hashlib.sha256(job.model_copy(update={"parts": [part]}).model_dump_json().encode())
    for name in part.inputs:
        if not _is_digest(name):
            fs, path = fsspec.core.url_to_fs(name)
            sha.update(fs.ukey(path).encode())
    for module in ("answer.py", "job.py", "../serving/predictor.py"):
        sha.update((Path(__file__).parent / module).read_bytes())
    sha.update(f"{ort.__version__} {pa.__version__}".encode())
    return sha.hexdigest()[:16]


def opened(name: str) -> IO[bytes]:
    """An input, open for reading.

    Raises:
        NotFoundError: it is not there.
        IntegrityError: what the store has is not what the digest names.
    """
    if _is_digest(name):
        return pa.BufferReader(store.get(name))
    fs, path = fsspec.core.url_to_fs(name)
    try:
        return fs.open(path, "rb")
    except FileNotFoundError:
        raise NotFoundError(f"no file at {name}", "name Parquet files that this machine and every worker can read") from None


def _cut(name: str, columns: list[str]) -> list[tuple[list[int], int]]:
    """Row groups of a file in runs of about `TASK_ROWS` rows; groups without rows are left out."""
    try:
        with opened(name) as file:
            parquet = pq.ParquetFile(file)
            meta, found = parquet.metadata, parquet.schema_arrow.names
    except pa.ArrowInvalid as error:
        raise IntegrityError(f"{name} is no Parquet file: {error}", "write it again") from None
    if absent := [column for column in columns if column not in found]:
        raise lacking(absent, name)
    runs: list[tuple[list[int], int]] = []
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        if runs and runs[-1][1] + rows <= TASK_ROWS:
            runs[-1] = ([*runs[-1][0], group], runs[-1][1] + rows)
        elif rows:
            runs.append(([group], rows))
    return runs


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")
