"""The report of a candidate: facts for people and for `dvc metrics`, pictures, one HTML page, one card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ml import metrics, store
from ml.config import Params
from ml.evaluation import page, plots
from ml.evaluation.gates import Evidence, best_baseline, compare
from ml.evaluation.slices import Judged
from ml.metrics import Scoring
from ml.refs import Decision
from ml.significance import Interval, auc_by_day, delong, paid, paired_by_day

REUSE = (
    "Bonferroni's inequality over the models that were judged on the most used day (Dunn 1961, JASA 56:52): with k uses each interval "
    "has confidence 1 − (1 − confidence) / k, so false verdicts stay as rare, over all models that share days, as for one model on new days"
)


def scoring_of(params: Params) -> Scoring:
    """What metrics need to know, from params.yaml."""
    return Scoring(
        task=params.problem.task,
        threshold=params.serving.threshold,
        false_alarm_cost=params.evaluation.false_alarm_cost,
        miss_cost=params.evaluation.miss_cost,
        quantile=params.evaluation.quantile,
    )


def build_report(
    evidence: Evidence, decision: Decision, params: Params, about: Mapping[str, Any]
) -> tuple[bytes, dict[str, float]]:
    """Packs report, pictures, page and card.

    Args:
        about: further sections of the report, as `ml.evaluation.page` knows them (title, lineage, explanations, tuning, …).

    Returns:
        The archive (report.json, report.html, card.md, PNG files) and flat metrics: ``<contender>_<metric>``.
    """
    scoring, holdout = scoring_of(params), evidence.holdout
    answers = _answers(evidence)
    overall = {name: metrics.summary(holdout.y_true, given, scoring) for name, given in answers.items()}
    losses = {name: metrics.losses(scoring.task, holdout.y_true, given) for name, given in answers.items()}
    days = sorted(set(holdout.days.tolist()))
    report = {
        "task": scoring.task,
        "rows": evidence.n,
        "kind": evidence.kind,
        "decision": decision.model_dump(mode="json"),
        "overall": overall,
        "intervals": _intervals(evidence, answers, losses, params),
        "comparisons": _comparisons(evidence, params),
        "by_day": {
            "days": days,
            "rows": [int((holdout.days == day).sum()) for day in days],
            "loss": {name: [float(loss[holdout.days == day].mean()) for day in days] for name, loss in losses.items()},
        },
        "slices": [_slice(s, evidence, scoring) for s in evidence.slices],
        "classes": metrics.by_class(holdout.y_true, evidence.candidate.answers, scoring, params.problem.classes),
        "fairness": [
            {"attribute": f.attribute, "metric": "equalized_odds_difference", "value": f.value,
             "threshold": params.gates.fairness.get(f.attribute), "groups": f.groups}
            for f in evidence.fairness
        ],
    } | dict(about)  # fmt: skip
    report["holdout"] = {"window": holdout.span, "uses": holdout.uses, "rule": REUSE} | dict(about.get("holdout", {}))
    pictures = _pictures(report, evidence, answers, params)
    files = {"report.json": _json(report), "report.html": page.render(report, pictures), "card.md": page.card(report).encode()}
    flat = {f"{name}_{metric}": value for name, values in overall.items() for metric, value in values.items()}
    return store.pack(files | pictures), flat


def _answers(evidence: Evidence) -> dict[str, np.ndarray]:
    champion = {"champion": evidence.champion.answers} if evidence.champion else {}
    return {"candidate": evidence.candidate.answers} | champion | dict(evidence.baselines)


def _intervals(
    evidence: Evidence, answers: Mapping[str, np.ndarray], losses: Mapping[str, np.ndarray], params: Params
) -> dict[str, dict[str, list[float]]]:
    """Of each contender alone, for orientation: not paid for re-use."""
    gates, seed, holdout = params.gates, params.train.seed, evidence.holdout
    nothing, made = np.zeros(evidence.n), {}
    for name, given in answers.items():
        loss = paired_by_day(losses[name], nothing, holdout.days, gates.confidence, gates.resamples, seed)
        made[name] = {metrics.LOSS[params.problem.task]: [loss.low, loss.high]}
        if params.problem.task == "binary":
            area = auc_by_day(holdout.y_true, given, None, holdout.days, gates.confidence, gates.resamples, seed)
            made[name]["auc"] = [area.low, area.high]
    return made


def _comparisons(evidence: Evidence, params: Params) -> list[dict[str, Any]]:
    scoring, gates, seed, holdout = scoring_of(params), params.gates, params.train.seed, evidence.holdout
    confidence = paid(gates.confidence, holdout.uses)
    others = {} if evidence.champion is None else {evidence.champion.name: evidence.champion.answers}
    bar = best_baseline(evidence, scoring)
    made = []

    def add(against: str, metric: str, method: str, found: Interval, verdict: str) -> None:
        made.append(asdict(found) | {"against": against, "metric": metric, "method": method, "confidence": confidence,
                                     "verdict": verdict})  # fmt: skip

    for name, other in (others | {bar: evidence.baselines[bar]}).items():
        loss = compare(evidence, other, gates, scoring, seed)
        add(name, metrics.LOSS[scoring.task], "day-block bootstrap", loss, loss.verdict(gates.margin))
        if scoring.task == "binary":
            mine = evidence.candidate.answers
            area = auc_by_day(holdout.y_true, mine, other, holdout.days, confidence, gates.resamples, seed)
            add(name, "auc", "day-block bootstrap", area, _area_verdict(area))
            area = delong(holdout.y_true, mine, other, confidence)
            add(name, "auc", "DeLong (rows taken as independent)", area, _area_verdict(area))
    return made


def _area_verdict(interval: Interval) -> str:
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "no difference shown"


def _slice(judged: Judged, evidence: Evidence, scoring: Scoring) -> dict[str, Any]:
    rows = judged.slice.rows
    found = metrics.summary(evidence.holdout.y_true[rows], evidence.candidate.answers[rows], scoring) if judged.n else {}
    difference = judged.difference
    return {
        "slice": judged.slice.name, "n": judged.n, "days": judged.days, "loss": judged.loss, "reference_loss": judged.reference_loss,
        "difference": None if difference is None else {"mean": difference.mean, "low": difference.low, "high": difference.high},
        metrics.SCORE[scoring.task]: found.get(metrics.SCORE[scoring.task]), "verdict": judged.verdict, "found": judged.slice.found,
    }  # fmt: skip


def _pictures(
    report: Mapping[str, Any], evidence: Evidence, answers: Mapping[str, np.ndarray], params: Params
) -> dict[str, bytes]:
    y_true, daily = evidence.holdout.y_true, report["by_day"]
    made = {"by_day.png": plots.by_day(daily["days"], daily["loss"], metrics.LOSS[params.problem.task])}
    if params.problem.task == "binary":
        made["calibration.png"] = plots.calibration(y_true, dict(answers))
        if len(np.unique(y_true)) == 2:
            made["curves.png"] = plots.curves(y_true, dict(answers))
    if params.problem.task == "regression":
        made["residuals.png"] = plots.residuals(y_true, dict(answers))
    if any(row["difference"] for row in report["slices"]):
        made["forest.png"] = plots.forest(report["slices"], params.gates.slice_margin)
    importance: Sequence[Mapping[str, Any]] = (report.get("explanations") or {}).get("importance", [])
    if importance:
        champion = [row["champion"] for row in importance] if importance[0].get("champion") is not None else None
        made["importance.png"] = plots.importance(
            [r["feature"] for r in importance], [r["candidate"] for r in importance], champion
        )
    if (report.get("tuning") or {}).get("convergence"):
        made["convergence.png"] = plots.convergence(report["tuning"]["convergence"])
    return made


def _json(report: Mapping[str, Any]) -> bytes:
    """NaN becomes null: JSON knows none."""
    return json.dumps(_plain(report), indent=2, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
