"""The yardstick: learns what was known that morning and nothing else, follows a change, and is fitted once."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml import metrics
from ml.config import Params, load_params
from ml.errors import NotEnoughDataError
from ml.features.definitions import load_module
from ml.monitoring import fresh
from ml.refs import Window

DAY = date(2013, 6, 30)
MORNING = datetime(2013, 6, 30)
A_DAY = 400


@pytest.fixture
def params(workspace: Path) -> Params:
    shipped = load_params()
    harm = shipped.monitoring.harm.model_copy(update={"fresh_days": 30})
    return shipped.model_copy(
        update={
            "train": shipped.train.model_copy(update={"min_rows": 1000}),
            "monitoring": shipped.monitoring.model_copy(update={"harm": harm}),
        }
    )


def rows(params: Params, seed: int = 1) -> pd.DataFrame:
    """60 days, `DAY` the newest: noise in all features, and a label that follows the first numeric one; known 3 hours later."""
    rng, n = np.random.default_rng(seed), 60 * A_DAY
    start = pd.Timestamp(DAY) - pd.Timedelta(days=59)
    made: dict[str, object] = {}
    for feature in load_module(params).learned:
        period = feature.period or 10
        made[feature.name] = rng.choice(["A", "B"], n) if feature.kind == "text" else rng.integers(0, period, n).astype(float)
    first = signal(params)
    made[first] = rng.standard_normal(n)
    times = start + pd.to_timedelta(np.arange(n) * 86400 // A_DAY, unit="s")
    label = (rng.random(n) < 1 / (1 + np.exp(-2 * np.asarray(made[first])))).astype(float)
    identity = {
        "entity_id": [f"e{i}" for i in range(n)],
        "event_time": times,
        "known_at": times + pd.Timedelta(hours=3),
        "label": label,
    }
    return pd.DataFrame(identity | made)


def signal(params: Params) -> str:
    return next(f.name for f in load_module(params).learned if f.kind == "numeric")


def of_day(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["event_time"] >= MORNING]


def test_answers__knows_the_label_of_a_new_day(params: Params) -> None:
    table = rows(params)
    y_proba = fresh.answers(table, DAY, MORNING, params)
    assert y_proba.shape == (A_DAY,)
    assert metrics.auc(of_day(table)["label"].to_numpy(), y_proba) > 0.8
    assert (y_proba == fresh.answers(table, DAY, MORNING, params)).all()


def test_answers__what_was_not_known_changes_nothing(params: Params) -> None:
    table, embargo = rows(params), pd.Timedelta(hours=params.train.embargo_hours)
    before = fresh.answers(table, DAY, MORNING, params)
    other = table.assign(label=table["label"].where(table["event_time"] < MORNING - embargo, 1 - table["label"]))
    assert (fresh.answers(other, DAY, MORNING, params) == before).all()  # the day itself, and the embargo before it
    old = table["event_time"] < MORNING - embargo - pd.Timedelta(days=params.monitoring.harm.fresh_days)
    assert (
        fresh.answers(table.assign(label=table["label"].where(~old, 1 - table["label"])), DAY, MORNING, params) == before
    ).all()
    late = table["event_time"].between(MORNING - embargo - pd.Timedelta(days=9), MORNING - embargo)
    unknown = table.assign(known_at=table["known_at"].where(~late, pd.Timestamp(MORNING) + pd.Timedelta(seconds=1)))
    flipped = unknown.assign(label=unknown["label"].where(~late, 1 - unknown["label"]))
    assert (fresh.answers(flipped, DAY, MORNING, params) == fresh.answers(unknown, DAY, MORNING, params)).all()
    assert (fresh.answers(unknown, DAY, MORNING, params) != before).any()


def test_answers__only_the_needed_days_are_read(params: Params) -> None:
    table, window = rows(params), fresh.needed(DAY, params)
    assert window == Window(start=date(2013, 5, 30), end=date(2013, 7, 1))  # 30 days before 29 June, and the embargo
    inside = table[(table["event_time"] >= pd.Timestamp(window.start)) & (table["event_time"] < pd.Timestamp(window.end))]
    assert (fresh.answers(inside, DAY, MORNING, params) == fresh.answers(table, DAY, MORNING, params)).all()


def test_answers__follows_a_change_that_an_old_model_cannot(params: Params) -> None:
    table = rows(params)
    turned = table["event_time"] >= MORNING - timedelta(days=20)
    table = table.assign(label=table["label"].where(~turned, 1 - table["label"]))
    before = fresh.answers(table, DAY, MORNING - timedelta(days=20), params)
    now = fresh.answers(table, DAY, MORNING, params)
    y_true = of_day(table)["label"].to_numpy()
    assert metrics.auc(y_true, before) < 0.3
    assert metrics.auc(y_true, now) > 0.7


@pytest.mark.parametrize(
    ("label", "told"), [(np.nan, "has 0 labelled rows, at least 1,000"), (1.0, "labels before 2013-06-30 are 1")]
)
def test_answers__nothing_to_learn__says_so(params: Params, label: float, told: str) -> None:
    with pytest.raises(NotEnoughDataError, match=told):
        fresh.answers(rows(params).assign(label=label), DAY, MORNING, params)


def test_remembered__is_fitted_once(params: Params) -> None:
    table, asked = rows(params), []

    def read(window: Window) -> pd.DataFrame:
        asked.append(window)
        return table

    first = fresh.remembered(DAY, "snapshot-1", read, params)
    again = fresh.remembered(DAY, "snapshot-1", read, params)
    assert asked == [fresh.needed(DAY, params)]
    pd.testing.assert_series_equal(first, again)
    assert first.name == "fresh"
    assert first.index.tolist() == of_day(table)["entity_id"].tolist()
    assert first.to_numpy() == pytest.approx(fresh.answers(table, DAY, MORNING, params), abs=0)


def test_remembered__other_data_day_or_settings__is_fitted_anew(params: Params) -> None:
    table, asked = rows(params), []

    def read(window: Window) -> pd.DataFrame:
        asked.append(window)
        return table

    harm = params.monitoring.harm
    fewer = params.model_copy(
        update={"monitoring": params.monitoring.model_copy(update={"harm": harm.model_copy(update={"fresh_rounds": 5})})}
    )
    margin = params.model_copy(
        update={"monitoring": params.monitoring.model_copy(update={"harm": harm.model_copy(update={"margin": 0.5})})}
    )
    fresh.remembered(DAY, "snapshot-1", read, params)
    fresh.remembered(DAY, "snapshot-1", read, margin)  # asks nothing of the model
    assert len(asked) == 1
    fresh.remembered(DAY, "snapshot-2", read, params)
    fresh.remembered(DAY - timedelta(days=1), "snapshot-1", read, params)
    fresh.remembered(DAY, "snapshot-1", read, fewer)
    assert len(asked) == 4
