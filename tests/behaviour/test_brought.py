"""A model that was brought, from its file to its rollback, on real rows: a scikit-learn pipeline, converted by skl2onnx."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from typer.testing import CliRunner

from ml import cli, ledger, steps, store, tracking
from ml.config import load_params
from ml.data import snapshots
from ml.errors import EvergreenError
from ml.features import stored
from ml.monitoring.profiles import Profile
from ml.packaging.bundle import Bundle
from ml.packaging.rebuild import rebuild
from ml.refs import EvaluationRef, FeatureSetRef, TrainPlan, VersionRef, Window
from ml.serving import manifest
from ml.training import history
from ml.training.fit import labelled
from tests.behaviour.chain import AS_OF, SMALL, landed
from tests.sample_bundle import REQUEST
from tests.serving.conftest import serve_process

LEARNED = Window(start="2013-01-01", end="2013-01-11")
LATER = AS_OF + timedelta(days=3)
NUMBERS = ["distance", "origin_rate_24h", "carrier_rate_24h", "number_rate_672h", "weather_wind_speed"]
TEXTS = ["origin", "carrier"]


@dataclass(frozen=True)
class Brought:
    onnx: Path
    expected: Path
    version: VersionRef


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Path]:
    with landed(tmp_path_factory.mktemp("brought"), parsed_sources, SMALL) as home:
        yield home


def theirs(rows: pd.DataFrame) -> Pipeline:
    """As somebody would do it who knows nothing of this repository."""
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), NUMBERS),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), TEXTS),
        ],
        sparse_threshold=0,
    )
    made = Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=500))])
    return made.fit(rows[[*NUMBERS, *TEXTS]].astype(dict.fromkeys(NUMBERS, "float32")), rows["label"].astype(int))


@pytest.fixture(scope="module")
def brought(home: Path) -> Brought:
    """Registered by the command, with the answers that scikit-learn gives."""
    snapshot = snapshots.find(AS_OF)
    table = stored.read(stored.build(snapshots.restore(snapshot), snapshot, LEARNED, AS_OF))
    model, rows = theirs(labelled(table, LEARNED)), table.head(500)
    types = [(n, FloatTensorType([None, 1])) for n in NUMBERS] + [(n, StringTensorType([None, 1])) for n in TEXTS]
    made = Brought(home / "theirs.onnx", home / "expected.parquet", VersionRef.model_construct())
    made.onnx.write_bytes(to_onnx(model, initial_types=types, options={"zipmap": False}, target_opset=18).SerializeToString())
    asked = rows[[*NUMBERS, *TEXTS]].astype(dict.fromkeys(NUMBERS, "float32"))
    asked.assign(probability=model.predict_proba(asked)[:, 1]).to_parquet(made.expected)
    run(*command(made))
    return Brought(made.onnx, made.expected, VersionRef.read(home / "var" / "refs" / "version.json"))


def command(made: Brought) -> list[object]:
    return ["register", "--onnx", made.onnx, "--as-of", AS_OF.isoformat(), "--trained-from", "2013-01-01", "--trained-until",
            "2013-01-10", "--expected", made.expected, "--name", "logistic", "--note", "a colleague's"]  # fmt: skip


def test_register__is_judged_by_the_gates_and_registered_once(brought: Brought, home: Path) -> None:
    name, version = load_params().problem.name, brought.version
    run(*command(brought))
    assert tracking.versions(name) == [version.version]
    (entry,) = ledger.entries("gate")
    checks = {check["name"]: check for check in entry.evidence["decision"]["checks"]}
    assert {"untouched_holdout", "score_floor", "baseline", "leak", "slices", "calibration", "parity", "latency", "size"} <= set(
        checks
    )
    assert checks["untouched_holdout"]["passed"] and "until 2013-01-10" in checks["untouched_holdout"]["detail"]
    assert checks["parity"]["passed"] and "6 checks" in checks["parity"]["detail"]
    metrics = entry.evidence["metrics"]
    assert {"candidate_auc", "climatology_auc", "linear_auc"} <= set(metrics)
    assert metrics["candidate_auc"] > 0.55
    assert (version.verdict, entry.verdict) == ("promote", "promote"), entry.reason
    assert entry.evidence["refit"]["verdict"] == "judged" and "no recipe to fit again" in entry.evidence["refit"]["reason"]
    tags = tracking.tags(name, version.version)
    assert (tags["family"], tags["learned"], tags["train"]) == ("onnx", "2013-01-01/2013-01-11", "2013-01-01..2013-01-10")
    assert "brought as logistic" in tags["reason"] and "a colleague's" in tags["reason"]
    report = store.unpack(store.get(tags["report"]))
    assert b"brought as logistic" in report["report.html"]
    importance = {row["feature"]: row["candidate"] for row in json.loads(report["report.json"])["explanations"]["importance"]}
    assert all(importance[n] > 0 for n in ("origin_rate_24h", "carrier")) and importance["seats"] == 0


def test_profile__is_of_the_declared_window(brought: Brought) -> None:
    profile = Profile.model_validate_json(Bundle.load(brought.version.bundle).profile)
    snapshot = snapshots.find(AS_OF)
    table = stored.read(stored.build(snapshots.restore(snapshot), snapshot, LEARNED, AS_OF))
    assert profile.rows == len(labelled(table, LEARNED))
    assert sum(profile.importance.values()) == pytest.approx(1)


def test_rebuild__refuses_with_the_reason(brought: Brought) -> None:
    with pytest.raises(EvergreenError, match="brought as a graph: how it was trained is not known here"):
        rebuild(brought.version.version)


def test_lineage__tells_that_it_was_brought(brought: Brought) -> None:
    told = run("lineage", brought.version.version)
    assert "brought as logistic" in told and "2013-01-01..2013-01-10" in told


def test_loop__release_serve_watch_train_against_it_roll_back(brought: Brought, home: Path) -> None:
    name, version = load_params().problem.name, brought.version
    steps.promote(version, AS_OF)
    assert tracking.get_alias(name, "champion") == version.version
    with serve_process() as (_, client):
        said = client.post("/predict?explain=true", json=REQUEST).json()
        (said,) = said if isinstance(said, list) else (said,)
        assert client.get("/metadata").json()["lineage"]["family"] == "onnx"
    assert (said["model_version"], said["explanation"]["unit"]) == (version.version, "log-odds")
    margin = said["explanation"]["base"] + sum(part["contribution"] for part in said["explanation"]["contributions"])
    assert margin == pytest.approx(math.log(said["probability"] / (1 - said["probability"])), abs=1e-4)

    days = Window(start="2013-01-19", end="2013-01-22")
    steps.validate(steps.land(days, LATER - timedelta(hours=1)))
    steps.snapshot(LATER - timedelta(hours=1))
    assert steps.score(days, LATER).version == version.version
    watched = steps.monitor(LATER.date(), LATER)
    document = json.loads(store.get(watched.report))
    assert watched.predictions > 2000 and 0.4 < watched.metrics["auc"] < 1
    assert {drift["name"] for drift in document["drifts"]} >= {"origin_rate_24h", "carrier"}
    assert document["new_labels"] > 5000, "rows since its declared window"
    assert steps.decide(watched, "schedule").decision.kind == "retrain"

    plan = steps.plan(LATER, "after a brought champion", "manual", "run-later")
    assert (plan.champion_version, plan.champion_recipe, plan.warm) == (version.version, None, [])
    features = steps.features(plan)
    steps.tune(plan, features, 0, 1)
    evaluation = steps.evaluate(plan, features, steps.fit(plan, features))
    report = json.loads(store.unpack(store.get(evaluation.report))["report.json"])
    checks = {check.name: check for check in evaluation.decision.checks}
    assert report["kind"] == "redesign"
    assert report["holdout"]["champion_rows"]["answered"] > 500, "the days that it really answered"
    assert report["holdout"]["champion_rows"]["computed"] > 500, "the days before: its graph is asked"
    assert report["holdout"]["champion_rows"]["twin"] == 0
    assert checks["untouched_holdout_champion"].passed and "until 2013-01-10" in checks["untouched_holdout_champion"].detail
    assert f"champion v{version.version}" in checks["champion"].detail
    second = registered(plan, features, evaluation)
    assert steps.canary(second, LATER, skip="no traffic in this test").verdict == "pass"
    steps.promote(second, LATER)
    assert manifest.current().champion.version == second.version  # type: ignore[union-attr]
    steps.rollback(None, "a test", "back to the brought one")
    assert manifest.current().champion.version == version.version  # type: ignore[union-attr]
    assert history.warm(None, LATER + timedelta(days=1), "another") == [evaluation.model.recipe]


def registered(plan: TrainPlan, features: FeatureSetRef, evaluation: EvaluationRef) -> VersionRef:
    shipped = steps.refit(plan, features, evaluation)
    version = steps.register(plan, features, evaluation, shipped, steps.package(plan, features, shipped))
    return version.model_copy(update={"verdict": "promote"})  # whatever the gate said of so small a model


def test_explain__command__names_what_the_graph_asks_for(brought: Brought) -> None:
    table = stored.read(stored.build(snapshots.restore(snapshots.find(AS_OF)), snapshots.find(AS_OF), LEARNED, AS_OF))
    told = run(
        "explain", "--version", brought.version.version, "--entity", table["entity_id"].iloc[-1], "--as-of", AS_OF.isoformat()
    )
    assert "origin_rate_24h" in told and "add up to" in told


# ---- refused on the way, before the holdout is used


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--trained-until": "2013-01-12"}, "learned from days until 2013-01-12, and would be judged on 2013-01-12..2013-01-17"),
        ({"--trained-until": "2012-12-20", "--trained-from": "2012-12-01"}, "0 labelled rows of its declared window 2012-12-01..2012-12-20"),
        ({"--trained-from": "2013-01-11"}, "--trained-from 2013-01-11 is after --trained-until 2013-01-10"),
        ({"--trained-until": None}, "register --onnx needs --trained-until"),
        ({"--as-of": None}, "register --onnx needs --as-of"),
        ({"--onnx": None}, "without --onnx nothing is declared"),
    ],
    ids=["learned-from-the-holdout", "window-not-landed", "window-backwards", "no-window", "no-moment", "no-file"],
)  # fmt: skip
def test_register__refuses(brought: Brought, changes: dict[str, str | None], said: str) -> None:
    given = command(brought)
    options = dict(zip(given[1::2], given[2::2], strict=True)) | changes
    before = len(ledger.entries("gate"))
    with pytest.raises(EvergreenError, match=said.replace(".", r"\.")):
        run("register", *(word for pair in options.items() if pair[1] is not None for word in pair))
    assert len(ledger.entries("gate")) == before


def test_register__answers_that_are_not_its_own__names_row_and_difference(brought: Brought, tmp_path: Path) -> None:
    table = pd.read_parquet(brought.expected)
    table.loc[7, "probability"] += 0.25
    changed = tmp_path / "expected.parquet"
    table.to_parquet(changed)
    with pytest.raises(EvergreenError, match=r"0\.25 away from row 7 of expected\.parquet.*1 of 500 rows differ"):
        run(*[changed if word == brought.expected else word for word in command(brought)])
