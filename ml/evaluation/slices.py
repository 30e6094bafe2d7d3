"""Parts of the holdout: declared ones, and ones that a tree finds where the candidate does worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeRegressor

from ml.config import Evaluation, Gates
from ml.errors import ConfigError
from ml.significance import Interval, clustered_by_day, paid

MAX_VALUES = 30
"""A declared slice feature has at most so many values; the rarer ones are judged together as ``other``."""
DEPTH = 3


@dataclass(frozen=True)
class Slice:
    """Rows of the holdout: `rows` is boolean, shape (n,)."""

    name: str
    rows: np.ndarray
    found: bool = False


@dataclass(frozen=True)
class Judged:
    """A slice's losses. `difference`: candidate less reference, None where it was not judged; `verdict`: ok, worse, too few
    rows.
    """

    slice: Slice
    n: int
    days: int
    loss: float
    reference_loss: float
    difference: Interval | None
    verdict: str


def declared(params: Evaluation, X: pd.DataFrame) -> list[Slice]:
    """The slices that params.yaml names: one per value, or per band of a number; missing values are a slice of their own.

    Raises:
        ConfigError: a named feature is not computed.
    """
    made = []
    for feature, bands in params.slices.items():
        if feature not in X.columns:
            raise ConfigError(
                f"evaluation.slices names {feature!r}, which is no feature", "name a feature: evergreen features list"
            )
        values = X[feature]
        labels = _banded(values.to_numpy(float), bands) if bands else values.map(_shown).to_numpy(object)
        common = pd.Series(labels).value_counts().index[:MAX_VALUES]
        grouped = np.where(np.isin(labels.astype(str), common.astype(str)), labels, "other")
        made += [Slice(f"{feature} = {label}", grouped == label) for label in dict.fromkeys(sorted(map(str, grouped)))]
    return made


def found(params: Evaluation, X: pd.DataFrame, numeric: Sequence[str], excess: np.ndarray, days: np.ndarray) -> list[Slice]:
    """Slices where the candidate loses most, found by a regression tree on every second day; their rows are of the other days.

    So a slice is judged on rows that did not choose it (Athey and Imbens 2016, PNAS 113:7353: honest trees).

    Args:
        X: feature rows, shape (n, features); numbers alone are split on, NaN goes where it fits.
        excess: loss of the candidate less that of the reference, shape (n,).
        days: shape (n,).
    """
    searched = np.isin(days, np.unique(days)[::2])
    if not params.found_slices or not numeric or min(searched.sum(), (~searched).sum()) < 2 * params.min_slice_rows:
        return []
    matrix = X[list(numeric)].to_numpy(np.float32)
    tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=params.min_slice_rows, random_state=0)
    tree.fit(matrix[searched], excess[searched])
    leaf_of, paths = tree.apply(matrix), _paths(tree, numeric)
    worst = sorted(paths, key=lambda leaf: -tree.tree_.value[leaf].item())[: params.found_slices]
    return [Slice(paths[leaf], ~searched & (leaf_of == leaf), found=True) for leaf in worst if paths[leaf]]


def judge(
    slices: Sequence[Slice],
    candidate: np.ndarray,
    reference: np.ndarray,
    days: np.ndarray,
    params: Evaluation,
    gates: Gates,
    uses: int,
) -> list[Judged]:
    """Compares losses slice by slice. A slice is *worse* when that is shown: the lower bound lies above `slice_margin`.

    The intervals (`ml.significance.clustered_by_day`) hold together: the error is shared out among the judged slices, and by
    the uses of the holdout (`ml.significance.paid`). Small slices and slices of one day are shown and not judged.

    Args:
        candidate, reference: losses of the same rows, shape (n,).
        uses: how many models were judged on these days, this one included.
    """
    large = [s for s in slices if s.rows.sum() >= params.min_slice_rows and len(np.unique(days[s.rows])) > 1]
    confidence = paid(gates.confidence, max(len(large), 1) * uses)
    judged = []
    for part in slices:
        rows, difference, verdict = part.rows, None, "too few rows"
        if any(part is each for each in large):
            difference = clustered_by_day(candidate[rows], reference[rows], days[rows], confidence)
            verdict = "worse" if difference.low > gates.slice_margin else "ok"
        n = int(rows.sum())
        mine, theirs = (float(loss[rows].mean()) if n else float("nan") for loss in (candidate, reference))
        judged.append(Judged(part, n, len(np.unique(days[rows])), mine, theirs, difference, verdict))
    return judged


def labels_of(X: pd.DataFrame, feature: str) -> np.ndarray:
    """The values of a feature as text, shape (n,); missing ones are ``missing``."""
    return np.asarray(X[feature].map(_shown).to_numpy(object))


def _banded(values: np.ndarray, bands: Sequence[float]) -> np.ndarray:
    names = [f"below {bands[0]:g}", *(f"{a:g} – {b:g}" for a, b in pairwise(bands)), f"from {bands[-1]:g}"]
    at = np.searchsorted(np.array(bands), values, side="right")
    return np.where(np.isnan(values), "missing", np.array(names, dtype=object)[np.minimum(at, len(bands))])


def _shown(value: object) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _paths(tree: DecisionTreeRegressor, names: Sequence[str]) -> dict[int, str]:
    """Leaf → the conditions that lead to it, in words; the bounds of one feature are put together."""
    grown, paths = tree.tree_, {}

    def walk(node: int, bounds: Mapping[str, tuple[float, float]]) -> None:
        if grown.children_left[node] == -1:
            paths[node] = " and ".join(_bound(name, *between) for name, between in bounds.items())
            return
        name, cut = names[grown.feature[node]], float(grown.threshold[node])
        low, high = bounds.get(name, (-np.inf, np.inf))
        walk(grown.children_left[node], {**bounds, name: (low, min(high, cut))})
        walk(grown.children_right[node], {**bounds, name: (max(low, cut), high)})

    walk(0, {})
    return paths


def _bound(name: str, low: float, high: float) -> str:
    if np.isinf(low):
        return f"{name} ≤ {high:.4g}"
    return f"{name} > {low:.4g}" if np.isinf(high) else f"{low:.4g} < {name} ≤ {high:.4g}"
