"""The model of one training run: a recipe fitted on the rows of a window, and the simple models beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ml.config import FamilyName, Params, Task
from ml.errors import EvergreenError, NotEnoughDataError
from ml.features.definitions import Feature
from ml.refs import Recipe, Ref, Window
from ml.training import baseline
from ml.training.climatology import Climatology
from ml.training.encoding import BASE, Encoding, encode, fit_encoding
from ml.training.models import FAMILIES, Linear, Model, settings_of


class Learned(Ref):
    """The rows that a model has really seen: first and last event time, and how many."""

    first: datetime
    last: datetime
    rows: int


@dataclass(frozen=True)
class Fitted:
    """Everything that `fit_model` learned. The answer is the mean of the members', of which there is one unless
    `train.ensemble`.
    """

    members: tuple[Model, ...]
    encoding: Encoding
    climatology: Climatology
    linear: Linear
    learned: Learned

    @property
    def family(self) -> FamilyName:
        return self.members[0].family

    @property
    def task(self) -> Task:
        return self.members[0].task

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Answers to feature rows, shape (n,) or (n, classes)."""
        return self.answer(encode(self.encoding, X))

    def answer(self, matrix: np.ndarray) -> np.ndarray:
        """Answers to an encoded matrix."""
        return np.asarray(np.mean([member.predict(matrix) for member in self.members], axis=0))

    def contributions(self, X: pd.DataFrame) -> pd.DataFrame:
        """Share of each feature in the margin (log-odds; the number itself for regression), one column per feature and `BASE`.

        Shape (n, features + 1); for a multiclass task the margin is that of the likeliest class less the mean of all classes'.
        Members are averaged; columns of one feature are added up.
        """
        matrix = encode(self.encoding, X)
        found = np.mean([member.contributions(matrix) for member in self.members], axis=0)
        if found.ndim == 3:
            likeliest = self.answer(matrix).argmax(axis=1)
            found = found[np.arange(len(found)), likeliest] - found.mean(axis=1)
        names = [*self.encoding.origins, BASE]
        return pd.DataFrame(found, columns=names, index=X.index).T.groupby(level=0, sort=False).sum().T

    @cached_property
    def unused(self) -> list[str]:
        """Features that no member asks about, in the order of the encoding's inputs."""
        asked = {self.encoding.origins[column] for member in self.members for column in member.used()}
        return [name for name in [*self.encoding.numeric, *self.encoding.text] if name not in asked]

    @property
    def leaves(self) -> int:
        return sum(member.leaves for member in self.members)


def labelled(table: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Rows of the window's days that have a label, in their order."""
    inside = (table["event_time"] >= pd.Timestamp(window.start)) & (table["event_time"] < pd.Timestamp(window.end))
    return table[inside & table["label"].notna()]


def fit_model(
    table: pd.DataFrame, window: Window, features: Sequence[Feature], params: Params, recipe: Recipe, rounds: int
) -> Fitted:
    """Fits a recipe, climatology and the linear model on the same rows.

    Raises:
        NotEnoughDataError: fewer labelled rows than `train.min_rows`, or labels that do not vary.
        EvergreenError: the recipe is that of a brought model.
    """
    if recipe.brought:
        raise EvergreenError("a brought model has no recipe to fit", "train it where it came from, and register the new graph")
    rows = labelled(table, window)
    enough(len(rows), params.train.min_rows, f"train window {window}")
    y_true, problem = rows["label"].to_numpy(), params.problem
    vary(y_true.min(), y_true.max(), len(rows), window)
    check_labels(y_true, params)
    encoding = fit_encoding(features, rows, y_true, len(problem.classes))
    matrix = encode(encoding, rows)
    linear = Linear.fit(matrix, y_true, {"seed": params.train.seed}, 0, problem.task)
    times = rows["event_time"]
    return Fitted(
        members=_members(matrix, y_true, params, recipe, rounds),
        encoding=encoding,
        climatology=baseline.fit_climatology(params.baseline.climatology, rows, y_true, len(problem.classes)),
        linear=linear,
        learned=Learned(first=times.min().to_pydatetime(), last=times.max().to_pydatetime(), rows=len(rows)),
    )


def _members(matrix: np.ndarray, y_true: np.ndarray, params: Params, recipe: Recipe, rounds: int) -> tuple[Model, ...]:
    """`train.ensemble` models that differ in their seed; one where the seed changes nothing."""
    family, task = FAMILIES[recipe.family], params.problem.task
    return tuple(family.fit(matrix, y_true, settings, rounds, task) for settings in member_settings(params, recipe))


def member_settings(params: Params, recipe: Recipe) -> list[dict[str, Any]]:
    """The settings of each member."""
    family, train, problem = recipe.family, params.train, params.problem
    return [
        settings_of(family, problem.task, len(problem.classes), train, recipe.params, params.tune.integers(family),
                    train.threads, train.seed + i)
        for i in range(1 if family == "linear" else train.ensemble)
    ]  # fmt: skip


def check_labels(y_true: np.ndarray, params: Params) -> None:
    """Labels must be what the task says.

    Raises:
        NotEnoughDataError: a label is none of the task's; it is named.
    """
    task, classes = params.problem.task, params.problem.classes
    allowed = {"binary": np.arange(2), "multiclass": np.arange(len(classes))}.get(task)
    if allowed is not None and len(wrong := y_true[~np.isin(y_true, allowed)]):
        raise NotEnoughDataError(
            f"task {task}: {len(wrong):,} labels are none of {allowed.tolist()}, e.g. {wrong[0]:g}",
            "change problem.label, or problem.task and problem.classes",
        )


def vary(lowest: float, highest: float, rows: int, window: Window) -> None:
    """Raises NotEnoughDataError when all labels are the same."""
    if lowest == highest:
        raise NotEnoughDataError(
            f"all {rows:,} labels of {window} are {lowest:g}", "check problem.label, or widen train.window_days"
        )


def enough(found: int, wanted: int, where: str) -> None:
    """Raises NotEnoughDataError when fewer rows than wanted were found."""
    if found < wanted:
        raise NotEnoughDataError(
            f"{where} has {found:,} labelled rows, at least {wanted:,} are wanted",
            "land more days before as_of, or lower train.min_rows",
        )
