"""One suite, every engine: same rows, same files, and whole partitions whatever is killed.

`make test-engines` runs it in environments that have each engine; elsewhere those that are not installed are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml import store
from ml.batch import engines, partition
from ml.batch import job as jobs
from ml.batch.answer import Scorer
from ml.batch.engines import local
from ml.batch.job import Job, Part
from ml.errors import ConfigError, EvergreenError, IntegrityError, NotFoundError
from ml.packaging.bundle import Bundle
from ml.serving.segments import SCHEMA
from ml.settings import ROOT, settings
from tests.engine_marks import needs

Make = Callable[..., Job]
DISTRIBUTED = sorted(engines.NEEDS)

every_engine = pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in ("local", *DISTRIBUTED)])
distributed = pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in DISTRIBUTED])


def expected(job: Job) -> list[pa.Table]:
    """The plainest way: one call of the pure function on all rows of a part, in the order of its inputs."""
    scorer = Scorer(Bundle.load(job.bundle), job.version, job.name, job.as_of)
    found = []
    for part in job.parts:
        rows = []
        for name in part.inputs:
            with jobs.opened(name) as file:
                rows.append(scorer.answer(pq.read_table(file).combine_chunks().to_batches()[0]))
        found.append(pa.Table.from_batches(rows, SCHEMA).combine_chunks())
    return found


def written(job: Job) -> list[pa.Table]:
    return [pq.read_table(part.output).combine_chunks() for part in job.parts]


def files(job: Job) -> list[str]:
    """Everything that lies where the partitions are."""
    return sorted(path.name for path in Path(job.parts[0].output).parent.iterdir())


@pytest.mark.e2e
@every_engine
def test_run__every_partition_row_for_row__nothing_left_beside(
    engine: str, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(engine)
    assert engines.run(job, engine) == [5000, 100, 0]
    assert written(job) == expected(job)
    assert files(job) == ["day-0.parquet", "day-1.parquet", "day-2.parquet"]
    if engine != "local":
        theirs = [Path(part.output).read_bytes() for part in job.parts]
        local.run(job)
        assert [Path(part.output).read_bytes() for part in job.parts] == theirs


@pytest.mark.e2e
@distributed
def test_run__after_a_kill__goes_on_with_what_was_finished(engine: str, make_job: Make, tmp_path: Path) -> None:
    job = make_job(engine)
    before = "what readers see until the new one is whole"
    Path(job.parts[0].output).parent.mkdir()
    Path(job.parts[0].output).write_text(before)
    todo, folder = jobs.tasks(job), Path(partition.aside(job, job.parts[0]))
    for task in todo[:2]:
        partition.write_shard(job, task, str(folder))
    (folder / "torn.unfinished").write_bytes(b"PAR1 torn")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(times) == 2
    assert Path(job.parts[0].output).read_text() == before
    assert [task.shard for task in partition.missing(todo, [partition.aside(job, part) for part in job.parts])] == [
        *(task.shard for task in todo[2:])
    ]
    engines.run(job, engine)
    assert written(job) == expected(job)
    assert files(job) == ["day-0.parquet", "day-1.parquet", "day-2.parquet"]


RUN = """
import sys
from pathlib import Path
from ml.batch import engines, job
job.TASK_ROWS = 700
engines.run(job.Job.read(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.e2e
@every_engine
def test_run__killed_in_the_middle__run_again_is_whole(engine: str, make_job: Make, tmp_path: Path) -> None:
    job = make_job(engine, rows=20_000)
    job.write(tmp_path / "job.json")
    old = b"the partition of before"
    target = Path(job.parts[0].output)
    target.parent.mkdir()
    target.write_bytes(old)
    folder = Path(partition.aside(job, job.parts[0]))
    command = [sys.executable, "-c", RUN, str(tmp_path / "job.json"), engine]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _begun(folder):  # killed while some of it is written and the rest is not
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "it never began to write"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _end(tmp_path)
    assert target.read_bytes() == old
    engines.run(job, engine)
    assert written(job) == expected(job)
    assert files(job) == ["day-0.parquet", "day-1.parquet", "day-2.parquet"]


def _begun(folder: Path) -> bool:
    return folder.exists() and any(path.stat().st_size > 4 or path.suffix == ".parquet" for path in folder.glob("*"))


def _end(tmp_path: Path) -> None:
    """Engines' own processes are in sessions of their own; those that the killed run started name its job in their environment."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.environ().get("EVERGREEN_VAR") == str(tmp_path / "var") and process.pid != os.getpid():
                process.kill()
        except psutil.Error:
            continue


@every_engine
def test_run__no_such_bundle__says_so(engine: str, make_job: Make) -> None:
    job = make_job(engine).model_copy(update={"bundle": "0" * 64})
    with pytest.raises(NotFoundError, match="no object 000"):
        engines.run(job, engine)


@every_engine
def test_run__input_without_a_column__says_so_before_anything_starts(engine: str, make_job: Make) -> None:
    job = make_job(engine)
    path = job.parts[0].inputs[1]
    pq.write_table(pq.read_table(path).drop_columns(["distance"]), path)
    with pytest.raises(IntegrityError, match=r"in-1\.parquet: the model needs features \['distance'\]"):
        engines.run(job, engine)
    assert not Path(job.parts[0].output).parent.exists()


@every_engine
def test_run__input_is_not_there__says_so(engine: str, make_job: Make) -> None:
    job = make_job(engine)
    Path(job.parts[0].inputs[0]).unlink()
    with pytest.raises(NotFoundError, match=r"no file at .*in-0\.parquet"):
        engines.run(job, engine)


@pytest.mark.e2e
@distributed
def test_run__a_worker_fails__the_error_is_its_own(engine: str, make_job: Make) -> None:
    job = make_job(engine)
    column = pq.read_table(job.parts[0].inputs[0])
    words = column.set_column(column.column_names.index("distance"), "distance", column["entity_id"])
    pq.write_table(words, job.parts[0].inputs[0])  # a column of a type that footers do not tell from a number's
    with pytest.raises(EvergreenError, match="column 'distance' has type string, not double"):
        engines.run(job, engine)
    assert not Path(job.parts[0].output).exists()


def test_run__twice_at_once__both_end_and_the_partition_is_whole(make_job: Make) -> None:
    """Of engine local: what two runs share is the folder beside the partition, which is the same for every engine."""
    job, failures = make_job("local"), []

    def again() -> None:
        try:
            for _ in range(3):
                local.run(job)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=again) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert written(job) == expected(job)


def test_shards__folder_cleared_by_a_quicker_run__counts_as_done(make_job: Make) -> None:
    job = make_job()
    todo, folder = jobs.tasks(job), partition.aside(job, job.parts[0])
    mine = [task for task in todo if task.part == 0]
    for task in mine:
        partition.write_shard(job, task, folder)
    local.run(job)  # publishes, and clears the folder that both use
    assert partition.commit(job.parts[0], mine, folder) == 5000
    assert files(job) == ["day-0.parquet", "day-1.parquet", "day-2.parquet"]
    other = job.parts[0].model_copy(update={"output": job.parts[1].output})
    with pytest.raises(FileNotFoundError):  # there is a partition, but with other rows
        partition.commit(other, mine, folder)


def test_key__names_bundle_inputs_and_code(make_job: Make) -> None:
    job = make_job()
    part = job.parts[0]
    keys = {jobs.key(job, part), jobs.key(make_job(bias=0.5), part)}
    pq.write_table(pq.read_table(part.inputs[0])[:-1], part.inputs[0])
    keys.add(jobs.key(job, part))
    assert len(keys) == 3
    assert jobs.key(job, part) == jobs.key(Job.model_validate(json.loads(job.model_dump_json())), part)


def test_run__output_and_inputs_in_an_object_store__by_url(make_job: Make) -> None:
    import fsspec

    job, memory = make_job(), fsspec.filesystem("memory")
    memory.pipe_file("/in/rows.parquet", Path(job.parts[0].inputs[0]).read_bytes())
    part = Part(inputs=["memory://in/rows.parquet"], output="memory://out/day.parquet")
    assert local.run(job.model_copy(update={"parts": [part]})) == [2500]
    with memory.open("/out/day.parquet") as file:
        assert len(pq.read_table(file)) == 2500
    assert list(memory.find("/out")) == ["/out/day.parquet"]


def test_run__engine_is_not_known_or_not_installed__says_how(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    with pytest.raises(ConfigError, match="engine 'flink' is not known"):
        engines.run(job, "flink")
    monkeypatch.setitem(engines.NEEDS, "ray", "no_such_package")
    with pytest.raises(ConfigError, match=r"engine ray needs package no_such_package.*\n.*extra \[ray\]"):
        engines.run(job, "ray")


@pytest.mark.e2e
@pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in ("local", "ray", "spark")])
def test_run__workers_find_the_bundle_in_the_store__wherever_they_start(
    engine: str, make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store than the default, another working folder: nothing of the driver's own folders is needed.

    Beam's workers of this machine inherit the environment; elsewhere the operator sets EVERGREEN_STORE.
    """
    from tests.conftest import forget

    monkeypatch.setenv("EVERGREEN_STORE", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    forget()
    job = make_job(engine)
    assert store.exists(job.bundle)
    assert settings().store == str(tmp_path / "elsewhere")
    assert engines.run(job, engine) == [5000, 100, 0]
