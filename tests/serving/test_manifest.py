"""The deployment manifest: compare-and-set, idempotent by key, history kept."""

from __future__ import annotations

import multiprocessing
from datetime import datetime
from pathlib import Path

import pytest

from ml import ledger
from ml.errors import ConfigError, StaleWriteError
from ml.serving import manifest
from ml.serving.manifest import Deployed, Experiment, Manifest
from ml.settings import settings

AS_OF = datetime(2013, 4, 1, 3)


def deployed(version: str) -> Deployed:
    return Deployed(version=version, bundle=version * 64, model=version * 64)


def document(number: int, key: str, version: str) -> Manifest:
    now = {"name": "flight_delay", "previous": None, "changed_at": AS_OF, "by": "test", "reason": ""}
    return Manifest.model_validate({"version": number, "key": key, "champion": deployed(version), **now})


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
    with pytest.raises(StaleWriteError, match="key 'a' already made manifest version 1"):
        promote("2", "a")


@pytest.mark.parametrize(("version", "expected"), [(2, 1), (3, 2), (4, 2)], ids=["others_were_first", "from_the_future", "skips"])
def test_publish__other_version_than_read__refused(workspace: Path, version: int, expected: int) -> None:
    promote("1", "a")
    if expected == 1:
        promote("2", "b")
    before = manifest.history()
    with pytest.raises(StaleWriteError, match="nothing was written"):
        manifest.publish(document(version, "c", "3"), expected)
    assert manifest.history() == before


def share(number: float, key: str, name: str | None = None) -> Manifest:
    return manifest.change(key, AS_OF, "canary", "", name, canary=deployed("2"), canary_share=number)


def test_change__keeps_what_it_does_not_name(workspace: Path) -> None:
    promote("1", "a")
    now = share(0.05, "b")
    assert (now.version, now.champion, now.canary, now.canary_share) == (2, deployed("1"), deployed("2"), 0.05)
    assert share(0.25, "c").champion == deployed("1")


def test_change__nothing_or_the_same_key_again_writes_nothing(workspace: Path) -> None:
    promote("1", "a")
    first = share(0.05, "b")
    assert share(0.05, "another key") == first
    share(0.25, "c")
    assert share(0.05, "b") == first, "a retried step does not take back a later one"
    assert manifest.current_version() == 3


def test_change__key_used_for_another_change__refused(workspace: Path) -> None:
    promote("1", "a")
    share(0.05, "b")
    with pytest.raises(StaleWriteError, match="key 'b' already"):
        share(0.25, "b")


def test_change__canary_beside_an_experiment__refused(workspace: Path) -> None:
    promote("1", "a")
    arms = {"control": deployed("1"), "treatment": deployed("2")}
    trial = Experiment(name="trees", share=0.2, arms=arms, started_at=AS_OF)
    now = manifest.change("b", AS_OF, "test", "", experiment=trial)
    assert now.experiment == trial == manifest.change("b", AS_OF, "test", "", experiment=trial).experiment
    with pytest.raises(ConfigError, match="a canary and an experiment at the same time"):
        share(0.05, "c")
    assert manifest.current_version() == 2


def test_promote__ends_canary_and_shadow(workspace: Path) -> None:
    promote("1", "a")
    share(0.5, "b")
    manifest.change("c", AS_OF, "test", "", shadow=deployed("3"))
    now = promote("2", "d")
    assert (now.champion, now.previous, now.canary, now.canary_share, now.shadow) == (
        deployed("2"),
        deployed("1"),
        None,
        0.0,
        None,
    )


def test_names__have_manifests_and_versions_of_their_own(workspace: Path) -> None:
    promote("1", "a")
    manifest.promote(deployed("7"), AS_OF, "release", "", "a", name="other")
    share(0.05, "b")
    assert manifest.current_versions() == {"flight_delay": 2, "other": 1}
    other = manifest.current("other")
    assert other is not None and other.champion == deployed("7")
    assert [m.version for m in manifest.history("other")] == [1]


def _write(version: str, together: multiprocessing.synchronize.Barrier, said: multiprocessing.queues.Queue[str]) -> None:
    together.wait()
    try:
        manifest.publish(document(1, version, version), 0)
        said.put(f"won {version}")
    except StaleWriteError:
        said.put(f"lost {version}")


def test_publish__two_processes_at_once_on_a_new_database__one_wins(workspace: Path) -> None:
    settings.cache_clear()
    ledger._engine.cache_clear()
    spawned = multiprocessing.get_context("spawn")
    together, said = spawned.Barrier(2), spawned.Queue()
    processes = [spawned.Process(target=_write, args=(version, together, said)) for version in ("1", "2")]
    for process in processes:
        process.start()
    answers = sorted(said.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(60)
    assert [answer.split()[0] for answer in answers] == ["lost", "won"]
    now = manifest.current()
    assert now is not None and now.champion == deployed(answers[1].split()[1])
    assert len(manifest.history()) == 1
