"""How good are answers whose labels are not there yet? Confidence-based performance estimation (CBPE), for binary tasks.

Probabilities that keep their word say themselves how good they are: of rows answered with 0.2, a fifth will be positive. So every
metric has an expected value before any label is there. Moved inputs do no harm to that; a changed relation of label and inputs
does, and it cannot be seen in the answers. Therefore each estimate carries checks, and where one fails it is invalid, with the
reason. Between a change and the first labels that show it, an estimate is wrong and looks right: nothing can be done about that.

The arithmetic, and its source, is in `ml.monitoring.expected`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ml import config, metrics, sequential
from ml.metrics import Scoring
from ml.monitoring.expected import Answers, Figure, Labelled, finite, forecast, realised, recalibration
from ml.refs import Ref
from ml.significance import paid

JUDGED = ("auc", "log_loss", "positives")
"""Figures by which labels can contradict an estimate: order, loss and level."""
LEAST_DAYS = 3
"""Matured days below which labels contradict nothing: a single bad day is no news."""


class Calibration(Ref):
    """How answers kept their word on labelled days. Perfect: error 0, intercept 0, slope 1, bias 0."""

    n: int
    days: int
    error: float
    """Expected calibration error, 0–1 (`ml.metrics.calibration_error`)."""
    intercept: float
    slope: float
    """Of the logistic recalibration (Cox 1958, Biometrika 45:562); slope below 1: answers are too extreme."""
    bias: float
    """Mean of label less answer: above 0, answers are too low."""
    low: float | None
    high: float | None
    """Bounds of the bias that hold at every moment (`ml.sequential.clustered_bounds`, days as clusters); None: not yet."""


class Estimate(Ref):
    """Expected metrics of answers without labels, and whether to believe them.

    `metrics`: auc, log_loss, brier, accuracy, precision, recall, positives (share of positive labels), cost a row, and the
    confusion matrix as shares of all rows: true_positives, false_positives, false_negatives, true_negatives.
    """

    metrics: dict[str, Figure]
    valid: bool
    reasons: list[str]
    """Why it is invalid; empty when valid."""
    n: int
    days: int
    labelled_days: int
    """Of the days that it learned from."""
    holdout: Calibration | None
    matured: Calibration | None


class Settled(Ref):
    """An estimate beside what came true; `error` is estimated less realised."""

    estimated: float
    realised: float
    error: float
    inside: bool | None
    """Whether the realised value lies in the interval; None without one."""


def estimate(
    answers: Answers,
    holdout: Labelled,
    matured: Labelled | None,
    moved: float | None,
    scoring: Scoring,
    params: config.Estimate,
    seed: int = 0,
) -> Estimate:
    """What the metrics of `answers` will be when their labels are there, by one model's earlier answers that have theirs.

    The answers are first recalibrated on the newest `learned_days` labelled days. 1–2 s for 100,000 rows.

    Args:
        answers: of one model, on any days after the labelled ones; none of them need ever get a label.
        holdout: the same model's (or its twin's) answers on its holdout.
        matured: its answers since, as far as their labels are known; None before there are any.
        moved: share (0–1) of the model's feature importance in features whose values left the reference; None: not measured.
        scoring: threshold and costs.

    Returns:
        Without any row, or with labels of one class alone, an invalid estimate without figures. The same arguments give the
        same numbers.

    Raises:
        ValueError: shapes that do not fit, NaN, or labels other than 0 and 1.
    """
    known = (holdout if matured is None or not len(matured.days) else holdout + matured).newest(params.learned_days)
    if not len(answers.days) or not known.varies:
        why = "there are no answers" if not len(answers.days) else "the labels known so far are all of one class"
        return Estimate(metrics={}, valid=False, reasons=[why], n=len(answers.days), days=0,
                        labelled_days=len(np.unique(known.days)), holdout=None, matured=None)  # fmt: skip
    alpha, days = 1 - params.confidence, params.learned_days
    before = calibration(holdout, alpha, days) if holdout.varies else None
    since = calibration(matured, alpha, days) if matured is not None and len(matured.days) and matured.varies else None
    labelled_days, n = len(np.unique(known.days)), len(answers.days)
    reasons = [
        *_too_little(n, labelled_days, params),
        *_uncalibrated(before, since, params),
        *_outside(moved, params),
        *contradictions(holdout, matured, scoring, params, seed),
    ]
    return Estimate(
        metrics=forecast(answers, known, scoring, params, seed), valid=not reasons, reasons=reasons, n=n,
        days=len(np.unique(answers.days)), labelled_days=labelled_days, holdout=before, matured=since,
    )  # fmt: skip


def calibration(labelled: Labelled, alpha: float, expected_days: int) -> Calibration:
    """How answers kept their word.

    Args:
        labelled: labels of both classes.
        alpha: chance that the bounds of the bias ever fail.
        expected_days: number of days at which these bounds are narrowest.
    """
    intercept, slope = recalibration(labelled)
    bias = labelled.y_true - labelled.y_proba
    bounds = sequential.clustered_bounds(bias, labelled.days, alpha / 2, alpha / 2, expected_days)
    return Calibration(
        n=len(bias), days=len(np.unique(labelled.days)), error=metrics.calibration_error(labelled.y_true, labelled.y_proba),
        intercept=intercept, slope=slope, bias=float(bias.mean()), low=finite(bounds.low), high=finite(bounds.high),
    )  # fmt: skip


def contradictions(
    holdout: Labelled, matured: Labelled | None, scoring: Scoring, params: config.Estimate, seed: int = 0
) -> list[str]:
    """What the labels of the last `judged_days` matured days say against the estimate that the days before give for them.

    With true assumptions there is one with probability ``1 - confidence`` at most (in all `JUDGED` figures together), each time
    one looks; a week's looks share most of their days.
    """
    if matured is None or len(np.unique(matured.days)) < LEAST_DAYS:
        return []
    window = matured.newest(params.judged_days)
    before = (holdout + matured[matured.days < window.days.min()]).newest(params.learned_days)
    if not before.varies:
        return []
    sure = params.model_copy(update={"confidence": paid(params.confidence, len(JUDGED))})
    settled = settle(forecast(window, before, scoring, sure, seed), realised(window, scoring))
    k = len(np.unique(window.days))
    return [
        f"labels of the last {k} matured days contradict it: {name} {found.realised:.3f}, estimated {found.estimated:.3f}"
        for name, found in settled.items()
        if name in JUDGED and found.inside is False
    ]


def settle(estimated: Estimate | Mapping[str, Figure], realised: Mapping[str, float]) -> dict[str, Settled]:
    """The errors of an estimate, now that labels are there; a figure that is undefined on either side is left out.

    Args:
        realised: as of `realised`, of the same rows.
    """
    figures = estimated.metrics if isinstance(estimated, Estimate) else estimated
    found = {}
    for name, figure in figures.items():
        truth = realised.get(name, math.nan)
        if figure.value is None or math.isnan(truth):
            continue
        inside = None if figure.low is None or figure.high is None else figure.low <= truth <= figure.high
        found[name] = Settled(estimated=figure.value, realised=truth, error=figure.value - truth, inside=inside)
    return found


# ---- checks


def _too_little(n: int, labelled_days: int, params: config.Estimate) -> list[str]:
    reasons = [f"{n:,} answers, at least {params.min_rows:,} are wanted"] if n < params.min_rows else []
    if labelled_days < params.min_days:
        reasons.append(f"{labelled_days} days have labels, at least {params.min_days} are wanted")
    return reasons


def _uncalibrated(before: Calibration | None, since: Calibration | None, params: config.Estimate) -> list[str]:
    """A recalibration mends a little; of answers that are far off, it is a guess."""
    limit, reasons = params.max_gap, []
    if before is None:
        reasons.append("the holdout's labels are all of one class")
    elif before.error > limit:
        reasons.append(f"answers were not calibrated on the holdout: error {before.error:.3f}, at most {limit:g} is allowed")
    if since and since.low is not None and since.low > limit:
        reasons.append(f"answers since have been too low by at least {since.low:.3f}, {limit:g} is allowed")
    if since and since.high is not None and since.high < -limit:
        reasons.append(f"answers since have been too high by at least {-since.high:.3f}, {limit:g} is allowed")
    return reasons


def _outside(moved: float | None, params: config.Estimate) -> list[str]:
    if moved is None:
        return ["it is not known whether inputs lie inside the reference"]
    if moved <= params.max_moved:
        return []
    return [f"{moved:.0%} of the importance lies in features that left the reference, at most {params.max_moved:.0%} is allowed"]
