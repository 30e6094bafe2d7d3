"""Experiments: the forecast keeps its word, verdicts follow from intervals, guardrails stop."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml import metrics
from ml.config import load_params
from ml.errors import ConfigError, NotEnoughDataError
from ml.metrics import Scoring
from ml.monitoring.experiment import Metric, plan, spread_of, status
from ml.serving.manifest import Deployed, Experiment

START = datetime(2013, 4, 1)
GUARDS = load_params().release
ARMS = {name: Deployed(version=str(i), bundle=f"b{i}", model=f"m{i}") for i, name in enumerate(("control", "treatment", "other"))}
TRIAL = Experiment(name="trial", share=0.2, arms={k: ARMS[k] for k in ("control", "treatment")}, started_at=START)


def logged(n: int, seed: int = 0, blur: dict[str, float] | None = None, **of_treatment: float) -> tuple[pd.DataFrame, pd.Series]:
    """`n` entities of each arm; each arm's log-odds carry its noise: `blur`, 1 for control."""
    rng, parts, labels = np.random.default_rng(seed), [], []
    for arm, noise in ({"control": 1.0, "treatment": 1.0} | (blur or {})).items():
        margin = rng.normal(-1, 1, n)
        entity = [f"{arm}-{i}" for i in range(n)]
        other = of_treatment if arm == "treatment" else {}
        failed = rng.random(n) < other.get("errors", 0)
        parts.append(pd.DataFrame({
            "entity_id": entity, "request_id": entity, "event_time": START, "cohort": f"experiment:{arm}",
            "logged_at": [START + timedelta(seconds=i) for i in range(n)], "model_version": ARMS[arm].version,
            "probability": 1 / (1 + np.exp(-margin - noise * rng.standard_normal(n))),
            "seconds": 0.003 * other.get("slower", 1.0) * np.exp(0.3 * rng.standard_normal(n)),
            "flags": [["fallback_champion"] if f else [] for f in failed],
        }))  # fmt: skip
        labels.append(pd.Series((rng.random(n) < 1 / (1 + np.exp(-margin))).astype(float), entity))
    return pd.concat(parts, ignore_index=True), pd.concat(labels)


def verdict(entries: pd.DataFrame, labels: pd.Series, metric: Metric = "log_loss", effect: float = 0.03) -> str:
    return status(entries, labels, TRIAL, metric, effect, GUARDS, per_arm=5000).decision.verdict


def test_status__better_worse_no_difference_and_running() -> None:
    assert verdict(*logged(4000, blur={"treatment": 0.0})) == "better"
    assert verdict(*logged(4000, blur={"treatment": 2.0})) == "worse"
    same, labels = logged(20_000, seed=2)
    assert verdict(same, labels, effect=0.05) == "no difference"
    assert verdict(same, labels, effect=0.001) == "running"
    assert verdict(*logged(30)) == "running"
    assert verdict(same, labels * np.nan) == "running"
    assert verdict(same.iloc[:0], labels) == "running"


@pytest.mark.parametrize("metric", ["log_loss", "brier", "cost", "decision_rate"])
def test_status__means_are_those_of_the_metric(metric: Metric) -> None:
    entries, labels = logged(3000)
    scoring = Scoring(threshold=0.4, miss_cost=3.0)
    control = status(entries, labels, TRIAL, metric, 0.02, GUARDS, 3000, scoring).arms[0]
    rows = entries[entries["cohort"] == "experiment:control"]
    y_true, y_proba = labels[rows["entity_id"]].to_numpy(), rows["probability"].to_numpy()
    known = metrics.summary(y_true, y_proba, scoring) | {"decision_rate": float((y_proba >= 0.4).mean())}
    assert (control.name, control.n, control.verdict) == ("control", 3000, "control")
    assert control.mean == pytest.approx(known[metric])


def test_status__an_entity_counts_once_and_the_decision_rate_needs_no_labels() -> None:
    entries, labels = logged(2000)
    later = entries.assign(request_id="b" + entries["request_id"], probability=0.99, logged_at=START + timedelta(days=2))
    once, twice = (
        status(table, labels * np.nan, TRIAL, "decision_rate", 0.1, GUARDS, 2000)
        for table in (entries, pd.concat([entries, later]))
    )
    assert once.arms == twice.arms
    assert once.decision.verdict == "no difference"


@pytest.mark.parametrize(("harm", "name"), [({"errors": 0.1}, "errors:treatment"), ({"slower": 2.0}, "latency:treatment")])
def test_status__a_guardrail_stops_what_is_better(harm: dict[str, Any], name: str) -> None:
    entries, labels = logged(4000, blur={"treatment": 0.0}, **harm)
    report = status(entries, labels, TRIAL, "log_loss", 0.03, GUARDS, 5000)
    assert (report.arms[1].verdict, report.decision.verdict) == ("better", "harm")
    assert [c.name for c in report.decision.checks if not c.passed] == [name]


def test_status__three_arms_pay_for_each_other() -> None:
    entries, labels = logged(4000, blur={"treatment": 0.0, "other": 1.0})
    three = status(entries, labels, TRIAL.model_copy(update={"arms": ARMS}), "log_loss", 0.03, GUARDS, 5000)
    two = status(entries, labels, TRIAL, "log_loss", 0.03, GUARDS, 5000)
    assert [arm.name for arm in three.arms] == ["control", "other", "treatment"]
    assert three.arms[2].high is not None and two.arms[1].high is not None
    assert three.arms[2].high > two.arms[1].high
    with pytest.raises(ConfigError, match="control"):
        status(
            entries,
            labels,
            TRIAL.model_copy(update={"arms": {"a": ARMS["control"], "b": ARMS["other"]}}),
            "brier",
            0.1,
            GUARDS,
            99,
        )


def test_plan__more_arms_smaller_effects_and_less_traffic_take_longer() -> None:
    usual = plan(1000, 0.2, 2, 0.02, 0.95, 0.8, baseline_rate=0.3)
    assert usual.days == pytest.approx(usual.per_arm * 2 / 200)
    assert 1 < usual.per_arm / usual.per_arm_fixed < 3  # what it costs to look all the time
    assert plan(1000, 0.2, 3, 0.02, 0.95, 0.8, baseline_rate=0.3).per_arm > usual.per_arm
    assert plan(1000, 0.2, 2, 0.01, 0.95, 0.8, sd=0.3**0.5 * 0.7**0.5).per_arm > 3 * usual.per_arm
    for wrong in ({"share": 0.0}, {"minimum_effect": 0.0}, {"rate_per_day": 0.0}, {"sd": 1.0}):
        given: dict[str, Any] = {
            "rate_per_day": 10.0,
            "share": 0.2,
            "arms": 2,
            "minimum_effect": 0.1,
            "confidence": 0.95,
            "power": 0.8,
            "baseline_rate": 0.3,
        }
        with pytest.raises(ConfigError):
            plan(**(given | wrong))


def test_spread_of__is_the_metric_s_over_entities() -> None:
    entries, labels = logged(1000)
    rate = float((entries["probability"] >= 0.5).mean())
    assert spread_of(entries, labels, "decision_rate") == pytest.approx((rate * (1 - rate)) ** 0.5, rel=0.01)
    with pytest.raises(NotEnoughDataError, match="0 of 2000"):
        spread_of(entries, labels * np.nan, "log_loss")
