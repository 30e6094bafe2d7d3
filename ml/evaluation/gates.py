"""The promotion gates: every check with value, threshold and n; what cannot be measured has failed.

A candidate is judged on days that neither it nor what it is compared with has learned from. A *refresh* (the champion's recipe on
newer data) must not be worse than the champion; a *redesign* (other settings, features or family) must be better beyond noise, or
equal and simpler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from ml import metrics
from ml.config import Gates
from ml.evaluation.fairness import Fairness
from ml.evaluation.slices import Judged
from ml.metrics import Scoring
from ml.refs import Check, Decision
from ml.significance import Interval, paid, paired_by_day

INTEGRITY = ("untouched_holdout", "parity")
"""Checks that mode ``report`` does not waive: without them the other figures mean nothing."""
SIMPLER = 0.9
"""A graph of at most this share of the champion's leaves, on no more features, is simpler."""


@dataclass(frozen=True)
class Contender:
    """One model's answers on the holdout rows, and what it had learned.

    `learned_until`: the last event time that each answer's model had learned from, datetime64, shape (n,) or scalar.
    """

    name: str
    answers: np.ndarray
    learned_until: np.ndarray | datetime
    leaves: int = 0
    features: int = 0


@dataclass(frozen=True)
class Holdout:
    """The rows that models are judged on, shape (n,) each; `uses`: models judged on the most used day, this one included."""

    y_true: np.ndarray
    event_time: np.ndarray
    days: np.ndarray
    uses: int = 1

    @property
    def span(self) -> str:
        days = np.unique(self.days)
        return f"{days[0]}..{days[-1]}"


@dataclass(frozen=True)
class Evidence:
    """All that the gates look at. What is None or empty was not measured; where it is needed, that is a failed check."""

    holdout: Holdout
    candidate: Contender
    champion: Contender | None
    baselines: Mapping[str, np.ndarray]
    kind: Literal["first model", "refresh", "redesign"]
    slices: Sequence[Judged] = ()
    fairness: Sequence[Fairness] = ()
    feature_scores: Mapping[str, float] = field(default_factory=dict)
    parity: Decision | None = None
    latency_ms: float | None = None
    champion_latency_ms: float | None = None
    size_mb: float | None = None

    @property
    def n(self) -> int:
        return len(self.holdout.y_true)


def judge(evidence: Evidence, gates: Gates, scoring: Scoring, seed: int) -> Decision:
    """All checks of a candidate; verdict ``promote`` or ``keep``."""
    against = _comparer(evidence, gates, scoring, seed)
    checks = [
        *_untouched(evidence),
        _days(evidence, gates),
        *_floors(evidence, gates, scoring),
        _baseline(evidence, against, gates, scoring),
        *_champion(evidence, against, gates, scoring),
        _leak(evidence, gates),
        *_slices(evidence, gates),
        *_fairness(evidence, gates),
        *_calibration(evidence, gates, scoring),
        _parity(evidence, gates),
        *_latency(evidence, gates),
        _at_most("size", evidence.size_mb, gates.max_size_mb, evidence.n, "size of the graph, MB"),
    ]
    failed = [c for c in checks if not c.passed]
    binding = failed if gates.mode == "enforce" else [c for c in failed if c.name.startswith(INTEGRITY)]
    words = "; ".join(f"{c.name}: {c.detail}" for c in binding or failed)
    if binding:
        return Decision(kind="gate", verdict="keep", reason=f"kept the champion: {words}", checks=checks)
    why = next(c.detail for c in checks if c.name == ("champion" if evidence.champion else "baseline"))
    waived = f"; gates.mode is report, or it would have been kept back: {words}" if failed else ""
    return Decision(kind="gate", verdict="promote", reason=f"{evidence.kind}, {why}{waived}", checks=checks)


def compare(evidence: Evidence, other: np.ndarray, gates: Gates, scoring: Scoring, seed: int) -> Interval:
    """Mean loss of the candidate less that of `other` on the same rows; the interval pays for every use of the holdout."""
    y_true, task = evidence.holdout.y_true, scoring.task
    mine, theirs = metrics.losses(task, y_true, evidence.candidate.answers), metrics.losses(task, y_true, other)
    confidence = paid(gates.confidence, evidence.holdout.uses)
    return paired_by_day(mine, theirs, evidence.holdout.days, confidence, gates.resamples, seed)


def best_baseline(evidence: Evidence, scoring: Scoring) -> str:
    """The baseline with the smallest loss: the bar."""
    y_true = evidence.holdout.y_true
    return min(evidence.baselines, key=lambda name: metrics.losses(scoring.task, y_true, evidence.baselines[name]).mean())


def _comparer(evidence: Evidence, gates: Gates, scoring: Scoring, seed: int) -> Callable[[np.ndarray], Interval]:
    return lambda other: compare(evidence, other, gates, scoring, seed)


def _untouched(evidence: Evidence) -> list[Check]:
    """Nobody is judged on rows that it learned from: value = hours from what a model learned last to the first row it is
    judged on.
    """
    checks = []
    for model in (evidence.candidate, evidence.champion):
        if model is not None:
            until = np.asarray(model.learned_until, dtype="datetime64[us]")
            gap = float((evidence.holdout.event_time.astype("datetime64[us]") - until).min() / np.timedelta64(1, "h"))
            detail = f"{model.name} learned from rows until {until.max()}, holdout {evidence.holdout.span}: {gap:.0f} h between"
            name = "untouched_holdout" + ("" if model is evidence.candidate else "_champion")
            checks.append(Check(name=name, passed=gap > 0, value=gap, threshold=0.0, n=evidence.n, detail=detail))
    return checks


def _days(evidence: Evidence, gates: Gates) -> Check:
    """Intervals are made of days: a holdout that was mostly never landed, or not labelled yet, proves nothing."""
    found = len(np.unique(evidence.holdout.days))
    detail = f"labelled rows on {found} days of {evidence.holdout.span}, must be ≥ {gates.min_days}"
    return Check(name="holdout_days", passed=found >= gates.min_days, value=float(found), threshold=float(gates.min_days),
                 n=evidence.n, detail=detail)  # fmt: skip


def _floors(evidence: Evidence, gates: Gates, scoring: Scoring) -> list[Check]:
    found = metrics.summary(evidence.holdout.y_true, evidence.candidate.answers, scoring)
    score, loss = metrics.SCORE[scoring.task], metrics.LOSS[scoring.task]
    floor = found[score] >= gates.min_score  # NaN never holds
    detail = f"{score} of the candidate {found[score]:.4f}, must be ≥ {gates.min_score:g}"
    return [
        Check(name="score_floor", passed=bool(floor), value=found[score], threshold=gates.min_score, n=evidence.n, detail=detail),
        _at_most("loss_ceiling", found[loss], gates.max_loss, evidence.n, f"{loss} of the candidate"),
    ]


def _baseline(evidence: Evidence, against: Callable[[np.ndarray], Interval], gates: Gates, scoring: Scoring) -> Check:
    """Better than the simplest models beyond noise; a refresh, whose recipe has shown that before, must not be worse."""
    bar = best_baseline(evidence, scoring)
    over = against(evidence.baselines[bar])
    words = _words(f"{metrics.LOSS[scoring.task]} minus {bar}'s", over, evidence)
    if evidence.kind == "refresh":
        passed, threshold, wanted = over.verdict(gates.margin) != "worse", gates.margin, f"≤ {gates.margin:g}"
    else:
        passed, threshold, wanted = over.verdict(gates.margin) == "better", 0.0, "< 0"
    return Check(
        name="baseline", passed=passed, value=over.high, threshold=threshold, n=over.rows, detail=f"{words}, must be {wanted}"
    )


def _champion(evidence: Evidence, against: Callable[[np.ndarray], Interval], gates: Gates, scoring: Scoring) -> list[Check]:
    if evidence.champion is None:
        return []
    over = against(evidence.champion.answers)
    verdict = over.verdict(gates.margin)
    simpler = (
        evidence.candidate.leaves <= SIMPLER * evidence.champion.leaves
        and evidence.candidate.features <= evidence.champion.features
    )
    words = _words(f"{verdict}: {metrics.LOSS[scoring.task]} minus {evidence.champion.name}'s", over, evidence)
    if evidence.kind == "refresh" or simpler:
        passed, threshold, wanted = verdict != "worse", gates.margin, f"must be ≤ {gates.margin:g}"
    else:
        passed, threshold, wanted = verdict == "better", 0.0, "a redesign must be better beyond noise, or equal and simpler"
    if evidence.kind == "redesign":
        wanted += f"; {evidence.candidate.leaves:,} leaves against {evidence.champion.leaves:,}"
    detail = f"{words}, {wanted}"
    return [Check(name="champion", passed=passed, value=over.high, threshold=threshold, n=over.rows, detail=detail)]


def _leak(evidence: Evidence, gates: Gates) -> Check:
    name = max(evidence.feature_scores, key=lambda f: evidence.feature_scores[f], default=None)
    what = f"feature {name} alone tells the label with a score of" if name else "no feature was looked at"
    return _at_most("leak", evidence.feature_scores[name] if name else None, gates.max_feature_score, evidence.n, what)


def _slices(evidence: Evidence, gates: Gates) -> list[Check]:
    judged = [s for s in evidence.slices if s.difference is not None]
    if not evidence.slices:
        return []
    if not judged:
        return [
            Check(name="slices", passed=False, value=None, threshold=gates.slice_margin, n=0, detail="no slice is large enough")
        ]
    worst = max(judged, key=lambda s: s.difference.low if s.difference else -np.inf)
    assert worst.difference is not None
    detail = (
        f"{sum(s.verdict == 'worse' for s in judged)} of {len(judged)} slices worse; lowest bound in {worst.slice.name}: "
        f"{worst.difference.mean:+.4f} [{worst.difference.low:+.4f}, {worst.difference.high:+.4f}], must not lie above "
        f"{gates.slice_margin:g}"
    )
    passed = worst.difference.low <= gates.slice_margin
    return [
        Check(name="slices", passed=passed, value=worst.difference.low, threshold=gates.slice_margin, n=worst.n, detail=detail)
    ]


def _fairness(evidence: Evidence, gates: Gates) -> list[Check]:
    found = {f.attribute: f.value for f in evidence.fairness}
    what = "equalised-odds difference between the groups of"
    return [
        _at_most(f"fairness_{attribute}", found.get(attribute), limit, evidence.n, f"{what} {attribute}")
        for attribute, limit in gates.fairness.items()
    ]


def _calibration(evidence: Evidence, gates: Gates, scoring: Scoring) -> list[Check]:
    """ECE has a limit; where the world moved so that the champion's is larger on the same rows, that is the limit."""
    if scoring.task == "regression":
        return []

    def error(model: Contender) -> float:
        return metrics.summary(evidence.holdout.y_true, model.answers, scoring)["calibration_error"]

    limit = max(gates.max_calibration_error, error(evidence.champion) if evidence.champion else 0.0)
    return [_at_most("calibration", error(evidence.candidate), limit, evidence.n, "expected calibration error")]


def _parity(evidence: Evidence, gates: Gates) -> Check:
    if evidence.parity is None:
        return _at_most("parity", None, gates.parity_tolerance, evidence.n, "graph against model")
    worst = max((c.value for c in evidence.parity.checks if c.value is not None), default=None)
    n = sum(c.n for c in evidence.parity.checks)
    return Check(name="parity", passed=evidence.parity.passed, value=worst, threshold=gates.parity_tolerance, n=n,
                 detail=evidence.parity.reason)  # fmt: skip


def _latency(evidence: Evidence, gates: Gates) -> list[Check]:
    checks = [
        _at_most("latency", evidence.latency_ms, gates.max_latency_ms, evidence.n, "median time of the graph for one row, ms")
    ]
    if evidence.champion is not None:
        mine, theirs = evidence.latency_ms, evidence.champion_latency_ms
        ratio = mine / theirs if mine is not None and theirs else None
        what = "times the champion's graph, measured in turns:"
        checks.append(_at_most("latency_ratio", ratio, gates.max_latency_ratio, evidence.n, what))
    return checks


def _at_most(name: str, value: float | None, threshold: float, n: int, what: str) -> Check:
    shown = "not measured" if value is None else f"{value:.4g}"
    passed = value is not None and value <= threshold  # NaN never holds
    return Check(
        name=name, passed=bool(passed), value=value, threshold=threshold, n=n, detail=f"{what} {shown}, must be ≤ {threshold:.4g}"
    )


def _words(what: str, interval: Interval, evidence: Evidence) -> str:
    bounds = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    used = f", used {evidence.holdout.uses - 1} × before" if evidence.holdout.uses > 1 else ""
    return f"{what}: {bounds} over {interval.rows:,} rows of {interval.days} days{used}"
