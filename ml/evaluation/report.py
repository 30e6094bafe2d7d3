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
from ml.significance import Interval, auc_by_day, clustered_by_day, delong, jackknife_by_day, paid

REUSE = (
    "Bonferroni's inequality over the models that were judged on the most used day (Dunn 1961, JASA 56:52): with k uses each "
    "interval has confidence 1 − (1 − confidence) / k, so false verdicts stay as rare, over all models that share days, as for "
    "one model on new days"
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
    report = {
        "task": scoring.task,
        "rows": evidence.n,
        "kind": evidence.kind,
        "decision": decision.model_dump(mode="json"),
        "overall": overall,
        "intervals": {name: _intervals(evidence, given, params) for name, given in answers.items()},
        "comparisons": _comparisons(evidence, params),
        "by_day": _by_day(evidence, losses, params),
        "slices": [_slice(s, evidence, scoring) for s in evidence.slices],
        "classes": _classes(evidence, params),
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


def _intervals(evidence: Evidence, answers: np.ndarray, params: Params) -> dict[str, list[float]]:
    """Of one contender's figures, for orientation: not paid for re-use."""
    y_true, scoring = evidence.holdout.y_true, scoring_of(params)
    found = jackknife_by_day(
        lambda rows: metrics.summary(y_true[rows], answers[rows], scoring), evidence.holdout.days, params.gates.confidence
    )
    return {name: _possible(name, *ends) for name, ends in found.items()}


def _possible(name: str, low: float, high: float) -> list[float]:
    """An interval within the range that the figure can have."""
    return [low if name == "r2" else max(low, 0.0), min(high, 1.0) if name in metrics.SHARES else high]


def _classes(evidence: Evidence, params: Params) -> list[dict[str, Any]]:
    """The candidate's figures of each class, with intervals."""
    y_true, answers, scoring = evidence.holdout.y_true, evidence.candidate.answers, scoring_of(params)

    def by_class(rows: np.ndarray) -> list[dict[str, Any]]:
        return metrics.by_class(y_true[rows], answers[rows], scoring, params.problem.classes)

    def flat(rows: np.ndarray) -> dict[str, float]:
        return {f"{i} {name}": row[name] for i, row in enumerate(by_class(rows)) for name in ("precision", "recall", "f1")}

    ends = jackknife_by_day(flat, evidence.holdout.days, params.gates.confidence)
    return [
        row | {"intervals": {name: _possible(name, *ends[f"{i} {name}"]) for name in ("precision", "recall", "f1")}}
        for i, row in enumerate(by_class(np.arange(evidence.n)))
    ]


def _by_day(evidence: Evidence, losses: Mapping[str, np.ndarray], params: Params) -> dict[str, Any]:
    """Mean losses of each day; and the candidate's less the champion's (or the best baseline's), with hours as clusters."""
    holdout = evidence.holdout
    against = "champion" if evidence.champion else best_baseline(evidence, scoring_of(params))
    days, hours = np.unique(holdout.days).tolist(), holdout.event_time.astype("datetime64[h]")
    rows_of = [holdout.days == day for day in days]
    differences = []
    for rows in rows_of:
        found = None
        if len(np.unique(hours[rows])) > 1:
            found = asdict(
                clustered_by_day(losses["candidate"][rows], losses[against][rows], hours[rows], params.gates.confidence)
            )
        differences.append(found)
    return {
        "days": days,
        "rows": [int(rows.sum()) for rows in rows_of],
        "loss": {name: [float(loss[rows].mean()) for rows in rows_of] for name, loss in losses.items()},
        "against": against,
        "difference": differences,
    }


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
    difference, score = judged.difference, metrics.SCORE[scoring.task]
    return {
        "slice": judged.slice.name,
        "n": judged.n,
        "days": judged.days,
        "loss": judged.loss,
        "reference_loss": judged.reference_loss,
        "difference": difference and {"mean": difference.mean, "low": difference.low, "high": difference.high},
        score: found.get(score),
        "verdict": judged.verdict,
        "found": judged.slice.found,
    }


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
