"""The loop's metrics: what the ledger and the newest day say, whenever and by whomever they are asked."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from ml import ledger
from ml.monitoring import exporter, requests
from ml.settings import ROOT
from ops import environment, history
from ops.ports import free_port

DAYS, VERSIONS = 30, 6


@pytest.fixture
def past(workspace: Path) -> None:
    history.make(DAYS, VERSIONS)


def scraped(loop: exporter.Loop) -> dict[tuple[str, ...], float]:
    """(name, label values…) → value."""
    return {
        (sample.name.removeprefix("evergreen_"), *sample.labels.values()): sample.value
        for family in loop.collect()
        for sample in family.samples
    }


@pytest.mark.usefixtures("workspace")
def test_scrape__nothing_happened_yet__makes_nothing_up() -> None:
    found = scraped(exporter.Loop())
    assert {name for name, *_ in found} == {
        "schedule_active", "ledger_entries", "policy_held", "disk_free_bytes", "disk_size_bytes", "airflow_healthy",
        "model_stale_seconds",
    }  # fmt: skip


@pytest.mark.usefixtures("past")
def test_scrape__adds_up_the_whole_ledger() -> None:
    found = scraped(exporter.Loop())
    assert found["runs_total", "train", "success", "schedule"] == DAYS
    assert found["step_cpu_seconds_total", "train", "fit"] == 8.0 * DAYS
    assert found["step_peak_bytes", "train", "fit"] == 400_000_000
    assert found["compute_cost_total", "score"] == pytest.approx(8.0 * DAYS * 0.04 / 3600)
    assert (found["rows_landed_total", "flights"], found["rows_quarantined_total", "flights"]) == (900 * DAYS - 3, 3)
    assert found["decisions_total", "gate", "promote", "none"] == VERSIONS - 1
    assert found["decisions_total", "gate", "keep", "untouched_holdout"] == 1
    assert found["decisions_total", "retrain", "retrain", "harm"] == DAYS // 7
    assert found["decisions_total", "retrain", "keep", "no_cause"] == DAYS - DAYS // 7


@pytest.mark.usefixtures("past")
def test_scrape__how_things_stand() -> None:
    found, end = scraped(exporter.Loop()), datetime(2013, 1, 1) + timedelta(days=DAYS)
    assert found["data_until_timestamp_seconds",] == exporter._unix(end)
    assert found["data_age_seconds",] == 5 * 3600, "the source has ended: the present is the last look, at five"
    assert found["model_share", "champion", str(VERSIONS)] == 1.0
    assert found["model_trained_data_timestamp_seconds",] == exporter._unix(datetime(2013, 1, 27, 3))
    assert found["policy_phase", "healthy"] + found["policy_phase", "retraining"] == 1
    assert found["watched_day_data_timestamp_seconds",] == exporter._unix(end - timedelta(days=1))
    assert len([name for name, *_ in found if name == "drift_psi"]) == history.FEATURES
    assert found["data_check_passed", "leak"] == 1


@pytest.mark.usefixtures("past")
def test_scrape__again_and_anew__is_the_same() -> None:
    loop = exporter.Loop()
    first = scraped(loop)
    requests.give("hold", "anna", "new codes", datetime(2013, 2, 1))
    again, anew = scraped(loop), scraped(exporter.Loop())
    changed = {name for name in first if again[name] != first[name] and not name[0].startswith("disk")}
    assert changed == {("ledger_entries",), ("policy_held",), ("data_age_seconds",), ("model_age_seconds",)}
    assert {k: v for k, v in again.items() if "disk" not in k[0]} == {k: v for k, v in anew.items() if "disk" not in k[0]}


@pytest.mark.usefixtures("past")
def test_scrape__an_older_day_looked_at_later__changes_no_state() -> None:
    loop = exporter.Loop()
    before = scraped(loop)["watched_day_data_timestamp_seconds",]
    (old, *_) = ledger.entries("retrain")
    ledger.record("retrain", "again", old.as_of, old.subject, "keep", "no cause: looked again", old.evidence)
    assert scraped(loop)["watched_day_data_timestamp_seconds",] == before


@pytest.mark.usefixtures("past")
def test_scrape__days_do_not_add_series() -> None:
    """Labels are bounded: by DAGs, steps, tables, features and reasons, not by days, runs or versions."""
    loop = exporter.Loop()
    short = {name for name in scraped(loop) if name[0] != "model_share"}
    connection: sa.Connection
    with ledger.locked(ledger.engine()) as connection:
        maker = history.Maker(connection, 1, 1, start=date(2013, 3, 1))
        maker.documents = [*maker.documents]
        maker._snapshot(900, datetime(2013, 3, 2, 2))
        maker._runs(datetime(2013, 3, 2, 2))
    assert {name for name in scraped(loop) if name[0] != "model_share"} == short


@pytest.fixture
def served(past: None) -> Iterator[str]:
    port = free_port()
    env = environment.common() | {"EVERGREEN_EXPORTER_PORT": str(port)}
    command = [sys.executable, "-c", "from ml.cli import main; main()", "exporter"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert f"127.0.0.1:{port}/metrics" in process.stderr.readline()
    yield f"http://127.0.0.1:{port}/metrics"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_exporter__over_http__is_prometheus_text(served: str) -> None:
    text = urllib.request.urlopen(served, timeout=20).read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["evergreen_runs"].type == "counter"
    assert families["evergreen_drift_psi"].type == "gauge"
    assert all(family.documentation for family in families.values())


def test_exporter__ledger_does_not_answer__the_scrape_fails(served: str, workspace: Path) -> None:
    ledger.engine().dispose()
    (workspace / "var" / "ledger.db").unlink()
    (workspace / "var" / "ledger.db").mkdir()
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(served, timeout=20)
