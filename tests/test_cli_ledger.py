"""`evergreen ledger`: what was decided by whom, what was in production when, and whether somebody touched it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from ml import chain, ledger
from ml.cli import app
from ml.errors import EvergreenError, NotFoundError
from ml.monitoring import production, requests
from ml.monitoring.policy import Decision, Evidence, State
from ml.monitoring.requests import Step
from ml.serving import manifest
from ml.serving.manifest import Deployed
from ml.settings import ROOT, settings

pytestmark = pytest.mark.usefixtures("workspace")
AS_OF = datetime(2013, 4, 1, 4)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ledger", *arguments])


def said(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def several(workspace: Path) -> list[ledger.Entry]:
    for number, (kind, actor) in enumerate([("gate", "schedule"), ("retrain", "schedule"), ("gate", "cli:anna")], 1):
        with ledger.acting(actor):
            ledger.record(
                kind, f"k{number}", AS_OF + timedelta(days=number), f"v{number}", "keep", f"reason {number}", {"n": number}
            )
    return ledger.entries()


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ("", "123"),
        ("--kind gate", "13"),
        ("--kind gate --kind retrain --last 2", "23"),
        ("--actor schedule", "12"),
        ("--subject v3", "3"),
        ("--since 2013-04-03T04:00:00", "23"),
        ("--until 2013-04-03T04:00:00 --last 1", "2"),
        ("--kind order", ""),
    ],
)
def test_show__filters__oldest_first(options: str, numbers: str) -> None:
    assert [line.split()[-1] for line in said("show", *options.split()).splitlines()] == list(numbers)


@pytest.mark.usefixtures("several")
def test_show__names_who_and_why() -> None:
    assert said("show", "--last", "1").split() == ["2013-04-04", "04:00", "gate", "v3", "keep", "cli:anna", "reason", "3"]


def test_show__as_json_has_everything(several: list[ledger.Entry]) -> None:
    lines = [json.loads(line) for line in said("show", "--json").splitlines()]
    assert [(line["id"], line["actor"], line["digest"], line["evidence"]) for line in lines] == [
        (entry.id, entry.actor, entry.digest, entry.evidence) for entry in several
    ]
    assert lines[0]["as_of"] == "2013-04-02T04:00:00"


def test_verify__says_how_many_hold_and_the_head(several: list[ledger.Entry]) -> None:
    assert said("verify") == f"3 entries hold\nhead {several[-1].digest}\n"
    assert said("verify", "--head", several[0].digest)


def test_verify__of_a_ledger_that_was_touched__names_the_first_bad_entry(several: list[ledger.Entry]) -> None:
    with ledger.engine().begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
        connection.exec_driver_sql("UPDATE ledger SET verdict = 'promote' WHERE id = 2")
    done = run("verify")
    assert done.exit_code == 1
    assert done.output.startswith("entry 2 (k2): content edited: ")
    assert f"1 entries before it hold\nhead {several[0].digest}" in done.output


def test_verify__whose_end_was_cut_off__exits_with_1(several: list[ledger.Entry]) -> None:
    with ledger.engine().begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_delete")
        connection.exec_driver_sql("DELETE FROM ledger WHERE id = 3")
    assert run("verify").exit_code == 0
    done = run("verify", "--head", several[-1].digest)
    assert (done.exit_code, "after entry 2: end cut off" in done.output) == (1, True), done.output


def test_verify__against_what_is_no_digest__says_so() -> None:
    with pytest.raises(EvergreenError, match="--head 12 is no digest"):
        CliRunner().invoke(app, ["ledger", "verify", "--head", "12"], catch_exceptions=False)


def test_command__is_noted_with_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "anna")
    order = ["policy", "hold", "--by", "ada", "--reason", "why", "--as-of", "2013-04-01T04:00:00"]
    assert CliRunner().invoke(app, order).exit_code == 0
    assert [entry.actor for entry in ledger.entries()] == ["cli:anna"]


# ---- what was in production


def deployed(version: str) -> Deployed:
    return Deployed(version=version, bundle=f"b{version}", model=f"m{version}")


def _recorded() -> datetime:
    return ledger.query(limit=1)[0].recorded_at


def _watched(phase: str) -> None:
    """A day that the policy looked at, as its step writes it."""
    seen = Evidence(
        as_of=AS_OF, version="1", harmed={}, proven=False, new_labels=1, age_days=1, broken=[], outcomes=[], orders=[]
    )
    state = State(phase=phase)  # type: ignore[arg-type]
    decision = Decision(kind="retrain", verdict="keep", reason="no cause", checks=[])
    requests.record(Step(seen, State(), state, decision), AS_OF.date(), "schedule", {"phase": phase})


@pytest.fixture
def history(workspace: Path) -> dict[str, datetime]:
    """A year in short: by name of an event, the moment at which it was written."""
    moments = {}
    with ledger.acting("manual:admin"):
        manifest.promote(deployed("1"), AS_OF, "release", "first model", "p1")
        moments["first"] = _recorded()
        manifest.change("c2", AS_OF, "canary", "canary of version 2", canary=deployed("2"), canary_share=0.25)
        moments["canary"] = _recorded()
    _watched("suspect")
    moments["watched"] = _recorded()
    with ledger.acting("cli:anna"):
        requests.give("hold", "anna", "new airports", AS_OF)
        moments["hold"] = _recorded()
        manifest.promote(deployed("2"), AS_OF, "release", "it passed", "p2")
        moments["second"] = _recorded()
        requests.give("resume", "anna", "done", AS_OF)
        moments["resume"] = _recorded()
    return moments


def test_at__between_two_changes__is_what_was_true_then(history: dict[str, datetime]) -> None:
    found = production.at(history["watched"])
    assert found.document.champion == deployed("1")
    assert (found.document.canary, found.document.canary_share, found.document.version) == (deployed("2"), 0.25, 2)
    assert (found.champion_since, found.changed) == (history["first"], history["canary"])
    assert (found.actor, found.document.by, found.document.reason) == ("manual:admin", "canary", "canary of version 2")
    assert (found.state.phase, found.looked, found.holds) == ("suspect", history["watched"], False)


def test_at__a_moment_before__is_the_state_before(history: dict[str, datetime]) -> None:
    found = production.at(history["canary"] - timedelta(microseconds=1))
    assert (found.document.version, found.document.canary, found.looked) == (1, None, None)


def test_at__hold_and_resume(history: dict[str, datetime]) -> None:
    assert production.at(history["second"]).holds
    after = production.at(history["resume"])
    assert not after.holds
    assert (after.document.champion, after.champion_since) == (deployed("2"), history["second"])


def test_at__a_champion_that_came_back__serves_since_then_only(history: dict[str, datetime]) -> None:
    manifest.promote(deployed("1"), AS_OF, "release", "back", "p3")
    found = production.at(_recorded())
    assert (found.document.champion, found.champion_since) == (deployed("1"), _recorded())


def test_at__before_anything_served__says_from_when_on(history: dict[str, datetime]) -> None:
    with pytest.raises(NotFoundError, match=f"nothing served at .*\n.*from {history['first']:%Y-%m-%d %H:%M:%S} UTC on"):
        production.at(history["first"] - timedelta(seconds=1))


def test_at__of_another_name_is_not_ours(history: dict[str, datetime]) -> None:
    manifest.promote(deployed("7"), AS_OF, "release", "another model", "p7", name="other")
    assert production.at(_recorded()).document.champion == deployed("2")


def test_at__on_the_screen(history: dict[str, datetime]) -> None:
    shown = said("at", f"{history['hold'] + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}")
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert "version 2" in lines["champion"]
    assert lines["manifest"].endswith("by release (cli:anna): it passed")
    assert "suspect" in lines["policy"]


def test_manifest__and_its_entry_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(chain, "digest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            manifest.promote(deployed("1"), AS_OF, "release", "first model", "p1")
    assert (manifest.current(), ledger.entries()) == (None, [])
    manifest.promote(deployed("1"), AS_OF, "release", "first model", "p1")
    manifest.promote(deployed("1"), AS_OF, "release", "first model", "p1")
    (entry,) = ledger.entries("manifest")
    assert (entry.subject, entry.verdict, entry.evidence["version"]) == ("v1", "published", 1)


def test_main__exits_with_1_and_the_cure(tmp_path: Path) -> None:
    with sa.create_engine(settings().ledger).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE ledger (id INTEGER PRIMARY KEY)")
    command = [sys.executable, "-c", "from ml.cli import main; main()", "ledger", "show"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "earlier layout" in done.stderr
    assert "→" in done.stderr
