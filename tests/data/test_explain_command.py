"""`evergreen explain`: the answer that scoring gives to the row, and why; for a row that is not there, what to ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import pytest
from typer.testing import CliRunner

from ml import cli, steps, store, tracking
from ml.batch.answer import Scorer
from ml.config import load_params
from ml.data import snapshots
from ml.errors import EvergreenError, IntegrityError, NotFoundError
from ml.features import inputs, stored
from ml.features.definitions import load_module
from ml.packaging.artifacts import dump
from ml.packaging.bundle import Bundle
from ml.packaging.graph import export
from ml.refs import Recipe
from ml.serving import manifest
from ml.training.fit import Fitted, fit_model
from tests.data.conftest import Delivery, days, night_after
from tests.sample_bundle import sample_bundle
from tests.sample_models import small_params

LANDED = days(0, 3)
AS_OF = datetime(2013, 1, 5, 3)
"""5 January is not landed yet: its rows come from the source."""


@dataclass(frozen=True)
class Released:
    """What was landed and serves."""

    fitted: Fitted
    bundle: Bundle


@pytest.fixture
def released(delivery: Delivery) -> Released:
    steps.validate(steps.land(LANDED, night_after(LANDED)))
    steps.snapshot(night_after(LANDED))
    version = snapshots.find(AS_OF)
    table = stored.read(stored.build(snapshots.restore(version), version, LANDED, AS_OF))
    learned = load_module(load_params()).learned
    params = small_params(climatology=["origin"])
    fitted = fit_model(table, LANDED, learned, params, Recipe(family="xgboost", params={"max_depth": 3}), 20)
    digest = store.put(sample_bundle(model=export(fitted), explainer=dump(fitted)))
    bundle = Bundle.load(digest)
    deploy("1", bundle)
    return Released(fitted, bundle)


def deploy(version: str, bundle: Bundle) -> None:
    deployed = manifest.Deployed(version=version, bundle=bundle.digest, model=bundle.card.model_digest)
    manifest.promote(deployed, AS_OF, "test", "", f"promote-{version}")


def explain(*arguments: str, as_of: datetime = AS_OF) -> str:
    outcome = CliRunner().invoke(cli.app, ["explain", "--as-of", as_of.isoformat(), *arguments])
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.output


def scored(bundle: Bundle, first: datetime, last: datetime) -> dict[str, float]:
    """The answers of batch scoring to the rows with event time in [first, last)."""
    params, version = load_params(), snapshots.find(AS_OF)
    root = snapshots.restore(version)
    rows = inputs.to_score(params, root, version.last_day, first, last, AS_OF)
    table = stored.compute(params, rows, inputs.landed_and_live(params, root, version.last_day, AS_OF), AS_OF)
    rows = table.combine_chunks().to_batches()[0]
    answers = Scorer(bundle, "1", params.problem.name, AS_OF).answer(rows)
    return dict(zip(answers["entity_id"].to_pylist(), answers["probability"].to_pylist(), strict=True))


def test_explain__landed_and_live_rows__the_answer_that_scoring_gives(released: Released) -> None:
    for hour in (datetime(2013, 1, 4, 14), datetime(2013, 1, 5, 14)):
        answers = scored(released.bundle, hour, hour.replace(minute=10))
        entity, probability = next(iter(answers.items()))
        shown = explain("--entity", entity, "--top", "5")
        assert f"version 1 answers {probability:.4f}" in shown
        numbers = [float(found) for found in re.findall(r" ([+-]\d+\.\d{4})(?= *▇*│|$)", shown, re.MULTILINE)]
        base, *contributions, margin = numbers
        assert len(contributions) == 6  # five named, and the others
        assert base + sum(contributions) == pytest.approx(margin, abs=5e-4)
        assert [abs(c) for c in contributions[:5]] == sorted((abs(c) for c in contributions[:5]), reverse=True)
        assert "▇" * 16 in shown
        print(shown)
        assert "+0.69 doubles the odds of 1" in shown


def test_explain__unknown_row__names_the_format_and_a_similar_one(released: Released) -> None:
    entity = next(iter(scored(released.bundle, datetime(2013, 1, 4, 14), datetime(2013, 1, 4, 14, 10))))
    carrier, flight, rest = entity.split("-", 2)
    with pytest.raises(NotFoundError, match=r"no row .* rows of 2013-01-04 are known") as caught:
        explain("--entity", f"{carrier}-{flight}0-{rest}")
    assert "names are <carrier>-<flight>-<origin>-<event time, UTC, as YYYYMMDDTHHMM>" in str(caught.value)
    assert f"did you mean {entity}?" in str(caught.value)
    hints = {
        "UA-1545": "names are <carrier>",
        "§§§-20130104T1400": "no row of 2013-01-04 has a similar name",
        "UA-1-EWR-20110101T1000": "0 rows of 2011-01-01 are known",
    }
    for odd, hint in hints.items():
        with pytest.raises(NotFoundError, match=hint):
            explain("--entity", odd)
    with pytest.raises(EvergreenError, match="no champion served at 2013-01-05 02:30"):
        explain("--entity", entity, as_of=datetime(2013, 1, 5, 2, 30))


def test_explain__version_named__that_one_explains(released: Released) -> None:
    deploy("2", Bundle.load(store.put(sample_bundle())))  # the champion has no explainer
    entity = next(iter(scored(released.bundle, datetime(2013, 1, 4, 14), datetime(2013, 1, 4, 14, 10))))
    with pytest.raises(NotFoundError, match=r"has no explainer\.tar"):
        explain("--entity", entity)
    tags = {"bundle": released.bundle.digest, "model": "m", "verdict": "promote", "backfill": "false"}
    _, version = tracking.log_and_register(
        "key",
        load_params().problem.name,
        title="t",
        params={},
        metrics={},
        tags=tags,
        artifacts={},
        plots={},
        onnx=released.bundle.model,
        numeric=["x"],
        text=[],
        dataset=("raw", "a" * 36),
        description="",
    )
    for name in (version, f"v{version}"):
        assert f"version {version} answers" in explain("--entity", entity, "--version", name)
    deploy("3", Bundle.load(store.put(sample_bundle(bias=3.0, explainer=dump(released.fitted)))))  # another model's
    with pytest.raises(IntegrityError, match="graph and explainer of version 3 differ by"):
        explain("--entity", entity)
