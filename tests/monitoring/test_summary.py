"""The week in one page: what of the ledger is in it, and that a figure that is not known is left out."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from ml import ledger, steps, store
from ml.config import Costs
from ml.monitoring import requests, summary
from ml.monitoring.summary import Summary
from ops import history

COSTS = Costs(currency="EUR", cpu_hour=0.5, business_unit=2.0)
END = date(2013, 1, 31)
CURVE = {"thresholds": [0.0, 0.3, 1.0], "costs": [0.9, 0.4, 0.6], "threshold": 0.3, "cost": 0.4, "n": 1000}


@pytest.fixture
def past(workspace: Path) -> list[ledger.Entry]:
    history.make(30, 6)
    return ledger.entries()


def week(entries: list[ledger.Entry], **document: object) -> Summary:
    return summary.summarise(entries, document, summary.week_before(END), "flights", "cost", COSTS)


def test_summary__adds_up_its_own_week_alone(past: list[ledger.Entry]) -> None:
    found = week(past)
    assert (found["start"], found["end"]) == ("2013-01-24", "2013-01-30")
    assert found["landed"] == {"flights": 7 * 900, "weather": 7 * 72}
    assert found["runs"] == 7 * len(history.RUNS)
    assert found["cpu_hours"]["train"] == pytest.approx(7 * 8 * 8.0 / 3600, abs=1e-3)
    assert found["compute"] == pytest.approx(sum(found["cpu_hours"].values()) * 0.5)
    assert found["requests"] == 1
    assert {one["kind"] for one in found["decisions"]} == {"gate", "canary", "promotion"}
    assert (found["failed"], found["broken"], found["quarantined"]) == ([], [], {})


def test_summary__money__beside_deciding_without_a_model(past: list[ledger.Entry]) -> None:
    found = week(past, cost_curve=CURVE, champion="6", overall={"auc": {"value": 0.71}})
    assert found["money"] == {"rows": 1000, "cost": 800.0, "without": 1200.0, "saved": pytest.approx(400.0)}
    assert found["headline"] == (
        "V6 serves; 0.71 auc. 1 retrain asked for, 1 promoted. Nothing went wrong. 400 EUR saved beside deciding without a model."
    )
    lost = week(past, cost_curve=CURVE | {"cost": 0.7})
    assert lost["headline"].endswith("200 EUR lost beside deciding without a model.")


def test_summary__gain_of_a_candidate__is_that_of_its_holdout_by_the_weeks_rows(past: list[ledger.Entry]) -> None:
    (promoted,) = [
        entry for entry in past if entry.kind == "gate" and entry.as_of > datetime(2013, 1, 24) and entry.verdict == "promote"
    ]
    figures = promoted.evidence["metrics"]
    (gain,) = week(past, cost_curve=CURVE)["gains"]
    assert gain["row"] == pytest.approx(2 * (figures["champion_cost"] - figures["candidate_cost"]))
    assert gain["week"] == pytest.approx(gain["row"] * 1000)
    assert week(past)["gains"][0]["week"] is None


def test_summary__what_went_wrong_is_told(past: list[ledger.Entry]) -> None:
    at = datetime(2013, 1, 28, 2)
    ledger.record("run", "r", at, "ingest", "failed", "land failed: the source did not answer", {"seconds": 1.0, "costs": {}})
    rows = {"rows": {"flights": 890}, "quarantined": {"flights": 10}, "broken": ["flights: not null"]}
    ledger.record("landing", "l", at, "day", "quarantined", "10 rows", rows)
    found = week(ledger.entries())
    assert found["failed"] == [{"dag": "ingest", "at": "2013-01-28 02:00", "why": "land failed: the source did not answer"}]
    assert found["quarantined"] == {"flights": 10}
    assert "1 thing went wrong" in found["headline"]


def test_summary__nothing_known_yet() -> None:
    found = week([])
    assert (found["money"], found["quality"], found["gains"], found["runs"]) == (None, {}, [], 0)
    assert found["headline"] == "Nothing serves. 0 retrains asked for. Nothing went wrong."
    assert b"No labels have matured yet" in summary.render(found)


def test_page__escapes_what_people_wrote(past: list[ledger.Entry]) -> None:
    requests.give("hold", "<script>alert(1)</script>", "why", datetime(2013, 1, 28))
    page = summary.render(week(ledger.entries(), cost_curve=CURVE)).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "saved 400 EUR" in page


def test_step__writes_the_page_for_people_and_to_the_store(past: list[ledger.Entry], workspace: Path) -> None:
    written = steps.report(END, datetime(2013, 1, 31, 7))
    again = steps.report(END, datetime(2013, 1, 31, 7))
    assert again == written
    page = (workspace / "var" / "reports" / "2013-01-24.html").read_bytes()
    assert page == store.get(written.page)
    assert written.headline in page.decode()
    assert written.week.end - written.week.start == timedelta(days=7)
