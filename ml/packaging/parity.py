"""Does the graph answer as the booster does? Checked on real rows and on the rows that break converters."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pandas as pd
import xgboost as xgb

from ml.errors import IntegrityError
from ml.refs import Check, Decision
from ml.training.encoding import Encoding, encode


def session(graph: bytes) -> ort.InferenceSession:
    """A session for batches: ONNX Runtime on its default threads."""
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def predict(graph: ort.InferenceSession, numeric: list[str], text: list[str], X: pd.DataFrame) -> np.ndarray:
    """Probabilities, float64 (n,), of a table with one column per feature; a missing number is NaN, a missing text ''.

    Raises:
        IntegrityError: a feature that the model needs is not computed (any more).
    """
    if absent := [name for name in [*numeric, *text] if name not in X.columns]:
        raise IntegrityError(
            f"the model needs features {absent} that are not computed", "restore them in the feature module, or retire the model"
        )
    inputs = {"numeric": X[numeric].to_numpy(np.float32)}
    if text:
        inputs["text"] = X[text].fillna("").to_numpy(object)
    return graph.run(["probability"], inputs)[0][:, 0].astype(np.float64)


def check_parity(graph: bytes, booster: xgb.Booster, encoding: Encoding, X: pd.DataFrame, tolerance: float) -> Decision:
    """Compares booster and graph on real rows, missing values, unseen categories, and values at and beside the split thresholds.

    Args:
        X: real rows, one column per feature, shape (n, features).
        tolerance: largest allowed absolute difference in probability.
    """
    cases = {
        "real rows": X,
        "missing values": _with_missing(encoding, X.head(500)),
        "unseen categories": X.head(500).assign(**dict.fromkeys(encoding.text, "never seen")),
        "split thresholds": _at_thresholds(booster, encoding, X.iloc[0]),
    }
    onnx = session(graph)
    checks = []
    for name, rows in cases.items():
        expected = booster.predict(xgb.DMatrix(encode(encoding, rows)))
        found = predict(onnx, encoding.numeric, encoding.text, rows)
        worst = float(np.abs(expected - found).max()) if len(rows) else float("nan")
        passed = bool(worst <= tolerance)  # NaN fails
        checks.append(
            Check(name=name, passed=passed, value=worst, threshold=tolerance, n=len(rows), detail="largest |Δ probability|")
        )
    verdict = "equal" if all(c.passed for c in checks) else "different"
    worst_check = max(checks, key=lambda c: np.inf if c.value is None or np.isnan(c.value) else c.value)
    reason = f"largest difference {worst_check.value:.1e} on {worst_check.name} (allowed {tolerance:.0e})"
    return Decision(kind="parity", verdict=verdict, reason=reason, checks=checks)


def _with_missing(encoding: Encoding, X: pd.DataFrame) -> pd.DataFrame:
    """Every feature missing in some rows: each seventh for numbers, each fifth for text, starting at different rows."""
    at = np.arange(len(X))
    plain = [name for name in encoding.numeric if name not in encoding.periods]
    changed = {name: X[name].mask(at % 7 == i % 7) for i, name in enumerate(plain)}
    changed |= {name: X[name].mask(at % 5 == i % 5, None) for i, name in enumerate(encoding.text)}
    return X.assign(**changed)


def _at_thresholds(booster: xgb.Booster, encoding: Encoding, row: pd.Series) -> pd.DataFrame:
    """One row per (plain numeric feature, threshold, one float32 below / at / above); all else as in `row`."""
    splits = booster.trees_to_dataframe()
    splits = splits[splits["Feature"] != "Leaf"].drop_duplicates(["Feature", "Split"])
    plain = {f"f{i}": c for i, c in enumerate(encoding.columns) if c in encoding.numeric}
    rows = []
    for feature, threshold in zip(splits["Feature"], splits["Split"], strict=True):
        if feature in plain:
            at = np.float32(threshold)
            beside = (np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf)))
            rows += [row.to_dict() | {plain[feature]: float(value)} for value in beside]
    return pd.DataFrame(rows, columns=row.index)
