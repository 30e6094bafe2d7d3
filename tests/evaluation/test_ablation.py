"""Removing the group that carries the signal hurts; removing noise does not; a feature that is never asked about is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.config import load_params
from ml.evaluation.ablation import Settings, ablation, groups, unused
from ml.features.definitions import Feature, load_module
from ml.refs import Window
from ml.training import booster
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import labelled

FEATURES = [
    Feature("signal", ""),
    Feature("copy", ""),
    Feature("noise", ""),
    Feature("constant", ""),
    Feature("hour", "", "cyclic", period=24),
]
SETTINGS = Settings(
    {"max_depth": 3, "learning_rate": 0.2},
    30,
    Window(start="2013-01-01", end="2013-01-21"),
    Window(start="2013-01-22", end="2013-02-01"),
)


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
    found = ablation(table, FEATURES, grouped, SETTINGS, load_params(), seen.append)
    assert seen == ["all features", "without noise", "without both", "without one"]
    by = {a.group: a for a in found}
    assert found[0].group == "both"
    assert (by["both"].verdict, by["both"].features) == ("hurts", 2)
    assert by["both"].auc_lost > 0.2
    assert by["one"].verdict == "no difference"  # its twin is still there
    assert by["noise"].verdict != "hurts"
    assert by["both"].log_loss_added.days == 10


def test_unused__names_what_no_split_asks_about(table: pd.DataFrame) -> None:
    rows = labelled(table, SETTINGS.train)
    y_true = rows["label"].to_numpy()
    encoding = fit_encoding(FEATURES, rows, y_true)
    fitted = booster.fit_rounds(encode(encoding, rows), y_true, {"objective": "binary:logistic", "nthread": 1, "max_depth": 2}, 5)
    left_out = unused(fitted, encoding)
    assert "constant" in left_out
    assert "signal" not in left_out


def test_groups__hold_every_learned_feature_once() -> None:
    module = load_module(load_params())
    grouped = groups(module)
    assert sorted(name for names in grouped.values() for name in names) == sorted(f.name for f in module.learned)
    assert "weather_temp" in grouped["weather"]
    assert "hour" in grouped["request"]
