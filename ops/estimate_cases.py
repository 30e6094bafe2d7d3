"""Champions of `ops.bench_estimate` on the shipped year, and worlds in which inputs or labels are changed on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd

from ml.config import Params
from ml.monitoring.expected import Labelled
from ml.refs import Window
from ml.training.fit import labelled
from ops.bench_features import say
from ops.bench_gates import POOL, TRAIN, Models, Recipe

APART = 28
"""Days between the ends of two champions' training windows."""
WEEK = 7
LIFE = 9
"""Weeks that a champion is looked at after its holdout; the first one is to the year's end."""


@dataclass(frozen=True)
class Champion:
    """A model with its answers on a 14-day holdout and on whole weeks (Monday to Sunday) after it; it never saw any."""

    end: date
    """First day that it did not learn from."""
    train: pd.DataFrame
    holdout: Labelled
    later: Labelled
    rows: pd.DataFrame
    """Features of `later`."""

    @property
    def starts(self) -> list[int]:
        """The first days of its weeks."""
        first, last = int(self.later.days.min()), int(self.later.days.max())
        return list(range(first, last - WEEK + 2, WEEK))

    def known(self, end: int, delay: int) -> Labelled:
        """Its answers since the holdout whose labels are there when a week that ends before day `end` is over."""
        return self.later[self.later.days < end - delay]

    def week(self, start: int) -> np.ndarray:
        return (self.later.days >= start) & (self.later.days < start + WEEK)


def champions(table: pd.DataFrame, params: Params, number: int) -> list[Champion]:
    models, made = Models(table, params), []
    for i in range(number):
        recipe = Recipe("whole", seed=0, days_ago=-(1 + APART * i))
        end = TRAIN.end - timedelta(days=recipe.days_ago)
        first = end + timedelta(days=1)  # a day's gap; a Monday
        last = first + timedelta(weeks=2 + LIFE)
        end_of_year = first + timedelta(weeks=(POOL.end - first).days // 7)
        rows = labelled(table, Window(start=first, end=min(last, end_of_year) if i else end_of_year))
        y_proba, day = models.answer(recipe, rows), day_number(rows)
        whole = Labelled(y_proba, day, rows["label"].to_numpy(float))
        held = day < day[0] + 2 * WEEK
        train = labelled(table, Window(start=end - timedelta(days=params.train.window_days), end=end))
        made.append(Champion(end, train, whole[held], whole[~held], rows[~held]))
        say(f"champion {i + 1} of {number}: learned until {end - timedelta(days=1)}, judged on {len(made[-1].starts)} weeks")
    return made


def day_number(rows: pd.DataFrame) -> np.ndarray:
    """Days since 1970, shape (n,)."""
    return rows["event_time"].to_numpy().astype("datetime64[D]").astype(np.int64)


def tilted(values: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Row numbers, shape (n,), drawn with weights that grow with the feature; a missing value counts as the mean."""
    z = np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values))
    weight = np.exp(strength * np.clip(z, -3, 3))
    return rng.choice(len(values), len(values), p=weight / weight.sum())


def disturbed(later: Labelled, chosen: np.ndarray, change: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Labels, changed in the chosen rows as `ops.bench_estimate.CHANGES` says."""
    shuffled, raised = change
    y_true = later.y_true.copy()
    for day in np.unique(later.days[chosen]):
        some = np.flatnonzero((later.days == day) & (rng.random(len(y_true)) < shuffled))
        y_true[some] = rng.permutation(y_true[some])
    y_true[chosen & (rng.random(len(y_true)) < raised)] = 1.0
    return y_true
