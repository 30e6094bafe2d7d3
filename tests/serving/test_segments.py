"""The segments of the prediction log: rotated, cut short by a kill or written by older code, each entry is read once."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ml.batch import score
from ml.config import load_params
from ml.serving import log, segment_files, segments
from ml.serving.log import Entry, PredictionLog, answers_by, read_online, since_manifest
from tests.serving.conftest import eventually
from tests.serving.log_entries import END, START, abandoned, entry, keys, names, writer


def test_log__big_segment__is_rotated_and_another_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(segment_files, "SEGMENT_BYTES", 100)
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
    monkeypatch.setattr(segment_files, "SEGMENT_SECONDS", 0.1)
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
segment_files.SEGMENT_BYTES = 2000
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
