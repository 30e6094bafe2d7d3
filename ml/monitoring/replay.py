"""Policies of retraining over a time that has been: when would each have asked, what would have served, and what did that bring?

A policy sees one morning at a time, and of the labels only those that had matured by then. It may ask for a retrain; the model of
that night then serves from the next day on, if the rule that chooses among models says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ml.config import Params
from ml.monitoring.replay_matrix import Matrix
from ml.significance import paid, paired_sums


@dataclass(frozen=True)
class Past:
    """What is known on the morning of `day`.

    `serving`: the model of each day from `first` on, today's included. `asked`: mornings on which a retrain was asked for before.
    """

    matrix: Matrix
    first: int
    day: int
    serving: tuple[int, ...]
    asked: tuple[int, ...]

    @property
    def champion(self) -> int:
        return self.serving[-1]

    @property
    def until(self) -> int:
        """The newest day whose labels are known."""
        return self.matrix.matured(self.day)

    @property
    def pool(self) -> list[int]:
        """Every model that has served, oldest first."""
        return sorted(set(self.serving))


Policy = Callable[[Past], bool]
"""Says on a morning whether a retrain is asked for."""
Choice = Callable[[Past, int | None], int]
"""Says on a morning which model serves from tomorrow on; the second argument is the candidate of this night, if there is one."""


@dataclass(frozen=True)
class Walk:
    """What became of a policy: the model that served on each day from `first` on, and the mornings on which it asked."""

    first: int
    serving: np.ndarray
    asked: tuple[int, ...]

    def together(self, most: int) -> list[tuple[int, ...]]:
        """The model of each day with those that served before it, newest last, `most` in all: for a mean of champions."""
        before: list[int] = []
        found = []
        for model in self.serving.tolist():
            if model in before:
                before.remove(model)
            before.append(model)
            found.append(tuple(before[-most:]))
        return found

    @property
    def taken(self) -> int:
        """Candidates that came to serve."""
        return len(set(self.asked) & set(self.serving.tolist()))

    @property
    def returns(self) -> int:
        """How often an older model than the day before's served again."""
        return int((np.diff(self.serving) < 0).sum())


def walk(matrix: Matrix, first: int, end: int, policy: Policy, choose: Choice) -> Walk:
    """Goes through days [first, end) with the model of the night before `first`; nothing is known but what is in `Past`."""
    champion = first - 1
    serving: list[int] = []
    asked: list[int] = []
    for day in range(first, end):
        serving.append(champion)
        past = Past(matrix, first, day, tuple(serving), tuple(asked))
        wanted = policy(past)
        champion = choose(past, day if wanted else None)
        if wanted:
            asked.append(day)
    return Walk(first, np.array(serving), tuple(asked))


# ---- which model serves


def newest(past: Past, candidate: int | None) -> int:
    """Whatever was trained is shipped."""
    return past.champion if candidate is None else candidate


@dataclass
class Gate:
    """The promotion gate's comparison: a candidate serves unless it is worse than the champion on the holdout's days.

    Both are judged on days that they did not learn from: a candidate by its *twin*, for which stands the model of the night
    `train.holdout_days` and the embargo before (`twin_of`); the champion by what it answered while it served, before by its twin.
    The interval pays for every candidate that was judged on the same days, as `ml.evaluation.gates` has it.
    """

    params: Params
    paying: bool = True

    def __call__(self, past: Past, candidate: int | None) -> int:
        if candidate is None:
            return past.champion
        return candidate if self.accepts(past, candidate, past.champion) else past.champion

    def accepts(self, past: Past, candidate: int, champion: int) -> bool:
        matrix, gates = past.matrix, self.params.gates
        days = np.arange(past.until + 1 - self.params.train.holdout_days, past.until + 1)
        difference = self.sums(matrix, candidate, days) - self.sums(matrix, champion, days)
        uses = 1 + sum(day > past.day - self.params.train.holdout_days for day in past.asked) if self.paying else 1
        seen = paired_sums(difference, matrix.n[days], paid(gates.confidence, uses), gates.resamples, self.params.train.seed)
        return seen.verdict(gates.margin) != "worse"

    def sums(self, matrix: Matrix, model: int, days: np.ndarray) -> np.ndarray:
        """A model's log-loss summed by day; on days before it first served, its twin's."""
        return matrix.loss[np.where(days > model, model, twin_of(matrix, model, self.params)), days]


def twin_of(matrix: Matrix, model: int, params: Params) -> int:
    """The night whose model learned up to the holdout of another: what stands for its twin.

    The twin's window is as much shorter as the holdout is long, this one's is not: it flatters twins a little.
    """
    return max(model - params.train.holdout_days - matrix.gap, 0)


# ---- when a retrain is asked for


def never(past: Past) -> bool:
    return False


def every(days: int) -> Policy:
    """Each so many days, the first time on the first morning."""
    return lambda past: (past.day - past.first) % days == 0


def on(mornings: Sequence[int]) -> Policy:
    """On given mornings."""
    chosen = frozenset(mornings)
    return lambda past: past.day in chosen


# ---- what it brought


@dataclass(frozen=True)
class Score:
    """What a policy brought in a period: means over its rows, and what it cost.

    `gain`: share of what retraining every night gains in log-loss over never retraining; 1 is as good.
    """

    name: str
    retrains: int
    taken: int
    returns: int
    log_loss: float
    auc: float
    cost: float
    cpu_seconds: float
    gain: float


def mean_loss(matrix: Matrix, walked: Walk) -> float:
    """Mean log-loss over the rows of the days that were walked."""
    days = walked.first + np.arange(len(walked.serving))
    return float(matrix.loss[walked.serving, days].sum() / matrix.n[days].sum())


def by_chance(first: int, end: int, count: int, seeds: int) -> Iterator[Walk]:
    """Retraining on `count` mornings of [first, end) drawn by chance, one walk for each seed; whatever was trained is shipped."""
    days = np.arange(first, end)
    for seed in range(seeds):
        asked = np.sort(np.random.default_rng(seed).choice(days, count, replace=False))
        newest_asked = np.maximum.accumulate(np.where(np.isin(days, asked), days, first - 1))
        yield Walk(first, np.concatenate([[first - 1], newest_asked[:-1]]), tuple(asked.tolist()))


def oracle(matrix: Matrix, first: int, end: int) -> tuple[np.ndarray, Callable[[int], Walk]]:
    """The best that retraining on k mornings could have brought, had one known the future; each model serves until the next.

    Dynamic programme over (retrains, day, model), exact.

    Returns:
        Mean log-loss for k = 0 … days - 1 retrains at most, shape (days,); and the walk for a k.
    """
    days = np.arange(first, end)
    size = len(days)  # candidate c of morning first + c serves from day first + c + 1; number -1 is the model before
    models = np.arange(first - 1, end - 1)
    sums = np.where(models[:, None] < days[None], np.nan_to_num(matrix.loss[np.ix_(models, days)]), 0.0)
    before = np.concatenate([np.zeros((size, 1)), np.cumsum(sums, axis=1)], axis=1)  # of days [0, j)
    begun = before[np.arange(size), np.arange(size)]  # model m, of the night before day m, serves from day m on
    best = np.full((size, size + 1), np.inf)  # of days [0, j) with k retrains at most
    came = np.zeros((size, size + 1), dtype=int)
    best[0] = before[0]
    for k in range(1, size):
        # model m (m ≥ 1) serves [m, j): the best of k - 1 on [0, m), then its own
        through = best[k - 1, :size, None] + before - begun[:, None]
        through[np.arange(size)[:, None] >= np.arange(size + 1)[None]] = np.inf
        through[0] = np.inf
        came[k] = through.argmin(axis=0)
        best[k] = through.min(axis=0)
        stay = best[k - 1] <= best[k]
        best[k][stay], came[k][stay] = best[k - 1][stay], -1

    def path(k: int) -> Walk:
        serving, j, left = np.empty(size, dtype=int), size, k
        while j > 0 and left > 0:
            m = came[left, j]
            left -= 1
            if m >= 0:
                serving[m:j], j = models[m], m
        serving[:j] = models[0]
        return Walk(first, serving, tuple(int(m) for m in np.unique(serving) if m >= first))

    return best[:, size] / matrix.n[days].sum(), path
