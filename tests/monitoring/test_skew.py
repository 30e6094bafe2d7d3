"""Served features are compared with landed data, to the last bit, and a difference is named."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from ml import ledger, steps
from ml.config import load_params
from ml.data import rows
from ml.errors import NothingToDo, SkewError
from ml.features.assembly import Assembler
from ml.features.online import open_store
from ml.monitoring import skew
from ml.refs import Window
from ml.serving.log import Entry, PredictionLog, folder
from ml.settings import settings

DAY = date(2013, 1, 12)
TICK = datetime(2013, 1, 12, 15)
AS_OF = datetime(2013, 1, 13, 5)


def test_compare__finds_one_bit() -> None:
    served = {"a": {"x": 0.1, "y": None, "z": "UA"}, "b": {"x": 0.2, "y": 1.0, "z": None}}
    assert skew.judge(skew.compare(served, served, 2, {}), 0.0).verdict == "equal"
    again = served | {"b": {"x": math.nextafter(0.2, 1), "y": 1.0, "z": None}}
    report = skew.compare(served, again, 2, {})
    assert (report.compared, report.differing, report.features[0].name) == (6, 1, "x")
    assert report.features[0].examples == [("b", 0.2, math.nextafter(0.2, 1))]
    decision = skew.judge(report, 0.0)
    assert (decision.verdict, decision.checks[0].value, decision.checks[0].n) == ("skewed", 1 / 6, 6)
    assert "x in 1 of 2 rows" in decision.reason
    assert skew.judge(report, 0.2).verdict == "equal"


@pytest.mark.parametrize(("one", "other"), [(None, 0.0), (0.0, None), ("", None), ("UA", "B6")])
def test_compare__missing_equals_only_missing(one: object, other: object) -> None:
    assert skew.compare({"a": {"x": one}}, {"a": {"x": other}}, 1, {}).differing == 1


def test_judge__nothing_to_compare_is_no_good_news() -> None:
    report = skew.compare({"a": {"x": 1.0}}, {}, 7, {"features_stale": 6})
    decision = skew.judge(report, 0.0)
    assert (decision.verdict, decision.passed) == ("unknown", False)
    assert decision.reason == "nothing could be compared: 7 answers, 6 features_stale, 1 sampled rows not landed"


def test_compare__counts_what_the_present_code_does_not_compute() -> None:
    report = skew.compare({"a": {"x": 1.0, "gone": 2.0}}, {"a": {"x": 1.0}}, 1, {})
    assert (report.not_computed, report.compared) == ({"gone": 1}, 1)


@pytest.fixture
def served(workspace: Path) -> list[Entry]:
    """Eleven landed days; what the service would log for the rows that are due at one tick of the twelfth; and then that day too."""
    ingest(Window(start="2013-01-01", end=DAY))
    steps.materialise(TICK)
    params = load_params()
    lead, spec = timedelta(hours=params.problem.lead_hours), params.tables["flights"]
    due = rows.live_rows("flights", TICK + lead, TICK + lead + timedelta(hours=1), TICK)
    requests = due.select([c for c in spec.columns if c not in spec.outcomes]).to_pylist()
    made = Assembler(params).assemble(open_store(settings().online), requests)
    ingest(Window(start=DAY, end=DAY + timedelta(days=1)))
    return [
        Entry(name, at, at - lead, TICK, "1", 0.5, flags, "r", made.tick, features)
        for name, at, flags, features in zip(made.entity_ids, made.event_times, made.flags, made.features, strict=True)
    ]


def ingest(window: Window) -> None:
    as_of = datetime.combine(window.end, datetime.min.time()) + timedelta(hours=2)
    steps.validate(steps.land(window, as_of))
    steps.snapshot(as_of)


def log(entries: list[Entry]) -> None:
    written = PredictionLog(folder())
    written.append(entries)
    written.close()


def changed(entry: Entry, **features: object) -> Entry:
    return Entry(**(vars(entry) | {"features": entry.features | features}))


def test_skew__of_real_answers(served: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    window_end = DAY + timedelta(days=1)
    with pytest.raises(NothingToDo, match="no online answers to rows of 2013-01-12"):
        steps.skew(window_end, AS_OF)
    assert len(served) > 30
    flagged = Entry(**(vars(served[1]) | {"flags": ["features_stale"], "features": {"hour": -1.0}}))
    log([flagged, *served])
    decision = steps.skew(window_end, AS_OF)
    assert (decision.verdict, decision.checks[0].n) == ("equal", len(served) * len(served[0].features))
    assert f"({len(served) + 1} answers, 1 features_stale)" in decision.reason
    assert steps.skew(window_end, AS_OF) == decision
    assert len(ledger.entries("skew")) == 1

    other = served[0].features["origin_mean_24h"]
    unseen = Entry(**(vars(served[0]) | {"entity_id": "XX-1-EWR-20130112T1700", "request_id": "s"}))
    for path in folder().iterdir():
        path.unlink()
    log([changed(served[0], origin_mean_24h=math.nextafter(other, 99), seats=None), *served[1:], unseen])
    with pytest.raises(SkewError, match=rf"origin_mean_24h in 1 of {len(served)} rows") as alert:
        steps.skew(window_end, AS_OF)
    assert "1 sampled rows not landed" in str(alert.value)
    entry = ledger.entries("skew")[-1]
    assert entry.verdict == "skewed"
    named = {f["name"]: f["differing"] for f in entry.evidence["features"]}
    assert named["origin_mean_24h"] == 1


def test_skew__sample_is_the_same_whenever_it_is_taken(served: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    small = params.model_copy(update={"monitoring": params.monitoring.model_copy(update={"skew_sample": 5})})
    monkeypatch.setattr(skew, "load_params", lambda: small)
    log(served[::-1])
    assert steps.skew(DAY + timedelta(days=1), AS_OF).checks[0].n == 5 * len(served[0].features)
    chosen = {json.dumps(e.features) for e in served}
    assert len(chosen) > 5
