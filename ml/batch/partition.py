"""How answers become a partition: shards aside, then one file, then one rename.

Everything unfinished lies in a folder beside the partition, ``.<partition>.<key>``, that readers never look into. Its name
follows from the content, so a run after a kill goes on with the whole shards of the one before, and two runs at once do the same
work twice and write the same.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ml.batch import job as jobs
from ml.batch.job import Job, Part, Task
from ml.serving.segments import SCHEMA

REPEATED = ["model_version", "cohort", "manifest", "seconds", "model", "logged_at", "prediction_time", "event_time", "tick"]
"""Columns with few values: worth a dictionary in the file."""
KEY = "evergreen.key"
"""In the partition's footer: which content it is."""

logger = logging.getLogger(__name__)


def aside(job: Job, part: Part) -> str:
    """URL of the folder where a part's unfinished work lies."""
    folder, _, name = part.output.rpartition("/")
    return f"{folder}/.{name}.{jobs.key(job, part)}"


def write_shard(job: Job, task: Task, folder: str) -> None:
    """What a worker does: the answers to one task as a shard in `folder`, unless it is there. Written aside and renamed."""
    fs, path = _shard(folder, task)
    if fs.exists(path):
        return
    try:
        with _written(fs, path, path.rsplit("/", 1)[0], {}) as write:
            for batch in jobs.answers(job, task):
                write(batch)
    except FileNotFoundError:
        if _published(job.parts[task.part], folder) is None:
            raise


def missing(todo: list[Task], folders: list[str]) -> list[Task]:
    """The tasks whose shards are not there yet."""
    made = []
    for folder in folders:
        fs, path = fsspec.core.url_to_fs(folder)
        made.append({name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)} if fs.exists(path) else set())
    return [task for task in todo if _name(task) not in made[task.part]]


def commit(part: Part, todo: list[Task], folder: str) -> int:
    """Puts the part's shards together in their order, as its partition; returns its rows."""

    def rows() -> Iterator[pa.RecordBatch]:
        for task in todo:
            fs, path = _shard(folder, task)
            with fs.open(path, "rb") as file:
                shard = pq.ParquetFile(file)
                for group in range(shard.num_row_groups):
                    yield from shard.read_row_group(group, use_threads=False).combine_chunks().to_batches()

    return publish(rows(), part, folder)


def publish(rows: Iterator[pa.RecordBatch], part: Part, folder: str) -> int:
    """Writes a partition whole, renames it into place and clears up its folder; returns its rows."""
    fs, target = fsspec.core.url_to_fs(part.output)
    _, beside = fsspec.core.url_to_fs(folder)
    count = 0
    try:
        with _written(fs, target, beside, {KEY: folder.rpartition(".")[2]}) as write:
            for batch in rows:
                write(batch)
                count += len(batch)
    except FileNotFoundError:
        if (published := _published(part, folder)) is None:
            raise
        if fs.exists(beside) and not fs.ls(beside):  # made again by this run
            fs.rmdir(beside)
        return published
    try:
        fs.rm(beside, recursive=True)
    except OSError as error:
        logger.warning("%s stays for now, another run of the same job is in it: %s", folder, error)
    return count


def _published(part: Part, folder: str) -> int | None:
    """Rows of the partition, if it is already the one that `folder` was for: another run of the same job was quicker, and has
    cleared up.
    """
    fs, target = fsspec.core.url_to_fs(part.output)
    if not fs.exists(target):
        return None
    with fs.open(target, "rb") as file:
        meta = pq.ParquetFile(file).metadata
    return meta.num_rows if (meta.metadata or {}).get(KEY.encode()) == folder.rpartition(".")[2].encode() else None


@contextmanager
def _written(
    fs: fsspec.AbstractFileSystem, path: str, beside: str, notes: dict[str, str]
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A Parquet file at `path`, whole or not there: it is written in folder `beside`, synced and renamed.

    Raises:
        FileNotFoundError: somebody has removed the folder meanwhile.
    """
    fs.makedirs(beside, exist_ok=True)
    unfinished = f"{beside}/{uuid.uuid4().hex}.unfinished"
    try:
        with fs.open(unfinished, "wb") as file:
            with pq.ParquetWriter(file, SCHEMA, compression="zstd", use_dictionary=REPEATED) as writer:
                yield writer.write_batch
                writer.add_key_value_metadata(notes)
            file.flush()
            if isinstance(fs, LocalFileSystem):
                os.fsync(file.fileno())
        fs.mv(unfinished, path)
    except BaseException:
        if fs.exists(unfinished):
            fs.rm(unfinished)
        raise


def _name(task: Task) -> str:
    return f"{task.shard:06d}.parquet"


def _shard(folder: str, task: Task) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(folder)
    return fs, f"{path}/{_name(task)}"
