"""Trials of the canary on a stream of rows whose answers are known: the real steps, the real verdict, drawn cohorts.

A trial starts at a random row and goes on in the order in which rows were asked for, days in a row as in life; the last row is
followed by the first. Cohorts are the router's: every row keeps its bucket, turned by a random angle for each trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml import metrics
from ml.config import Release
from ml.monitoring import canary

EVERY = 200
"""Answers of canary and baseline together between two looks."""
NEVER = 10**6
"""Hours."""


@dataclass(frozen=True)
class Stream:
    """Rows in the order in which they are asked for; times have a span that is a whole number of days."""

    asked: np.ndarray
    """Shape (n,), datetime64[s], ascending."""
    event: np.ndarray
    y_true: np.ndarray
    """0, 1 or NaN (no label ever)."""
    buckets: np.ndarray
    """Of the router, in [0, 1)."""
    champion: np.ndarray
    """The champion's answers."""
    span: np.timedelta64
    """After which the first row follows the last."""

    def __len__(self) -> int:
        return len(self.asked)


@dataclass(frozen=True)
class Candidate:
    """One way to be: whose answers, and what goes wrong."""

    name: str
    answers: Sequence[np.ndarray]
    """Of equally good models, one of which is drawn for a trial; shape (n,) each."""
    blur: float = 0.0
    """Standard deviation of noise on log-odds."""
    odds_shift: float = 0.0
    shift: float = 0.0
    """Added to the probability."""
    slower: float = 1.0
    errors: float = 0.0
    """Share of answers that it fails to give, beyond `Server.errors`."""
    label_hours: int = 24
    """From event to label."""
    faster: int = 1
    """So many of the rows' hours pass in one hour: rows come as much faster, and labels as late as ever."""
    waits: int = 0
    """`release.wait_for_labels` of its release."""

    def of_trial(self, rng: np.random.Generator) -> np.ndarray:
        """Answers of one trial, shape (n,)."""
        drawn = self.answers[int(rng.integers(len(self.answers)))]
        if not (self.blur or self.odds_shift):
            return np.clip(drawn + self.shift, 0.0, 1.0)
        margin = np.log(drawn / (1 - drawn)) + self.odds_shift + self.blur * rng.standard_normal(len(drawn))
        return np.asarray(np.clip(1 / (1 + np.exp(-margin)) + self.shift, 0.0, 1.0))


@dataclass(frozen=True)
class Server:
    """A service without a canary: lognormal times, and a few answers that fail whoever gives them."""

    median_seconds: float = 0.003
    spread: float = 0.5
    """Standard deviation of the logarithm of the time."""
    errors: float = 0.001


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``fail`` (rolled back), ``pass`` (promoted) or ``running`` (the rows ended)."""

    verdict: str
    because: str
    """The check that failed, or that was still not shown."""
    step: int
    answers: int
    """Of the canary until the verdict, all steps."""
    requests: int
    """Of everybody."""
    hours: float
    """At the rate of the rows, times `Candidate.faster`."""
    longest_step: int
    """Requests in the longest step."""
    longest_hours: float
    """Of the longest step: what `max_hours` must be for this walk."""
    looks: int


def walk(stream: Stream, candidate: Candidate, limits: Release, server: Server, seed: int, pooled: bool = True) -> Outcome:
    """One release from its first share to its verdict, looked at after every `EVERY` answers of canary and baseline.

    Args:
        pooled: pairs of earlier steps count in scores and quality; else each step stands for itself.
    """
    rng = np.random.default_rng(seed)
    first, turn = int(rng.integers(len(stream))), float(rng.random())
    order = (first + np.arange(len(stream))) % len(stream)
    again = stream.span * (order < first)
    asked, event = stream.asked[order] + again, stream.event[order] + again
    y_true, buckets = stream.y_true[order], (stream.buckets[order] + turn) % 1
    mine, champion = candidate.of_trial(rng)[order], stream.champion[order]
    labelled = ~np.isnan(y_true)
    gaps = np.zeros(len(order))
    gaps[labelled] = metrics.log_losses(y_true[labelled], mine[labelled])
    gaps[labelled] -= metrics.log_losses(y_true[labelled], champion[labelled])
    hour = event.astype("datetime64[h]").astype(np.int64) // candidate.faster
    known_at = event + np.timedelta64(candidate.label_hours * candidate.faster, "h")
    limits = limits.model_copy(update={"wait_for_labels": candidate.waits})
    start, answers, looks, longest, longest_hours, earlier = 0, 0, 0, 0, 0.0, np.empty(0, dtype=int)
    for step, share in enumerate(limits.steps):
        sides, at_step = (buckets < share, buckets >= 1 - share), canary.at_step(limits, share)
        by_canary, by_baseline = (start + np.flatnonzero(side[start:]) for side in sides)
        failed = [rng.random(len(by_canary)) < server.errors + candidate.errors, rng.random(len(by_baseline)) < server.errors]
        seconds = [server.median_seconds * np.exp(server.spread * rng.standard_normal(len(f))) for f in failed]
        seconds[0] *= candidate.slower
        both, answered = start + np.flatnonzero((sides[0] | sides[1])[start:]), np.ones(len(order), dtype=bool)
        answered[by_canary[failed[0]]] = False
        paired = both[answered[both]]
        verdict = "running"
        for seen in _looks(len(both), candidate.faster > 1):
            last = int(both[seen - 1])
            n, m = int(np.searchsorted(by_canary, last, "right")), int(np.searchsorted(by_baseline, last, "right"))
            pairs = np.concatenate([earlier, paired[: np.searchsorted(paired, last, "right")]])
            matured = pairs[labelled[pairs] & (known_at[pairs] <= asked[last])]
            found = canary.Evidence(
                canary_errors=failed[0][:n],
                baseline_errors=failed[1][:m],
                canary_seconds=seconds[0][:n],
                baseline_seconds=seconds[1][:m],
                canary_scores=mine[pairs],
                champion_scores=champion[pairs],
                loss_gaps=gaps[matured],
                hours=hour[matured],
            )
            decision, looks = canary.judge(found, at_step), looks + 1
            verdict, longest = decision.verdict, max(longest, last + 1 - start)
            longest_hours = max(longest_hours, _hours(asked[last] - asked[start]) / candidate.faster)
            if verdict != "running":
                break
        blamed = next((c.name for c in decision.checks if not c.passed and (verdict != "fail" or "harm" in c.detail)), "")
        if verdict != "pass" or step == len(limits.steps) - 1:
            hours = _hours(asked[last] - asked[0]) / candidate.faster
            return Outcome(verdict, blamed, step, answers + n, last + 1, hours, longest, longest_hours, looks)
        earlier = pairs if pooled else earlier
        start, answers = last + 1, answers + n
    raise ValueError("limits.steps is empty: there is nothing to walk")


def _looks(total: int, fast: bool) -> Iterator[int]:
    """After how many of a step's answers one looks; where they come fast, a look waits for a twentieth more of them."""
    seen = 0
    while seen < total:
        seen = min(total, seen + max(EVERY, seen // 20 if fast else 0))
        yield seen


def blur_for(y_true: np.ndarray, answers: np.ndarray, lost: float) -> float:
    """The noise on log-odds by which AUC falls by `lost`; by bisection with one draw of noise."""
    noise, margin = np.random.default_rng(0).standard_normal(len(answers)), np.log(answers / (1 - answers))
    whole, low, high = metrics.auc(y_true, answers), 0.0, 5.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if whole - metrics.auc(y_true, margin + middle * noise) < lost else (low, middle)
    return high


def unlabelled(candidate: Candidate, name: str) -> Candidate:
    """The same where no label matures in time."""
    return replace(candidate, name=name, label_hours=NEVER)


def _hours(span: np.timedelta64) -> float:
    return float(span / np.timedelta64(1, "s")) / 3600
