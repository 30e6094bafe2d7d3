"""What would a model lose without a group of its features? Refits with the same settings, judged on the same holdout rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xgboost as xgb

from ml import metrics
from ml.config import Params
from ml.evaluation.significance import Interval, paired_by_day
from ml.features.definitions import Feature, FeatureModule
from ml.refs import Window
from ml.training import booster
from ml.training.encoding import Encoding, encode, fit_encoding
from ml.training.fit import labelled


@dataclass(frozen=True)
class Ablated:
    """One refit without a group. Positive numbers: the model is worse without it."""

    group: str
    features: int
    auc_lost: float
    """AUC of all features less AUC without the group."""
    log_loss_added: Interval
    """Log-loss without the group less that of all features, nats a row."""

    @property
    def verdict(self) -> str:
        """``hurts`` beyond noise to remove, ``helps`` beyond noise, or ``no difference``."""
        if self.log_loss_added.low > 0:
            return "hurts"
        return "helps" if self.log_loss_added.high < 0 else "no difference"


@dataclass(frozen=True)
class Settings:
    """The settings and rounds that every refit uses, and the windows."""

    chosen: Mapping[str, float]
    rounds: int
    train: Window
    holdout: Window


def groups(module: FeatureModule) -> dict[str, list[str]]:
    """Learned features by where they come from: each view, and ``request`` for what is made of the request and `reads`."""
    of = {column: view.name for view in module.views for column in view.columns}
    found: dict[str, list[str]] = {}
    for feature in module.learned:
        found.setdefault(of.get(feature.name, "request"), []).append(feature.name)
    return found


def ablation(
    table: pd.DataFrame,
    features: Sequence[Feature],
    grouped: Mapping[str, Sequence[str]],
    settings: Settings,
    params: Params,
    progress: Callable[[str], object] = lambda done: None,
) -> list[Ablated]:
    """Refits without each group; what hurts most to remove comes first.

    Args:
        table: a feature set: one row per thing to predict, with ``event_time`` and ``label`` (NaN: none).
        grouped: group → names of its features.
        progress: called with each group's name before its refit.

    Returns:
        One entry per group. Intervals are of the paired day-block bootstrap (`ml.evaluation.significance`).
    """
    holdout = labelled(table, settings.holdout)
    y_true, days = holdout["label"].to_numpy(), holdout["event_time"].dt.date.astype(str).to_numpy()
    progress("all features")
    whole = answers(table, features, settings, params)
    found = []
    for group, names in grouped.items():
        progress(f"without {group}")
        without = answers(table, [f for f in features if f.name not in names], settings, params)
        added = paired_by_day(
            metrics.log_losses(y_true, without),
            metrics.log_losses(y_true, whole),
            days,
            params.gates.confidence,
            params.gates.resamples,
            params.train.seed,
        )
        found.append(Ablated(group, len(names), metrics.auc(y_true, whole) - metrics.auc(y_true, without), added))
    return sorted(found, key=lambda a: -a.log_loss_added.mean)


def answers(table: pd.DataFrame, features: Sequence[Feature], settings: Settings, params: Params) -> np.ndarray:
    """Probabilities, shape (n,), for the labelled holdout rows, by a model that is fitted on these features alone."""
    rows = labelled(table, settings.train)
    y_true = rows["label"].to_numpy()
    encoding = fit_encoding(features, rows, y_true)
    integers = {name for name, d in params.tune.space.items() if d.int}
    parameters = booster.settings(params.train, settings.chosen, integers, params.train.threads)
    fitted = booster.fit_rounds(encode(encoding, rows), y_true, parameters, settings.rounds)
    return np.asarray(fitted.inplace_predict(encode(encoding, labelled(table, settings.holdout))), dtype=float)


def unused(fitted: xgb.Booster, encoding: Encoding) -> list[str]:
    """Features that no split of the booster asks about, in the order of the encoding's inputs."""
    asked = {encoding.columns[int(name.removeprefix("f"))] for name in fitted.get_score(importance_type="weight")}
    parts = {name: {f"{name}_sin", f"{name}_cos"} if name in encoding.periods else {name} for name in encoding.numeric}
    parts |= {name: {name} for name in encoding.text}
    return [name for name, columns in parts.items() if not columns & asked]
