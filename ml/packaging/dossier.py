"""What a candidate's report tells beside the judgement: where it comes from, how it was found, why it answers as it does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ml.config import Params
from ml.evaluation import explain
from ml.evaluation.gates import Evidence
from ml.evaluation.report import build_report
from ml.packaging import lineage
from ml.packaging.artifacts import Artifacts
from ml.packaging.contest import Champion, Held
from ml.packaging.refit import as_judged
from ml.refs import FeatureSetRef, ModelRef, ShippedRef, TrainPlan


def report(
    plan: TrainPlan,
    features: FeatureSetRef,
    model: ModelRef,
    parts: Artifacts,
    champion: Champion | None,
    held: Held,
    X: pd.DataFrame,
    params: Params,
) -> tuple[bytes, dict[str, float]]:
    """The archive of the report, and flat metrics (`ml.evaluation.report.build_report`).

    Args:
        parts: of the judged twin; X: the holdout's rows.
    """
    winner = parts.winner
    judged = ShippedRef(model=model, twin=model.artifacts, decision=as_judged("not decided yet"))
    about = {
        "title": f"{params.problem.name} as of {plan.as_of:%Y-%m-%d %H:%M}",
        "holdout": {"used_by": [f"v{version}" for version in plan.used_by], "champion_rows": held.sources or None},
        "explanations": explanations(parts, champion, held.evidence, X, params),
        "tuning": {"reason": winner.reason, "trials": winner.trials, "convergence": winner.convergence},
        "lineage": lineage.of(plan, features, judged),
        "card": params.card.model_dump(),
    }
    return build_report(held.evidence, held.decision, params, about)


def explanations(
    parts: Artifacts, champion: Champion | None, evidence: Evidence, X: pd.DataFrame, params: Params
) -> dict[str, Any]:
    """Mean |contribution| by feature and slice on rows spread evenly over the holdout, and how far the champion's are away."""
    rows = X.iloc[:: max(len(X) // params.evaluation.explained_rows, 1)]
    contributions = parts.fitted.contributions(rows)
    mine = explain.importance(parts.fitted, rows)
    theirs = explain.importance(champion.shipped.fitted, rows) if champion else {}
    drift = None
    if champion:
        value, detail = explain.shift(mine, theirs)
        drift = {"value": value, "detail": detail}
    at = X.index.get_indexer(rows.index)
    shown = {part.slice.name: part.slice.rows[at] for part in evidence.slices if part.slice.rows[at].any()}
    return {
        "importance": [{"feature": f, "candidate": v, "champion": theirs.get(f) if champion else None} for f, v in mine.items()],
        "slices": explain.by_slice(contributions, shown),
        "drift": drift,
        "unused": parts.fitted.unused,
    }
