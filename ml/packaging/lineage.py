"""Where a model comes from, as strings: in its bundle, and as tags in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ml.config import load_params
from ml.refs import FeatureSetRef, ModelRef, TrainPlan
from ml.revision import revision


def of(plan: TrainPlan, features: FeatureSetRef, model: ModelRef, tuned: Mapping[str, float]) -> dict[str, str]:
    """Data, code, parameters, windows and reason of one training run."""
    return {
        "snapshot": plan.snapshot.digest,
        "feature_code": features.code,
        "params": load_params().digest(),
        "revision": revision(),
        "train": str(plan.train),
        "trained_until": plan.train.end.isoformat(),
        "holdout": str(plan.holdout),
        "as_of": plan.as_of.isoformat(),
        "trigger": plan.trigger,
        "reason": plan.reason,
        "champion": plan.champion_version or "none",
        "model": model.digest,
        "tuned": json.dumps(dict(tuned), sort_keys=True),
    }
