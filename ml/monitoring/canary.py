"""Is the canary harmless? A verdict that may be asked for at any moment, as often as one likes.

Two errors, two promises, both for the whole release, however often it is looked at:

- A canary that is within every limit is rolled back with probability 1 - confidence at most: a check fails only when its
  sequence excludes everything up to its limit, and all checks of all steps share that probability.
- A canary that is beyond a limit passes with probability 1 - confidence at most: a check passes only when its sequence excludes
  everything from its limit on. *Not failed yet* is never a pass: until then the verdict is ``running``. Nothing is shared here,
  since a canary must pass all checks at all steps (intersection-union test: Berger 1982, Technometrics 24:295). The one
  exception is quality, which does not bind with fewer than `min_labels` labels; `wait_for_labels` keeps the last step from
  passing without them.

Errors and latency are of one step: a larger share may bring what a small one did not. Scores and quality compare two models on
the same rows, whatever the share, so pairs of earlier steps count too if they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from ml import metrics, sequential
from ml.config import Release, Task
from ml.refs import Check, Decision
from ml.sequential import Bounds
from ml.serving.router import BASELINE, CANARY, SHADOW

CHECKS = 4
"""Errors, latency, scores, quality."""
LEAST_PAIRS, LEAST_HOURS = 50, 30
"""An asymptotic bound over fewer pairs, or hours of labels, is not trusted."""
USUAL_HOURS = 300
"""Hours of labels at which the bound of quality is narrowest."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of, as plain arrays in order of arrival, so that any earlier moment is a prefix."""

    canary_errors: np.ndarray
    """Of this step: was the answer flagged ``fallback_*``? Shape (canary's answers,), bool; `baseline_errors` alike."""
    baseline_errors: np.ndarray
    canary_seconds: np.ndarray
    """Of this step: server time of each request, s; `baseline_seconds` alike."""
    baseline_seconds: np.ndarray
    canary_scores: np.ndarray
    """Of the release: answers of both models to the same rows, shape (pairs,); `champion_scores` alike."""
    champion_scores: np.ndarray
    loss_gaps: np.ndarray
    """Of the release: canary's loss less champion's on matured pairs, shape (labels,)."""
    hours: np.ndarray
    """The hour of the event of each of these, shape (labels,)."""


@dataclass(frozen=True)
class Finding:
    """One check and what it says by itself: ``pass``, ``fail`` or ``running``."""

    verdict: str
    check: Check


def analyse(
    entries: pa.Table | pd.DataFrame,
    labels: pd.Series,
    limits: Release,
    canary: str,
    champion: str,
    manifest: int | None = None,
    task: Task = "binary",
) -> Decision:
    """The verdict on a canary by all that was logged so far.

    Args:
        entries: log entries with columns entity_id, event_time, logged_at, cohort, model_version, probability, flags, seconds,
            request_id (and manifest); cohorts canary and baseline, and the other model's copies (cohort shadow). Others are not
            looked at.
        labels: by entity id, NaN = not matured or none. All rows up to one moment must be in or out *whatever their outcome*,
            for instance events that ended `train.embargo_hours` ago: outcomes that become known early are not like the others.
        canary, champion: their model versions.
        manifest: the manifest version of the present step; entries of earlier ones add pairs of scores and labels. None: all
            entries are of the present step.

    Returns:
        Verdict ``fail`` (some check shows harm beyond its limit), ``pass`` (there are enough answers, and every check that
        binds shows that harm is below its limit) or ``running``. Checks have passed=False while they run; their detail says
        which.
    """
    return judge(evidence(entries, labels, canary, champion, manifest, task), limits)


def at_step(limits: Release, share: float) -> Release:
    """The limits at one of the release's shares: only the last waits for labels, and earlier ones gather them."""
    return limits if share >= limits.steps[-1] else limits.model_copy(update={"wait_for_labels": 0})


def least_answers(limits: Release) -> int:
    """Answers of each cohort that a step needs at least before it can pass: `min_answers`, or what it takes to show that
    errors, of which there are none, are below `max_error_increase`.
    """
    return max(limits.min_answers, sequential.answers_for_gap(limits.max_error_increase, 1 - limits.confidence))


# ---- what was logged


def evidence(
    entries: pa.Table | pd.DataFrame,
    labels: pd.Series,
    canary: str,
    champion: str,
    manifest: int | None = None,
    task: Task = "binary",
) -> Evidence:
    """Arranges log entries; arguments as in `analyse`.

    An entity that was asked for several times counts once in scores and quality, with its first pair. A request counts once in
    each cohort that it has rows of: a batch of both has one time for both.
    """
    table = entries.to_pandas() if isinstance(entries, pa.Table) else entries
    table = table.sort_values(["logged_at", "request_id", "entity_id"], kind="stable", ignore_index=True)
    now = table if manifest is None else table[table["manifest"] == manifest]
    mine, theirs = (now[now["cohort"] == cohort] for cohort in (CANARY, BASELINE))
    pairs = _pairs(table, canary, champion)
    y_true = labels.groupby(level=0).first().reindex(pairs["entity_id"]).to_numpy(float)
    known = ~np.isnan(y_true)
    of_canary, of_champion = (pairs[f"probability_{side}"].to_numpy(float) for side in ("canary", "champion"))
    gaps = np.empty(0)
    if known.any():
        gaps = metrics.losses(task, y_true[known], of_canary[known]) - metrics.losses(task, y_true[known], of_champion[known])
    return Evidence(
        canary_errors=fell_back(mine),
        baseline_errors=fell_back(theirs),
        canary_seconds=mine.drop_duplicates("request_id")["seconds"].to_numpy(float),
        baseline_seconds=theirs.drop_duplicates("request_id")["seconds"].to_numpy(float),
        canary_scores=of_canary,
        champion_scores=of_champion,
        loss_gaps=gaps,
        hours=pairs["event_time"].to_numpy("datetime64[h]")[known],
    )


def fell_back(rows: pd.DataFrame) -> np.ndarray:
    """Which answers are flagged ``fallback_*``, shape (n,): their model could not give them."""
    return np.array([any(flag.startswith("fallback_") for flag in flags) for flags in rows["flags"]], bool)


def _pairs(table: pd.DataFrame, canary: str, champion: str) -> pd.DataFrame:
    """Rows that both models answered, one of them unseen; answers of a fallback are left out."""
    mine = table[table["cohort"].isin([CANARY, BASELINE, SHADOW])]
    mine = mine[~fell_back(mine)]
    both = ["request_id", "entity_id"]
    of_canary = mine[mine["model_version"] == canary].drop_duplicates(both)
    of_champion = mine[mine["model_version"] == champion].drop_duplicates(both)[[*both, "cohort", "probability"]]
    pairs = of_canary.merge(of_champion, on=both, suffixes=("_canary", "_champion"))
    # a copy beside a copy is no pair of these cohorts: manifest.shadow answers others as well
    seen = (pairs["cohort_canary"] == CANARY) | (pairs["cohort_champion"] == BASELINE)
    return pairs[seen].drop_duplicates("entity_id", ignore_index=True)


# ---- the verdict


def judge(found: Evidence, limits: Release) -> Decision:
    """The verdict on evidence; see `analyse`."""
    harm, harmless = harm_alpha(limits), 1 - limits.confidence
    findings = [
        enough_answers(found, limits),
        errors(found.canary_errors, found.baseline_errors, limits, harm, harmless),
        latency(found.canary_seconds, found.baseline_seconds, limits, harm, harmless),
        scores(found, limits, harm, harmless),
        quality(found, limits, harm, harmless),
    ]
    if limits.wait_for_labels:
        findings.append(enough_labels(found, limits))
    verdicts = [finding.verdict for finding in findings]
    verdict = "fail" if "fail" in verdicts else "running" if "running" in verdicts else "pass"
    told = [f"{f.check.name}: {f.check.detail}" for f in findings if f.verdict == verdict]
    return Decision(
        kind="canary",
        verdict=verdict,
        reason="every check shows that harm is below its limit" if verdict == "pass" else "; ".join(told),
        checks=[finding.check for finding in findings],
    )


def harm_alpha(limits: Release) -> float:
    """The chance of a false alarm that one check has at one step, so that all of a release together have 1 - confidence."""
    return (1 - limits.confidence) / (CHECKS * max(1, len(limits.steps)))


def enough_answers(found: Evidence, limits: Release) -> Finding:
    """Has the smaller cohort `min_answers`?"""
    n, m = len(found.canary_errors), len(found.baseline_errors)
    enough = min(n, m) >= limits.min_answers
    return Finding("pass" if enough else "running", Check(
        name="answers", passed=enough, value=float(min(n, m)), threshold=float(limits.min_answers), n=n + m,
        detail=f"{n:,} of the canary and {m:,} of the baseline; {limits.min_answers:,} of each are wanted",
    ))  # fmt: skip


def enough_labels(found: Evidence, limits: Release) -> Finding:
    """Have `wait_for_labels` of the rows that both models answered, in all steps so far, a matured label?"""
    n, wanted = len(found.loss_gaps), limits.wait_for_labels
    return Finding("pass" if n >= wanted else "running", Check(
        name="labels", passed=n >= wanted, value=float(n), threshold=float(wanted), n=n, detail=f"{n:,} of {wanted:,} labels",
    ))  # fmt: skip


def errors(canary: np.ndarray, baseline: np.ndarray, limits: Release, harm: float, harmless: float) -> Finding:
    """Share of answers that the model could not give, canary's less baseline's.

    Args:
        canary, baseline: bool, in order of arrival; `harm`, `harmless`: alpha of showing that it is above, below the limit.
    """
    found, limit = sequential.gap_bounds(canary, baseline, harm, harmless), limits.max_error_increase
    verdict = _below(found, limit)
    told = f"{_share(canary)} against {_share(baseline)}, difference {found.value:+.2%}"
    told += f", bounds {found.low:+.2%} to {found.high:+.2%}"
    return Finding(verdict, _check("errors", verdict, found, limit, len(canary) + len(baseline), f"{told}, limit {limit:+.2%}"))


def latency(canary: np.ndarray, baseline: np.ndarray, limits: Release, harm: float, harmless: float) -> Finding:
    """Median server time, canary's to baseline's: the quotient of two medians' bounds, each at half of alpha.

    Args:
        canary, baseline: seconds; `harm`, `harmless` as in `errors`.
    """
    limit, expected = limits.max_latency_ratio, 2 * limits.min_answers
    mine = sequential.median_bounds(canary, harm / 2, harmless / 2, expected)
    theirs = sequential.median_bounds(baseline, harmless / 2, harm / 2, expected)
    n = len(canary) + len(baseline)
    ratio = Bounds(_over(mine.value, theirs.value), max(0.0, _over(mine.low, theirs.high)), _over(mine.high, theirs.low), n)
    verdict = _below(ratio, limit)
    told = f"median {mine.value * 1e3:.2f} ms against {theirs.value * 1e3:.2f} ms, ratio {ratio.value:.2f}"
    told += f", bounds {ratio.low:.2f} to {ratio.high:.2f}, limit {limit:g}"
    return Finding(verdict, _check("latency", verdict, ratio, limit, n, told))


def scores(found: Evidence, limits: Release, harm: float, harmless: float) -> Finding:
    """Mean difference of the two models' answers to the same rows, which must lie within ± the limit."""
    limit, gaps = limits.max_score_shift, found.canary_scores - found.champion_scores
    outer = sequential.mean_bounds(gaps, harm / 2, harm / 2, 2 * limits.min_answers)
    shift = sequential.mean_bounds(gaps, harmless, harmless, 2 * limits.min_answers)
    verdict = "running"
    if len(gaps) >= LEAST_PAIRS:
        if outer.low > limit or outer.high < -limit:
            verdict, shift = "fail", outer
        elif shift.low > -limit and shift.high < limit:
            verdict = "pass"
    distance = _distance(found.canary_scores, found.champion_scores)
    told = (
        f"mean shift {shift.value:+.4f} over {len(gaps):,} pairs, bounds {shift.low:+.4f} to {shift.high:+.4f}, limit ±{limit:g}"
    )
    return Finding(
        verdict, _check("scores", verdict, shift, limit, len(gaps), f"{told}; distributions {distance:.3f} apart (KS)")
    )


def quality(found: Evidence, limits: Release, harm: float, harmless: float) -> Finding:
    """Mean difference of losses on matured labels of the same rows, by hours; it binds from `min_labels` labels on.

    Rows of one hour share weather and delays, and a model that is worse is worse on all of them: the hours' sums are what is
        independent.
    """
    n, limit = len(found.loss_gaps), limits.loss_margin
    lost = sequential.clustered_bounds(found.loss_gaps, found.hours, harm, harmless, USUAL_HOURS)
    told = f"loss {lost.value:+.4f} over {n:,} labels of {lost.n:,} hours"
    told += f", bounds {lost.low:+.4f} to {lost.high:+.4f}, limit {limit:+g}"
    if n < limits.min_labels:
        told = f"shown only, {n:,} of {limits.min_labels:,} labels: {told}"
        return Finding("pass", _check("quality", "pass", lost, limit, n, told))
    verdict = _below(lost, limit) if lost.n >= LEAST_HOURS else "running"
    return Finding(verdict, _check("quality", verdict, lost, limit, n, told))


def _below(found: Bounds, limit: float) -> str:
    return "fail" if found.low > limit else "pass" if found.high < limit else "running"


def _check(name: str, verdict: str, found: Bounds, limit: float, n: int, detail: str) -> Check:
    words = {"pass": "", "fail": "harm is shown: ", "running": "not shown yet: "}
    known = math.isfinite(found.value)
    told = words[verdict] + (detail if known else f"nothing to compare yet, limit {limit:g}")
    return Check(name=name, passed=verdict == "pass", value=found.value if known else None, threshold=limit, n=n, detail=told)


def _over(above: float, below: float) -> float:
    """The quotient; inf when nothing bounds it."""
    return math.inf if above == math.inf or below <= 0 else above / below


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the largest difference of the two distribution functions, 0-1; NaN without values."""
    if not len(first):
        return math.nan
    sides = np.sort(first), np.sort(second)
    below = [[np.searchsorted(side, at, "right") / len(side) for side in sides] for at in sides]  # sorted points are found fast
    return float(max(np.abs(mine - theirs).max() for mine, theirs in below))


def _share(flags: np.ndarray) -> str:
    return f"{flags.mean():.2%} of {len(flags):,}" if len(flags) else "none"
