"""The command line: one command per step, errors on one screen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml import cli
from ml.settings import ROOT


def evergreen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a real process."""
    command = [sys.executable, "-c", "from ml.cli import main; main()", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)


@pytest.mark.parametrize("name", cli.step_names())
def test_step__has_a_command_whose_help_teaches(name: str) -> None:
    outcome = CliRunner().invoke(cli.app, [name.replace("_", "-"), "--help"])
    assert outcome.exit_code == 0
    assert f"evergreen {name.replace('_', '-')}" in outcome.output


def test_unknown_parameter__is_one_screen_and_exit_code_1(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("folds: 4", "fold: 4"))
    outcome = evergreen("config", EVERGREEN_PARAMS=str(path))
    assert outcome.returncode == 1
    assert "unknown key train.fold = 4" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_missing_reference__names_the_file(workspace: Path) -> None:
    outcome = evergreen("fit", "--refs", str(workspace / "refs"))
    assert outcome.returncode == 1
    assert f"no plan at {workspace}/refs/plan.json" in outcome.stderr


def test_broken_reference__names_the_file(workspace: Path) -> None:
    (workspace / "refs").mkdir()
    (workspace / "refs" / "landing.json").write_text('{"key": 1}')
    outcome = evergreen("validate", "--refs", str(workspace / "refs"))
    assert outcome.returncode == 1
    assert "landing.json is no LandingRef" in outcome.stderr


def test_window__of_no_days_is_refused(workspace: Path) -> None:
    outcome = evergreen("land", "--start", "2013-01-02", "--end", "2013-01-02", "--as-of", "2013-01-03")
    assert outcome.returncode == 1
    assert "--start 2013-01-02 is not before --end 2013-01-02" in outcome.stderr


def test_bench_features__teaches_and_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "ops.bench_features"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "incremental" in shown.stdout
    refused = subprocess.run([*command, "joins"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, "unknown part 'joins'" in refused.stderr) == (2, True)
