"""What a task handled, told by references alone."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from ml import refs
from ml.provenance import BESIDE, Dataset, handled, recognised
from ml.refs import FeatureSetRef, LandingRef, Ref, ScoreRef, SnapshotRef, TrainPlan, VersionRef, Window

JANUARY = Window(start=date(2013, 1, 1), end=date(2013, 2, 1))
AS_OF = datetime(2013, 2, 1, 3)
SNAPSHOT = SnapshotRef(digest="s.dir", files=1, size=1, as_of=AS_OF, first_day=date(2013, 1, 1), last_day=date(2013, 1, 31))
FEATURES = FeatureSetRef(digest="f", rows=1, snapshot="s.dir", code="c", window=JANUARY, as_of=AS_OF)
VERSION = VersionRef(version="3", bundle="b", model="m", verdict="keep", backfill=False, run_id="r")
PLAN = TrainPlan(
    run_key="k", as_of=AS_OF, reason="-", trigger="manual", snapshot=SNAPSHOT, train=JANUARY, holdout=JANUARY, folds=[],
    champion_version=None, champion_digest=None, champion_recipe=None, warm=[], holdout_uses=0, used_by=[],
)  # fmt: skip


def test_recognised__no_two_references_have_the_same_keys() -> None:
    kinds = [kind for kind in vars(refs).values() if isinstance(kind, type) and issubclass(kind, Ref) and kind is not Ref]
    assert len({frozenset(kind.model_fields) for kind in kinds}) == len(kinds) > 15


@pytest.mark.parametrize("ref", [SNAPSHOT, FEATURES, VERSION, PLAN], ids=lambda ref: type(ref).__name__)
def test_recognised__what_travelled_by_xcom_is_the_same_again(ref: Ref) -> None:
    assert recognised(ref.to_xcom()) == ref


@pytest.mark.parametrize("value", [None, 3, "s.dir", [], {}, {"verdict": "keep"}, SNAPSHOT.to_xcom() | {"more": 1}])
def test_recognised__other_values_are_no_references(value: Any) -> None:
    assert recognised(value) is None


def test_handled__a_plan_stands_for_its_data_where_nothing_made_from_it_is_given() -> None:
    builds = handled("features", [PLAN.to_xcom()], FEATURES.to_xcom())
    assert builds.inputs == [Dataset("snapshot", "s.dir"), Dataset("history")]
    assert builds.outputs == [Dataset("features", "f")]
    fits = handled("fit", [PLAN.to_xcom(), FEATURES.to_xcom()])
    assert (fits.inputs, fits.outputs) == ([Dataset("features", "f")], [])


def test_handled__facets_say_the_data_version_whole_where_a_plan_tells_it_and_the_run_of_a_version() -> None:
    facets = handled("register", [PLAN.to_xcom(), FEATURES.to_xcom()], VERSION.to_xcom()).facets
    assert {name: facets["evergreen_dataVersion"][name] for name in ("digest", "lastDay")} == {
        "digest": "s.dir",
        "lastDay": "2013-01-31",
    }
    assert facets["evergreen_mlflowRun"]["runId"] == "r"
    assert handled("tune", [FEATURES.to_xcom()]).facets["evergreen_dataVersion"]["digest"] == "s.dir"
    assert handled("score", []).facets == {}


def test_handled__tables_are_named_one_by_one() -> None:
    landing = LandingRef(window=JANUARY, as_of=AS_OF, key="k", rows={"weather": 1, "flights": 2})
    landed = handled("land", [], landing.to_xcom())
    assert [d.name for d in landed.inputs] == ["source/flights", "source/planes", "source/weather"]
    assert landed.outputs == [Dataset("staging/flights", "k"), Dataset("staging/weather", "k")]


def test_handled__an_outcome_names_the_version_that_it_came_from() -> None:
    scored = handled("score", [], ScoreRef(window=JANUARY, rows=9, version="3", partitions=[]).to_xcom())
    assert Dataset("registered_model", "3") in scored.inputs
    assert scored.outputs == [Dataset("predictions/batch", "2013-01-01..2013-01-31 by v3")]


def test_handled__promote_returns_the_number_of_the_manifest_and_what_failed_wrote_nothing() -> None:
    assert handled("promote", [VERSION.to_xcom()], 12).outputs == [Dataset("deployment", "12")]
    assert handled("promote", [VERSION.to_xcom()]).outputs == []


def test_beside__names_steps() -> None:
    from ml.cli import step_names

    assert set(BESIDE) <= set(step_names())
