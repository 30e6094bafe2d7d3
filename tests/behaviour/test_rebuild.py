"""Registered models are made again, bit by bit, from raw data, code and parameters; and their lineage can be read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml import cli, config, ledger, steps, store, tracking
from ml.config import ROOT, load_params
from ml.data import snapshots
from ml.errors import EvergreenError, NotFoundError, SnapshotError
from ml.monitoring import lineage
from ml.packaging import rebuild
from ml.packaging.artifacts import Artifacts
from ml.packaging.lineage import code_digest
from ml.packaging.refit import as_judged
from ml.refs import ShippedRef, VersionRef, Window
from ml.serving import log
from tests.behaviour.chain import AS_OF, Chain, landed, relabelled, trained
from tests.conftest import forget


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Chain]:
    with landed(tmp_path_factory.mktemp("rebuild"), parsed_sources) as home:
        yield trained(home)


@pytest.fixture(scope="module")
def linear(chain: Chain) -> VersionRef:
    """What ships where the simple model wins: the linear model that was fitted beside the trees."""
    parts = Artifacts.load(chain.evaluation.model.artifacts).simple("the simple model wins")
    model = steps._stored(parts, chain.plan.train, 0.0, 0.0)
    return chain.register("linear", ShippedRef(model=model, twin=model.artifacts, decision=as_judged("ships as judged")))


def in_process(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(cli.app, list(arguments))
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def test_rebuild__gives_the_registered_graph_and_uses_nothing_that_was_made(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    params_file = tracking.tags(load_params().problem.name, chain.version.version)["params_file"]
    other = chain.home / "other-store"
    monkeypatch.setenv("EVERGREEN_STORE", str(other))
    monkeypatch.setenv("EVERGREEN_VAR", str(chain.home / "other-var"))
    for name in ("ledger", "mlflow"):
        monkeypatch.setenv(f"EVERGREEN_{name.upper()}", getattr(config.settings(), name))
    monkeypatch.setenv("EVERGREEN_DVC_REMOTE", config.settings().dvc_remote)
    content = store.get(params_file)
    config.settings.cache_clear()
    try:
        assert store.put(content) == params_file
        made = rebuild.rebuild(f"v{chain.version.version}")
        assert (made.found, made.equal) == (chain.version.model, True)
        assert made.rows == Artifacts.load(chain.shipped.model.artifacts).fitted.learned.rows
        assert (made.tree, made.differences) == ("this tree", [])
        assert [p.name for p in other.rglob("*") if p.is_file()] == [params_file], "the child left something in the store"
        assert not (chain.home / "other-var" / "workspaces").exists()
        again = rebuild.record(made, AS_OF)
    finally:
        monkeypatch.undo()
        config.settings.cache_clear()
    assert again is False, "the same outcome is one entry"
    (entry,) = ledger.entries("rebuild", subject=f"v{chain.version.version}")
    assert (entry.verdict, entry.evidence["found"]) == ("equal", chain.version.model)


def test_rebuild__of_a_linear_model_and_of_one_that_claims_another_graph(chain: Chain, linear: VersionRef) -> None:
    forged = relabelled(linear, model="0" * 64)
    code, output = in_process("rebuild", linear.version, forged)
    assert code == 1
    first, second = output.split(f"v{forged}: DIFFERENT")
    assert f"v{linear.version}: equal" in first
    assert all(digest in second for digest in ("0" * 64, linear.model))
    assert [e.verdict for e in ledger.entries("rebuild", subject=f"v{forged}")] == ["different"]


def test_rebuild__of_an_ensemble_under_parameters_that_are_no_longer_ours(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chain.home / "ensemble.yaml"
    path.write_text((chain.home / "params.yaml").read_text().replace("ensemble: 1", "ensemble: 2"))
    monkeypatch.setenv("EVERGREEN_PARAMS", str(path))
    forget()
    winner = Artifacts.load(chain.evaluation.model.artifacts).winner
    model = steps._fitted(chain.plan.train, chain.features, winner)
    made = chain.register("ensemble", ShippedRef(model=model, twin=model.artifacts, decision=as_judged("ships as judged")))
    assert len(Artifacts.load(model.artifacts).fitted.members) == 2
    monkeypatch.undo()
    forget()
    assert load_params().train.ensemble == 1
    assert rebuild.rebuild(made.version).equal


def test_rebuild__takes_the_code_of_then_from_git_and_leaves_no_worktree(chain: Chain, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "ml", clone / "ml", ignore=shutil.ignore_patterns("__pycache__"))
    git(clone, "init", "--quiet")
    first = commit(clone, "the code that made the version")
    trees = clone / "ml" / "training" / "fit.py"
    trees.write_text(replaced(trees.read_text(), "train.threads, train.seed + i)", "train.threads, train.seed + i + 1)"))
    commit(clone, "code that makes another model")
    old = relabelled(chain.version, revision=first)
    untracked = relabelled(chain.version, revision=first, code="0" * 16)
    done = subprocess.run(
        [sys.executable, "-c", "from ml.cli import main; main()", "rebuild", old, untracked],
        env=os.environ | {"PYTHONPATH": str(clone)}, cwd=clone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"v{old}: equal" in done.stdout, done.stderr
    assert f"commit {first[:12]}" in done.stdout
    assert "files that git does not track" in done.stderr
    assert done.returncode == 1, "the second one failed"
    assert len(git(clone, "worktree", "list").splitlines()) == 1
    assert not git(clone, "status", "--porcelain", "--untracked-files=no")


@pytest.mark.parametrize(
    ("revision", "message"),
    [("f" * 40, "which the repository"), ("f" * 40 + "+changes", "code that was never committed"), ("unknown", "by no commit")],
)
def test_rebuild__without_the_code_says_which_revision_is_needed(chain: Chain, revision: str, message: str) -> None:
    version = relabelled(chain.version, code="0" * 16, revision=revision)
    with pytest.raises(EvergreenError, match=message) as raised:
        rebuild.rebuild(version)
    assert revision in str(raised.value)
    assert f"code {'0' * 16}, here {code_digest()}" in str(raised.value)


def test_rebuild__names_libraries_that_are_not_as_then() -> None:
    then = {"libraries": json.dumps(rebuild.lineage.libraries() | {"numpy": "1.0"}), "features": "a" * 64}
    found = rebuild._differences(then, {"features": "b" * 64})
    assert found[0].startswith("feature set bbbbbbbbbbbb, then aaaaaaaaaaaa")
    assert [f for f in found[1:] if f.startswith("numpy ") and f.endswith(", then 1.0")] == found[1:]


def test_verify__finds_a_changed_file(chain: Chain, tmp_path: Path) -> None:
    root = snapshots.restore(chain.plan.snapshot, tmp_path / "own" / "raw")
    snapshots.verify(chain.plan.snapshot, root)
    file = sorted(root.rglob("*.parquet"))[0]
    content = file.read_bytes()
    file.unlink()  # it may be a link into the cache
    file.write_bytes(content + b" ")
    with pytest.raises(SnapshotError, match=chain.plan.snapshot.digest):
        snapshots.verify(chain.plan.snapshot, root)


LINKS = ("raw days", "features", "search", "twin", "gate", "refit", "package", "registry", "released", "served", "online", "batch",
         "quality", "rebuilt")  # fmt: skip


def test_lineage__of_a_version_that_was_never_released_says_so(chain: Chain) -> None:
    version = relabelled(chain.version, trigger="nobody")
    code, output = in_process("lineage", version)
    assert code == 0
    for sentence in (
        "never released",
        "never served",
        "no answers",
        "never monitored",
        "never rebuilt",
        "no decision in this ledger",
    ):
        assert sentence in output


def test_lineage__has_every_link(chain: Chain) -> None:
    number, plan = chain.version.version, chain.plan
    later, week = AS_OF + timedelta(days=3), Window(start="2013-01-17", end="2013-01-19")
    steps.promote(chain.version.model_copy(update={"verdict": "promote"}), AS_OF)
    scored = steps.score(week, later)
    steps.decide(steps.monitor(week.end, later))
    answers = log.PredictionLog(log.folder())
    moment = datetime(2013, 1, 18, 12)
    entry = log.Entry("UA-1-EWR-20130118T1200", moment, moment, moment, number, 0.2, [], "r", None, {})
    answers.append([entry, entry])
    answers.close()

    found = lineage.collect(f"v{number}")
    assert found["raw"]["digest"] == plan.snapshot.digest
    assert found["features"]["rows"] == chain.features.rows
    assert found["features"]["window"] == str(Window(start=plan.train.start, end=plan.holdout.end))
    assert found["search"]["trials"] == Artifacts.load(chain.shipped.twin).winner.trials
    assert found["twin"]["holdout"] == str(plan.holdout)
    assert [check["name"] for check in found["gate"]["failed"]] == [
        check.name for check in chain.evaluation.decision.checks if not check.passed
    ]
    assert found["refit"]["verdict"] == chain.shipped.decision.verdict
    assert found["package"]["bundle"] == chain.bundle.digest
    assert found["registry"]["run_id"] == chain.version.run_id
    assert [release["as_of"] for release in found["releases"]] == [AS_OF]
    assert [(span["from"], span["until"]) for span in found["served"]] == [(AS_OF, None)]
    assert found["answers"]["online"] == {"count": 2, "flagged": 0, "first": moment, "last": moment}
    assert (found["answers"]["batch"]["count"], found["answers"]["batch"]["days"]) == (scored.rows, 2)
    assert found["quality"][0]["matured"] > 500

    code, output = in_process("lineage", number)
    assert code == 0
    lines = output.splitlines()
    assert [line[3:14].strip() for line in lines[1:] if line[0] in "├└"] == list(LINKS)
    assert "never released" not in output
    assert max(len(line) for line in lines) < 400
    code, output = in_process("lineage", number, "--json")
    assert json.loads(output) == json.loads(json.dumps(found, default=str))


@pytest.mark.parametrize("command", ["rebuild", "lineage"])
@pytest.mark.parametrize("version", ["9999", "newest"])
def test_command__for_an_unknown_version_names_those_that_exist(chain: Chain, command: str, version: str) -> None:
    function = rebuild.rebuild if command == "rebuild" else lineage.collect
    with pytest.raises(NotFoundError, match=rf"(?s){version}.*one of: .*{chain.version.version}"):
        function(version)


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def replaced(text: str, found: str, put: str) -> str:
    assert found in text
    return text.replace(found, put)
