"""The prediction log: everything that is said to be written can be read, and what is lost is counted."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ml.serving import log
from ml.serving.log import Entry, PredictionLog, read_online

START = datetime(2013, 4, 18)


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
    made = PredictionLog(tmp_path)
    made.append([entry(0), entry(1)])
    made.close()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-20])
    assert read_online(START, START + timedelta(days=1), tmp_path)["entity_id"].to_pylist() == ["row-0"]


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


def test_append__disk_refuses__lost_rows_are_counted_and_the_writer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.05)
    target, dropped, lost = tmp_path / "online", [], threading.Event()
    target.write_text("a file where the folder should be")
    made = PredictionLog(target, on_dropped=lambda n: (dropped.append(n), lost.set()))
    made.append([entry(0)])
    assert lost.wait(5) and dropped == [1]
    target.unlink()
    made.append([entry(1)])
    made.close()
    assert read_online(START, START + timedelta(days=1), target)["entity_id"].to_pylist() == ["row-1"]


def test_log__big_segment__is_ended_and_another_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(log, "SEGMENT_BYTES", 100)
    made = PredictionLog(tmp_path)
    for minute in range(3):
        made.append([entry(minute)])
        time.sleep(0.1)
    made.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    assert len(read_online(START, START + timedelta(days=1), tmp_path)) == 3
