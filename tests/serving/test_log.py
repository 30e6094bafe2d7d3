"""The prediction log: everything that is said to be written can be read, and what is lost is counted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ml.batch import score
from ml.config import load_params
from ml.serving import log, segments
from ml.serving.log import Entry, PredictionLog, answers_by, read_online, since_manifest

START = datetime(2013, 4, 18)
END = START + timedelta(days=1)
WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from ml.serving import log
from tests.serving.test_log import entry
log.FLUSH_SECONDS = 0.02
"""
"""How a process begins that writes a log; the folder is its argument."""


def entry(minute: int = 0) -> Entry:
    at = START + timedelta(minutes=minute)
    return Entry(
        f"row-{minute}", at, at - timedelta(hours=2), at, "3", 0.1 + 0.2, ["features_stale"], "r", None, {"x": None, "y": 1 / 3}
    )


def test_close__queued_entries__all_are_read_back_exactly(tmp_path: Path) -> None:
    written: list[int] = []
    made = PredictionLog(tmp_path, on_written=written.append)
    made.append([entry(minute) for minute in range(100)])
    made.close()
    table = read_online(START, START + timedelta(days=1), tmp_path)
    assert table["entity_id"].to_pylist() == [f"row-{minute}" for minute in range(100)]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["probability"] == 0.1 + 0.2
    assert json.loads(first["features"]) == {"x": None, "y": 1 / 3}
    assert (first["flags"], first["tick"], first["event_time"]) == (["features_stale"], None, START)
    assert sum(written) == 100


def test_append__running__on_disk_within_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.05)
    made = PredictionLog(tmp_path)
    made.append([entry()])
    deadline = time.monotonic() + 5
    while not len(read_online(START, START + timedelta(days=1), tmp_path)):
        assert time.monotonic() < deadline, "not flushed"
        time.sleep(0.02)
    made.close()


def test_read_online__window__is_half_open(tmp_path: Path) -> None:
    made = PredictionLog(tmp_path)
    made.append([entry(0), entry(1), entry(2)])
    made.close()
    found = read_online(START, START + timedelta(minutes=2), tmp_path)
    assert found["entity_id"].to_pylist() == ["row-0", "row-1"]


def test_read_online__torn_last_line__the_rest_is_read(tmp_path: Path) -> None:
    path = abandoned(tmp_path, [entry(0), entry(1)])
    path.write_bytes(path.read_bytes()[:-20])
    assert names(tmp_path) == ["row-0"]


def test_read_online__no_folder__no_rows(tmp_path: Path) -> None:
    table = read_online(START, START + timedelta(days=1), tmp_path / "none")
    assert (len(table), table.schema) == (0, log.SCHEMA)


def test_append__queue_full__rest_is_dropped_and_counted_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 60)
    dropped: list[int] = []
    made = PredictionLog(tmp_path, capacity=3, on_dropped=dropped.append)
    made.append([entry(minute) for minute in range(10)])
    assert dropped == [7]
    made.close()
    assert len(read_online(START, START + timedelta(days=1), tmp_path)) == 3


def test_append__disk_refuses__entries_wait_and_are_written_when_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.02)
    target, dropped = tmp_path / "online", []
    target.write_text("a file where the folder should be")
    made = PredictionLog(target, capacity=2, on_dropped=dropped.append)
    made.append([entry(0)])
    eventually(lambda: "entries wait in memory" in caplog.text)
    made.append([entry(1), entry(2), entry(3)])
    target.unlink()
    made.close()
    assert names(target) == ["row-0", "row-1"]
    assert dropped == [2]


def test_append__disk_refuses_until_the_end__all_are_counted(tmp_path: Path) -> None:
    target, dropped = tmp_path / "online", []
    target.write_text("a file where the folder should be")
    made = PredictionLog(target, on_dropped=dropped.append)
    made.append([entry(0), entry(1)])
    made.close()
    assert dropped == [2]


def test_append__after_close__counted_as_lost(tmp_path: Path) -> None:
    dropped: list[int] = []
    made = PredictionLog(tmp_path, on_dropped=dropped.append)
    made.close()
    made.append([entry()])
    assert dropped == [1]


def test_append__entry_that_is_no_json__is_lost_alone(tmp_path: Path) -> None:
    written, dropped = [], []
    made = PredictionLog(tmp_path, on_written=written.append, on_dropped=dropped.append)
    made.append([entry(0), Entry(**vars(entry(1)) | {"features": {"x": object()}}), entry(2)])
    made.close()
    assert names(tmp_path) == ["row-0", "row-2"]
    assert (written, dropped) == ([2], [1])


def test_append__disk_full__what_is_written_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    """A real file system of 64 KiB that is full, and then is not."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespace may be made here")
    program = """
target, counted = Path(sys.argv[1]), {"written": 0, "dropped": 0}
made = log.PredictionLog(target, 100, lambda n: count("written", n), lambda n: count("dropped", n))
def count(what, n):
    counted[what] += n
made.append([entry(0)])
while not counted["written"]:
    time.sleep(0.01)
filler = (target / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(1000))
except OSError as error:
    assert error.errno == 28
made.append([entry(i) for i in range(1, 31)])
made.append([entry(i) for i in range(31, 301)])
time.sleep(0.1)
assert counted["dropped"] > 150, counted
filler.truncate(0)
made.close()
read = log.read_online(entry(0).event_time, entry(1000).event_time, target)["entity_id"].to_pylist()
assert read == [f"row-{i}" for i in range(len(read))], read
assert len(read) == counted["written"] and sum(counted.values()) == 301, (len(read), counted)
assert len(read) >= 100
"""
    mounted = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "-", str(tmp_path), sys.executable, WRITER + program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flush", [0.05, 30.0], ids=["while_it_runs", "at_its_end"])
def test_log__file_size_limit__lines_stay_whole(tmp_path: Path, flush: float) -> None:
    program = f"""
import resource
log.FLUSH_SECONDS = {flush}
resource.setrlimit(resource.RLIMIT_FSIZE, (25000, 25000))
made = log.PredictionLog(Path(sys.argv[1]))
for i in range(200):
    made.append([entry(i)])
    time.sleep(0.001)
made.close()
"""
    with writer(tmp_path, program) as process:
        assert process.wait(30) == 0
    assert names(tmp_path) == [f"row-{i}" for i in range(200)]


def test_log__big_segment__is_rotated_and_another_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(log, "SEGMENT_BYTES", 100)
    made = PredictionLog(tmp_path)
    for minute in range(3):
        made.append([entry(minute)])
        eventually(lambda n=minute: len(list(tmp_path.glob("*.parquet"))) > n)
    assert names(tmp_path) == ["row-0", "row-1", "row-2"]
    made.close()
    assert [len(list(tmp_path.glob(f"*.{kind}"))) for kind in ("parquet", "jsonl")] == [3, 0]
    assert names(tmp_path) == ["row-0", "row-1", "row-2"]


def test_log__old_segment__is_rotated_while_the_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(log, "SEGMENT_SECONDS", 0.1)
    made = PredictionLog(tmp_path)
    made.append([entry()])
    eventually(lambda: list(tmp_path.glob("*.parquet")))
    assert names(tmp_path) == ["row-0"]
    made.close()
    assert names(tmp_path) == ["row-0"]


def test_rotate__parquet__holds_all_columns_sorted_with_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "ROWS", 10)
    made = PredictionLog(tmp_path)
    made.append(
        [Entry(**vars(entry(minute)) | {"cohort": "canary", "manifest": 7, "seconds": 0.25}) for minute in range(40)[::-1]]
    )
    made.close()
    (path,) = tmp_path.glob("*.parquet")
    groups = [pq.ParquetFile(path).metadata.row_group(i).column(1) for i in range(4)]
    assert [group.statistics.min for group in groups] == [START + timedelta(minutes=10 * i) for i in range(4)]
    assert {group.compression for group in groups} == {"ZSTD"}
    first = read_online(START, END, tmp_path).slice(0, 1).to_pylist()[0]
    assert first == vars(entry(0)) | {
        "features": '{"x":null,"y":0.3333333333333333}',
        "cohort": "canary",
        "manifest": 7,
        "seconds": 0.25,
        "model": load_params().problem.name,
    }


def test_rotate__killed_between_parquet_and_removal__counted_once_and_tidied(tmp_path: Path) -> None:
    path = abandoned(tmp_path, [entry(0), entry(1)])
    lines = path.read_bytes()
    assert segments.rotate(tmp_path) == 1
    path.write_bytes(lines)
    assert names(tmp_path) == ["row-0", "row-1"]
    assert answers_by("3", tmp_path)["count"] == 2
    segments.rotate(tmp_path)
    assert not path.exists()
    assert names(tmp_path) == ["row-0", "row-1"]


def test_rotate__killed_while_writing_the_parquet__done_again(tmp_path: Path) -> None:
    path = abandoned(tmp_path, [entry(0), entry(1)])
    path.with_name(f".{path.stem}.parquet.aside").write_bytes(b"half of it")
    assert names(tmp_path) == ["row-0", "row-1"]
    segments.rotate(tmp_path)
    assert names(tmp_path) == ["row-0", "row-1"]
    assert [p.name for p in tmp_path.iterdir()] == [f"{path.stem}.parquet"]


def test_sigkill__flushed_entries_are_read_and_the_next_process_rotates_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = """
made = log.PredictionLog(Path(sys.argv[1]), on_written=lambda n: print("written", flush=True))
made.append([entry(i) for i in range(100)])
time.sleep(60)
"""
    with writer(tmp_path, program) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b"written\n"] * 2
        assert segments.rotate(tmp_path) == 0, "a living process's segment was taken"
        process.kill()
        process.wait()
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as segment:
        segment.write(b'{"entity_id":"torn')
    expected = [f"row-{i}" for i in range(100)]
    assert names(tmp_path) == expected
    with caplog.at_level(logging.WARNING):
        PredictionLog(tmp_path).close()
    assert "torn line at the end of" in caplog.text
    assert [p.suffix for p in tmp_path.iterdir()] == [".parquet"]
    assert names(tmp_path) == expected


def test_two_processes__writing_and_rotating__each_entry_is_read_once_at_any_moment(tmp_path: Path) -> None:
    program = """
log.SEGMENT_BYTES = 2000
made = log.PredictionLog(Path(sys.argv[1]))
for i in range(300):
    made.append([replace(entry(i), request_id=sys.argv[2])])
    time.sleep(0.002)
made.close()
"""
    with writer(tmp_path, program, "a") as a, writer(tmp_path, program, "b") as b:
        seen = 0
        while a.poll() is None or b.poll() is None:
            found = keys(tmp_path)
            assert len(found) == len(set(found)) >= seen
            seen = len(found)
        assert (a.wait(), b.wait()) == (0, 0)
    assert sorted(keys(tmp_path)) == sorted((f"row-{i}", process) for i in range(300) for process in "ab")
    assert not list(tmp_path.glob("*.jsonl"))


def test_read_online__segments_of_before__read_with_the_defaults(tmp_path: Path) -> None:
    """Features were an object then, and cohort, manifest and seconds were not there."""
    old = {name: value for name, value in vars(entry(0)).items() if name not in segments.SINCE and name != "model"}
    path = tmp_path / "20260101T000000000000-host-1.jsonl"
    path.write_text(json.dumps(old, default=datetime.isoformat) + "\nno json\n")
    for kind in ("jsonl", "parquet"):
        (row,) = read_online(START, END, tmp_path).to_pylist()
        assert (row["cohort"], row["manifest"], row["seconds"]) == ("champion", 0, 0.0)
        assert row["model"] == load_params().problem.name
        assert len(read_online(START, END, tmp_path, name="other")) == 0
        assert json.loads(row["features"]) == entry(0).features
        assert len(list(tmp_path.glob(f"*.{kind}"))) == 1
        segments.rotate(tmp_path)


def test_read_online__rotated_between_listing_and_reading__read_from_the_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned(tmp_path, [entry(0)])
    read_bytes = Path.read_bytes

    def too_late(path: Path) -> bytes:
        segments.rotate(tmp_path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", too_late)
    assert names(tmp_path) == ["row-0"]


@pytest.mark.usefixtures("workspace")
def test_read_batch__partition_of_before__read_with_the_defaults() -> None:
    abandoned(log.folder(), [entry(0)])
    old = read_online(START, END).drop_columns([*segments.SINCE, "model"])
    score.folder().mkdir(parents=True)
    pq.write_table(old, score.folder() / "2013-04-18.parquet")
    found = score.read_batch(START, END)
    assert (found["cohort"].tolist(), found["model"].tolist()) == (["champion"], [load_params().problem.name])


@pytest.mark.parametrize("closed", [False, True])
def test_names__two_in_one_log__each_reader_sees_its_own(tmp_path: Path, closed: bool) -> None:
    default = load_params().problem.name
    own, other = (Entry(**vars(entry(i)) | {"model": name, "manifest": 5}) for i, name in enumerate([default, "other"]))
    abandoned(tmp_path, [own, other, Entry(**vars(entry(2)) | {"manifest": 5})])
    if closed:
        segments.rotate(tmp_path)
    for name, expected in ((None, ["row-0", "row-2"]), (default, ["row-0", "row-2"]), ("other", ["row-1"]), ("nobody", [])):
        assert read_online(START, END, tmp_path, name=name)["entity_id"].to_pylist() == expected
        assert since_manifest(5, tmp_path, name)["entity_id"].to_pylist() == expected
        assert answers_by("3", tmp_path, name)["count"] == len(expected)


def test_parquet__of_before_the_names__is_the_problems(tmp_path: Path) -> None:
    abandoned(tmp_path, [entry(0)])
    old = read_online(START, END, tmp_path).drop_columns(["model"])
    pq.write_table(old, tmp_path / "20260101T000000000000-host-1.parquet")
    assert read_online(START, END, tmp_path)["model"].to_pylist() == [load_params().problem.name] * 2
    assert since_manifest(0, tmp_path, "other")["entity_id"].to_pylist() == []


@pytest.mark.parametrize("closed", [False, True])
def test_shadow_entries__left_out_unless_asked_for(tmp_path: Path, closed: bool) -> None:
    shadow = Entry(**vars(entry(0)) | {"cohort": "shadow", "manifest": 5, "model_version": "4"})
    answered = Entry(**vars(entry(0)) | {"cohort": "canary", "manifest": 5})
    abandoned(tmp_path, [entry(1), answered, shadow])
    if closed:
        segments.rotate(tmp_path)
    assert read_online(START, END, tmp_path)["cohort"].to_pylist() == ["canary", "champion"]
    assert sorted(read_online(START, END, tmp_path, shadows=True)["cohort"].to_pylist()) == ["canary", "champion", "shadow"]
    assert sorted(since_manifest(5, tmp_path)["cohort"].to_pylist()) == ["canary", "shadow"]
    assert len(since_manifest(6, tmp_path)) == 0
    assert answers_by("4", tmp_path) == {"count": 0, "flagged": 0, "first": None, "last": None}
    assert answers_by("3", tmp_path) == {"count": 2, "flagged": 2, "first": START, "last": START + timedelta(minutes=1)}


def names(folder: Path) -> list[str]:
    found: list[str] = read_online(START, END, folder)["entity_id"].to_pylist()
    return found


def keys(folder: Path) -> list[tuple[str, str]]:
    found = read_online(START, END, folder)
    return list(zip(found["entity_id"].to_pylist(), found["request_id"].to_pylist(), strict=True))


def abandoned(folder: Path, entries: list[Entry]) -> Path:
    """A segment that its process left behind."""
    segment, path = segments.begin(folder)
    with segment:
        segment.write(b"".join(log._lines(entries)))
    return path


@contextlib.contextmanager
def writer(folder: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that writes a log."""
    command = [sys.executable, "-c", WRITER + program, str(folder), *arguments]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def eventually(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline, "not true within 10 s"
        time.sleep(0.01)
