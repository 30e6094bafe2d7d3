"""A/B tests: how long one will take, and what it says so far, whenever one looks.

Entities are drawn into arms by chance, and each counts once, with its first answer: the spread of a difference is then that of
the draw, whatever weather the rows share. All intervals hold at every moment; arms share the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from ml import metrics, sequential
from ml.config import Release
from ml.errors import ConfigError, NotEnoughDataError
from ml.metrics import Scoring
from ml.monitoring import canary
from ml.refs import Decision, Ref
from ml.sequential import Bounds
from ml.serving.manifest import Experiment
from ml.serving.router import EXPERIMENT

Metric = Literal["log_loss", "brier", "cost", "decision_rate"]
"""Of the first three less is better; the decision rate (share of answers with decision 1) has no better, and needs no labels."""
CONTROL = "control"
LEAST = 50
"""Entities of an arm below which nothing is said."""
GUARDS = 2
"""Errors and latency."""


class Forecast(Ref):
    """How much an experiment will need."""

    per_arm: int
    """Entities in each arm by which a difference of the minimum effect is seen, looking all the time."""
    per_arm_fixed: int
    """The same for a single look at the end: what looking costs is the quotient of the two."""
    days: float
    """Until then, at the given traffic; labels take their delay on top."""


class Arm(Ref):
    """One arm so far."""

    name: str
    version: str
    n: int
    """Entities whose value of the metric is known."""
    mean: float | None
    difference: float | None
    """Mean less control's; None for control and while nothing can be said."""
    low: float | None
    high: float | None
    verdict: str
    """``better``, ``worse`` (``lower``, ``higher`` for the decision rate), ``no difference`` (within ± the minimum effect) or
    ``running``; ``control``."""


class Report(Ref):
    """What an experiment says."""

    metric: str
    minimum_effect: float
    arms: list[Arm]
    decision: Decision
    """Verdict ``harm`` (a guardrail failed), ``running`` (some arm is), else that of the best arm. Checks: the guardrails."""
    ended: str | None = None
    """How, by whom and why; None while it runs. `status` does not know it."""


@dataclass(frozen=True)
class _Side:
    version: str
    values: np.ndarray
    errors: np.ndarray
    seconds: np.ndarray


def plan(
    rate_per_day: float, share: float, arms: int, minimum_effect: float, confidence: float, power: float,
    baseline_rate: float | None = None, sd: float | None = None,
) -> Forecast:  # fmt: skip
    """How many entities and days it takes to see a difference of `minimum_effect` between an arm and control.

    Args:
        rate_per_day: entities that are asked for a day, > 0.
        share: of them in the experiment, (0, 1]; split evenly between `arms` arms, control included, at least 2.
        minimum_effect: > 0, in the metric's unit.
        confidence, power: of all differences together; the chance to see one that is there; in (0, 1).
        baseline_rate: of a yes/no metric, in (0, 1); or
        sd: standard deviation of the metric over entities, > 0. Exactly one of the two.

    Raises:
        ConfigError: an argument is out of range.
    """
    if (baseline_rate is None) == (sd is None):
        raise ConfigError(f"baseline_rate={baseline_rate}, sd={sd}: exactly one is wanted", "give the one that fits the metric")
    spread = sd if sd is not None else math.sqrt((baseline_rate or 0) * max(0.0, 1 - (baseline_rate or 0)))
    given = {"rate_per_day": rate_per_day, "spread": spread, "minimum_effect": minimum_effect}
    low = [f"{name}={value}" for name, value in given.items() if not value > 0]
    if low or not 0 < share <= 1 or arms < 2 or not (0 < confidence < 1 and 0 < power < 1):
        told = f"{', '.join(low) or 'out of range'}: share={share}, arms={arms}, confidence={confidence}, power={power}"
        raise ConfigError(told, "rates, spreads and effects are positive; shares, confidence and power lie between 0 and 1")
    alpha = _alpha(confidence, arms)
    per_arm = sequential.arm_size(spread, minimum_effect, alpha, power)
    fixed = 2 * (spread * float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power)) / minimum_effect) ** 2
    return Forecast(per_arm=per_arm, per_arm_fixed=math.ceil(fixed), days=per_arm * arms / (rate_per_day * share))


def status(
    entries: pa.Table | pd.DataFrame, labels: pd.Series, experiment: Experiment, metric: Metric, minimum_effect: float,
    guardrails: Release, per_arm: int, scoring: Scoring | None = None,
) -> Report:  # fmt: skip
    """What the experiment says so far.

    Args:
        entries: log entries since its start, columns as for `ml.monitoring.canary.analyse`; cohorts ``experiment:<arm>`` count.
        labels: by entity id, NaN = not matured or none; as for `analyse`.
        minimum_effect: differences below it do not matter, > 0.
        guardrails: its `confidence`, `max_error_increase`, `max_latency_ratio` and `min_answers` are used.
        per_arm: entities that `plan` said; intervals are narrowest there. Fix it at the start.
        scoring: threshold and costs; default: a threshold of 0.5, all costs 1.

    Returns:
        Arms in order, control first. Answers of a fallback are errors of their arm, and count in its metric too: it is what its
        entities got.

    Raises:
        ConfigError: no arm is called control, or the minimum effect is not positive.
    """
    if CONTROL not in experiment.arms or not minimum_effect > 0:
        raise ConfigError(
            f"experiment {experiment.name!r}: arms {sorted(experiment.arms)}, minimum effect {minimum_effect}",
            "one arm must be called control, and the minimum effect be positive",
        )
    table = entries.to_pandas() if isinstance(entries, pa.Table) else entries
    table = table.sort_values(["logged_at", "request_id", "entity_id"], kind="stable")
    sides = {name: _side(table, labels, experiment, name, metric, scoring or Scoring()) for name in experiment.arms}
    control = sides.pop(CONTROL)
    alpha = _alpha(guardrails.confidence, len(experiment.arms))
    arms, checks = [_arm(CONTROL, control, None, "control")], []
    for name, side in sorted(sides.items()):
        found = sequential.difference_bounds(side.values, control.values, alpha, alpha, 2 * per_arm)
        enough = min(len(side.values), len(control.values)) >= LEAST
        arms.append(_arm(name, side, found, _verdict(found, minimum_effect, metric) if enough else "running"))
        harm = (1 - guardrails.confidence) / (GUARDS * len(sides))
        checks += [
            (name, canary.errors(side.errors, control.errors, guardrails, harm, 1 - guardrails.confidence)),
            (name, canary.latency(side.seconds, control.seconds, guardrails, harm, 1 - guardrails.confidence)),
        ]
    harmed = [f"{name}, {f.check.name}: {f.check.detail}" for name, f in checks if f.verdict == "fail"]
    verdict = "harm" if harmed else _overall([arm.verdict for arm in arms[1:]])
    told = "; ".join(harmed) or "; ".join(f"{arm.name}: {_told(arm)}" for arm in arms[1:])
    shown = [f.check.model_copy(update={"name": f"{f.check.name}:{name}"}) for name, f in checks]
    decision = Decision(kind="experiment", verdict=verdict, reason=told, checks=shown)
    return Report(metric=metric, minimum_effect=minimum_effect, arms=arms, decision=decision)


def spread_of(entries: pa.Table | pd.DataFrame, labels: pd.Series, metric: Metric, scoring: Scoring | None = None) -> float:
    """Standard deviation of the metric over recent answers, for `plan`; shadow copies are left out.

    Raises:
        NotEnoughDataError: the metric is known for fewer than `LEAST` entities.
    """
    table = entries.to_pandas() if isinstance(entries, pa.Table) else entries
    seen = table[table["cohort"] != canary.SHADOW].drop_duplicates("entity_id")
    values = _values(seen, labels, metric, scoring or Scoring())
    if len(values) < LEAST:
        raise NotEnoughDataError(
            f"{metric} is known for {len(values)} of {len(seen)} answered entities, at least {LEAST} are wanted",
            "wait for traffic and labels, or give the standard deviation",
        )
    return float(values.std(ddof=1))


def _alpha(confidence: float, arms: int) -> float:
    """Of one side of one arm's difference: two sides of all differences share 1 - confidence."""
    return (1 - confidence) / 2 / max(1, arms - 1)


def _side(table: pd.DataFrame, labels: pd.Series, experiment: Experiment, name: str, metric: Metric, scoring: Scoring) -> _Side:
    rows = table[table["cohort"] == EXPERIMENT + name]
    values = _values(rows.drop_duplicates("entity_id"), labels, metric, scoring)
    seconds = rows.drop_duplicates("request_id")["seconds"].to_numpy(float)
    return _Side(experiment.arms[name].version, values, canary.fell_back(rows), seconds)


def _values(rows: pd.DataFrame, labels: pd.Series, metric: Metric, scoring: Scoring) -> np.ndarray:
    """The metric of each row for which it is known, shape (m,)."""
    y_proba = rows["probability"].to_numpy(float)
    if metric == "decision_rate":
        return (y_proba >= scoring.threshold).astype(float)
    y_true = labels.groupby(level=0).first().reindex(rows["entity_id"]).to_numpy(float)
    known = ~np.isnan(y_true)
    y_true, y_proba = y_true[known], y_proba[known]
    if metric == "brier" or not len(y_true):
        return np.asarray((y_proba - y_true) ** 2)
    if metric == "log_loss":
        return metrics.log_losses(y_true, y_proba)
    said = y_proba >= scoring.threshold
    return np.where(said & (y_true == 0), scoring.false_alarm_cost, np.where(~said & (y_true == 1), scoring.miss_cost, 0.0))


def _verdict(found: Bounds, effect: float, metric: Metric) -> str:
    less, more = ("lower", "higher") if metric == "decision_rate" else ("better", "worse")
    if found.high < 0:
        return less
    if found.low > 0:
        return more
    return "no difference" if found.low > -effect and found.high < effect else "running"


def _overall(verdicts: list[str]) -> str:
    if "running" in verdicts:
        return "running"
    return next(v for v in ("better", "lower", "higher", "no difference", "worse") if v in verdicts)


def _arm(name: str, side: _Side, found: Bounds | None, verdict: str) -> Arm:
    mean = float(side.values.mean()) if len(side.values) else None
    known = found is not None and math.isfinite(found.value) and len(side.values) >= LEAST
    ends = (found.value, found.low, found.high) if found is not None and known else (None, None, None)
    return Arm(
        name=name,
        version=side.version,
        n=len(side.values),
        mean=mean,
        difference=ends[0],
        low=ends[1],
        high=ends[2],
        verdict=verdict,
    )


def _told(arm: Arm) -> str:
    if arm.difference is None:
        return f"{arm.verdict}, {arm.n:,} entities"
    return f"{arm.verdict}, difference {arm.difference:+.4f} ({arm.low:+.4f} to {arm.high:+.4f}), {arm.n:,} entities"
