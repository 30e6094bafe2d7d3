"""Does the graph answer as the model does? Checked on real rows and on the rows that break converters."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pandas as pd

from ml.errors import IntegrityError
from ml.refs import Check, Decision
from ml.training.encoding import Encoding
from ml.training.fit import Fitted

CHANGED_ROWS = 500
"""Real rows that the cases with missing, infinite and unseen values start from."""
AT_ROWS = 4
"""Real rows that are put at every split threshold."""


def session(graph: bytes) -> ort.InferenceSession:
    """A session for batches: ONNX Runtime on its default threads."""
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def predict(graph: ort.InferenceSession, numeric: list[str], text: list[str], X: pd.DataFrame) -> np.ndarray:
    """Answers, float64 (n,) or (n, classes), to a table with one column per feature; a missing number is NaN, a missing text ''.

    Raises:
        IntegrityError: a feature that the model needs is not computed (any more).
    """
    (answers,) = graph.run(None, inputs(numeric, text, X))
    return np.asarray(answers[:, 0] if answers.shape[1] == 1 else answers, dtype=np.float64)


def inputs(numeric: list[str], text: list[str], X: pd.DataFrame) -> dict[str, np.ndarray]:
    """The graph's inputs for these rows; raises as `predict` does."""
    if absent := [name for name in [*numeric, *text] if name not in X.columns]:
        raise IntegrityError(
            f"the model needs features {absent} that are not computed", "restore them in the feature module, or retire the model"
        )
    feed = {"numeric": X[numeric].to_numpy(np.float32)}
    return feed | ({"text": X[text].fillna("").to_numpy(object)} if text else {})


def check_parity(graph: bytes, fitted: Fitted, X: pd.DataFrame, tolerance: float, threshold: float) -> Decision:
    """Compares model and graph on real rows, missing and infinite values, unseen categories, and at and beside split thresholds.

    Args:
        X: real rows, one column per feature, shape (n, features).
        tolerance: largest allowed absolute difference of an answer (relative to the answers' size, for regression above 1).
        threshold: probability from which a binary decision is 1.

    Returns:
        A check for each kind of rows: the largest difference, and in the detail how many decisions differ.
    """
    encoding, few = fitted.encoding, X.head(CHANGED_ROWS)
    cases = {
        "real rows": X,
        "missing values": with_changed(encoding, few, np.nan, None),
        "infinite values": pd.concat(
            [with_changed(encoding, few, np.inf, "never seen"), with_changed(encoding, few, -np.inf, "")]
        ),
        "unseen categories": few.assign(**dict.fromkeys(encoding.text, "never seen")),
        "split thresholds": at_thresholds(fitted, X.iloc[:: max(len(X) // AT_ROWS, 1)].head(AT_ROWS)),
    }
    onnx, task = session(graph), fitted.task
    checks = []
    for name, rows in cases.items():
        expected, found = fitted.predict(rows), predict(onnx, encoding.numeric, encoding.text, rows)
        size = max(1.0, float(np.abs(expected).max())) if task == "regression" and len(rows) else 1.0
        worst = float(np.abs(expected - found).max()) / size if len(rows) else 0.0
        decided = "" if task == "regression" else f"; {_turned(expected, found, threshold)} decisions differ"
        checks.append(
            Check(name=name, passed=bool(worst <= tolerance), value=worst, threshold=tolerance, n=len(rows),
                  detail=f"largest |Δ answer|{decided}")
        )  # fmt: skip  # NaN fails
    verdict = "equal" if all(c.passed for c in checks) else "different"
    worst_check = max(checks, key=lambda c: np.inf if c.value is None or np.isnan(c.value) else c.value)
    reason = f"largest difference {worst_check.value:.1e} on {worst_check.name} (allowed {tolerance:.0e})"
    return Decision(kind="parity", verdict=verdict, reason=reason, checks=checks)


def at_thresholds(fitted: Fitted, X: pd.DataFrame) -> pd.DataFrame:
    """Each row once per (plain numeric feature, split threshold, one float32 below / at / above); its other features stay."""
    encoding = fitted.encoding
    plain = {i: c for i, c in enumerate(encoding.columns) if c in encoding.numeric}
    splits = sorted({split for member in fitted.members for split in member.thresholds() if split[0] in plain})
    at = np.array([threshold for _, threshold in splits], dtype=np.float32)
    beside = np.stack([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))], axis=1)
    made = X.loc[X.index.repeat(beside.size)].reset_index(drop=True)
    feature_of = np.tile(np.repeat([plain[column] for column, _ in splits], 3), len(X))
    values = np.tile(beside.reshape(-1).astype(np.float64), len(X))
    return made.assign(**{name: made[name].mask(feature_of == name, values) for name in set(feature_of.tolist())})


def _turned(expected: np.ndarray, found: np.ndarray, threshold: float) -> int:
    """In how many rows the decision differs."""
    if expected.ndim == 2:
        return int((expected.argmax(axis=1) != found.argmax(axis=1)).sum())
    return int(((expected >= threshold) != (found >= threshold)).sum())


def with_changed(encoding: Encoding, X: pd.DataFrame, number: float, text: str | None) -> pd.DataFrame:
    """Every feature replaced in some rows: each seventh for numbers, each fifth for text, starting at different rows."""
    at = np.arange(len(X))
    plain = [name for name in encoding.numeric if name not in encoding.periods]
    changed = {name: X[name].mask(at % 7 == i % 7, number) for i, name in enumerate(plain)}
    changed |= {name: X[name].mask(at % 5 == i % 5, text) for i, name in enumerate(encoding.text)}
    return X.assign(**changed)
