"""Profiles: what inputs, answers and labels look like, as counts that can be added up.

A model's `Profile` is made once, by its training run, and travels in its bundle: it says where the bins are, and how the
reference falls into them. A `DayProfile` holds one day's counts in the same bins. Days add up exactly, so that a window costs
the reading of some kilobytes a day, however many rows the days had.

The model's own answers (`PREDICTION`) and the labels (`LABEL`) are profiled as numeric features of these names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from ml import store
from ml.errors import ConfigError, IntegrityError, NotEnoughDataError

PREDICTION, LABEL = "prediction", "label"
ANSWERS = (PREDICTION, LABEL)
"""Not features: where one is missing (not matured, another model answered) that says nothing about drift."""
BINS = 20
"""Bins of about equal count. More see finer changes, and PSI without any change grows with bins / rows."""
MOST = 50
"""Inner edges, and named categories, at most. A number with few distinct values gets a bin for each."""
OTHERS = 1000
"""Categories after these that are known by name, so that they are not taken for new ones."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class NumericProfile(_Frozen):
    """One number in the reference. Missing: NaN or infinite; all else is *known*.

    `edges`: inner bin edges, strictly increasing, values of the reference; bin i holds ``edges[i-1] < x <= edges[i]``. `counts`
    has one more entry. `points`: mean of the reference's values in each bin, where its mass lies for the Wasserstein distance.
    `low`, `high`: range of the known values, None without any. `std`: population standard deviation.
    """

    edges: list[float]
    counts: list[int]
    points: list[float]
    missing: int
    low: float | None
    high: float | None
    mean: float
    std: float


class TextProfile(_Frozen):
    """One text in the reference. `counts`: the `MOST` commonest categories; `others`: names of the next `OTHERS`, which are in
    `rest` rows; `rare`: rows of any further ones. `missing` counts missing values.
    """

    counts: dict[str, int]
    others: list[str]
    rest: int
    rare: int
    missing: int


class NumericDay(_Frozen):
    """Counts in the bins of a `NumericProfile`. `below`, `above`: those of the outermost bins that are outside of the
    reference's range. `mean` and `m2` (sum of squared distances from it) are of the known values; 0 without any.
    """

    counts: list[int]
    missing: int
    below: int
    above: int
    mean: float
    m2: float

    @property
    def n(self) -> int:
        """Known values."""
        return sum(self.counts)


class TextDay(_Frozen):
    """Counts of a `TextProfile`'s categories, in their order; `rest`: of its `others`; `unseen`: of all that it does not name."""

    counts: list[int]
    rest: int
    unseen: int
    missing: int

    @property
    def n(self) -> int:
        """Values that are there."""
        return sum(self.counts) + self.rest + self.unseen


class DayProfile(_Frozen):
    """Any number of days in the bins of the reference with digest `reference`; without answers or labels these are lacking."""

    reference: str
    rows: int
    numeric: dict[str, NumericDay]
    text: dict[str, TextDay]


class Profile(_Frozen):
    """The reference: profiles by feature, and by `ANSWERS`. `importance`: share of each feature in the model's answers, adds up
    to 1; empty when it was not measured.
    """

    rows: int
    numeric: dict[str, NumericProfile]
    text: dict[str, TextProfile]
    importance: dict[str, float] = {}

    @classmethod
    def read(cls, data: bytes) -> Self:
        """A bundle's ``profile.json``.

        Raises:
            IntegrityError: it is none of this layout.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise IntegrityError(
                f"a reference profile of another layout: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}",
                "train and release a new model: its bundle will hold a profile that days can be held against",
            ) from None

    def digest(self) -> str:
        """SHA-256 hex digest of the canonical JSON: days are counted in the bins of exactly this reference."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def as_day(self) -> DayProfile:
        """The reference's own counts in the form of a day's."""
        return DayProfile(
            reference=self.digest(), rows=self.rows,
            numeric={n: NumericDay(counts=p.counts, missing=p.missing, below=0, above=0, mean=p.mean, m2=p.std**2 * sum(p.counts))
                     for n, p in self.numeric.items()},
            text={n: TextDay(counts=list(p.counts.values()), rest=p.rest, unseen=p.rare, missing=p.missing)
                  for n, p in self.text.items()},
        )  # fmt: skip


# ---- the reference


def build_profile(
    numeric: Sequence[str], text: Sequence[str], X: pd.DataFrame, *, prediction: np.ndarray | None = None,
    label: np.ndarray | None = None, importance: Mapping[str, float] | None = None,
) -> Profile:  # fmt: skip
    """Profiles the reference.

    Args:
        numeric, text: names of features, columns of `X` (n rows).
        prediction: the model's answers to rows that it has not learned from, any number of them.
        label: labels of the rows that it has learned from.
        importance: by feature, ≥ 0, in any unit.

    Raises:
        ConfigError: a feature has the name of an answer.
    """
    if taken := [name for name in ANSWERS if name in [*numeric, *text]]:
        raise ConfigError(f"a feature is named {taken[0]!r}, as the profile of the {taken[0]}s is", "rename the feature")
    values = {name: _floats(X[name]) for name in numeric}
    values |= {name: found.astype(float) for name, found in zip(ANSWERS, (prediction, label), strict=True) if found is not None}
    whole = sum((importance or {}).values())
    return Profile(
        rows=len(X), numeric={name: _numeric_profile(found) for name, found in values.items()},
        text={name: _text_profile(X[name]) for name in text},
        importance={name: float(v) / whole for name, v in (importance or {}).items()} if whole else {},
    )  # fmt: skip


def _numeric_profile(values: np.ndarray) -> NumericProfile:
    known = np.sort(_known(values))
    missing = len(values) - len(known)
    if not len(known):
        return NumericProfile(edges=[], counts=[0], points=[0.0], missing=missing, low=None, high=None, mean=0.0, std=0.0)
    edges = _edges(known)
    counts = bin_counts(known, edges)
    sums = np.add.reduceat(known, np.cumsum(counts) - counts)  # no bin is empty: its upper edge, or the maximum, is in it
    return NumericProfile(
        edges=edges.tolist(), counts=counts.tolist(), points=(sums / counts).tolist(), missing=missing,
        low=float(known[0]), high=float(known[-1]), mean=float(known.mean()), std=float(known.std()),
    )  # fmt: skip


def _edges(known: np.ndarray) -> np.ndarray:
    """Inner edges for sorted values: each distinct value where there are few; else each that alone would fill a bin, and
    quantiles of the rest. All are values of the reference, and below its maximum.
    """
    distinct, times = np.unique(known, return_counts=True)
    if len(distinct) > MOST + 1:
        heavy = distinct[times * BINS > len(known)]
        light = known[~np.isin(known, heavy)]
        quantiles = np.quantile(light, np.arange(1, BINS) / BINS, method="inverted_cdf")
        distinct = np.unique([*heavy, *quantiles])
    return distinct[distinct < known[-1]]


def _text_profile(column: pd.Series) -> TextProfile:
    tally = sorted(_tally(column).items(), key=lambda item: (-item[1], item[0]))
    others = tally[MOST : MOST + OTHERS]
    return TextProfile(
        counts=dict(tally[:MOST]), others=[category for category, _ in others], rest=sum(n for _, n in others),
        rare=sum(n for _, n in tally[MOST + OTHERS :]), missing=len(column) - sum(n for _, n in tally),
    )  # fmt: skip


# ---- days


def profile_day(reference: Profile, table: pd.DataFrame, names: Collection[str] | None = None) -> DayProfile:
    """Counts the rows of one day.

    Args:
        table: feature values that were used, shape (n, columns), and `PREDICTION` or `LABEL` where they are known. A feature
            that it lacks counts as missing in every row; an answer that it lacks is not profiled.
        names: profile these alone, e.g. ``[LABEL]`` when the labels have matured; None: all.
    """
    wanted = [name for name in (*reference.numeric, *reference.text) if names is None or name in names]
    wanted = [name for name in wanted if name in table or name not in ANSWERS]
    absent = pd.Series(np.full(len(table), np.nan))
    return DayProfile(
        reference=reference.digest(),
        rows=len(table),
        numeric={n: _numeric_day(reference.numeric[n], table.get(n, absent)) for n in wanted if n in reference.numeric},
        text={n: _text_day(reference.text[n], table.get(n, absent)) for n in wanted if n in reference.text},
    )


def _numeric_day(profile: NumericProfile, column: pd.Series) -> NumericDay:
    known = _known(_floats(column))
    below = above = 0
    if profile.low is not None and profile.high is not None:
        below, above = int(np.count_nonzero(known < profile.low)), int(np.count_nonzero(known > profile.high))
    mean = float(known.mean()) if len(known) else 0.0
    return NumericDay(
        counts=bin_counts(known, np.array(profile.edges)).tolist(), missing=len(column) - len(known), below=below, above=above,
        mean=mean, m2=float(np.square(known - mean).sum()),
    )  # fmt: skip


def _text_day(profile: TextProfile, column: pd.Series) -> TextDay:
    tally = _tally(column)
    counts, there = [tally.get(category, 0) for category in profile.counts], sum(tally.values())
    rest = sum(tally.get(category, 0) for category in profile.others)
    return TextDay(counts=counts, rest=rest, unseen=there - sum(counts) - rest, missing=len(column) - there)


def merge(days: Sequence[DayProfile]) -> DayProfile:
    """The profile of all rows of all these days together. Counts are exact, moments as exact as floats are.

    Means and squares are pooled as in Chan, Golub and LeVeque 1983 (The American Statistician 37:242-247), for any number of
    parts. A name that some days lack is that of the others.

    Raises:
        NotEnoughDataError: there are none.
        IntegrityError: they were counted in the bins of different references.
    """
    if not days:
        raise NotEnoughDataError("no day profiles to add up", "profile the window's days first, or widen the window")
    require_same([day.reference for day in days])
    numeric, text = (dict.fromkeys(name for day in days for name in getattr(day, kind)) for kind in ("numeric", "text"))
    return DayProfile(
        reference=days[0].reference, rows=sum(day.rows for day in days),
        numeric={name: _pooled([day.numeric[name] for day in days if name in day.numeric]) for name in numeric},
        text={name: _tallied([day.text[name] for day in days if name in day.text]) for name in text},
    )  # fmt: skip


def _pooled(parts: Sequence[NumericDay]) -> NumericDay:
    sizes, means = np.array([p.n for p in parts], float), np.array([p.mean for p in parts])
    mean = float(sizes @ means / sizes.sum()) if sizes.any() else 0.0
    return NumericDay(
        **_sums(parts, "missing", "below", "above"), counts=_added(parts), mean=mean,
        m2=float(sum(p.m2 for p in parts) + sizes @ np.square(means - mean)),
    )  # fmt: skip


def _tallied(parts: Sequence[TextDay]) -> TextDay:
    return TextDay(counts=_added(parts), **_sums(parts, "rest", "unseen", "missing"))


def _added(parts: Sequence[NumericDay] | Sequence[TextDay]) -> list[int]:
    return np.array([p.counts for p in parts], np.int64).sum(axis=0).tolist()


def _sums(parts: Sequence[NumericDay] | Sequence[TextDay], *names: str) -> dict[str, Any]:
    return {name: sum(getattr(p, name) for p in parts) for name in names}


def require_same(references: Sequence[str]) -> None:
    """Raises IntegrityError when digests of references differ."""
    if len(found := sorted(set(references))) > 1:
        raise IntegrityError(
            f"profiles of different references: {', '.join(digest[:12] for digest in found)}",
            "profile all days against the same model's reference",
        )


def remembered(reference: str, day: date, answers: str, make: Callable[[], DayProfile]) -> DayProfile:
    """A day's profile: `make` is called once per reference, day and answers; after that it is read from the store.

    Args:
        reference: digest of the reference profile.
        answers: digest of what the day's rows are made from. A late answer, or a label, is another digest.
    """
    key = f"profile-{hashlib.sha256(f'{reference}/{day}/{answers}'.encode()).hexdigest()}"
    if (digest := store.recall(key)) is not None:
        return DayProfile.model_validate_json(store.get(digest))
    made = make()
    store.remember(key, store.put(made.model_dump_json().encode()))
    return made


# ---- values


def bin_counts(known: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts per bin of values without NaN, shape (len(edges) + 1,); a value on an edge is in the bin below it."""
    # one comparison of all values with each edge: for so few edges faster than a search for each value
    return np.diff([0, *(np.count_nonzero(known <= edge) for edge in edges), len(known)])


def _known(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    return values if finite.all() else values[finite]


def _floats(column: pd.Series) -> np.ndarray:
    """As float64, NaN for missing; no copy where it is that already."""
    return column.to_numpy(float) if isinstance(column.dtype, np.dtype) else column.to_numpy(float, na_value=np.nan)


def _tally(column: pd.Series) -> dict[str, int]:
    """Rows by category (as text), without missing ones; any type, categories and Arrow strings fastest."""
    tally: dict[str, int] = {}
    for category, n in column.value_counts(sort=False).items():
        if n:
            tally[str(category)] = tally.get(str(category), 0) + int(n)
    return tally
