"""What the pages gather, on histories of real shape in a real ledger and store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml import ledger, store
from ml.errors import ConfigError, NotFoundError
from ml.monitoring import requests
from ml.pages import dates, drift, journal, lines, models, overview, pictures, runs, spans, timeline
from ml.refs import run_key
from ml.serving import manifest
from ml.settings import ROOT, settings
from ops import history

COLLECTORS: dict[str, Callable[[], object]] = {
    "overview": overview.collect,
    "summary": overview.summary,
    "timeline": lambda: timeline.collect(0),
    "models": models.collect,
    "candidate": lambda: models.candidate("2"),
    "heat": lambda: drift.heat_map(400, None, whole=True),
    "feature": lambda: drift.feature("feature_07", None),
    "dates": lambda: dates.days(ledger.data_now()),
    "journal": journal.collect,
    "entry": lambda: journal.entry(9),
    "production": lambda: journal.production(ledger.data_now()),
    "run": lambda: runs.newest("drift"),
}


@contextmanager
def counted() -> Iterator[list[str]]:
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    made = ledger.engine()
    sa.event.listen(made, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        sa.event.remove(made, "before_cursor_execute", count)


def queries() -> dict[str, int]:
    found = {}
    for name, collect in COLLECTORS.items():
        with counted() as statements:
            collect()
        found[name] = len(statements)
    return found


def test_collectors__take_as_many_queries_after_a_year_as_after_ten_days(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import forget

    history.make(10, 4)
    few = queries()
    monkeypatch.setenv("EVERGREEN_VAR", str(workspace / "year"))
    monkeypatch.setenv("EVERGREEN_DATA", str(workspace / "year-data"))
    forget()
    history.make(365, 60)
    assert queries() == few
    assert max(few.values()) <= 6


@pytest.mark.parametrize("collect", [n for n in COLLECTORS if n not in ("candidate", "feature", "entry")])
def test_collectors__on_an_empty_place_show_nothing_and_do_not_fail(workspace: Path, collect: str) -> None:
    assert COLLECTORS[collect]() is not None


@pytest.mark.parametrize("collect", ["candidate", "feature", "entry"])
def test_collectors__of_one_thing_say_that_it_is_not_there(workspace: Path, collect: str) -> None:
    with pytest.raises(NotFoundError):
        COLLECTORS[collect]()


def test_overview__says_what_serves_and_since_when(workspace: Path) -> None:
    history.make(40, 10)
    told, now = overview.collect(), manifest.current()
    assert now is not None
    assert now.champion is not None
    assert told["serving"]["version"] == now.champion.version
    assert told["serving"]["since"] == now.changed_at
    # `history` lets each model be 4.2 days old at its look, which is the newest entry
    assert told["serving"]["age_days"] == pytest.approx(4.2)
    assert told["policy"]["phase"] == "healthy"  # 40 days: the last one that asked was the 35th
    assert len(told["decisions"]) == overview.DECISIONS
    assert [line.id for line in told["decisions"]] == sorted((line.id for line in told["decisions"]), reverse=True)
    assert len(told["weeks"]) == 6  # 40 days from Tuesday, 1 January 2013


def test_overview__shows_an_order_before_the_policy_has_met_it(workspace: Path) -> None:
    history.make(10, 2)
    assert overview.collect()["waiting"] == []
    requests.give("hold", "anna", "codes change", ledger.data_now() + timedelta(hours=1))
    told = overview.collect()
    assert told["policy"]["hold"].by == "anna"
    assert "codes change" in told["waiting"][0]["what"]
    requests.give("resume", "anna", "done", ledger.data_now() + timedelta(hours=2))
    told = overview.collect()
    assert told["policy"]["hold"] is None
    assert told["waiting"] == []


def test_spans__of_a_history_follow_one_another_and_know_a_rollback(workspace: Path) -> None:
    history.make(200, 60)
    found = spans.spans(manifest.history())
    assert all(a.until == b.since for a, b in pairwise(found))
    assert found[-1].until is None
    rollbacks = [document for document in manifest.history() if document.key.startswith("rollback-")]
    assert rollbacks
    assert [span.manifest for span in found if span.again] == [document.version for document in rollbacks]


def test_production__at_a_moment_is_the_version_that_served_then(workspace: Path) -> None:
    history.make(40, 10)
    found = spans.spans(manifest.history())
    for span in found:
        assert journal.production(span.since)["champion"].version == span.version
    middle = found[1]
    assert journal.production(middle.since - timedelta(seconds=1))["champion"].version == found[0].version
    assert journal.production(found[0].since - timedelta(days=1))["champion"] is None


def test_timeline__draws_every_mark_and_gives_the_same_as_a_table(workspace: Path) -> None:
    history.make(60, 20)
    told = timeline.collect(0)
    picture = str(told["losses"])
    begun = spans.spans(manifest.history())
    assert picture.count('class="mark soft"') + picture.count('class="mark bad" d="M') >= len(begun)
    asked = [entry for entry in ledger.entries("retrain") if entry.verdict == "retrain"]
    assert picture.count("retrain asked for") == len(asked)
    by_day = {row["day"]: row for row in told["rows"]}
    for entry in ledger.entries("retrain"):
        realised = entry.evidence["line"]["realised"]
        assert by_day[realised["day"]]["loss"] == realised["log_loss"]
        assert by_day[realised["day"]]["auc"] == realised["auc"]
    assert {span.version for row in told["rows"] for span in row["begun"]} == {span.version for span in begun}


def test_timeline__of_thirty_days_leaves_older_days_out(workspace: Path) -> None:
    history.make(60, 20)
    oldest = min(row["day"] for row in timeline.collect(30)["rows"] if row["verdict"])
    assert date.fromisoformat(oldest) >= (ledger.data_now() - timedelta(days=31)).date()


def test_watched__a_backfill_does_not_replace_what_was_seen_on_the_day(workspace: Path) -> None:
    history.make(10, 2)
    entry = ledger.entries("retrain")[4]
    line = entry.evidence["line"] | {"verdict": "reported", "text": "backfill"}
    ledger.record("retrain", "late", entry.as_of, entry.subject, "reported", "backfill", {"line": line})
    by_day = {one["day"]: one for one in lines.watched()}
    assert by_day[line["day"]]["text"] == entry.evidence["line"]["text"]
    assert by_day[line["day"]]["backfill"] is False


def test_candidate__stands_beside_the_champion_it_was_judged_against(workspace: Path) -> None:
    history.make(40, 10)
    told = models.candidate("3")
    assert told["rival"] == "2"
    mine, other = (next(iter(ledger.entries("gate", subject=f"v{n}"))).evidence["decision"]["checks"] for n in (3, 2))
    assert {row["name"]: row["value"] for row in told["table"]} == {check["name"]: check["value"] for check in mine}
    assert {row["name"]: row["beside"]["value"] for row in told["table"]} == {check["name"]: check["value"] for check in other}
    assert told["contenders"] == ["candidate", "champion", "linear", "climatology"]
    assert told["deployed"]["there"] is True
    assert told["run"].endswith(f"/#/runs/{ledger.entries('gate', subject='v3')[0].evidence['run_id']}")


def test_candidate__shows_failed_checks_first(workspace: Path) -> None:
    history.make(40, 10)
    told = models.candidate("5")  # `history` rejects each fifth
    assert told["gate"].verdict == "keep"
    assert [row["passed"] for row in told["table"]][:2] == [False, True]
    assert told["served"] == []


def test_heat_map__has_a_column_for_each_day_and_the_figures_of_its_document(workspace: Path) -> None:
    history.make(20, 4)
    told = drift.heat_map(7, None, whole=True)
    looks = lines.watched()
    assert told["columns"] == [look["day"] for look in looks[-7:]] or told["columns"] == [look["day"] for look in looks[-6:]]
    document = json.loads(store.get(looks[-1]["report"]))
    last = {row["name"]: row["cells"][-1] for row in told["rows"]}
    for one in document["drifts"]:
        assert (last[one["name"]].psi, last[one["name"]].verdict) == (one["psi"], one["verdict"])
    assert "prediction" in last


def test_heat_map__without_a_document_leaves_the_day_empty(workspace: Path) -> None:
    history.make(10, 2)
    gone = lines.watched()[-1]["report"]
    drift._movement.cache_clear()
    (Path(settings().store) / gone[:2] / gone).unlink()
    told = drift.heat_map(5, None, whole=False)
    assert all(row["cells"][-1] is None for row in told["rows"])
    assert any(row["cells"][-2] is not None for row in told["rows"])


def test_feature__has_the_distributions_of_the_day(workspace: Path) -> None:
    history.make(10, 2)
    day = lines.watched()[3]["day"]
    told = drift.feature("feature_07", day)
    document = json.loads(store.get(lines.watched()[3]["report"]))
    one = next(one for one in document["drifts"] if one["name"] == "feature_07")
    assert told["day"] == day
    assert [bin["window"] for bin in told["bins"]] == pytest.approx([n / sum(one["window"]) for n in one["window"]])
    # edges 0 … 18 of `history`'s bundles: a value on an edge is in the bin below it
    assert [told["bins"][i]["label"] for i in (0, 1, -1)] == ["≤ 0", "0 – 1", "> 18"]
    assert str(told["picture"]).count("<rect") == len(one["window"])


def test_distribution__escapes_what_it_is_given() -> None:
    picture = pictures.distribution([1, 2], [2, 1], ["<script>alert(1)</script>", "b"], '"><script>')
    assert "<script" not in picture


def test_dates__missing_quarantined_and_scored_days_are_told_apart(workspace: Path) -> None:
    history.make(70, 2)
    found = dates.days(ledger.data_now())
    by_number = dict(enumerate(found))
    assert by_number[60].status == "missing"  # `history` leaves day 60 out, refuses rows of day 59, and does not score each 29th
    assert by_number[59].status == "quarantined"
    assert by_number[29].status == "landed"
    assert by_number[30].status == "scored"
    assert by_number[30].rows and all(rows == 900 for rows in by_number[30].rows.values())
    reasons = dates.reasons()
    assert [one["rule"] for one in reasons] == ["distance between"]


def test_dates__that_should_have_landed_by_now_are_missing(workspace: Path) -> None:
    history.make(10, 2)
    last = dates.days(ledger.data_now())[-1].day
    found = dates.days(datetime.combine(last + timedelta(days=4), datetime.min.time()))
    assert [day.status for day in found[-3:]] == ["missing"] * 3


def test_weeks__begin_on_mondays(workspace: Path) -> None:
    history.make(10, 2)
    weeks = dates.weeks(dates.days(ledger.data_now()))
    assert all(len(week) == 7 for week in weeks)
    assert all(day.day.weekday() == i for week in weeks for i, day in enumerate(week) if day)


def test_journal__pages_follow_one_another_without_gap_or_repetition(workspace: Path) -> None:
    history.make(30, 5)
    seen, before = [], None
    while True:
        page = journal.collect(before=before)
        seen += [line.id for line in page["lines"]]
        if (before := page["older"]) is None:
            break
    assert seen == [entry.id for entry in reversed(ledger.entries())]


def test_journal__filters_by_kind_subject_and_time(workspace: Path) -> None:
    history.make(30, 5)
    page = journal.collect(kind="gate", subject="v2")
    assert [(line.kind, line.subject) for line in page["lines"]] == [("gate", "v2")]
    as_of = page["lines"][0].as_of
    assert journal.collect(kind="gate", since=as_of, until=as_of)["lines"] == page["lines"]
    assert {"gate", "retrain", "promotion"} <= set(page["kinds"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2013-04-19", datetime(2013, 4, 19)), ("2013-04-19T05:00+02:00", datetime(2013, 4, 19, 3)), (" ", None)],
)
def test_moment__is_utc(text: str, expected: datetime | None) -> None:
    assert journal.moment(text) == expected


def test_moment__that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="yesterday"):
        journal.moment("yesterday")


def test_run__a_training_run_is_found_by_its_key_and_others_by_their_time(workspace: Path) -> None:
    as_of = datetime(2013, 4, 1)
    ledger.record("gate", f"gate-{run_key('train/r1')}", as_of, "v1", "promote", "r", {})
    ledger.record("skew", "skew-1", as_of, "2013-03-31", "equal", "r", {})
    early, late = datetime(2000, 1, 1), datetime(2100, 1, 1)
    assert [line.subject for line in runs.written("train", "r1", late, None)["lines"]] == ["v1"]
    assert runs.written("train", "r2", late, None)["lines"] == []
    assert [line.kind for line in runs.written("drift", "r1", early, None)["lines"]] == ["skew"]
    assert runs.written("drift", "r1", late, None)["lines"] == []
    assert runs.written("drift", "r1", None, None)["lines"] == []
    assert runs.written("somebody_elses", "r1", early, None)["lines"] == []


def test_pages__load_nothing_heavy() -> None:
    code = "import sys, ml.pages.overview, ml.pages.drift, ml.pages.models, ml.pages.runs, ml.pages.journal; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "mlflow", "xgboost", "airflow", "sklearn", "scipy", "pyarrow"} & set(loaded)
