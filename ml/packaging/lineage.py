"""Where a model comes from, as strings: in its bundle, and as tags in the registry."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

from ml import store
from ml.config import load_params
from ml.refs import FeatureSetRef, ShippedRef, TrainPlan
from ml.revision import revision
from ml.settings import ROOT

CODE = ("ml/data", "ml/features", "ml/training", "ml/packaging/artifacts.py", "ml/packaging/graph.py")
"""What turns raw data and parameters into a model."""
LIBRARIES = {
    "lightgbm": ("lightgbm",),
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnxmltools": ("onnxmltools",),
    "scikit-learn": ("scikit-learn",),
    "xgboost": ("xgboost-cpu", "xgboost"),
}
"""Libraries that decide on a graph's bytes, and the distributions that they come in."""


def of(plan: TrainPlan, features: FeatureSetRef, shipped: ShippedRef) -> dict[str, str]:
    """Data, code, parameters, windows and reason of one training run."""
    model = shipped.model
    return {
        "snapshot": plan.snapshot.digest,
        "feature_code": features.code,
        "features": features.digest,
        "code": code_digest(),
        "params": load_params().digest(),
        "params_file": store.put(load_params().model_dump_json().encode()),
        "revision": revision(),
        "libraries": json.dumps(libraries(), sort_keys=True),
        "train": str(model.train if model.recipe.brought else plan.train),
        "refit": str(model.train) if shipped.decision.verdict == "refitted" else "none",
        "learned": f"{model.train.start}/{model.train.end}",
        "holdout": str(plan.holdout),
        "as_of": plan.as_of.isoformat(),
        "trigger": plan.trigger,
        "reason": plan.reason,
        "champion": plan.champion_version or "none",
        "family": model.recipe.family,
        "tuned": json.dumps(model.recipe.params, sort_keys=True),
        "rounds": str(model.rounds),
        "model": model.digest,
        "artifacts": model.artifacts,
        "twin": shipped.twin,
    } | ({"workers": str(model.workers)} if model.workers > 1 else {})


def libraries() -> dict[str, str]:
    """Name → installed version of `LIBRARIES`; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name, distributions in LIBRARIES.items():
        for distribution in distributions:
            try:
                found.setdefault(name, version(distribution))
            except PackageNotFoundError:
                continue
    return found


def code_digest() -> str:
    """Names the code that makes a model: first 16 hex digits of the SHA-256 over its files."""
    sha = hashlib.sha256()
    for part in CODE:
        path = ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            sha.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()[:16]
