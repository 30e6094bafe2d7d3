"""Champions and yardsticks on the shipped year's rows, as they are, or with labels or inputs that change after some days."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property

import numpy as np
import pandas as pd

from ml.config import Params
from ml.features.definitions import load_module
from ml.features.inputs import midnight
from ml.monitoring import fresh, harm
from ml.monitoring.drift import psi
from ml.monitoring.harm import DayLoss
from ml.refs import Window
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import labelled
from ml.training.models import XGBoost, settings_of
from ml.training.splits import split

ROUNDS = 100
CHANGE_AFTER = 10
"""Days of a life before labels or inputs change."""
SIDE_BY_SIDE = 2
"""Yardsticks that are fitted at a time."""


@dataclass(frozen=True)
class Life:
    """A champion's days: those of its holdout, answered by its twin, and those that it served."""

    first: date
    holdout: list[DayLoss]
    live: list[DayLoss]

    @property
    def expected(self) -> float:
        return float(np.mean([d.behind for d in self.holdout]))


@dataclass(frozen=True)
class World:
    """A feature table in order of event time, and what models answer in it."""

    table: pd.DataFrame
    params: Params
    cpu: list[float]
    fits: dict[Window, Callable[[pd.DataFrame], np.ndarray]] = field(default_factory=dict)
    yards: dict[date, np.ndarray] = field(default_factory=dict)

    @cached_property
    def by_day(self) -> dict[date, pd.DataFrame]:
        return dict(iter(self.table.groupby(self.table["event_time"].dt.date)))

    def life(self, first: date, days: int) -> Life:
        """A champion that was trained on the morning of `first` as `ml.steps` does it: judged twin, then refit."""
        windows = split(datetime.combine(first, datetime.min.time()) + timedelta(hours=3), self.params.train)
        twin = self.fitted(windows.train)
        served = Window(start=windows.train.start, end=windows.holdout.end)
        live = Window(start=first, end=first + timedelta(days=days))
        return Life(first, self.losses(twin, windows.holdout), self.losses(self.fitted(served), live))

    def losses(self, champion: Callable[[pd.DataFrame], np.ndarray], window: Window) -> list[DayLoss]:
        found, missing = [], [day for day in window.days() if day not in self.yards]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            self.yards.update(zip(missing, pool.map(self.fresh, missing), strict=True))
        for day in window.days():
            rows = self.by_day[day]
            found += harm.day_losses(
                pd.DataFrame({"event_time": rows["event_time"], "label": rows["label"], "probability": champion(rows),
                              "fresh": self.yards[day]})
            )  # fmt: skip
        return found

    def fresh(self, day: date) -> np.ndarray:
        """The yardstick's answers to the rows of a day; what it cost goes to `cpu`."""
        window, began = fresh.needed(day, self.params), time.thread_time()
        times = self.table["event_time"]
        first, end = times.searchsorted([pd.Timestamp(window.start), pd.Timestamp(window.end)])
        rows = self.table.iloc[first:end]
        y_proba = fresh.answers(rows, day, midnight(day), self.params)
        self.cpu.append(time.thread_time() - began)
        return y_proba

    def fitted(self, window: Window) -> Callable[[pd.DataFrame], np.ndarray]:
        if window not in self.fits:
            rows = labelled(self.table, window)
            y_true, tune = rows["label"].to_numpy(), self.params.tune
            encoding = fit_encoding(load_module(self.params).learned, rows, y_true)
            chosen = {name: float(d.default) for name, d in tune.space.items()}
            settings = settings_of(
                "xgboost", "binary", 0, self.params.train, chosen, tune.integers("xgboost"), self.params.train.threads
            )
            model = XGBoost.fit(encode(encoding, rows), y_true, settings, ROUNDS, "binary")
            self.fits[window] = lambda X: model.predict(encode(encoding, X))
        return self.fits[window]


# ---- changes


def flipped(table: pd.DataFrame, first: date, share: float) -> pd.DataFrame:
    """A concept shift: of one airport's flights a share becomes late that were not, and the other way round."""
    rng = np.random.default_rng(0)
    chosen = _after(table, first) & (table["origin"] == "JFK").to_numpy() & (rng.random(len(table)) < share)
    return table.assign(label=table["label"].where(~chosen, 1 - table["label"]))


def moved_inputs(table: pd.DataFrame, first: date) -> pd.DataFrame:
    """Virtual drift: of each day as many flights, drawn again, evening ones four times as likely; labels are their own."""
    rng, parts = np.random.default_rng(0), [table[~_after(table, first)]]
    late = table[_after(table, first)]
    for _, rows in late.groupby(late["event_time"].dt.date):
        weight = np.where(rows["hour"] >= 17, 4.0, 1.0)
        parts.append(rows.iloc[np.sort(rng.choice(len(rows), len(rows), p=weight / weight.sum()))])
    return pd.concat(parts, ignore_index=True)


def moved_by(table: pd.DataFrame, moved: pd.DataFrame, first: date) -> float:
    """PSI of the hour, since the change."""
    counts = [np.bincount(t.loc[_after(t, first), "hour"].astype(int), minlength=24) for t in (table, moved)]
    return float(psi(*counts))


def _after(table: pd.DataFrame, first: date) -> np.ndarray:
    return np.asarray(table["event_time"] >= pd.Timestamp(first) + pd.Timedelta(days=CHANGE_AFTER))
