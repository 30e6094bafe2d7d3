"""What a candidate's report tells beside the judgement: where it comes from, how it was found, why it answers as it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ml.config import Params
from ml.evaluation import explain
from ml.evaluation.gates import Evidence
from ml.packaging import lineage
from ml.packaging.artifacts import Artifacts
from ml.packaging.contest import Champion
from ml.packaging.refit import as_judged
from ml.refs import FeatureSetRef, ModelRef, ShippedRef, TrainPlan


def about(
    plan: TrainPlan,
    features: FeatureSetRef,
    model: ModelRef,
    parts: Artifacts,
    champion: Champion | None,
    evidence: Evidence,
    sources: Mapping[str, int],
    X: pd.DataFrame,
    params: Params,
) -> dict[str, Any]:
    """Sections of the report, as `ml.evaluation.page` knows them.

    Args:
        parts: of the judged twin; `sources`: by what the champion was judged, rows of each; X: the holdout's rows.
    """
    winner = parts.winner
    judged = ShippedRef(model=model, twin=model.artifacts, decision=as_judged("not decided yet"))
    return {
        "title": f"{params.problem.name} as of {plan.as_of:%Y-%m-%d %H:%M}",
        "holdout": {"used_by": [f"v{version}" for version in plan.used_by], "champion_rows": dict(sources) or None},
        "explanations": explanations(parts, champion, evidence, X, params),
        "tuning": {"reason": winner.reason, "trials": winner.trials, "convergence": winner.convergence},
        "lineage": lineage.of(plan, features, judged),
        "card": params.card.model_dump(),
    }


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
