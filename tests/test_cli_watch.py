"""`evergreen policy`: what a person says is in the ledger, and what the policy thinks is on the screen."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ml import ledger
from ml.cli import app
from ml.errors import ConfigError
from ml.monitoring import requests
from tests.monitoring.test_policy import START, seen

pytestmark = pytest.mark.usefixtures("workspace")
RUN = CliRunner()
AT = f"{START:%Y-%m-%dT%H:%M:%S}"


def said(*arguments: str) -> str:
    done = RUN.invoke(app, ["policy", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_orders__go_to_the_ledger_and_say_what_follows() -> None:
    told = said("hold", "--by", "ada", "--reason", "new airports", "--as-of", AT)
    assert told == f"hold at {START} by ada: no retrain is asked for until `evergreen policy resume`\n"
    assert "decides by itself" in said("resume", "--by", "ada", "--reason", "done", "--as-of", AT)
    assert "asks for a retrain" in said("force", "--by", "ada", "--reason", "labels were mended", "--as-of", AT)
    assert [(e.kind, e.verdict, e.reason) for e in ledger.entries()] == [
        ("order", "hold", "ada: new airports"), ("order", "resume", "ada: done"), ("order", "force", "ada: labels were mended"),
    ]  # fmt: skip


def test_orders__without_a_reason__refused() -> None:
    with pytest.raises(ConfigError, match="hold without a reason"):
        RUN.invoke(app, ["policy", "hold", "--by", "ada"], catch_exceptions=False)
    assert ledger.entries() == []


def test_status__before_the_first_day_and_after_it() -> None:
    assert "no day was watched yet" in said("status", "--as-of", AT)
    said("hold", "--by", "ada", "--reason", "new airports", "--as-of", AT)
    step = requests.advance(seen(0, "...xx"))
    requests.record(step, START.date(), "schedule", {})
    told = said("status", "--as-of", AT).splitlines()
    assert told[0] == f"frozen since {START:%Y-%m-%d %H:%M}"
    assert told[1].startswith("last decision: wait: hold: ada holds retrains")
    assert any(line.strip().startswith("–  hold:") for line in told)
    assert told[-2] == "no retrain is allowed until that ends"
    assert told[-1].endswith("hold by ada: new airports")
