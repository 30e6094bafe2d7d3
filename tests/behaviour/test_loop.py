"""The whole loop in one process on real data: two months, few trials; twice the same model; late knowledge stays out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ml import ledger, steps, store, tracking
from ml.config import load_params
from ml.data import rows, snapshots
from ml.errors import EvergreenError, NotFoundError
from ml.features import inputs, stored
from ml.features.assembly import Assembler
from ml.features.online import open_store
from ml.refs import ModelRef, TrainPlan, VersionRef, Window
from ml.serving import manifest
from ml.settings import settings
from tests.behaviour.chain import landed

SMALL = {
    "window_days: 90": "window_days: 28",
    "holdout_days: 14": "holdout_days: 7",
    "folds: 4": "folds: 1",
    "fold_days: 7": "fold_days: 4",
    "max_rounds: 300": "max_rounds: 40",
    "\n  trials: 24": "\n  trials: 2",
    "workers: 2": "workers: 1",
    "rows: 100000": "rows: 5000",
    "min_labels: 500": "min_labels: 100",
}
AS_OF = datetime(2013, 2, 1, 3)
JANUARY = Window(start="2013-01-01", end="2013-02-01")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Path]:
    """A landed January under small parameters, shared by the tests of this file."""
    with landed(tmp_path_factory.mktemp("loop"), parsed_sources, SMALL, JANUARY, AS_OF) as home:
        yield home


def fitted(plan: TrainPlan) -> ModelRef:
    features = steps.features(plan)
    steps.tune(plan, features, 0, 1)
    return steps.fit(plan, features)


@pytest.fixture(scope="module")
def version(home: Path) -> VersionRef:
    return registered(steps.plan(AS_OF, "first model", "manual", "run-1"))


def registered(plan: TrainPlan) -> VersionRef:
    features, model = steps.features(plan), fitted(plan)
    evaluation = steps.evaluate(plan, features, model)
    shipped = steps.refit(plan, features, evaluation)
    return steps.register(plan, features, evaluation, shipped, steps.package(plan, features, shipped))


def test_model__same_data_params_and_seed_give_the_same_digest(home: Path) -> None:
    plan = steps.plan(AS_OF, "once", "manual", "run-a")
    first = fitted(plan)
    shutil.rmtree(settings().var / "studies")
    shutil.rmtree(settings().store)
    assert fitted(steps.plan(AS_OF, "twice", "manual", "run-b")).digest == first.digest


def test_register__twice_is_one_version_with_its_lineage(version: VersionRef) -> None:
    again = registered(steps.plan(AS_OF, "first model", "manual", "run-1"))
    assert again == version
    name = load_params().problem.name
    assert tracking.versions(name) == [version.version]
    tags = tracking.tags(name, version.version)
    assert {"snapshot", "feature_code", "params", "revision", "train", "holdout", "reason", "verdict"} <= set(tags)
    (entry,) = ledger.entries("gate")
    assert [c["name"] for c in entry.evidence["decision"]["checks"]][:2] == ["untouched_holdout", "holdout_days"]


def test_promote__refuses_what_was_not_promoted_by_its_gate(version: VersionRef) -> None:
    for bad in (
        version.model_copy(update={"verdict": "keep"}),
        version.model_copy(update={"verdict": "promote", "backfill": True}),
    ):
        with pytest.raises(EvergreenError, match="release a version that passed its gate"):
            steps.promote(bad, AS_OF)
    assert manifest.current() is None


def test_score__without_a_champion_says_what_to_do(home: Path) -> None:
    with pytest.raises(NotFoundError, match="train and release a model first"):
        steps.score(JANUARY, datetime(2012, 1, 1))


def test_loop__promotes_scores_watches_and_decides(version: VersionRef) -> None:
    released = version.model_copy(update={"verdict": "promote"})  # whatever the gate said of so small a model
    number = steps.promote(released, AS_OF)
    assert steps.promote(released, AS_OF) == number
    assert tracking.get_alias(load_params().problem.name, "champion") == version.version

    later = AS_OF + timedelta(days=7)
    week = Window(start="2013-02-01", end="2013-02-08")
    steps.validate(steps.land(week, later - timedelta(hours=1)))
    steps.snapshot(later - timedelta(hours=1))
    scored = steps.score(week, later)
    assert (len(scored.partitions), scored.version) == (7, version.version)
    folder = settings().var / "predictions" / "batch"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert steps.score(week, later) == scored
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    watched = steps.monitor(later.date(), later)
    assert watched.predictions == scored.rows
    assert 4500 < watched.matured < 6000  # six matured days of about 900
    assert 0.5 < watched.metrics["auc"] < 1
    found = steps.decide(watched, "schedule")
    assert found == steps.decide(watched, "schedule")
    (entry,) = ledger.entries("retrain")
    assert (entry.verdict, entry.reason) == (found.decision.verdict, found.decision.reason)
    reported = steps.decide(watched, "backfill")
    assert (reported.decision.verdict, reported.request) == ("reported", "")
    assert f"champion {version.version}: Reported only: AUC" in reported.note
    assert "asks for nothing; it would say retrain: stale" in reported.note
    assert (found.decision.verdict, found.phase) == ("retrain", "retraining"), "it is eight days old, and that is told"
    assert (found.decision.reason[:6], found.request) == ("stale:", f"retrain-2013-02-08T03:00-v{version.version}-stale")
    assert f"champion {version.version}: Retrain asked for: AUC" in found.note
    document = json.loads(store.get(watched.report))
    parts = {"health", "drifts", "prediction", "label", "realised", "overall", "harm", "estimate", "slices", "cost_curve"}
    assert parts <= set(document)
    assert (document["broken"], document["harm"]["verdict"], document["day"]) == ([], "unproven", "2013-02-07")
    assert [one["day"] for one in document["realised"]] == [f"2013-02-0{i}" for i in range(1, 7)]
    pages = settings().var / "monitoring"
    assert (pages / "2013-02-07.html").read_bytes() == store.get(found.page), "a backfill leaves the page of the day that decided"
    assert "2013-02-07.html" in (pages / "index.html").read_text()

    assert steps.materialise(later) > 1000
    assert steps.materialise(later - timedelta(hours=5)) == 0, "an older tick must not replace a newer one"


def test_plan__as_of_the_past_does_not_see_what_came_later(version: VersionRef) -> None:
    early = datetime(2013, 1, 30, 3)
    features = steps.features(steps.plan(early, "past", "backfill", "run-past"))
    table = stored.read(features)
    assert table["known_at"].max() <= early
    assert table["event_time"].max() < datetime(2013, 1, 29)
    assert steps.plan(early, "past", "backfill", "run-past").champion_version is None


def test_features__served_before_the_day_is_landed_equal_training_after_it(home: Path) -> None:
    def ingest(window: Window) -> None:
        as_of = datetime.combine(window.end, datetime.min.time()) + timedelta(hours=2)
        steps.validate(steps.land(window, as_of))
        steps.snapshot(as_of)

    ingest(Window(start="2013-02-01", end="2013-02-08"))
    params, day, tick = load_params(), datetime(2013, 2, 8), datetime(2013, 2, 8, 13)
    steps.materialise(tick)
    spec = params.tables[params.problem.table]
    lead = timedelta(hours=params.problem.lead_hours)
    due = rows.live_rows(params.problem.table, tick + lead, tick + lead + timedelta(hours=1), tick)
    requests = due.select([c for c in spec.columns if c not in spec.outcomes]).to_pylist()
    served = Assembler(params).assemble(open_store(settings().online), requests)
    assert len(requests) > 30
    assert not any(served.flags)

    ingest(Window(start="2013-02-08", end="2013-02-09"))
    later = day + timedelta(days=2)
    version = snapshots.find(later)
    root = snapshots.restore(version)
    landed = rows.problem_rows(root, day, day + timedelta(days=1), later)
    table = stored.compute(params, landed, inputs.landed(root, version.last_day), later)
    trained = {row["entity_id"]: row for row in table.to_pylist()}
    for name, features in zip(served.entity_ids, served.features, strict=True):
        assert {feature: trained[name][feature] for feature in features} == features
