"""Profiles add up: the sum of days is the profile of all their rows; bins fit the reference; nothing is computed twice."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import steps
from ml.config import load_params
from ml.errors import ConfigError, IntegrityError, NotEnoughDataError
from ml.features.definitions import load_module
from ml.monitoring.profiles import (
    BINS,
    LABEL,
    MOST,
    OTHERS,
    PREDICTION,
    DayProfile,
    Profile,
    build_profile,
    merge,
    profile_day,
    remembered,
)
from tests.sample_models import made_up, served

DRAW = np.random.default_rng(3)
N = 5000
X = pd.DataFrame({
    "x": np.where(DRAW.random(N) < 0.1, np.nan, DRAW.normal(100, 15, N)),
    "hour": DRAW.integers(0, 24, N).astype(float),
    "place": DRAW.choice(["a", "b", "c"], N, p=[0.6, 0.3, 0.1]),
})  # fmt: skip
REFERENCE = build_profile(
    ["x", "hour"], ["place"], X, prediction=DRAW.beta(2, 5, 800), label=(DRAW.random(N) < 0.2).astype(float)
)

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0]), st.integers(0, 30).map(float))
ROWS = st.tuples(NUMBERS, NUMBERS, st.sampled_from(["a", "b", "c", "new", None, np.nan]), st.floats(0, 1))
NAMES = ["x", "hour", "place", PREDICTION]


def table(rows: list) -> pd.DataFrame:
    made = pd.DataFrame(rows, columns=NAMES)
    return made.astype({"x": float, "hour": float, "place": object, PREDICTION: float})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=10))
def test_merge__of_days_is_the_profile_of_all_their_rows(days: list) -> None:
    summed = merge([profile_day(REFERENCE, table(rows)) for rows in days])
    whole = profile_day(REFERENCE, table([row for rows in days for row in rows]))
    assert summed.rows == whole.rows
    assert summed.text == whole.text
    for name, ours in summed.numeric.items():
        theirs = whole.numeric[name]
        moments = {"mean": 0.0, "m2": 0.0}
        assert ours.model_copy(update=moments) == theirs.model_copy(update=moments)
        values = pd.concat([table(rows)[name] for rows in days]).to_numpy()
        scale = np.abs(values[np.isfinite(values)]).max(initial=0.0)
        assert ours.mean == pytest.approx(theirs.mean, rel=1e-9, abs=1e-9 * scale)
        assert ours.m2 == pytest.approx(theirs.m2, rel=1e-9, abs=1e-9 * scale**2)


def test_merge__moments_are_those_of_numpy_far_from_zero() -> None:
    # a sum of squares less the square of the sum would lose all digits here
    values = 1e9 + DRAW.normal(0, 1, 3000)
    reference = build_profile(["x"], [], pd.DataFrame({"x": values}))
    parts = [profile_day(reference, pd.DataFrame({"x": part})) for part in np.split(values, [1, 10, 1500])]
    summed = merge(parts).numeric["x"]
    assert summed.mean == pytest.approx(values.mean(), rel=1e-12)
    assert summed.m2 / summed.n == pytest.approx(values.var(), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=300))
def test_build_profile__bins_are_full_and_hold_every_row(values: list[float]) -> None:
    found = build_profile(["x"], [], pd.DataFrame({"x": values})).numeric["x"]
    known = np.array(values)[np.isfinite(values)]
    assert len(found.edges) <= MOST
    assert (np.diff(found.edges) > 0).all()
    assert (sum(found.counts), found.missing) == (len(known), len(values) - len(known))
    assert all(found.counts) or not len(known)
    if len(known):
        # bin i holds edges[i-1] < x <= edges[i]: counted again by comparison
        bounds = [-np.inf, *found.edges, np.inf]
        inside = [known[(known > low) & (known <= high)] for low, high in pairwise(bounds)]
        assert found.counts == [len(part) for part in inside]
        assert found.points == pytest.approx([part.mean() for part in inside], rel=1e-9, abs=1e-6)
        assert (found.low, found.high) == (known.min(), known.max())


def test_build_profile__a_number_with_few_values_has_a_bin_for_each() -> None:
    hour = REFERENCE.numeric["hour"]
    assert hour.edges == list(range(23))
    assert hour.points == list(range(24))
    assert hour.counts == [int((X["hour"] == h).sum()) for h in range(24)]


def test_build_profile__bins_of_many_values_are_about_equal() -> None:
    counts = REFERENCE.numeric["x"].counts
    assert len(counts) == BINS
    assert max(counts) - min(counts) <= 1


def test_build_profile__a_value_that_fills_bins_leaves_edges_to_the_rest() -> None:
    # nine rows of ten are 0: deciles of everything would put all else in one or two bins
    rain = np.where(DRAW.random(N) < 0.9, 0.0, DRAW.exponential(2, N))
    found = build_profile(["rain"], [], pd.DataFrame({"rain": rain})).numeric["rain"]
    assert len(found.counts) == BINS + 1
    assert found.counts[0] == (rain == 0).sum()


def test_profile_day__tells_new_categories_from_rare_ones() -> None:
    # MOST common ones, OTHERS that are known by name, and five more: rows of those are rare in the reference
    names = [f"c{i:04}" for i in range(MOST + OTHERS + 5)]
    rows = [name for i, name in enumerate(names) for _ in range(3 if i < MOST else 2 if i < MOST + OTHERS else 1)]
    reference = build_profile([], ["t"], pd.DataFrame({"t": rows}))
    profile = reference.text["t"]
    assert (list(profile.counts), profile.rest, profile.rare) == (names[:MOST], 2 * OTHERS, 5)
    day = profile_day(reference, pd.DataFrame({"t": [names[0], names[MOST], names[-1], "new", None]})).text["t"]
    assert (day.counts[0], sum(day.counts), day.rest, day.unseen, day.missing, day.n) == (1, 1, 1, 2, 1, 4)


def test_profile_day__counts_what_is_out_of_range() -> None:
    low, high = REFERENCE.numeric["hour"].low, REFERENCE.numeric["hour"].high
    assert (low, high) == (0, 23)
    day = profile_day(REFERENCE, pd.DataFrame({"hour": [-1.0, 0.0, 23.0, 24.0, 25.0, np.nan]})).numeric["hour"]
    assert (day.below, day.above, day.missing, day.n) == (1, 2, 1, 5)
    assert (day.counts[0], day.counts[-1]) == (2, 3)


def test_profile_day__an_absent_feature_is_missing_and_an_absent_answer_is_not_profiled() -> None:
    day = profile_day(REFERENCE, X[["hour"]])
    assert (day.numeric["x"].missing, day.text["place"].missing, day.rows) == (N, N, N)
    assert set(day.numeric) == {"x", "hour"}


def test_profile_day__labels_alone_can_be_added_later() -> None:
    inputs, labels = profile_day(REFERENCE, X), profile_day(REFERENCE, pd.DataFrame({LABEL: [1.0, 0.0, np.nan]}), names=[LABEL])
    assert (set(labels.numeric), labels.text) == ({LABEL}, {})
    whole = merge([inputs, labels])
    assert (whole.numeric[LABEL].counts, whole.numeric[LABEL].mean) == ([1, 1], 0.5)
    assert whole.numeric["x"] == inputs.numeric["x"]


def test_reference__is_what_was_learned_and_what_the_judged_twin_answered() -> None:
    module, model, twin = load_module(load_params()), served(), served("linear")
    rows = made_up(module.learned)
    learned, asked = rows[:1500], rows[1500:]
    found = Profile.read(steps._reference(model, learned, twin, asked))
    assert set(found.numeric) == {*module.numeric, PREDICTION, LABEL}
    assert (set(found.text), found.rows) == (set(module.text), 1500)
    assert found.numeric[LABEL].mean == pytest.approx(learned["label"].mean())
    assert found.numeric[PREDICTION].mean == pytest.approx(twin.predict(asked).mean())
    assert sum(found.importance.values()) == pytest.approx(1)
    # made_up: the label depends on the first number most
    first = next(f.name for f in module.learned if f.kind == "numeric")
    assert max(found.importance, key=found.importance.__getitem__) == first


@pytest.mark.parametrize("type_", ["category", "string[pyarrow]", "string"])
def test_profile_day__is_the_same_for_every_type_of_text(type_: str) -> None:
    with_missing = X["place"].where(X["hour"] > 0)
    plain, typed = (profile_day(REFERENCE, X.assign(place=place)) for place in (with_missing, with_missing.astype(type_)))
    assert typed == plain


def test_profile_day__is_the_same_for_integers_with_missing_values() -> None:
    some = X["hour"].where(X["hour"] > 3)
    assert profile_day(REFERENCE, X.assign(hour=some.astype("Int64"))) == profile_day(REFERENCE, X.assign(hour=some))


def test_as_day__is_the_profile_of_the_reference_itself() -> None:
    assert REFERENCE.as_day().text == profile_day(REFERENCE, X).text
    ours, theirs = REFERENCE.as_day().numeric["x"], profile_day(REFERENCE, X).numeric["x"]
    assert ours.m2 == pytest.approx(theirs.m2)
    assert ours.model_copy(update={"m2": 0.0}) == theirs.model_copy(update={"m2": 0.0})


def test_merge__refuses_days_of_another_reference_and_no_days() -> None:
    other = build_profile(["x"], [], X[:100])
    with pytest.raises(IntegrityError, match="different references"):
        merge([profile_day(REFERENCE, X), profile_day(other, X)])
    with pytest.raises(NotEnoughDataError, match="no day profiles"):
        merge([])


def test_build_profile__a_feature_cannot_take_the_answers_name() -> None:
    with pytest.raises(ConfigError, match="'prediction'"):
        build_profile(["prediction"], [], pd.DataFrame({"prediction": [0.5]}))


def test_build_profile__importance_adds_up_to_one() -> None:
    made = build_profile(["x", "hour"], [], X, importance={"x": 3.0, "hour": 1.0})
    assert made.importance == {"x": 0.75, "hour": 0.25}


def test_profile__comes_back_from_json_with_the_same_digest() -> None:
    again = Profile.read(REFERENCE.model_dump_json().encode())
    assert again == REFERENCE
    assert again.digest() == REFERENCE.digest()
    day = profile_day(REFERENCE, X.assign(x=np.where(X["hour"] > 5, 1e300, 0)))  # its squares are beyond floats
    assert day.numeric["x"].m2 == np.inf
    assert DayProfile.model_validate_json(day.model_dump_json()) == day


def test_read__says_what_to_do_about_a_profile_of_another_layout() -> None:
    with pytest.raises(IntegrityError, match=r"another layout: (.|\n)*train and release"):
        Profile.read(b'{"rows":1,"numeric":{"x":{"edges":[],"counts":[1],"missing":0,"quantiles":[1.0]}},"text":{}}')


def test_remembered__makes_a_day_once_until_its_answers_change(workspace: Path) -> None:
    made: list[int] = []

    def make() -> DayProfile:
        made.append(1)
        return profile_day(REFERENCE, X)

    day = date(2013, 5, 1)
    first, again = (remembered(REFERENCE.digest(), day, "answers", make) for _ in range(2))
    assert (first, len(made)) == (again, 1)
    other = build_profile(["x"], [], X)
    for reference, when, answers in [
        (REFERENCE, day, "a late answer"),
        (REFERENCE, date(2013, 5, 2), "answers"),
        (other, day, "answers"),
    ]:
        remembered(reference.digest(), when, answers, make)
    assert len(made) == 4
