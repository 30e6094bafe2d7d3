"""Experiments and registry: one run and one version per key, whoever asks, however often, wherever it was killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from ml import tracking
from ml.errors import NotFoundError
from ml.settings import settings
from tests.sample_bundle import graph

MODEL = graph(0.5, 2, 1)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: migrating one takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_VAR", str(tmp_path_factory.mktemp("mlflow")))
        tracking.settings.cache_clear()
        tracking.init_store()
        database = tracking.settings().var / "mlflow.db"
    tracking.settings.cache_clear()
    return database


@pytest.fixture
def registry(workspace: Path, migrated: Path) -> None:
    settings().var.mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, settings().var / "mlflow.db")


def register(key: str, **changes: Any) -> tuple[str, str]:
    return tracking.log_and_register(
        key,
        "delay",
        **{
            "title": "2013-04-01 03:00 manual",
            "params": {"max_depth": 5},
            "metrics": {"auc": 0.7},
            "tags": {"bundle": "b" * 64, "model": "c" * 64, "verdict": "promote", "backfill": "false"},
            "artifacts": {"report.json": b"{}"},
            "plots": {"roc.png": b"\x89PNG"},
            "onnx": MODEL,
            "numeric": ["distance", "hour"],
            "text": ["origin"],
            "dataset": ("raw", "a" * 32 + ".dir"),
            "description": "as good as any",
        }
        | changes,
    )


def runs() -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(settings().mlflow)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def test_log_and_register__once__everything_is_there(registry: None) -> None:
    run_id, version = register("k")
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert (run.data.params, run.data.metrics) == ({"max_depth": "5"}, {"auc": 0.7})
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest, dataset.source) == ("raw", "a" * 32 + ".dir", f'{{"url": "dvc://{"a" * 32}.dir"}}')
    stored = mlflow.MlflowClient(settings().mlflow).list_artifacts(run_id)
    assert {each.path for each in stored} == {"report.json", "plots"}
    signature = mlflow.models.get_model_info(f"models:/delay/{version}").signature
    assert signature.inputs.input_names() == ["distance", "hour", "origin"]
    assert tracking.tags("delay", version)["verdict"] == "promote"
    assert not [path for path in settings().var.rglob("*") if path.suffix in (".pkl", ".pickle", ".skops")]


def test_log_and_register__registered_graph__loads_by_alias_as_an_onnx_model(registry: None) -> None:
    _, version = register("k")
    tracking.set_alias("delay", "champion", version)
    model = mlflow.onnx.load_model("models:/delay@champion")
    assert model.SerializeToString() == MODEL


def test_log_and_register__same_key_again__same_run_and_version(registry: None) -> None:
    first = register("k")
    assert register("k") == first
    assert register("other") != first
    assert tracking.versions("delay") == ["1", "2"]
    assert len(runs()) == 2


def test_log_and_register__killed_between_version_and_claim__the_next_call_completes_it(registry: None) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_killed_before_claim, args=("version",))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert tracking.versions("delay") == ["1"]
    run_id, version = register("k")
    assert (version, tracking.versions("delay")) == ("1", ["1"])
    assert [(run.info.run_id, run.info.status) for run in runs()] == [(run_id, "FINISHED")]


def test_log_and_register__killed_before_the_run_was_claimed__one_run_in_the_end(registry: None) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_killed_before_claim, args=("run",))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert [run.info.status for run in runs()] == ["RUNNING"]
    run_id, _ = register("k")
    assert [(run.info.run_id, run.info.status) for run in runs()] == [(run_id, "FINISHED")]


def test_log_and_register__two_processes_at_once_on_a_new_store__one_run_one_version(workspace: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    together, said = spawned.Barrier(2), spawned.Queue()
    processes = [spawned.Process(target=_register_together, args=(together, said)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [said.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert answers[0] == answers[1]
    assert tracking.versions("delay") == [answers[0][1]]
    assert [run.info.run_id for run in runs()] == [answers[0][0]]


def test_claimed__somebody_else_was_first__own_object_is_discarded(registry: None) -> None:
    discarded: list[str] = []

    def make() -> str:
        tracking._claim("k", "run", "theirs")  # the other process, while this one was making
        return "mine"

    assert tracking._claimed("k", "run", make, found=list, discard=discarded.append) == "theirs"
    assert discarded == ["mine"]


def test_alias__moved__points_at_the_new_version(registry: None) -> None:
    assert tracking.get_alias("delay", "champion") is None
    register("a")
    register("b")
    assert tracking.get_alias("delay", "champion") is None
    tracking.set_alias("delay", "champion", "1")
    tracking.set_alias("delay", "champion", "2")
    assert tracking.get_alias("delay", "champion") == "2"


def test_version_ref__registered__reads_the_tags(registry: None) -> None:
    run_id, version = register("a")
    ref = tracking.version_ref(version, "delay")
    assert (ref.bundle, ref.model, ref.verdict, ref.backfill, ref.run_id) == ("b" * 64, "c" * 64, "promote", False, run_id)
    with pytest.raises(NotFoundError, match="model 'delay' has no version '9'"):
        tracking.version_ref("9", "delay")
    _, bare = register("b", tags={"bundle": "b" * 64})
    with pytest.raises(NotFoundError, match="has no tag backfill, model, verdict"):
        tracking.version_ref(bare, "delay")


def _register_together(together: Any, said: Any) -> None:
    together.wait()
    said.put(register("k"))


def _killed_before_claim(what: str) -> None:
    claim = tracking._claim

    def die(key: str, of: str, value: str) -> str:
        if of == what:
            os._exit(9)
        return claim(key, of, value)

    tracking._claim = die
    register("k")
