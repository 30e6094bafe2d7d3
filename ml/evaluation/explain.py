"""Why a model says what it says: each feature's share in the margin, over many rows, in slices, of one row, and between models.

Shares are those of `Fitted.contributions`: SHAP values of trees (Lundberg et al. 2020, "From local explanations to global
understanding with explainable AI for trees", Nature Machine Intelligence 2:56-67), weight × distance from the mean for the linear
model. Of one row they and the base add up to the margin: the log-odds of label 1 for a binary task, the answer itself for a
regression. They tell what the model did with its inputs, not what causes what in the world.

With ``train.ensemble`` the members' shares, bases and margins are averaged, while the answer is the mean of the members'
probabilities. So shares still add up to the margin exactly, but the margin is then only near the log-odds of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ml.config import Task
from ml.errors import EvergreenError, NotEnoughDataError
from ml.training.encoding import BASE

if TYPE_CHECKING:  # models need XGBoost; who compares stored importances does not
    from ml.training.fit import Fitted

OTHERS = "(others)"
TOP_OF_SLICE = 3
UNITS: dict[Task, str] = {
    "binary": "log-odds",
    "multiclass": "log-odds of the likeliest class over the mean of all",
    "regression": "unit of the label",
}


def importance(fitted: Fitted, X: pd.DataFrame) -> dict[str, float]:
    """Mean |share| of each feature over rows, largest first; the base is left out.

    Args:
        X: feature rows, shape (n, columns), n ≥ 1; missing values are allowed, the model has an answer to them.

    Returns:
        By feature: a number ≥ 0 in the unit of the margin (`UNITS`). A feature that the model never asks about has 0.

    Raises:
        NotEnoughDataError: there are no rows.
        EvergreenError: a share is not finite.
    """
    if not len(X):
        raise NotEnoughDataError("no rows to explain", "choose a window with rows")
    return _ordered(_shares(fitted.contributions(X)).abs().mean())


def by_slice(contributions: pd.DataFrame, slices: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The `TOP_OF_SLICE` features with the largest mean |share| in each slice, from shares that were computed once.

    Args:
        contributions: made by `Fitted.contributions`, shape (n, features + 1).
        slices: by name, which rows belong to it: bool, shape (n,). Slices may overlap.

    Returns:
        In the order of `slices`: ``{"slice", "top": [{"feature", "value"}]}``; `top` is empty for a slice without rows.

    Raises:
        EvergreenError: a mask has another shape or type, or a share is not finite.
    """
    shares = _shares(contributions).abs()
    found = []
    for name, mask in slices.items():
        if mask.shape != (len(shares),) or mask.dtype != bool:
            raise EvergreenError(
                f"slice {name!r} is {mask.dtype} {mask.shape}, contributions have {len(shares):,} rows", "give one bool per row"
            )
        means = _ordered(shares[mask].mean()) if mask.any() else {}
        top = [{"feature": feature, "value": value} for feature, value in list(means.items())[:TOP_OF_SLICE]]
        found.append({"slice": name, "top": top})
    return found


def shift(candidate: Mapping[str, float], champion: Mapping[str, float]) -> tuple[float, str]:
    """How far the explanations of two models are apart: the total variation distance of their normalised importances.

    With p and q the importances divided by their sums, ½ · Σ |p(f) - q(f)| over the features f of either. 0: the same shares;
    1: not one feature in common. A feature that only one of them has counts as 0 in the other (so does one that was renamed).

    Args:
        candidate, champion: made by `importance`, on the same rows.

    Returns:
        The distance, in [0, 1], and a sentence that names the features that gained and lost most (candidate against champion).
        A model without importance (none, or all are 0) is at distance 0 from another such, and at 1 from all else.

    Raises:
        EvergreenError: an importance is negative or not finite (NaN too).
    """
    p, q = _normalised(candidate, "candidate"), _normalised(champion, "champion")
    if not p or not q:
        if not p and not q:
            return 0.0, "neither model uses a feature"
        return 1.0, f"the {'champion' if p else 'candidate'} uses no feature"
    moved = {name: p.get(name, 0.0) - q.get(name, 0.0) for name in sorted({*p, *q})}
    distance = min(sum(map(abs, moved.values())) / 2, 1.0)
    gained, lost = max(moved, key=lambda name: moved[name]), min(moved, key=lambda name: moved[name])
    if distance < 5e-4:  # it would be shown as 0.0 %
        return distance, "both models weigh their features alike"
    moves = ((gained, "gained"), (lost, "lost"))
    change = [f"{name} {verb} most ({q.get(name, 0.0):.1%} → {p.get(name, 0.0):.1%})" for name, verb in moves]
    return distance, f"{distance:.1%} of the importance moved: {', '.join(change)}"


def rows(fitted: Fitted, X: pd.DataFrame, top: int) -> list[dict[str, Any]]:
    """Explains each row by itself.

    Args:
        X: feature rows, shape (n, columns).
        top: so many features are named, ≥ 1; the shares of the rest are added up under `OTHERS`.

    Returns:
        For each row ``base``, ``margin`` (base and all shares), ``answer`` (what `Fitted.predict` says; a list for a multiclass
        task) and ``contributions``: ``{"feature", "value", "contribution"}``, largest |contribution| first, `OTHERS` last and
        only if there are more features than `top`. A missing value is None.

    Raises:
        EvergreenError: `top` is below 1, or a share is not finite.
    """
    if top < 1:
        raise EvergreenError(f"top = {top} features", "name at least 1")
    if not len(X):
        return []
    contributions = fitted.contributions(X)
    shares, bases = _shares(contributions), contributions[BASE].to_numpy()
    matrix, names = shares.to_numpy(), np.array(shares.columns)
    largest = np.argsort(-np.abs(matrix), axis=1, kind="stable")
    made = []
    for i, answer in enumerate(fitted.predict(X)):
        named, rest = largest[i, :top], largest[i, top:]
        parts = [
            {"feature": str(names[k]), "value": _plain(X[names[k]].iloc[i]), "contribution": float(matrix[i, k])} for k in named
        ]
        if len(rest):
            parts.append({"feature": OTHERS, "value": None, "contribution": float(matrix[i, rest].sum())})
        margin = float(bases[i] + matrix[i].sum())
        made.append({"base": float(bases[i]), "margin": margin, "answer": answer.tolist(), "contributions": parts})
    return made


def one_row(fitted: Fitted, row: pd.DataFrame, top: int) -> dict[str, Any]:
    """`rows` for a table of one row.

    Raises:
        EvergreenError: `row` is not one row; and as in `rows`.
    """
    if len(row) != 1:
        raise EvergreenError(f"{len(row):,} rows where one is to be explained", "pick one row")
    return rows(fitted, row, top)[0]


def _shares(contributions: pd.DataFrame) -> pd.DataFrame:
    """The columns of features, checked."""
    shares = contributions.drop(columns=BASE)
    if wrong := [str(name) for name in contributions.columns if not np.isfinite(contributions[name].to_numpy()).all()]:
        raise EvergreenError(f"contributions of {', '.join(wrong)} are not finite", "look at the model: it cannot be explained")
    return shares


def _ordered(means: pd.Series) -> dict[str, float]:
    """Largest first; equal ones by name, so that the same model gives the same order."""
    return dict(sorted(((str(name), float(value)) for name, value in means.items()), key=lambda item: (-item[1], item[0])))


def _normalised(importances: Mapping[str, float], whose: str) -> dict[str, float]:
    """Importances as shares of their sum; empty when that is 0."""
    if wrong := {name: value for name, value in importances.items() if not (np.isfinite(value) and value >= 0)}:
        raise EvergreenError(f"importances of the {whose} are negative or not finite: {wrong}", "give what `importance` returns")
    total = sum(importances.values())
    return {name: value / total for name, value in importances.items()} if total > 0 else {}


def _plain(value: Any) -> float | str | None:
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else float(value)
