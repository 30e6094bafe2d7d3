"""The promotion gate: every check with value, threshold and n; what cannot be measured has failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np

from ml import metrics
from ml.config import Gates
from ml.evaluation.significance import Interval, paired_by_day
from ml.refs import Check, Decision, Window


@dataclass(frozen=True)
class Contender:
    """One model's answers on the holdout rows. `trained_until` is the end (exclusive) of the days it learned from."""

    name: str
    y_proba: np.ndarray
    trained_until: date


def judge(y_true: np.ndarray, days: np.ndarray, candidate: Contender, champion: Contender | None, baselines: dict[str,
np.ndarray],
          holdout: Window, gates: Gates, seed: int) -> Decision:  # fmt: skip
    """Compares the candidate with floor, baselines and champion on the same rows.

    Args:
        y_true: labels 0/1 of the holdout, shape (n,).
        days: the event day of each row, shape (n,).
        champion: None on a cold start; then there is nothing to compare with but floor and baselines.
        baselines: probabilities by name, each shape (n,); the best of them is the bar.

    Returns:
        Verdict ``promote`` or ``keep``.
    """
    n = len(y_true)
    auc, log_loss = metrics.auc(y_true, candidate.y_proba), metrics.log_loss(y_true, candidate.y_proba)
    checks = [
        _untouched(candidate, holdout, n),
        _check("auc_floor", auc, ">=", gates.min_auc, n, "ROC-AUC of the candidate"),
        _check("log_loss_ceiling", log_loss, "<=", gates.max_log_loss, n, "log-loss of the candidate"),
    ]

    def against(other: np.ndarray) -> Interval:
        mine, theirs = metrics.log_losses(y_true, candidate.y_proba), metrics.log_losses(y_true, other)
        return paired_by_day(mine, theirs, days, gates.confidence, gates.resamples, seed)

    bar = min(baselines, key=lambda name: metrics.log_loss(y_true, baselines[name]))
    over_baseline = against(baselines[bar])
    checks.append(
        _check("better_than_baseline", over_baseline.high, "<", 0.0, n, _words(f"log-loss minus {bar}'s", over_baseline))
    )
    if champion is not None:
        over_champion = against(champion.y_proba)
        checks.append(_untouched(champion, holdout, n))
        detail = _words(f"log-loss minus champion {champion.name}'s", over_champion)
        checks.append(_check("not_worse_than_champion", over_champion.high, "<=", gates.margin, n, detail))
    failed = [c for c in checks if not c.passed]
    if failed:
        verdict, reason = "keep", "kept the champion: " + "; ".join(f"{c.name}: {c.detail}" for c in failed)
    elif champion is None:
        verdict, reason = "promote", f"cold start; {checks[3].detail}"
    else:
        verdict, reason = "promote", checks[-1].detail
    return Decision(kind="gate", verdict=verdict, reason=reason, checks=checks)


def _check(name: str, value: float, sign: str, threshold: float, n: int, what: str) -> Check:
    holds = {">=": value >= threshold, "<=": value <= threshold, "<": value < threshold}[sign]  # NaN never holds
    detail = what if "[" in what else f"{what} {value:.4f}"
    return Check(
        name=name, passed=bool(holds), value=value, threshold=threshold, n=n, detail=f"{detail}, must be {sign} {threshold:g}"
    )


def _words(what: str, interval: Interval) -> str:
    bounds = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    return f"{what}: {bounds} over {interval.rows:,} rows of {interval.days} days"


def _untouched(model: Contender, holdout: Window, n: int) -> Check:
    """No model is judged on days that it trained on: value = whole days between its last day and the holdout."""
    gap = (holdout.start - model.trained_until).days
    detail = f"{model.name} trained before {model.trained_until}, holdout {holdout}"
    return Check(name=f"untouched_holdout_{model.name}", passed=gap >= 0, value=float(gap), threshold=0.0, n=n, detail=detail)
