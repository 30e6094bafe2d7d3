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

from ml import cli, ledger, steps, store, tracking
from ml.config import load_params
from ml.data import snapshots
from ml.errors import EvergreenError, NotFoundError, SnapshotError
from ml.monitoring import lineage
from ml.packaging import rebuild, refit
from ml.packaging.artifacts import Artifacts
from ml.packaging.lineage import code_digest
from ml.packaging.refit import as_judged
from ml.refs import ShippedRef, VersionRef, Window
from ml.serving import log
from ml.settings import ROOT, settings
from tests.behaviour.chain import AS_OF, SMALL, Chain, landed, relabelled, trained
from tests.conftest import forget


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Chain]:
    with landed(tmp_path_factory.mktemp("rebuild"), parsed_sources, SMALL) as home:
        yield trained(home)


@pytest.fixture(scope="module")
def linear(chain: Chain) -> VersionRef:
    """What ships where the simple model wins: the linear model that was fitted beside the trees."""
    parts = Artifacts.load(chain.model.artifacts).simple("the simple model wins")
    model = steps._stored(parts, chain.plan.train, 0.0, 0.0)
    return chain.register("linear", ShippedRef(model=model, twin=model.artifacts, decision=as_judged("ships as judged")))


def in_process(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(cli.app, list(arguments))
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


@pytest.fixture(scope="module")
def trees(chain: Chain) -> VersionRef:
    """Two members, refitted on all days, under parameters that are not those of the tests."""
    path = chain.home / "ensemble.yaml"
    path.write_text(replaced((chain.home / "params.yaml").read_text(), "ensemble: 1", "ensemble: 2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_PARAMS", str(path))
        forget()
        winner = Artifacts.load(chain.model.artifacts).winner
        model = steps._fitted(refit.window(chain.plan), chain.features, winner)
        decision = as_judged("not asked").model_copy(update={"verdict": "refitted"})
        version = chain.register("ensemble", ShippedRef(model=model, twin=chain.model.artifacts, decision=decision))
    forget()
    assert [member.family for member in Artifacts.load(model.artifacts).fitted.members] == ["xgboost"] * 2
    return version


def test_rebuild__gives_the_registered_graph_from_raw_data_and_recorded_parameters(chain: Chain, trees: VersionRef) -> None:
    tags = tracking.tags(load_params().problem.name, trees.version)
    rows, params_file = Artifacts.load(tags["artifacts"]).fitted.learned.rows, store.get(tags["params_file"])
    assert load_params().train.ensemble == 1, "the present parameters would give another model"
    here, other = settings(), chain.home / "other"
    with pytest.MonkeyPatch.context() as patch:  # a store with nothing in it but the parameters
        patch.setenv("EVERGREEN_VAR", str(other))
        for name in ("ledger", "mlflow", "dvc_remote"):
            patch.setenv(f"EVERGREEN_{name.upper()}", getattr(here, name))
        forget()
        assert store.put(params_file) == tags["params_file"]
        made = rebuild.rebuild(f"v{trees.version}")
    forget()
    assert (made.found, made.equal, made.rows) == (trees.model, True, rows)
    assert (made.tree, made.differences) == ("this tree", [])
    left = {path.name for path in other.rglob("*") if path.is_file()} - {"init.lock"}
    assert left == {tags["params_file"]}, "the child leaves nothing behind"
    assert rebuild.record(made, AS_OF) is False, "the same outcome is one entry"
    (entry,) = ledger.entries("rebuild", subject=f"v{trees.version}")
    assert (entry.verdict, entry.evidence["found"]) == ("equal", trees.model)


def test_rebuild__finds_the_linear_model_under_a_version_that_claims_another_graph(linear: VersionRef) -> None:
    forged = relabelled(linear, model="0" * 64)
    code, output = in_process("rebuild", forged)
    assert code == 1
    assert f"v{forged}: DIFFERENT" in output
    assert f"expected      {'0' * 64}\n  found         {linear.model}" in output, "the linear model is made again, bit by bit"
    assert "nothing that was recorded" in output
    assert [e.verdict for e in ledger.entries("rebuild", subject=f"v{forged}")] == ["different"]


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
    [("f" * 40, "which the repository"), ("e" * 40 + "+changes", "code that was never committed"), ("unknown", "by no commit")],
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
    steps.decide(steps.monitor(week.end, later), "schedule")
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
