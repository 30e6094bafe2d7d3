"""The commands that change what serves: what they print, exit codes, and how to undo."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest
from typer.testing import CliRunner

from ml import cli
from ml.errors import ConfigError
from ml.refs import VersionRef
from ml.serving import manifest, release

AS_OF = datetime(2013, 4, 1, 3)


def evergreen(*arguments: str) -> str:
    outcome = CliRunner().invoke(cli.app, list(arguments))
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.output


@pytest.fixture
def versions(register: Callable[..., VersionRef]) -> list[VersionRef]:
    """Version 1 served, version 2 serves, version 3 is registered."""
    made = [register() for _ in range(3)]
    release.promote(made[0], AS_OF)
    release.note(made[1], AS_OF, 0.0, release.SKIPPED, "a test needs it")
    release.promote(made[1], AS_OF)
    return made


def test_rollback__says_what_serves_and_how_to_undo(versions: list[VersionRef]) -> None:
    said = evergreen("rollback", "--reason", "complaints", "--by", "anna")
    assert "version 1 serves all now (manifest 3)" in said
    assert "undo: evergreen rollback --to 2" in said
    again = evergreen("rollback")
    assert "nothing changed: version 1 serves all since manifest 3 (complaints)" in again
    assert "undo: evergreen rollback --to 2" in again
    assert "version 2 serves all now (manifest 4)" in evergreen("rollback", "--to", "2")
    now = manifest.current()
    assert now is not None and now.reason == "rolled back by hand"


def test_rollback__of_a_canary__says_that_the_champion_stays(versions: list[VersionRef]) -> None:
    release.expose(versions[2], AS_OF, 0.05)
    said = evergreen("rollback")
    assert "version 2 serves all now (manifest 4)" in said
    assert "undo: release version 3 again" in said


def test_experiment__from_start_to_stop(versions: list[VersionRef]) -> None:
    asked = ("--arm", "treatment=3", "--share", "0.2", "--metric", "log_loss", "--minimum-effect", "0.01", "--per-day", "850")
    start = ("experiment", "start", "trees", *asked, "--sd", "0.6", "--by", "anna")
    assert "log_loss: a difference of 0.01 shows after" in evergreen(*start, "--forecast")
    assert manifest.current_version() == 2, "a forecast starts nothing"
    said = evergreen(*start)
    assert "control = version 2, treatment = version 3; 20% of entities (manifest 3)" in said
    assert "days of traffic" in said
    status = evergreen("experiment", "status")
    assert "treatment" in status and "running" in status
    stopped = evergreen("experiment", "stop", "--adopt", "treatment")
    assert "version 3 serves all (manifest 4): experiment trees: arm treatment adopted" in stopped
    assert "undo: evergreen rollback --to 2" in stopped


@pytest.mark.parametrize("arms", [["treatment"], ["=3"], ["a=3", "a=1"]])
def test_experiment__arms_that_are_none__refused(versions: list[VersionRef], arms: list[str]) -> None:
    given = [word for arm in arms for word in ("--arm", arm)]
    with pytest.raises(ConfigError, match="give each arm a name of its own"):
        evergreen("experiment", "start", "trees", *given, "--share", "0.2", "--minimum-effect", "0.01")
