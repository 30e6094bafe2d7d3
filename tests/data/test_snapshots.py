"""Versions of landed data, with real DVC."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from ml import ledger
from ml.data.landed import locked, publish, raw_file, raw_folder
from ml.data.landing import staged
from ml.data.snapshots import find, pin, restore, snapshot
from ml.errors import NotFoundError, SnapshotError
from ml.refs import SnapshotRef
from ml.settings import settings
from tests.data.conftest import Delivery, contents, land_days

NIGHT = datetime(2013, 1, 3, 2)


def ingest(day: int, count: int = 1) -> SnapshotRef:
    landing = land_days(day, count)
    publish(staged(landing), landing.as_of)
    return snapshot(landing.as_of)


def forget_cache() -> None:
    shutil.rmtree(settings().data / ".dvc" / "cache")


def remote_files() -> set[str]:
    return {str(path.relative_to(settings().dvc_remote)) for path in Path(settings().dvc_remote).rglob("*") if path.is_file()}


def test_snapshot__says_what_is_in_it(delivery: Delivery) -> None:
    ref = ingest(0, 2)
    assert ref.files == len(contents()) == 5  # two days of flights and weather, and planes
    assert ref.size == sum(map(len, contents().values()))
    assert (ref.first_day, ref.last_day, ref.as_of) == (date(2013, 1, 2), date(2013, 1, 3), datetime(2013, 1, 4, 2))
    (entry,) = ledger.entries("snapshot")
    assert (entry.key, SnapshotRef.model_validate(entry.evidence)) == (f"snapshot-{ref.digest}", ref)


def test_snapshot__of_the_same_bytes_is_no_new_version(delivery: Delivery) -> None:
    first = ingest(0)
    assert ingest(0) == first
    assert snapshot(datetime(2013, 6, 1)) == first
    assert len(ledger.entries("snapshot")) == 1


def test_snapshot__of_changed_bytes_is_a_new_version_and_the_old_one_stays(delivery: Delivery) -> None:
    first, before = ingest(0), contents()
    delivery.edit("weather", 0, lambda rows: rows.assign(temp=rows.temp + 1))
    second = ingest(0)
    assert second.digest != first.digest
    assert contents(restore(first)) == before
    assert contents(restore(second)) == contents() != before


def test_snapshot__sends_only_what_is_new(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    ingest(0)
    before = remote_files()
    caplog.set_level("INFO", "ml.data.snapshots")
    ingest(1)
    assert "pushing 3 new of 5 files" in caplog.text, "the others are not even asked about"
    # flights and weather of the new day, flights of the day before with its late outcomes, the listing
    assert len(remote_files() - before) == 4


def test_snapshot__mends_a_remote_that_lost_everything(delivery: Delivery) -> None:
    ingest(0)
    shutil.rmtree(settings().dvc_remote)
    ref = ingest(1)
    forget_cache()
    assert contents(restore(ref)) == contents()


def test_snapshot__never_promises_less_knowledge_than_is_in_it(delivery: Delivery) -> None:
    ingest(0, 2)
    landing = land_days(3, as_of=datetime(2013, 1, 3, 12))
    publish(staged(landing), landing.as_of)
    assert snapshot(landing.as_of).as_of == datetime(2013, 1, 4, 2)


def test_snapshot__waits_for_who_publishes(delivery: Delivery) -> None:
    ingest(0)
    waiting = threading.Thread(target=snapshot, args=[NIGHT])
    with locked():
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_snapshot__of_nothing(workspace: Path) -> None:
    with pytest.raises(SnapshotError, match=r"nothing is landed in .*raw\n.*land and validate an interval first"):
        snapshot(NIGHT)


def test_restore__by_a_worker_with_an_empty_cache(delivery: Delivery) -> None:
    ref = ingest(0, 2)
    forget_cache()
    assert contents(restore(ref)) == contents()
    assert restore(ref) == settings().var / "workspaces" / ref.digest.removesuffix(".dir")


def test_snapshot__on_a_machine_that_only_restored_before(delivery: Delivery) -> None:
    ref = ingest(0, 2)
    shutil.rmtree(settings().data / ".dvc")
    restore(ref)  # leaves a cache there, and no repository
    cached = {path.name for path in (settings().data / ".dvc" / "cache").rglob("*")}
    after = ingest(2)
    assert after.files == ref.files + 2
    assert cached <= {path.name for path in (settings().data / ".dvc" / "cache").rglob("*")}, "what was there is kept"


def test_restore__without_cache_and_remote(delivery: Delivery) -> None:
    ref, before = ingest(0), contents()
    forget_cache()
    shutil.rmtree(settings().dvc_remote)
    with pytest.raises(SnapshotError) as caught:
        restore(ref)
    assert f"snapshot {ref.digest}: some of its 3 files are neither in the cache" in str(caught.value)
    assert f"nor in the remote ({settings().dvc_remote})" in str(caught.value)
    assert "set EVERGREEN_DVC_REMOTE" in str(caught.value)
    assert not list((settings().var / "workspaces").iterdir()), "no half workspace"
    assert contents() == before


def test_restore__where_the_remote_lacks_one_file(delivery: Delivery) -> None:
    ref = ingest(0)
    forget_cache()
    (Path(settings().dvc_remote) / "files" / "md5" / _md5(raw_file("flights", "2013-01-02"))).unlink()
    with pytest.raises(SnapshotError, match="neither in the cache"):
        restore(ref)
    assert not list((settings().var / "workspaces").iterdir())


def _md5(path: Path) -> str:
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


RESTORER = """
import sys
from pathlib import Path
from ml.data.snapshots import restore
from ml.refs import SnapshotRef
print("go", flush=True)
sys.stdin.readline()
print(restore(SnapshotRef.model_validate_json(sys.argv[1])))
"""


def restorer(ref: SnapshotRef) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RESTORER, ref.model_dump_json()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def test_restore__by_two_processes_at_once(delivery: Delivery) -> None:
    ref = ingest(0, 4)
    forget_cache()
    first, second = restorer(ref), restorer(ref)
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    folders = {process.communicate(timeout=60)[0].strip() for process in (first, second)}
    assert [first.returncode, second.returncode] == [0, 0]
    assert folders == {str(restore(ref))}
    assert contents(restore(ref)) == contents()
    assert [p.name for p in (settings().var / "workspaces").iterdir()] == [ref.digest.removesuffix(".dir")]


def test_restore__appears_whole(delivery: Delivery) -> None:
    ingest(0)
    raw_file("weather", "2013-01-09").write_bytes(bytes(40_000_000))  # takes long enough to write to be seen half done
    ref = snapshot(datetime(2013, 1, 10))
    folder = settings().var / "workspaces" / ref.digest.removesuffix(".dir")
    process = restorer(ref)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while not folder.exists() and process.poll() is None:
        pass
    assert sum(path.stat().st_size for path in folder.glob("*/*.parquet")) == ref.size
    process.communicate(timeout=60)


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_restore__killed_leaves_no_half_workspace(delivery: Delivery, seconds: float) -> None:
    ref = ingest(0, 4)
    forget_cache()
    process = restorer(ref)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = settings().var / "workspaces" / ref.digest.removesuffix(".dir")
    assert not folder.exists() or contents(folder) == contents()
    assert contents(restore(ref)) == contents()


def test_find__newest_that_was_made_by_then(delivery: Delivery) -> None:
    first, second = ingest(0), ingest(1)
    assert find(NIGHT) == first
    assert find(NIGHT + timedelta(hours=23)) == first
    assert find(datetime(2013, 1, 4, 2)) == second
    assert find(datetime(2013, 8, 1)) == second


def test_find__the_oldest_that_covers_when_none_was_made_by_then(delivery: Delivery) -> None:
    first = ingest(0, 2)
    ingest(2)
    assert find(datetime(2013, 1, 3, 1)) == first


def test_find__after_the_content_went_back(delivery: Delivery) -> None:
    first = ingest(0)
    delivery.edit("planes", 0, lambda rows: rows.head(100))
    second = ingest(0)
    shutil.rmtree(raw_folder())
    shutil.copytree(restore(first), raw_folder())
    again = snapshot(datetime(2013, 1, 9))
    assert again.digest == first.digest != second.digest
    assert find(datetime(2013, 1, 9)) == again


def test_find__nothing(delivery: Delivery) -> None:
    with pytest.raises(NotFoundError, match=r"no snapshot covers 2013-01-03 02:00 .*none at all"):
        find(NIGHT)
    ingest(0)
    with pytest.raises(NotFoundError, match=r"1 versions, 2013-01-02 to 2013-01-02.*\n.*run `ingest`"):
        find(datetime(2012, 1, 1))


def test_pin__is_a_file_for_git_that_dvc_pull_follows(delivery: Delivery, tmp_path: Path) -> None:
    ref = ingest(0)
    clone = tmp_path / "clone"
    clone.mkdir()
    path = pin(ref, clone)
    assert path == clone / "pinned" / "raw.dvc"
    assert yaml.safe_load(path.read_text())["outs"][0]["md5"] == ref.digest
    subprocess.run([Path(sys.executable).with_name("dvc"), "pull", "-q"], cwd=clone, check=True)
    assert contents(clone / "pinned" / "raw") == contents()
