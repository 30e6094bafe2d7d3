"""The deployment manifest: compare-and-set, idempotent by key, history kept."""

from __future__ import annotations

import multiprocessing
from datetime import datetime
from pathlib import Path

import pytest

from ml import config, ledger
from ml.errors import StaleWriteError
from ml.serving import manifest
from ml.serving.manifest import Deployed, Manifest

AS_OF = datetime(2013, 4, 1, 3)


def deployed(version: str) -> Deployed:
    return Deployed(version=version, bundle=version * 64, model=version * 64)


def promote(version: str, key: str) -> Manifest:
    return manifest.promote(deployed(version), AS_OF, "release", "it was better", key)


def test_current__nothing_deployed__none(workspace: Path) -> None:
    assert manifest.current() is None
    assert manifest.current_version() == 0
    assert manifest.history() == []


def test_promote__second_champion__first_becomes_previous(workspace: Path) -> None:
    promote("1", "a")
    now = promote("2", "b")
    assert (now.version, now.champion, now.previous) == (2, deployed("2"), deployed("1"))
    assert manifest.current() == now
    assert [m.version for m in manifest.history()] == [1, 2]


def test_promote__what_serves_already__changes_nothing(workspace: Path) -> None:
    first = promote("1", "a")
    assert promote("1", "a") == first
    assert promote("1", "another key") == first
    assert len(manifest.history()) == 1


def test_promote__retried_after_a_later_promotion__does_not_roll_back(workspace: Path) -> None:
    first = promote("1", "a")
    promote("2", "b")
    assert promote("1", "a") == first
    assert manifest.current_version() == 2


def test_publish__repeated_after_a_later_change__answers_what_it_wrote(workspace: Path) -> None:
    first = promote("1", "a")
    promote("2", "b")
    assert manifest.publish(first, 0) == first
    assert manifest.current_version() == 2


def test_promote__key_used_for_another_champion__refused(workspace: Path) -> None:
    promote("1", "a")
    with pytest.raises(StaleWriteError, match="key 'a' already deployed"):
        promote("2", "a")


@pytest.mark.parametrize(("version", "expected"), [(2, 1), (3, 2), (4, 2)], ids=["others_were_first", "from_the_future", "skips"])
def test_publish__other_version_than_read__refused(workspace: Path, version: int, expected: int) -> None:
    promote("1", "a")
    if expected == 1:
        promote("2", "b")
    document = Manifest(version=version, key="c", champion=deployed("3"), previous=None, changed_at=AS_OF, by="test", reason="")
    before = manifest.history()
    with pytest.raises(StaleWriteError, match="nothing was written"):
        manifest.publish(document, expected)
    assert manifest.history() == before


def _write(version: str, together: multiprocessing.synchronize.Barrier, said: multiprocessing.queues.Queue[str]) -> None:
    document = Manifest(version=1, key=version, champion=deployed(version), previous=None, changed_at=AS_OF, by="test", reason="")
    together.wait()
    try:
        manifest.publish(document, 0)
        said.put(f"won {version}")
    except StaleWriteError:
        said.put(f"lost {version}")


def test_publish__two_processes_at_once_on_a_new_database__one_wins(workspace: Path) -> None:
    config.settings.cache_clear()
    ledger._engine.cache_clear()
    spawned = multiprocessing.get_context("spawn")
    together, said = spawned.Barrier(2), spawned.Queue()
    processes = [spawned.Process(target=_write, args=(version, together, said)) for version in ("1", "2")]
    for process in processes:
        process.start()
    answers = sorted(said.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(10)
    assert [answer.split()[0] for answer in answers] == ["lost", "won"]
    now = manifest.current()
    assert now is not None and now.champion == deployed(answers[1].split()[1])
    assert len(manifest.history()) == 1
