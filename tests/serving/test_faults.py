"""The service under load while things break: every answer is whole, says what is wrong with it, and it passes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml.serving import manifest
from ops.fault_kinds import FAULTS
from ops.fault_scene import Scene, scene
from ops.faults import fault_of, rollbacks, run, swaps
from ops.open_loop import Reply

pytestmark = pytest.mark.e2e

RATE, SECONDS = 60.0, 1.0
FLAGGED = {"canary-raises": "fallback_champion", "canary-nan": "fallback_champion"}
ELSEWHERE = {"worker-killed", "service-killed", "store-stopped", "store-slow", "disk-full"}
"""Below; and in test_store_down and test_log, as these need the service started in another way."""


@pytest.fixture(scope="module")
def at(own_settings: None) -> Iterator[Scene]:
    with scene() as made:
        yield made


@pytest.fixture(scope="module")
def version() -> Callable[[], str]:
    numbers = itertools.count(2)
    return lambda: str(next(numbers))


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ELSEWHERE])
def test_fault__under_load__every_answer_is_valid(name: str, at: Scene, version: Callable[[], str]) -> None:
    row = run(at, name, RATE, SECONDS, version)
    assert (row.valid, row.mixed, row.problems) == (1.0, 0, [])
    assert row.requests > 30
    if name in FLAGGED:
        assert row.flags.get(FLAGGED[name], 0) > 0.1, row.flags


def test_worker_killed__of_two__only_what_it_was_at_is_lost_and_another_takes_its_place(
    at: Scene, version: Callable[[], str]
) -> None:
    row = run(at, "worker-killed", RATE, SECONDS, version)
    # every second request goes to the one that was killed; what it was at depends on how busy the machine is
    assert row.valid > 0.85, row.problems
    assert row.mixed == 0
    assert row.requests > 30


def test_service_killed__under_load__is_back_and_all_is_valid_again(at: Scene, version: Callable[[], str]) -> None:
    row = run(at, "service-killed", RATE, SECONDS, version)
    assert row.mixed == 0
    assert 0 < row.recovery < 30
    assert at.ask()["flags"] == []


def test_swaps__under_load__none_failed_none_mixed(at: Scene, version: Callable[[], str]) -> None:
    row = swaps(at, 6, RATE, version)
    assert (row.valid, row.mixed) == (1.0, 0)
    assert row.note.startswith("6 models")


def test_rollbacks__by_the_command_under_load__none_failed_and_the_old_version_is_gone(
    at: Scene, version: Callable[[], str], empty_registry: Path
) -> None:
    shutil.copy(empty_registry, at.home / "mlflow.db")
    row = rollbacks(at, 1, RATE, version)
    assert (row.valid, row.mixed, row.problems) == (1.0, 0, [])
    assert row.note.startswith("0 failed")
    assert [at.ask()["model_version"] for _ in range(20)] == ["1"] * 20
    now = manifest.current()
    assert now is not None
    assert (now.by, now.key, now.previous) == ("fault table", f"rollback-{now.version - 1}", None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"probability": 0.71}, "not of version 2"),
        ({"probability": 0.71, "flags": ["fallback_baseline"]}, ""),
        ({"probability": None}, "probability None"),
        ({"entity_id": "b"}, "entity b"),
    ],
)
def test_fault_of__answer__is_valid_or_says_why_not(changes: dict[str, object], problem: str) -> None:
    answer = {"probability": 0.22, "decision": 0, "entity_id": "a", "model_version": "2", "request_id": "r", "flags": []}
    found = fault_of(Reply(0.0, 0.1, "a", 200, answer | changes))
    assert problem in found and bool(found) == bool(problem)
