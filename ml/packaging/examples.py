"""Recorded answers: what a model said to some real rows when it was made. Loading, smoke test and parity probe ask again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pandas as pd

from ml.config import load_params
from ml.data import rows
from ml.features.inputs import midnight
from ml.packaging.artifacts import Artifacts
from ml.packaging.bundle import MAX_EXAMPLES, Example
from ml.packaging.parity import predict, session
from ml.refs import TrainPlan


def record(root: Path, plan: TrainPlan, parts: Artifacts, X: pd.DataFrame) -> list[Example]:
    """Raw request, features and answer of rows spread evenly over the holdout.

    Args:
        root: the plan's restored snapshot.
        X: feature rows of the holdout, shape (n, columns), with ``entity_id``.
    """
    params, encoding = load_params(), parts.fitted.encoding
    spec, names = params.tables[params.problem.table], [*encoding.numeric, *encoding.text]
    chosen = X.iloc[:: max(len(X) // MAX_EXAMPLES, 1)].head(MAX_EXAMPLES)
    raw = rows.problem_rows(root, midnight(plan.holdout.start), midnight(plan.holdout.end), plan.as_of)
    request_columns = [c for c in spec.columns if c not in spec.outcomes]
    requests = {row.pop("entity_id"): row for row in raw.select(["entity_id", *request_columns]).to_pylist()}
    answers = predict(session(parts.onnx), encoding.numeric, encoding.text, chosen)
    made = []
    for features, probability in zip(chosen.to_dict("records"), answers, strict=True):
        request = {c: v.isoformat() if isinstance(v, datetime) else v for c, v in requests[features["entity_id"]].items()}
        values = {name: None if pd.isna(features[name]) else features[name] for name in names}
        made.append(Example(request=request, features=values, probability=float(probability)))
    return made
