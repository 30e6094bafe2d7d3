"""Have inputs moved together, in a way that no single feature shows? A classifier two-sample test.

A small model tries to tell reference rows from rows of the window. If it can, on days that it has not seen, they differ; how well
it can (AUC) is the size of the difference, and what it asks about says where. Calendar and season are a difference too.

Source: Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests, ICLR; by AUC in place of accuracy, so that the sizes of
the two samples do not matter. Their p-value takes rows as independent. Rows of a day are not, they share its weather and its
traffic: any seven days can be told from any other ninety by it. So whole days are held out, and whole days are drawn anew.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import xgboost as xgb
from scipy import stats

from ml import config
from ml.errors import NotEnoughDataError
from ml.refs import Ref

FOLDS = 4
ROUNDS = 40
RESAMPLES = 2000
SETTINGS: dict[str, Any] = {
    "objective": "binary:logistic", "tree_method": "hist", "max_bin": 64, "max_depth": 3, "learning_rate": 0.3,
    "min_child_weight": 0.25, "reg_lambda": 1.0, "colsample_bynode": 0.34, "nthread": 1,
}  # fmt: skip
"""A weak model on purpose: it shall see what is plain, quickly, and not learn days by heart. Weights are in days of the window
(see `_fitted`), so a leaf holds one day's worth of rows at least; and a split sees a third of the features, or the weather, by
which each day is known, would keep all others from being asked."""
SHOWN = 10


class Apart(Ref):
    """How well a window can be told from the reference."""

    auc: float
    """On days that the model had not seen; 0.5: not at all, 1: always."""
    low: float
    high: float
    """Its interval, by days."""
    verdict: Literal["moved", "small", "same"]
    """``moved``: apart beyond noise, by `apart_auc` at least; ``small``: beyond noise, and less; ``same``: it may be noise."""
    reference: int
    window: int
    """Rows that were looked at."""
    reference_days: int
    window_days: int
    features: dict[str, float]
    """What tells them apart: share (0–1) of the model's gain, the largest first, at most `SHOWN`."""


def tell_apart(
    reference: pd.DataFrame,
    window: pd.DataFrame,
    reference_days: np.ndarray,
    window_days: np.ndarray,
    params: config.Estimate,
    seed: int = 0,
) -> Apart:
    """Tells two samples of feature rows apart, cross-fitted by days; 1–3 s.

    Args:
        reference: one column per feature, numeric or text, missing allowed, n rows.
        window: the same columns, m rows; a column that is not there counts as missing.
        reference_days, window_days: the day of each row, shapes (n,), (m,).
        params: `apart_rows` at most are looked at, half of each sample, drawn with `seed`.

    Raises:
        NotEnoughDataError: fewer than two days on either side.
    """
    rng = np.random.default_rng(seed)
    for name, days in (("reference", reference_days), ("window", window_days)):
        if len(np.unique(days)) < 2:
            raise NotEnoughDataError(
                f"the {name} has {len(days):,} rows of {len(np.unique(days))} day(s): days are held out in turns",
                "give it two days at least",
            )
    ours, theirs = (_capped(days, params.apart_rows // 2, rng) for days in (window_days, reference_days))
    X = matrix(reference.iloc[theirs], window.iloc[ours].reindex(columns=reference.columns))
    y_true = np.repeat([0.0, 1.0], [len(theirs), len(ours)])
    day_sets = [np.unique(days, return_inverse=True) for days in (reference_days[theirs], window_days[ours])]
    folds = min(FOLDS, *(len(unique) for unique, _ in day_sets))
    fold_of_day = [np.arange(len(unique)) * folds // len(unique) for unique, _ in day_sets]
    fold = np.concatenate([of[day] for of, (_, day) in zip(fold_of_day, day_sets, strict=True)])
    day = np.concatenate([day_sets[0][1], len(day_sets[0][0]) + day_sets[1][1]])
    scores, gains = np.empty(len(X)), np.zeros(X.shape[1])
    for held in range(folds):
        learn = fold != held
        booster = _fitted(X[learn], y_true[learn], day[learn], seed)
        scores[~learn] = booster.predict(xgb.DMatrix(X[~learn]))
        for column, gain in booster.get_score(importance_type="total_gain").items():
            gains[int(column[1:])] += float(np.mean(gain))
    won, pairs = _pairs(scores[len(theirs) :], scores[: len(theirs)], day_sets[1][1], day_sets[0][1], fold_of_day)
    auc = float(won.sum() / pairs.sum())
    low, high = _interval(won, pairs, params.confidence, rng)
    order = np.argsort(-gains, kind="stable")[:SHOWN]
    return Apart(
        auc=auc, low=low, high=high, verdict=_verdict(auc, low, params.apart_auc), reference=len(theirs), window=len(ours),
        reference_days=won.shape[1], window_days=won.shape[0],
        features={str(reference.columns[i]): float(gains[i] / gains.sum()) for i in order if gains[i] > 0},
    )  # fmt: skip


def matrix(reference: pd.DataFrame, window: pd.DataFrame) -> np.ndarray:
    """Both samples below one another, float32, shape (n + m, columns); text as its rank by frequency, missing as NaN."""
    columns = []
    for name in reference.columns:
        both = pd.concat([reference[name], window[name]], ignore_index=True)
        if not (pd.api.types.is_numeric_dtype(both) or both.isna().all()):
            both = both.astype(object).map({value: rank for rank, value in enumerate(both.value_counts().index)})
        columns.append(both.to_numpy(np.float32, na_value=np.nan))
    return np.column_stack(columns)


def _fitted(X: np.ndarray, y_true: np.ndarray, day: np.ndarray, seed: int) -> xgb.Booster:
    """A model in which the rows of one day count together as one, and both samples as much."""
    rows = np.bincount(day)
    weight = 1 / rows[day]
    ours = y_true == 1
    weight[~ours] *= weight[ours].sum() / weight[~ours].sum()
    table = xgb.QuantileDMatrix(X, y_true, weight=weight, max_bin=int(SETTINGS["max_bin"]), nthread=int(SETTINGS["nthread"]))
    return xgb.train(SETTINGS | {"seed": seed}, table, ROUNDS, verbose_eval=False)


def _capped(days: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers, ascending: all, or `most` drawn ones."""
    return np.arange(len(days)) if len(days) <= most else np.sort(rng.choice(len(days), most, replace=False))


def _pairs(
    ours: np.ndarray, theirs: np.ndarray, our_day: np.ndarray, their_day: np.ndarray, fold_of_day: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that rows of window day i win against rows of reference day j (ties half), and pairs: shapes (i, j).

    Only days of one fold meet: scores of two models have no common scale.
    """
    k, m = len(fold_of_day[1]), len(fold_of_day[0])
    won, sizes = np.zeros((k, m)), np.bincount(our_day, minlength=k)
    for j in range(m):
        rivals = np.sort(theirs[their_day == j])
        beaten = (np.searchsorted(rivals, ours, "left") + np.searchsorted(rivals, ours, "right")) / 2
        won[:, j] = np.bincount(our_day, weights=beaten, minlength=k)
    meet = fold_of_day[1][:, None] == fold_of_day[0][None]
    return won * meet, np.outer(sizes, np.bincount(their_day, minlength=m)) * meet


def _interval(won: np.ndarray, pairs: np.ndarray, confidence: float, rng: np.random.Generator) -> tuple[float, float]:
    """Bootstrap of both samples' days, as blocks; read further out for few days (Hesterberg 2015, see `ml.significance`)."""
    k, m = won.shape
    drawn = [rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64) for size in (k, m)]
    there = ((drawn[0] @ pairs) * drawn[1]).sum(axis=1)
    areas = ((drawn[0] @ won) * drawn[1]).sum(axis=1)[there > 0] / there[there > 0]
    few = min(k, m)
    tail = float(stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, few - 1) * math.sqrt(few / (few - 1))))
    low, high = np.quantile(areas, [tail, 1 - tail])
    return float(low), float(high)


def _verdict(auc: float, low: float, least: float) -> Literal["moved", "small", "same"]:
    if low <= 0.5:
        return "same"
    return "moved" if auc >= least else "small"
