"""What would a model lose without a group of its features? Refits with the same settings, judged on the same holdout rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ml import metrics
from ml.config import Params
from ml.features.definitions import Feature, FeatureModule
from ml.metrics import Scoring
from ml.refs import Recipe, Window
from ml.significance import Interval, paired_by_day
from ml.training.fit import fit_model, labelled


@dataclass(frozen=True)
class Ablated:
    """One refit without a group. Positive numbers: the model is worse without it."""

    group: str
    features: int
    score_lost: float
    """AUC (macro-F1, R²) of all features less that without the group."""
    loss_added: Interval
    """Loss without the group less that of all features: log-loss in nats, or squared error."""

    @property
    def verdict(self) -> str:
        """``hurts`` beyond noise to remove, ``helps`` beyond noise, or ``no difference``."""
        if self.loss_added.low > 0:
            return "hurts"
        return "helps" if self.loss_added.high < 0 else "no difference"


@dataclass(frozen=True)
class Settings:
    """The recipe and rounds that every refit uses, and the windows."""

    recipe: Recipe
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
    task, scoring = params.problem.task, Scoring(params.problem.task)

    def score(answered: np.ndarray) -> float:
        return metrics.summary(y_true, answered, scoring)[metrics.SCORE[task]]

    progress("all features")
    whole = answers(table, features, settings, params)
    found = []
    for group, names in grouped.items():
        progress(f"without {group}")
        without = answers(table, [f for f in features if f.name not in names], settings, params)
        added = paired_by_day(
            metrics.losses(task, y_true, without),
            metrics.losses(task, y_true, whole),
            days,
            params.gates.confidence,
            params.gates.resamples,
            params.train.seed,
        )
        found.append(Ablated(group, len(names), score(whole) - score(without), added))
    return sorted(found, key=lambda a: -a.loss_added.mean)


def answers(table: pd.DataFrame, features: Sequence[Feature], settings: Settings, params: Params) -> np.ndarray:
    """Answers, shape (n,) or (n, classes), to the labelled holdout rows, by a model that is fitted on these features alone."""
    fitted = fit_model(table, settings.train, features, params, settings.recipe, settings.rounds)
    return fitted.predict(labelled(table, settings.holdout))
