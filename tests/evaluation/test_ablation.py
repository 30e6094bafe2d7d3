"""Removing the group that carries the signal hurts; removing noise does not; a feature that is never asked about is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.config import Params, load_params
from ml.evaluation.ablation import Settings, ablation, groups
from ml.features.definitions import Feature, load_module
from ml.refs import Recipe, Window
from ml.training.fit import fit_model

FEATURES = [
    Feature("signal", ""),
    Feature("copy", ""),
    Feature("noise", ""),
    Feature("constant", ""),
    Feature("hour", "", "cyclic", period=24),
]
SETTINGS = Settings(
    Recipe(family="xgboost", params={"max_depth": 3, "learning_rate": 0.2}),
    30,
    Window(start="2013-01-01", end="2013-01-21"),
    Window(start="2013-01-22", end="2013-02-01"),
)


def small() -> Params:
    """The shipped parameters, for a table without an origin."""
    params = load_params()
    train = params.train.model_copy(update={"min_rows": 50})
    baseline = params.baseline.model_copy(update={"climatology": ["hour"]})
    return params.model_copy(update={"train": train, "baseline": baseline})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(7)
    n = 6200
    signal = random.normal(size=n)
    label = (random.random(n) < 1 / (1 + np.exp(-2 * signal))).astype(float)
    label[::50] = np.nan
    times = pd.Timestamp("2013-01-01") + pd.to_timedelta(np.arange(n) * 31 * 1440 / n, unit="min")
    return pd.DataFrame({"event_time": times, "label": label, "signal": signal, "copy": signal, "noise": random.normal(size=n),
                         "constant": 1.0, "hour": times.hour.astype(float)})  # fmt: skip


def test_ablation__tells_signal_from_noise(table: pd.DataFrame) -> None:
    seen: list[str] = []
    grouped = {"noise": ["noise"], "both": ["signal", "copy"], "one": ["copy"]}
    found = ablation(table, FEATURES, grouped, SETTINGS, small(), seen.append)
    assert seen == ["all features", "without noise", "without both", "without one"]
    by = {a.group: a for a in found}
    assert found[0].group == "both"
    assert (by["both"].verdict, by["both"].features) == ("hurts", 2)
    assert by["both"].score_lost > 0.2
    assert by["one"].verdict == "no difference"  # its twin is still there
    assert by["noise"].verdict != "hurts"
    assert by["both"].loss_added.days == 10


def test_unused__names_what_no_split_asks_about(table: pd.DataFrame) -> None:
    fitted = fit_model(table, SETTINGS.train, FEATURES, small(), SETTINGS.recipe, 5)
    assert "constant" in fitted.unused
    assert "signal" not in fitted.unused


def test_groups__hold_every_learned_feature_once() -> None:
    module = load_module(load_params())
    grouped = groups(module)
    assert sorted(name for names in grouped.values() for name in names) == sorted(f.name for f in module.learned)
    assert "weather_temp" in grouped["weather"]
    assert "hour" in grouped["request"]
