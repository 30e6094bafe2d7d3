"""Has the champion become worse than it was when it was let in? A verdict that may be asked for every day of its life.

A day's loss says little: a storm is hard for every model. So a day is held against what a small model fitted that morning
(`ml.monitoring.fresh`) loses on the same rows, and that difference against what it was on the champion's holdout. What is left,
the *excess*, is what the champion lost by getting older. Rows of a day share weather and delays, so a day is one observation.

The test. Under "no harm" live days have the same mean as the holdout's days, `margin` more at most. For each day on which harm
may have begun, the days since then are compared with the holdout's by the two-sample t statistic, and its likelihood ratio, mixed
over effects of all sizes above zero, is the evidence: a supermartingale under "no harm", so it exceeds 1 / alpha with probability
alpha at most, however often one looks (Ville's inequality). That the holdout has few days is part of the statistic: nothing is
taken for known that was estimated. alpha is shared out among the days on which harm may begin: half to the first, the rest as in
Shiryaev's prior, so that a late change is not diluted by the good days before it.

Sources. Podkopaev and Ramdas 2022, ICLR (a deployed model's risk against the source's, plus a tolerance, at all times). Gönen,
Johnson, Lu and Westfall 2005, The American Statistician 59:252 (the mixed likelihood ratio of t in closed form). Grünwald and
Koolen 2025, arXiv 2502.04208 (it is a supermartingale for all effects below zero, too). Shin, Ramdas and Rinaldo 2023, arXiv
2203.03532 (a test begun anew each day). Their sum of tests bounds how *often* alarms come; a union of tests bounds that there is
*ever* one, which is what is promised here; and it needs no common history of the tests (sums would: Choe and Ramdas 2024, arXiv
2402.09698).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from ml import config, metrics
from ml.config import Task
from ml.refs import Ref

CLIP = 0.01
"""Probabilities are clipped to [CLIP, 1 - CLIP], so that a row's loss is at most -ln CLIP = 4.6 and none decides a day."""
TAIL = 0.99
"""For regression: the quantile of the holdout's squared errors at which a row's loss is cut off."""
LIFE = 60.0
"""Days after which a change is expected, if there is one: the mean of the prior of when harm begins."""
EFFECT = 1.0
"""Standard deviation of the prior of the effect, in those of a day. Up: quicker for large harm, slower for small."""
LEAST_HOLDOUT = 5
"""With fewer days of the holdout nothing is said."""

Verdict = Literal["harmed", "unproven", "few_labels"]


class DayLoss(Ref):
    """One day: mean bounded loss of the champion's answers and of the yardstick's (`fresh`) on the same `n` rows."""

    day: date
    n: int
    loss: float
    fresh: float

    @property
    def behind(self) -> float:
        """How much more the champion loses than the yardstick."""
        return self.loss - self.fresh


class Harm(Ref):
    """The verdict on a champion's life so far.

    `by_day`: whether that day's excess is above the margin; days with fewer than `min_rows` labels are not in it. `excess`: mean
    over the `days` from `since` on (where harm shows most, or all of them), with bounds that hold on all days at once, each with
    probability `confidence`; None: nothing can be said. `n`: rows of these days.
    """

    verdict: Verdict
    by_day: dict[date, bool]
    since: date | None
    excess: float | None
    low: float | None
    high: float | None
    n: int
    days: int
    detail: str


# ---- days


def bounded(task: Task, y_true: np.ndarray, answers: np.ndarray, limit: float = math.inf) -> np.ndarray:
    """The loss of each row, shape (n,), cut off above: log-loss in nats of clipped probabilities, or squared error up to `limit`.

    Args:
        limit: for regression alone; see `limit_of`.

    >>> bounded("binary", np.array([1.0, 0.0]), np.array([0.0, 0.5])).round(3).tolist()
    [4.605, 0.693]
    """
    if task == "regression":
        return np.minimum(metrics.losses(task, y_true, answers), limit)
    return metrics.losses(task, y_true, np.clip(answers, CLIP, 1 - CLIP))


def limit_of(task: Task, y_true: np.ndarray, answers: np.ndarray) -> float:
    """The largest loss that a row can have: -ln CLIP, or for regression the `TAIL` quantile of the champion's on its holdout."""
    if task == "regression":
        return float(np.quantile(metrics.losses(task, y_true, answers), TAIL))
    return -math.log(CLIP)


def day_losses(judged: pd.DataFrame, task: Task = "binary", limit: float = math.inf) -> list[DayLoss]:
    """Losses by event day, oldest first.

    Args:
        judged: ``event_time``, ``probability`` (the champion's answer), ``fresh`` (the yardstick's), ``label``; rows that lack
            one of the three are left out and not counted. The same for the holdout's days, with the judged model's answers.
        limit: as in `bounded`; the same for live days and the holdout's.
    """
    rows = judged[judged[["probability", "fresh", "label"]].notna().all(axis=1)]
    if rows.empty:
        return []
    y_true = rows["label"].to_numpy(float)
    sides = ("probability", "fresh")
    lost = pd.DataFrame(
        {side: bounded(task, y_true, np.array(rows[side].tolist()), limit) for side in sides}, index=rows.index
    )  # a multiclass answer is a list
    grouped = lost.groupby(rows["event_time"].dt.date)
    means = grouped.mean()
    return [
        DayLoss(day=day, n=int(n), loss=float(mine), fresh=float(theirs))
        for day, n, mine, theirs in zip(means.index, grouped.size(), means["probability"], means["fresh"], strict=True)
    ]


# ---- the verdict


def judge(days: Sequence[DayLoss], holdout: Sequence[DayLoss], params: config.Harm) -> Harm:
    """Is the champion's mean excess since some day above `params.margin`, shown for certain?

    Args:
        days: all matured days that it has served, in any order; days with fewer than `params.min_rows` labels do not count.
        holdout: the days that it was judged on when it was let in: what is expected of it, and how much days differ.

    Returns:
        ``harmed``, ``unproven`` (which includes "not harmed"), or ``few_labels`` (no day, or a holdout of fewer than
        `LEAST_HOLDOUT`). A champion that never loses more than `margin` above what is expected is ever called harmed with
        probability ``1 - params.confidence`` at most, if its days' differences are independent and about normal.
    """
    live, before = (sorted((d for d in some if d.n >= params.min_rows), key=lambda d: d.day) for some in (days, holdout))
    if not live or len(before) < LEAST_HOLDOUT:
        return _few_labels(live, before, days, params)
    alpha = 1 - params.confidence
    reference, seen = (np.array([d.behind for d in some]) for some in (before, live))
    expected = float(reference.mean())
    by_day = {d.day: d.behind - expected > params.margin for d in live}
    excess, error = since_each(seen, reference)
    n, m = len(seen) - np.arange(len(seen)), len(reference)
    low = excess - _times(error, critical(n, m, alpha * prior(len(seen))))
    harmed = bool(low.max() > params.margin)
    start = int(np.argmax(low)) if harmed else 0
    high = float((excess + _times(error, critical(n, m, alpha)))[start])
    since, rows = live[start].day, sum(d.n for d in live[start:])
    shown = dict(since=since, excess=float(excess[start]), low=_finite(float(low[start])), high=_finite(high), n=rows)
    told = f"since {since}, {n[start]} days with {rows:,} labels, it loses {excess[start]:+.4f} a row beyond what is expected"
    told += f" beside a model fitted each morning ({expected:+.4f} on {m} days of the holdout)"
    told += f", at least {low[start]:+.4f} and at most {high:+.4f}; {params.margin:g} is tolerated"
    return Harm(
        verdict="harmed" if harmed else "unproven",
        by_day=by_day,
        days=int(n[start]),
        detail=("harm is shown: " if harmed else "no harm is shown: ") + told,
        **shown,
    )


def _few_labels(live: Sequence[DayLoss], before: Sequence[DayLoss], days: Sequence[DayLoss], params: config.Harm) -> Harm:
    if len(before) < LEAST_HOLDOUT:
        told = f"the holdout has {len(before)} days with {params.min_rows:,} labels, {LEAST_HOLDOUT} are wanted"
    else:
        told = f"none of {len(days)} matured days has {params.min_rows:,} labels"
    return Harm(verdict="few_labels", by_day={}, since=None, excess=None, low=None, high=None, n=sum(d.n for d in live),
                days=len(live), detail=told)  # fmt: skip


def _times(error: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """How far a bound lies from the mean; no reach is no bound, also where days do not differ at all."""
    return np.where(np.isinf(reach), np.inf, error * np.where(np.isinf(reach), 0.0, reach))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- the test


def since_each(seen: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each day as the first: mean of the days from it on less the reference's, and the pooled standard error of that.

    Args:
        seen: one value a live day, shape (n,), oldest first; `reference`: one a day of the holdout, shape (m,), m ≥ 2.

    Returns:
        Two arrays of shape (n,).
    """
    count, m = len(seen) - np.arange(len(seen)), len(reference)
    centre = reference.mean()
    total, squares = (np.cumsum(((seen - centre) ** power)[::-1])[::-1] for power in (1, 2))
    mean = total / count
    within = np.maximum(squares - count * mean**2, 0.0) + ((reference - centre) ** 2).sum()
    return mean, np.sqrt(within / (count + m - 2) * (1 / count + 1 / m))


def prior(days: int) -> np.ndarray:
    """Shares of alpha by the day on which harm may begin, shape (days,); together below 1 for any number of days."""
    later = 0.5 / LIFE * (1 - 1 / LIFE) ** np.arange(days)
    return np.concatenate([[0.5], later[: days - 1]])


def log_evidence(t: np.ndarray, n: np.ndarray, m: int) -> np.ndarray:
    """Logarithm of the evidence for a positive effect: the likelihood ratio of the t statistic, mixed over a half-normal prior.

    Gönen et al. 2005 give the ratio B for a normal prior, of both signs, of variance g:
    ``((1 + t²/ν) / (1 + t²/(ν(1 + Ng))))^((ν + 1)/2) / sqrt(1 + Ng)``, ``1/N = 1/n + 1/m``, ``ν = n + m - 2``. The half with
    positive effects has ``2 · P(effect > 0 | data) · B``; the posterior of the effect's sign follows Student's t of ν + 1, since
    the variance given the data is inverse gamma.

    Args:
        t: two-sample t statistics; `n`: number of live days of each, same shape; `m`: days of the holdout.
    """
    whole, freedom = 1 + EFFECT**2 / (1 / n + 1 / m), n + m - 2.0
    ratio = (freedom + 1) / 2 * (np.log1p(t**2 / freedom) - np.log1p(t**2 / (freedom * whole))) - np.log(whole) / 2
    towards = t * np.sqrt((1 - 1 / whole) * (freedom + 1) / (freedom + t**2 / whole))
    return np.asarray(ratio + np.log(2 * np.maximum(special.stdtr(freedom + 1, towards), 1e-300)))


def critical(n: np.ndarray, m: int, alpha: np.ndarray | float) -> np.ndarray:
    """The t statistic from which the evidence is 1 / alpha, shape of `n`; inf where no difference would be enough.

    >>> critical(np.array([1, 14, 60]), 14, 0.05).round(2).tolist()
    [4.93, 2.95, 2.85]
    """
    wanted = -np.log(np.broadcast_to(alpha, n.shape))
    low, high = np.zeros(n.shape), np.full(n.shape, 1e3)
    never = log_evidence(high, n, m) < wanted
    for _ in range(36):  # the evidence grows with t
        middle = (low + high) / 2
        enough = log_evidence(middle, n, m) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(never, np.inf, high)
