"""The gate promotes what is proven, and nothing else; what was not measured has failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ml import metrics
from ml.config import load_params
from ml.evaluation.fairness import Fairness
from ml.evaluation.gates import Contender, Evidence, Holdout, compare, judge
from ml.evaluation.slices import Judged, Slice
from ml.metrics import Scoring
from ml.refs import Check, Decision
from ml.significance import Interval

N, DAYS = 14_000, 14
FIRST = datetime(2013, 3, 17)
BEFORE, INSIDE = FIRST - timedelta(hours=1), FIRST + timedelta(days=3)
DRAW = np.random.default_rng(1)
LOGIT = DRAW.normal(-1, 1.2, N)
TRUTH = 1 / (1 + np.exp(-LOGIT))
LABEL = (DRAW.random(N) < TRUTH).astype(float)
TIMES = np.repeat([np.datetime64(FIRST + timedelta(days=d), "us") for d in range(DAYS)], N // DAYS)
DAY = TIMES.astype("datetime64[D]").astype(str)
CONSTANT = {"climatology": np.full(N, LABEL.mean())}
ALIKE = Check(name="real rows", passed=True, value=1e-7, threshold=1e-5, n=N, detail="alike")
PARITY = Decision(kind="parity", verdict="equal", reason="graph and model answer alike", checks=[ALIKE])
CANDIDATE = Contender("candidate", TRUTH, BEFORE, leaves=1000, features=10)


def blurred(noise: float, seed: int = 2) -> np.ndarray:
    """The true probability with noise on its logit: more noise, a worse model."""
    return 1 / (1 + np.exp(-(LOGIT + np.random.default_rng(seed).normal(0, noise, N))))


def evidence(answers: np.ndarray, champion: np.ndarray | None = None, **changes: Any) -> Evidence:
    """Everything measured, and measured well, but for `changes`."""
    measured: dict[str, Any] = {
        "holdout": Holdout(LABEL, TIMES, DAY),
        "candidate": replace(CANDIDATE, answers=answers),
        "champion": None if champion is None else replace(CANDIDATE, name="champion v1", answers=champion),
        "baselines": CONSTANT,
        "kind": "first model" if champion is None else "refresh",
        "fairness": [Fairness("origin", 0.05, [])],
        "feature_scores": {"hour": 0.6},
        "parity": PARITY,
        "latency_ms": 0.05,
        "champion_latency_ms": None if champion is None else 0.05,
        "size_mb": 1.0,
    }
    return Evidence(**(measured | changes))


def verdict(answers: np.ndarray, champion: np.ndarray | None = None, limits: Mapping[str, Any] = {}, **changes: Any) -> Decision:
    gates = load_params().gates.model_copy(update={"resamples": 1000, **limits})
    return judge(evidence(answers, champion, **changes), gates, Scoring(threshold=0.35), seed=3)


def failed(decision: Decision) -> list[str]:
    return [c.name for c in decision.checks if not c.passed]


def test_judge__promotes_a_first_model_that_beats_the_baseline() -> None:
    decision = verdict(blurred(0.2))
    assert (decision.verdict, failed(decision)) == ("promote", [])
    assert decision.reason.startswith("first model, log_loss minus climatology's: -0.")
    assert "over 14,000 rows of 14 days" in decision.reason


@pytest.mark.parametrize(
    ("candidate", "gate"),
    [
        (np.random.default_rng(4).random(N), "score_floor"),
        (np.clip(TRUTH, 1e-4, 1) ** 8, "loss_ceiling"),
        (CONSTANT["climatology"], "baseline"),
        (np.clip(TRUTH * 1.35, 0, 0.999), "calibration"),
    ],
    ids=["random answers", "overconfident", "no better than climatology", "too high"],
)
def test_judge__refuses_a_bad_candidate_by_the_gate_meant_for_it(candidate: np.ndarray, gate: str) -> None:
    decision = verdict(candidate)
    assert decision.verdict == "keep"
    assert gate in failed(decision)
    assert f"{gate}: " in decision.reason


# ---- the champion


def test_judge__refuses_a_candidate_that_is_worse_than_the_champion() -> None:
    decision = verdict(blurred(0.7), blurred(0.1))
    assert (decision.verdict, failed(decision)) == ("keep", ["champion"])


def test_judge__an_equal_refresh_passes_and_an_equal_redesign_does_not() -> None:
    new, old = blurred(0.2, seed=5), blurred(0.2, seed=6)
    assert verdict(new, old).verdict == "promote"
    decision = verdict(new, old, kind="redesign")
    assert failed(decision) == ["champion"]
    assert "must be better beyond noise, or equal and simpler; 1,000 leaves against 1,000" in decision.reason


@pytest.mark.parametrize(("leaves", "features", "promoted"), [(900, 10, True), (901, 10, False), (900, 11, False)])
def test_judge__an_equal_redesign_passes_only_when_simpler(leaves: int, features: int, promoted: bool) -> None:
    candidate = Contender("candidate", blurred(0.2, seed=5), BEFORE, leaves, features)
    decision = verdict(TRUTH, blurred(0.2, seed=6), kind="redesign", candidate=candidate)
    assert (decision.verdict == "promote") is promoted


def test_judge__a_redesign_that_is_better_beyond_noise_passes() -> None:
    decision = verdict(blurred(0.1), blurred(1.0), kind="redesign")
    assert decision.verdict == "promote"
    assert decision.reason.startswith("redesign, better: ")


def test_judge__a_refresh_need_not_prove_again_that_it_beats_the_baseline() -> None:
    bar = {"linear": blurred(0.2, seed=9)}
    assert failed(verdict(blurred(0.2), baselines=bar)) == ["baseline"]
    assert failed(verdict(blurred(0.2), blurred(0.2, seed=6), baselines=bar)) == []
    assert failed(verdict(blurred(0.2), blurred(0.2, seed=6), baselines=bar, kind="redesign")) == ["baseline", "champion"]


def test_judge__an_equal_candidate_may_still_be_worse_than_a_tiny_margin() -> None:
    decision = verdict(blurred(0.5, seed=7), blurred(0.5, seed=6), {"margin": 1e-6})
    assert failed(decision) == ["champion"]


def test_compare__pays_for_every_use_of_the_holdout() -> None:
    gates = load_params().gates
    fresh, used = (
        compare(evidence(blurred(0.5), holdout=Holdout(LABEL, TIMES, DAY, uses)), TRUTH, gates, Scoring(), 3) for uses in (1, 14)
    )
    assert used.mean == fresh.mean
    assert used.high - used.low > 1.2 * (fresh.high - fresh.low)
    decision = verdict(blurred(0.2), blurred(0.2), holdout=Holdout(LABEL, TIMES, DAY, 14))
    assert "used 13 × before" in decision.reason


# ---- nobody is judged on what it learned from


@pytest.mark.parametrize("who", ["candidate", "champion"])
def test_judge__refuses_a_holdout_that_somebody_learned_from(who: str) -> None:
    peeked = replace(CANDIDATE, name=who, answers=blurred(0.2), learned_until=INSIDE)
    made = replace(evidence(blurred(0.2), blurred(0.2)), **{who: peeked})
    decision = judge(made, load_params().gates, Scoring(threshold=0.35), 3)
    assert failed(decision) == ["untouched_holdout" + ("" if who == "candidate" else "_champion")]
    (check,) = [c for c in decision.checks if not c.passed]
    assert (check.value, check.n) == (-72.0, N)
    assert f"{who} learned from rows until 2013-03-20" in check.detail


def test_judge__a_champion_that_answered_by_two_models_is_held_to_each_ones_range() -> None:
    until = np.where(np.datetime64(INSIDE) > TIMES, np.datetime64(BEFORE, "us"), np.datetime64(INSIDE - timedelta(hours=1), "us"))
    two = replace(CANDIDATE, name="champion v1", answers=blurred(0.2), learned_until=until)
    judged = judge(replace(evidence(blurred(0.2), TRUTH), champion=two), load_params().gates, Scoring(threshold=0.35), 3)
    assert failed(judged) == []


def test_judge__a_holdout_of_few_days_proves_nothing() -> None:
    few = np.isin(DAY, np.unique(DAY)[:9])
    cut = evidence(
        TRUTH[few], holdout=Holdout(LABEL[few], TIMES[few], DAY[few]), baselines={"climatology": CONSTANT["climatology"][few]}
    )
    gates = load_params().gates.model_copy(update={"resamples": 1000})
    assert failed(judge(cut, gates, Scoring(threshold=0.35), 3)) == ["holdout_days"]
    assert failed(judge(cut, gates.model_copy(update={"min_days": 9}), Scoring(threshold=0.35), 3)) == []


# ---- what was not measured has failed


@pytest.mark.parametrize(
    ("missing", "gate"),
    [
        ({"parity": None}, "parity"),
        ({"latency_ms": None}, "latency"),
        ({"champion_latency_ms": None}, "latency_ratio"),
        ({"size_mb": None}, "size"),
        ({"fairness": []}, "fairness_origin"),
        ({"fairness": [Fairness("origin", float("nan"), [])]}, "fairness_origin"),
        ({"feature_scores": {}}, "leak"),
        ({"feature_scores": {"hour": float("nan")}}, "leak"),
        ({"slices": [Judged(Slice("a", np.ones(N, bool)), N, 1, 0.5, 0.5, None, "too few rows")]}, "slices"),
    ],
)
def test_judge__fails_closed(missing: dict[str, Any], gate: str) -> None:
    decision = verdict(blurred(0.2), blurred(0.2), **missing)
    assert decision.verdict == "keep"
    assert gate in failed(decision)


def test_judge__with_one_class_only_fails_closed() -> None:
    assert "score_floor" in failed(verdict(TRUTH, holdout=Holdout(np.ones(N), TIMES, DAY)))


def test_judge__refuses_missing_answers() -> None:
    broken = blurred(0.2)
    broken[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        verdict(broken)


# ---- limits


def test_judge__limits_name_what_broke_them() -> None:
    lost = Interval(0.06, 0.03, 0.09, 900, 14)
    decision = verdict(
        blurred(0.2),
        blurred(0.2),
        slices=[Judged(Slice("carrier = HA", np.ones(N, bool)), 900, 14, 0.5, 0.44, lost, "worse")],
        fairness=[Fairness("origin", 0.31, [])],
        feature_scores={"hour": 0.6, "arrival": 0.97},
        latency_ms=0.5,
        champion_latency_ms=0.1,
        size_mb=21.0,
        parity=PARITY.model_copy(update={"checks": [ALIKE.model_copy(update={"passed": False, "value": 0.3})]}),
    )
    found = {c.name: c for c in decision.checks if not c.passed}
    assert {name: (c.value, c.threshold) for name, c in found.items()} == {
        "leak": (0.97, 0.9),
        "slices": (0.03, 0.02),
        "fairness_origin": (0.31, 0.2),
        "parity": (0.3, 1e-5),
        "latency_ratio": (5.0, 3.0),
        "size": (21.0, 20.0),
    }
    assert "feature arrival alone" in found["leak"].detail
    assert "carrier = HA" in found["slices"].detail


def test_judge__a_slice_that_may_be_worse_by_noise_passes() -> None:
    noise = Interval(0.06, 0.01, 0.11, 900, 14)
    judged = [Judged(Slice("carrier = HA", np.ones(N, bool)), 900, 14, 0.5, 0.44, noise, "ok")]
    assert failed(verdict(blurred(0.2), slices=judged)) == []


def test_judge__calibration_has_the_champions_as_its_limit_where_that_is_larger() -> None:
    new, old = (np.clip(TRUTH * f, 0, 0.999) for f in (1.3, 1.35))
    limits = {"max_loss": 2.0, "margin": 1.0}
    assert failed(verdict(new, limits=limits, baselines={"coin": np.full(N, 0.5)})) == ["calibration"]
    assert failed(verdict(new, old, limits)) == []
    assert failed(verdict(old, new, limits)) == ["calibration"]


def test_judge__in_mode_report_waives_all_but_integrity() -> None:
    decision = verdict(blurred(0.7), blurred(0.1), {"mode": "report"})
    assert (decision.verdict, failed(decision)) == ("promote", ["champion"])
    assert "gates.mode is report, or it would have been kept back: champion: worse" in decision.reason
    assert verdict(blurred(0.2), limits={"mode": "report"}, parity=None).verdict == "keep"
    peeked = replace(CANDIDATE, answers=blurred(0.2), learned_until=INSIDE)
    assert verdict(TRUTH, limits={"mode": "report"}, candidate=peeked).verdict == "keep"


# ---- other tasks


def test_judge__regression() -> None:
    y_true = LOGIT + DRAW.normal(0, 0.5, N)
    scoring = Scoring(task="regression", quantile=0.9)
    gates = load_params().gates.model_copy(update={"min_score": 0.5, "fairness": {}, "resamples": 1000})
    good = evidence(LOGIT, holdout=Holdout(y_true, TIMES, DAY), baselines={"mean": np.full(N, y_true.mean())})
    decision = judge(good, gates, scoring, 3)
    assert (decision.verdict, failed(decision)) == ("promote", [])
    assert "calibration" not in {c.name for c in decision.checks}
    bad = replace(good, candidate=replace(CANDIDATE, answers=LOGIT[::-1]))
    assert {"score_floor", "loss_ceiling", "baseline"} <= set(failed(judge(bad, gates, scoring, 3)))


def test_judge__multiclass() -> None:
    y_true = (LABEL + (LOGIT > 0)).astype(float)
    share = np.stack([np.where(LOGIT > 0, 0.02, 1 - TRUTH), np.where(LOGIT > 0, 1 - TRUTH, TRUTH), TRUTH * (LOGIT > 0)], axis=1)
    answers = share / share.sum(axis=1, keepdims=True)
    prior = np.tile(np.bincount(y_true.astype(int), minlength=3) / N, (N, 1))
    gates = load_params().gates.model_copy(update={"min_score": 0.5, "max_loss": 1.0, "fairness": {}, "resamples": 1000})
    scoring = Scoring(task="multiclass")
    good = evidence(answers, holdout=Holdout(y_true, TIMES, DAY), baselines={"prior": prior})
    decision = judge(good, gates, scoring, 3)
    assert (decision.verdict, failed(decision)) == ("promote", [])
    assert metrics.SCORE["multiclass"] in next(c.detail for c in decision.checks if c.name == "score_floor")
    assert "baseline" in failed(judge(replace(good, candidate=replace(CANDIDATE, answers=prior)), gates, scoring, 3))
