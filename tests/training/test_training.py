"""Splits, encoding, search and fit: by time, seeded, the same twice."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.config import Params, load_params
from ml.errors import NotEnoughDataError
from ml.features.definitions import Feature
from ml.refs import Recipe, Window
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import fit_model, labelled
from ml.training.splits import split

FEATURES = [Feature("x", "a number"), Feature("hour", "an hour", "cyclic", period=24), Feature("place", "a place", "text")]


def small(**train: object) -> Params:
    """The shipped parameters, on a table that fits in a test."""
    params = load_params()
    changed = {"min_rows": 50, "max_rounds": 20, "early_stopping_rounds": 5, "threads": 1, **train}
    baseline = params.baseline.model_copy(update={"climatology": ["place"]})
    return params.model_copy(update={"train": params.train.model_copy(update=changed), "baseline": baseline})


def table(rows: int = 3000, seed: int = 1) -> pd.DataFrame:
    """30 days from 1 January; the label depends on x and place."""
    draw = np.random.default_rng(seed)
    x, place = draw.normal(size=rows), draw.choice(["A", "B", "C"], rows)
    p = 1 / (1 + np.exp(-(2 * x + (place == "B"))))
    made = pd.DataFrame(
        {"x": x, "hour": draw.integers(0, 24, rows).astype(float), "place": place, "label": (draw.random(rows) < p) * 1.0}
    )
    made["event_time"] = pd.Timestamp("2013-01-01") + pd.to_timedelta(np.sort(draw.integers(0, 30 * 24, rows)), unit="h")
    made.loc[::50, "label"] = np.nan
    made.loc[::20, "x"] = np.nan
    return made


WHOLE = Window(start=date(2013, 1, 1), end=date(2013, 1, 31))
FOLDS = [(Window(start=date(2013, 1, 1), end=date(2013, 1, 15)), Window(start=date(2013, 1, 16), end=date(2013, 1, 20)))]
RECIPE = Recipe(family="xgboost", params={name: d.default for name, d in load_params().tune.space.items()})


@given(st.datetimes(datetime(2013, 2, 1), datetime(2013, 12, 1)), st.integers(1, 20), st.integers(1, 3), st.integers(0, 72))
def test_split__never_judges_on_what_was_learned(as_of: datetime, holdout_days: int, folds: int, embargo: int) -> None:
    params = load_params().train.model_copy(update={"holdout_days": holdout_days, "folds": folds, "embargo_hours": embargo})
    made, gap = split(as_of, params), timedelta(hours=embargo)
    assert datetime.combine(made.holdout.end, datetime.min.time()) + gap <= as_of
    assert len(made.holdout.days()) == holdout_days
    assert made.holdout.start - made.train.end >= gap
    for fit, validation in made.folds:
        assert validation.start - fit.end >= gap
        assert validation.end <= made.train.end
    assert sum(len(v.days()) for _, v in made.folds) == len({d for _, v in made.folds for d in v.days()})


def test_split__says_when_folds_leave_nothing() -> None:
    params = load_params().train.model_copy(update={"window_days": 30, "folds": 2, "fold_days": 7, "holdout_days": 14})
    with pytest.raises(NotEnoughDataError, match="fold 2 of 2 × 7 days leaves no day"):
        split(datetime(2013, 4, 1), params)


def test_encoding__smooths_and_falls_back_to_the_overall_rate() -> None:
    X = pd.DataFrame({"x": [1.0, np.nan], "hour": [0.0, 6.0], "place": ["A", None]})
    encoding = fit_encoding(FEATURES, X, np.array([1.0, 0.0]))
    assert encoding.rates["place"] == {"A": pytest.approx((1 + 50 * 0.5) / 51)}
    matrix = encode(encoding, pd.DataFrame({"x": [np.nan], "hour": [6.0], "place": ["never seen"]}))
    assert encoding.columns == ["x", "hour_sin", "hour_cos", "place"]
    assert np.isnan(matrix[0, 0])
    assert matrix[0, 1:].tolist() == pytest.approx([1.0, 0.0, 0.5], abs=1e-6)


def test_labelled__leaves_out_rows_without_label_and_other_days() -> None:
    rows = labelled(table(), FOLDS[0][1])
    assert rows["label"].notna().all()
    assert set(rows["event_time"].dt.date) == set(FOLDS[0][1].days())


def test_fit__same_data_params_and_seed_give_the_same_digest() -> None:
    def digest(params: Params, rows: pd.DataFrame) -> bytes:
        return fit_model(rows, WHOLE, FEATURES, params, RECIPE, 15).members[0].dump()

    assert digest(small(), table()) == digest(small(), table())
    assert digest(small(seed=2), table()) != digest(small(), table())
    assert digest(small(), table(seed=2)) != digest(small(), table())


def test_fit__refuses_too_few_rows() -> None:
    with pytest.raises(NotEnoughDataError, match=r"has 98 labelled rows, at least 5,000"):
        fit_model(table(100), WHOLE, FEATURES, small(min_rows=5000), RECIPE, 15)
