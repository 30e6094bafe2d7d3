"""The prediction log: everything that is said to be written can be read, and what is lost is counted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from ml.serving import log
from ml.serving.log import Entry, PredictionLog, read_online
from tests.serving.conftest import eventually
from tests.serving.log_entries import START, WRITER, abandoned, entry, environment, names, writer


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
    deadline = time.monotonic() + 30
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
