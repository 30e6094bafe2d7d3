"""When to ask for a retrain: on harm that lasts, not on movement. A pure function of what was measured."""

from __future__ import annotations

from datetime import datetime, timedelta

from ml.config import Monitoring
from ml.monitoring.drift import FeatureDrift
from ml.monitoring.performance import DayQuality
from ml.refs import Check, Decision


def decide(
    days: list[DayQuality],
    expected_log_loss: float,
    drifts: list[FeatureDrift],
    as_of: datetime,
    last_request: datetime | None,
    params: Monitoring,
) -> Decision:
    """The decision of one day.

    Args:
        days: realised quality of the champion on the last matured days, oldest first; at most `window_days` of them.
        expected_log_loss: the champion's on its own holdout.
        drifts: of each feature, largest first; they explain, and never trigger.
        last_request: when a retrain was last asked for.

    Returns:
        Verdict ``retrain`` (every check passed), ``wait`` (too few labels, or cooling down) or ``keep`` (no lasting harm).
    """
    n = sum(d.n for d in days)
    limit = expected_log_loss + params.harm_margin
    harmed = [d for d in days if d.log_loss > limit]
    newest = days[-1].log_loss if days else None
    cool_until = last_request + timedelta(days=params.cooldown_days) if last_request else None
    over = (as_of - cool_until).total_seconds() / 86400 if cool_until else None
    checks = [
        Check(name="enough_labels", passed=n >= params.min_labels, value=float(n), threshold=float(params.min_labels), n=n,
              detail=f"{n:,} matured labels of the champion's answers, at least {params.min_labels:,} wanted"),
        Check(name="harm_lasts", passed=len(harmed) >= params.confirm_days, value=float(len(harmed)),
              threshold=float(params.confirm_days), n=n,
              detail=f"log-loss above {limit:.3f} (holdout {expected_log_loss:.3f} + {params.harm_margin:g}) on {len(harmed)} of "
                     f"{len(days)} days, {params.confirm_days} wanted"),
        Check(name="newest_day_harmed", passed=newest is not None and newest > limit, value=newest, threshold=limit,
              n=days[-1].n if days else 0, detail=f"newest matured day's log-loss {_shown(newest)}, above {limit:.3f} wanted"),
        Check(name="not_cooling_down", passed=over is None or over >= 0, value=over, threshold=0.0, n=n,
              detail=f"last request {last_request or 'never'}, none again before {cool_until or '-'}"),
    ]  # fmt: skip
    if all(c.passed for c in checks):
        verdict = "retrain"
        reason = f"harm: {checks[1].detail}; {_drifted(drifts, params.psi_threshold)}"
    else:
        blocked = [c for c in (checks[0], checks[3]) if not c.passed]
        verdict = "wait" if blocked else "keep"
        failed = next(c for c in [*blocked, *checks] if not c.passed)
        reason = f"{failed.name}: {failed.detail}; {_drifted(drifts, params.psi_threshold)}"
    return Decision(kind="retrain", verdict=verdict, reason=reason, checks=checks)


def _drifted(drifts: list[FeatureDrift], threshold: float) -> str:
    moved = [d for d in drifts if not d.psi < threshold]
    if not moved:
        return f"no feature's PSI reaches {threshold:g}"
    named = ", ".join(f"{d.name} {d.psi:.2f}" for d in moved[:3])
    return f"{len(moved)} of {len(drifts)} features drifted (PSI ≥ {threshold:g}): {named}"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
