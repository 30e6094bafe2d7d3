"""After the verdict the judged recipe is fitted again on all matured days, held against its judged twin; that is what ships."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ml import metrics
from ml.config import Params
from ml.evaluation.report import scoring_of
from ml.packaging.artifacts import Artifacts
from ml.packaging.parity import check_parity
from ml.refs import Check, Decision, TrainPlan, Window


def window(plan: TrainPlan) -> Window:
    """The days that the shipped model learns from: train window and holdout."""
    return Window(start=plan.train.start, end=plan.holdout.end)


def held_against_twin(refitted: Artifacts, twin: Artifacts, X: pd.DataFrame, params: Params) -> Decision:
    """Is the refit still the model that was judged? Verdict ``refitted``, or ``differs``: then nothing ships.

    Args:
        X: the holdout's labelled rows; the refit has learned from them, so its loss must not be above its twin's.
    """
    scoring, y_true, n = scoring_of(params), X["label"].to_numpy(), len(X)
    new, old = refitted.fitted.predict(X), twin.fitted.predict(X)
    shift = float(np.abs(new - old).mean())
    losses = [float(metrics.losses(scoring.task, y_true, answers).mean()) for answers in (new, old)]
    inputs = [(parts.fitted.encoding.numeric, parts.fitted.encoding.text) for parts in (refitted, twin)]
    parity = check_parity(refitted.onnx, refitted.fitted, X, params.gates.parity_tolerance, params.serving.threshold)
    size, limits = len(refitted.onnx) / 1e6, params.gates
    checks = [
        Check(name="schema", passed=inputs[0] == inputs[1], value=None, threshold=None, n=n, detail="inputs of the graph are the twin's"),
        _at_most("close_answers", shift, limits.max_refit_shift, n, "mean |Δ answer| to the judged twin"),
        _at_most("loss", losses[0], losses[1] + limits.margin, n, f"loss on days that it has learned from (its twin's {losses[1]:.4f})"),
        *_calibration(y_true, new, params, n),
        Check(name="parity", passed=parity.passed, value=max(c.value or 0.0 for c in parity.checks), threshold=limits.parity_tolerance,
              n=sum(c.n for c in parity.checks), detail=parity.reason),
        _at_most("size", size, limits.max_size_mb, n, "size of the graph, MB"),
    ]  # fmt: skip
    failed = [c for c in checks if not c.passed]
    if failed:
        reason = "the refit differs from its judged twin: " + "; ".join(f"{c.name}: {c.detail}" for c in failed)
    else:
        reason = f"refitted on {refitted.fitted.learned.rows:,} rows; {checks[1].detail}"
    return Decision(kind="refit", verdict="differs" if failed else "refitted", reason=reason, checks=checks)


def as_judged(reason: str) -> Decision:
    """The judged model itself is kept."""
    check = Check(name="judged", passed=True, value=None, threshold=None, n=0, detail=reason)
    return Decision(kind="refit", verdict="judged", reason=reason, checks=[check])


def _calibration(y_true: np.ndarray, answers: np.ndarray, params: Params, n: int) -> list[Check]:
    if params.problem.task == "regression":
        return []
    found = metrics.summary(y_true, answers, scoring_of(params))["calibration_error"]
    return [_at_most("calibration", found, params.gates.max_calibration_error, n, "expected calibration error")]


def _at_most(name: str, value: float, threshold: float, n: int, what: str) -> Check:
    detail = f"{what} {value:.4g}, must be ≤ {threshold:.4g}"
    return Check(name=name, passed=bool(value <= threshold), value=value, threshold=threshold, n=n, detail=detail)
