"""Policies that look before they ask: at inputs alone, at realised harm alone, and the shipped one with all that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Literal

import numpy as np
import pandas as pd

from ml.config import Params
from ml.features.definitions import Feature
from ml.monitoring import harm, policy
from ml.monitoring.drift import psi
from ml.monitoring.harm import DayLoss, Harm
from ml.monitoring.policy import Evidence, Order, Outcome, State
from ml.monitoring.replay import Choice, Gate, Past, Policy, twin_of
from ml.monitoring.replay_matrix import Matrix

LOOK, ENDED = time(5), timedelta(hours=4)
"""When the policy looks at a morning, and how long after it a retrain has ended, with its gate's verdict."""
DAY = timedelta(days=1)
BINS = 10


# ---- inputs alone


@dataclass(frozen=True)
class Counts:
    """Values of each feature counted by day: one array (days, bins) a feature; bin edges are deciles of the first days."""

    by_feature: dict[str, np.ndarray]
    ahead: int
    """Days in the arrays before the matrix's first."""

    @classmethod
    def of(cls, table: pd.DataFrame, features: Sequence[Feature], matrix: Matrix) -> Counts:
        """Counts a feature table from its first day on; missing values are a bin of their own."""
        first = table["event_time"].min().normalize()
        ahead = (pd.Timestamp(matrix.days[0]) - first).days
        day_of = (table["event_time"].dt.floor("D") - first).dt.days.to_numpy()
        days, early = ahead + len(matrix.days), day_of < ahead
        found = {}
        for feature in features:
            if feature.kind == "text":
                codes = pd.factorize(table[feature.name])[0]
            else:
                values = table[feature.name].to_numpy(float)
                edges = np.unique(np.nanquantile(values[early], np.arange(1, BINS) / BINS))
                codes = np.where(np.isnan(values), -1, np.searchsorted(edges, values))
            bins = int(codes.max()) + 2
            kept = day_of < days
            flat = np.bincount(day_of[kept] * bins + codes[kept] + 1, minlength=days * bins)
            found[feature.name] = flat.reshape(days, bins)
        return cls(found, ahead)

    def largest(self, learned: tuple[int, int], newest: tuple[int, int]) -> tuple[str, float]:
        """The feature with the largest PSI between two spans of days [from, to) of the matrix, and that PSI."""
        a, b = (slice(max(span[0] + self.ahead, 0), span[1] + self.ahead) for span in (learned, newest))
        values = {name: psi(counts[a].sum(axis=0), counts[b].sum(axis=0)) for name, counts in self.by_feature.items()}
        return max(values.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class AnyFeature:
    """Asks when any feature's PSI over the last `drift_days`, against what the champion learned from, is above a threshold."""

    counts: Counts
    params: Params
    threshold: float

    def __call__(self, past: Past) -> bool:
        learned = past.matrix.matured(past.champion) + 1
        spans = (learned - self.params.train.window_days, learned), (past.day - self.params.monitoring.drift_days, past.day)
        return self.counts.largest(*spans)[1] > self.threshold


# ---- realised harm


@dataclass(frozen=True)
class Yardstick:
    """Mean bounded loss on each day's rows of a model that was fitted that morning, shape (days,).

    The replay has each night's own model, which stands for `ml.monitoring.fresh`; `cpu` is what a day of the latter costs.
    """

    loss: np.ndarray
    cpu: float

    @classmethod
    def of(cls, matrix: Matrix, cpu: float) -> Yardstick:
        return cls(np.diagonal(matrix.bounded) / np.maximum(matrix.n, 1), cpu)


def judged(past: Past, yardstick: Yardstick, params: Params) -> Harm:
    """What `ml.monitoring.harm` says of the champion on this morning: its matured answers, beside its twin's on its holdout."""
    champion, matrix = past.champion, past.matrix
    began = past.serving.index(champion) + past.first if champion >= past.first else past.first
    last = matrix.matured(champion)
    holdout = _days(matrix, yardstick, twin_of(matrix, champion, params), range(last + 1 - params.train.holdout_days, last + 1))
    return harm.judge(_days(matrix, yardstick, champion, range(began, past.until + 1)), holdout, params.monitoring.harm)


def _days(matrix: Matrix, yardstick: Yardstick, model: int, days: range) -> list[DayLoss]:
    means = matrix.bounded[model] / np.maximum(matrix.n, 1)
    return [
        DayLoss(day=matrix.days[d], n=int(matrix.n[d]), loss=float(means[d]), fresh=float(yardstick.loss[d]))
        for d in days
        if d >= model and matrix.n[d]
    ]


@dataclass
class Harmed:
    """Asks when harm is shown, and at no other time."""

    yardstick: Yardstick
    params: Params

    def __call__(self, past: Past) -> bool:
        return judged(past, self.yardstick, self.params).verdict == "harmed"


# ---- the shipped policy


@dataclass
class Shipped:
    """`ml.monitoring.policy.advance` on each morning's evidence, made as DAG `drift` makes it; `choose` is its gate's verdict.

    Data never breaks here, and a retrain ends some hours after it was asked for. When the breaker opens, a person is taken to
    look at it the next morning and to say ``resume``; `orders` tells how often.
    """

    yardstick: Yardstick
    params: Params
    state: State = field(default_factory=State)
    outcomes: list[Outcome] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    def __call__(self, past: Past) -> bool:
        as_of = datetime.combine(past.matrix.days[past.day], LOOK)
        if self.state.rejected >= self.params.policy.breaker:
            self.orders.append(Order(kind="resume", at=as_of, by="replay", reason="looked at the rejected candidates"))
        self.state, decision = policy.advance(self.state, self.evidence(past, as_of), self.params.policy)
        return decision.verdict == policy.RETRAIN

    def choose(self, past: Past, candidate: int | None) -> int:
        chosen = Gate(self.params)(past, candidate)
        if candidate is not None:
            ended = datetime.combine(past.matrix.days[past.day], LOOK) + ENDED
            verdict: Literal["accepted", "rejected"] = "accepted" if chosen == candidate else "rejected"
            self.outcomes = [Outcome(request=self.state.in_flight, verdict=verdict, at=ended)]
        return chosen

    def evidence(self, past: Past, as_of: datetime) -> Evidence:
        """What is known of the champion on this morning."""
        found, matrix = judged(past, self.yardstick, self.params), past.matrix
        learned = matrix.matured(past.champion)
        return Evidence(
            as_of=as_of,
            version=str(past.champion),
            harmed=found.by_day,
            proven=found.verdict == "harmed",
            new_labels=int(matrix.n[max(learned + 1, 0) : past.until + 1].sum()),
            age_days=(as_of - datetime.combine(matrix.days[0], time()) - (learned + 1) * DAY) / DAY,
            broken=[],
            outcomes=self.outcomes,
            orders=self.orders,
        )


def default(yardstick: Yardstick, params: Params) -> tuple[Policy, Choice]:
    """The shipped policy, with the state of a fresh start."""
    shipped = Shipped(yardstick, params)
    return shipped, shipped.choose
