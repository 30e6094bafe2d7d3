"""What was predicted, joined with what came true."""

from __future__ import annotations

import json
from datetime import datetime

import pandas as pd
import pyarrow as pa

from ml.batch.score import read_batch
from ml.features.inputs import midnight
from ml.refs import Window
from ml.serving.log import read_online


def predictions(start: datetime, end: datetime) -> pd.DataFrame:
    """The answer given for each entity with event time in [start, end): online before batch, the first online one among several.

    Columns of the prediction log; one row per ``entity_id``.
    """
    online = read_online(start, end).to_pandas().sort_values("logged_at", kind="stable")
    answers = pd.concat([part for part in (online, read_batch(start, end)) if len(part)] or [online])
    return answers.drop_duplicates("entity_id", keep="first").sort_values(["event_time", "entity_id"], ignore_index=True)


def answered(version: str, window: Window) -> dict[str, float]:
    """What a version answered to rows of the window, by entity id; answers with a flag were degraded, and are left out."""
    found = predictions(midnight(window.start), midnight(window.end))
    good = found[(found["model_version"] == version) & (found["flags"].str.len() == 0)]
    return dict(zip(good["entity_id"], good["probability"], strict=True))


def with_labels(answers: pd.DataFrame, rows: pa.Table) -> pd.DataFrame:
    """Adds ``label``: NaN where the outcome is not known, or where there is none.

    Args:
        rows: the problem's rows as known at the moment of judging (``entity_id``, ``label``).
    """
    labels = rows.select(["entity_id", "label"]).to_pandas().drop_duplicates("entity_id")
    return answers.merge(labels, on="entity_id", how="left", validate="one_to_one")


def served_features(answers: pd.DataFrame) -> pd.DataFrame:
    """The feature values that were used, shape (n, features); NaN where a version did not use a feature."""
    return pd.DataFrame([json.loads(values) for values in answers["features"]], index=answers.index)
