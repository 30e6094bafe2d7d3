"""Drift: how far a window is from the reference, feature by feature, from counts alone.

Every measure takes count vectors in the reference's bins (`ml.monitoring.profiles`), so a window of any length is judged at the
cost of some hundred numbers. Whether a feature drifted is a matter of *how far* (PSI, in steps of params.yaml); p-values only
keep a handful of rows from saying so by chance, and are those of independent rows: rows of one day are not, so that they are
too small, and no p-value alone makes a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

import numpy as np
from scipy import special, stats
from scipy.spatial import distance

from ml.config import Drift
from ml.monitoring.profiles import ANSWERS, LABEL, PREDICTION, DayProfile, NumericDay, Profile, TextDay, require_same

FLOOR = 1e-4
"""Share that an empty bin counts as, so that PSI stays finite."""
LEAST_EXPECTED = 5
"""Categories of which fewer rows are expected are put together: Pearson's statistic is not χ² there (Cochran 1954, Biometrics
10:417)."""
LONG_KS = 3000
"""Rows from which SciPy's own tail of KS takes long (half a second for a million), and one less its head is the same to 1e-9."""

Verdict = Literal["none", "small", "moderate", "large"]


@dataclass(frozen=True)
class FeatureDrift:
    """How far one feature, or the answers or labels (`ANSWERS`), are from the reference.

    `psi` ≥ 0, unbounded; `js` 0–1. For numbers only, None for text and where no value is known: `wasserstein` ≥ 0 in standard
    deviations of the reference (None also where it has none) and `ks` 0–1. `p`: of no change, for independent rows; `q`: the
    same after Benjamini–Hochberg over all features. `missing`, `unseen` (text), `out_of_range` (numbers): shares of the
    window's n ≥ 1 rows. `importance`: share in the model's answers, None where it was not measured.
    """

    name: str
    kind: Literal["numeric", "text"]
    psi: float
    js: float
    wasserstein: float | None
    ks: float | None
    p: float
    q: float
    missing: float
    unseen: float
    out_of_range: float
    n: int
    importance: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """All features in one: how many there are, how many drifted (any verdict but none), and how much of the importance those
    have, 0–1; each feature counts alike where importance was not measured. `prediction`, `label`: None where not profiled.
    """

    features: int
    drifted: int
    share: float
    prediction: Verdict | None
    label: Verdict | None


# ---- measures of two count vectors


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of two count vectors of one shape (bins,); symmetric, 0 = same shares.

    ``Σ (c - r) · ln(c / r)`` over shares r, c; an empty bin counts as FLOOR. Rule of thumb: < 0.1 stable, > 0.2 shifted
    (Siddiqi 2006, Credit Risk Scorecards). Without any change its mean is about (bins - 1) · (1/n + 1/m) for n and m rows
    (Yurdakul 2018, Statistical properties of population stability index). NaN when either vector is empty or sums to 0.

    >>> round(psi(np.array([50, 50]), np.array([60, 40])), 4)
    0.0405
    """
    if _empty(reference, current):
        return float("nan")
    r, c = (np.maximum(x / x.sum(), FLOOR) for x in (reference, current))
    return float(((c - r) * np.log(c / r)).sum())


def jensen_shannon(reference: np.ndarray, current: np.ndarray) -> float:
    """Jensen–Shannon distance in base 2 of two count vectors (bins,): 0 = same shares, 1 = nothing in common (Lin 1991, IEEE
    Transactions on Information Theory 37:145; its root is a metric). NaN when either sums to 0.

    >>> jensen_shannon(np.array([5, 0]), np.array([0, 7]))
    1.0
    """
    return float("nan") if _empty(reference, current) else float(distance.jensenshannon(reference, current, base=2))


def wasserstein(points: np.ndarray, reference: np.ndarray, current: np.ndarray) -> float:
    """Wasserstein-1 distance in the unit of `points`, where each bin's rows are taken to lie; all of shape (bins,).

    Exact where a bin holds one value; else values that move inside their bin are not seen. NaN when either vector sums to 0.

    >>> wasserstein(np.array([0.0, 1.0, 3.0]), np.array([2, 0, 0]), np.array([0, 1, 1]))
    2.0
    """
    if _empty(reference, current):
        return float("nan")
    return float(stats.wasserstein_distance(points, points, reference, current))


def ks(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """Kolmogorov–Smirnov distance of two count vectors in order of value (bins,), 0–1, and its asymptotic p-value.

    Both are those of `scipy.stats.ks_2samp(method="asymp")` on the rows where a bin holds one value (p to 1e-9, so that far
    smaller ones may be 0). Else the distance is the largest at the edges, and not above that of the rows: p is not too small.
    (NaN, NaN) when either vector sums to 0.

    >>> ks(np.array([5, 5]), np.array([10, 0]))[0]
    0.5
    """
    if _empty(reference, current):
        return float("nan"), float("nan")
    n, m = float(reference.sum()), float(current.sum())
    found = float(np.abs(np.cumsum(reference) / n - np.cumsum(current) / m).max())
    size = np.round(n * m / (n + m))
    p = stats.kstwo.sf(found, size) if size < LONG_KS else 1 - stats.kstwo.cdf(found, size)
    return found, float(np.clip(p, 0, 1))


def chi2(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """Pearson's χ² that two count vectors (bins,) come from one distribution, and its p-value: `scipy.stats.chi2_contingency`
    over the bins that are not empty in both, without Yates' correction. (NaN, NaN) when either vector sums to 0.
    """
    if _empty(reference, current):
        return float("nan"), float("nan")
    table = np.array([reference, current])
    found = stats.chi2_contingency(table[:, table.any(axis=0)], correction=False)
    return float(found.statistic), float(found.pvalue)


def grouped(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two count vectors (bins,) with bins put together, the smallest first, until about `LEAST_EXPECTED` rows are expected in
    each of both; bins of more stay as they are. Only the sums of both vectors decide, so that a χ² on the groups is valid.
    """
    whole = reference + current
    expected = whole * min(reference.sum(), current.sum()) / max(whole.sum(), 1)
    order = np.argsort(expected, kind="stable")
    before = np.cumsum(expected[order]) - expected[order]
    group = np.unique(before // LEAST_EXPECTED, return_inverse=True)[1]
    return np.bincount(group, reference[order]), np.bincount(group, current[order])


def share_p(reference: int, n: int, current: int, m: int) -> float:
    """p-value that `reference` of n rows and `current` of m come from one share: exact for rare rows, where χ² is not, and
    conservative for frequent ones. Given both together, `current` is binomial (Przyborowski and Wilenski 1940, Biometrika
    31:313); twice the smaller tail.

    >>> share_p(0, 300, 2, 100)  # both of two rows in the smaller sample: 2 · (1/4)²
    0.125
    """
    both, part = reference + current, m / (n + m)
    return float(min(1.0, 2 * min(special.bdtr(current, both, part), special.bdtrc(current - 1, both, part))))


def _empty(reference: np.ndarray, current: np.ndarray) -> bool:
    return not (reference.sum() and current.sum())


# ---- a window against a reference


def feature_drift(
    reference: Profile, current: DayProfile, limits: Drift, against: DayProfile | None = None
) -> list[FeatureDrift]:
    """Drift of everything that both sides have rows of, largest PSI first.

    Of features a missing value is a bin of its own, and so are values below and above the reference's range, and categories
    that it does not have; of answers and labels missing ones are left out.

    Args:
        reference: says where the bins are, and how large a standard deviation is.
        current: the window, days added up.
        against: what the window is held against, e.g. the same weekdays of earlier weeks; None: the reference itself.

    Raises:
        IntegrityError: the profiles are not of this reference.
    """
    base = against or reference.as_day()
    require_same([reference.digest(), base.reference, current.reference])
    measured = [
        _numeric(name, reference, base.numeric[name], current.numeric[name])
        for name in reference.numeric
        if name in base.numeric and name in current.numeric
    ]
    measured += [
        _text(name, reference, base.text[name], current.text[name])
        for name in reference.text
        if name in base.text and name in current.text
    ]
    return sorted(_judged([m for m in measured if m.psi >= 0], limits), key=lambda d: -d.psi)


def verdict(effect: float, q: float, limits: Drift) -> Verdict:
    """How large a PSI is; ``none`` below `small` however significant, and where q is above the rate however large."""
    if effect < limits.small or not q <= limits.false_discovery_rate:
        return "none"
    return "small" if effect < limits.moderate else "moderate" if effect < limits.large else "large"


def summary(drifts: Sequence[FeatureDrift]) -> Summary:
    """What the features' drifts come to, weighted by their importance."""
    features = [d for d in drifts if d.name not in ANSWERS]
    measured = any(d.importance is not None for d in features)
    weights = [(d.importance or 0.0) if measured else 1.0 for d in features]
    moved = [w for d, w in zip(features, weights, strict=True) if d.verdict != "none"]
    answers: dict[str, Verdict] = {d.name: d.verdict for d in drifts if d.name in ANSWERS}
    return Summary(
        features=len(features),
        drifted=len(moved),
        share=sum(moved) / sum(weights) if any(weights) else 0.0,
        prediction=answers.get(PREDICTION),
        label=answers.get(LABEL),
    )


def same_weekdays(days: Sequence[date], weeks: int) -> list[date]:
    """The same weekdays as the window's `days`, one to `weeks` weeks before, oldest first; never a day of the window itself, nor
    one after its start.

    >>> [str(d) for d in same_weekdays([date(2013, 5, 8), date(2013, 5, 9)], 2)]
    ['2013-04-24', '2013-04-25', '2013-05-01', '2013-05-02']
    """
    earlier = {day - timedelta(weeks=k) for day in days for k in range(1, weeks + 1)}
    return sorted(day for day in earlier if day < min(days))


def _judged(measured: list[FeatureDrift], limits: Drift) -> list[FeatureDrift]:
    if not measured:
        return []
    adjusted = stats.false_discovery_control([m.p for m in measured], method="bh")
    return [replace(m, q=float(q), verdict=verdict(m.psi, float(q), limits)) for m, q in zip(measured, adjusted, strict=True)]


def _numeric(name: str, reference: Profile, base: NumericDay, current: NumericDay) -> FeatureDrift:
    """The Wasserstein distance is at least that of the means, which are exact: so values that move beyond the last bin are
    seen too.
    """
    profile, r, c = reference.numeric[name], _ordered(base), _ordered(current)
    gap, p = ks(r, c)
    away = None
    if profile.std > 0 and not np.isnan(gap):
        of_bins = wasserstein(np.array(profile.points), np.array(base.counts), np.array(current.counts))
        away = max(of_bins, abs(current.mean - base.mean)) / profile.std
    odd = [(base.below, current.below), (base.above, current.above)]
    if name not in ANSWERS:
        odd += [(base.missing, current.missing)]
        r, c = np.append(r, base.missing), np.append(c, current.missing)
    n = max(int(c.sum()), 1)
    return FeatureDrift(
        name=name, kind="numeric", psi=psi(r, c), js=jensen_shannon(r, c), wasserstein=away, ks=None if np.isnan(gap) else gap,
        p=_p(p, odd, r, c), q=1.0, missing=(n - current.n) / n, unseen=0.0, out_of_range=(current.below + current.above) / n, n=n,
        importance=reference.importance.get(name), verdict="none",
    )  # fmt: skip


def _text(name: str, reference: Profile, base: TextDay, current: TextDay) -> FeatureDrift:
    r, c = (np.array([*day.counts, day.rest, day.unseen, day.missing]) for day in (base, current))
    n = max(int(c.sum()), 1)
    p = _p(chi2(*grouped(r[:-2], c[:-2]))[1], [(base.unseen, current.unseen), (base.missing, current.missing)], r, c)
    return FeatureDrift(
        name=name, kind="text", psi=psi(r, c), js=jensen_shannon(r, c), wasserstein=None, ks=None, p=p, q=1.0,
        missing=current.missing / n, unseen=current.unseen / n, out_of_range=0.0, n=n,
        importance=reference.importance.get(name), verdict="none",
    )  # fmt: skip


def _p(of_values: float, odd: Sequence[tuple[int, int]], r: np.ndarray, c: np.ndarray) -> float:
    """One p for known values that moved, and for each kind of `odd` rows that became more or fewer: Bonferroni. NaN without
    rows.
    """
    if _empty(r, c):
        return float("nan")
    n, m = int(r.sum()), int(c.sum())
    ps = [1.0 if np.isnan(of_values) else of_values, *(share_p(before, n, after, m) for before, after in odd)]
    return min(1.0, len(ps) * min(ps))


def _ordered(day: NumericDay) -> np.ndarray:
    """Known values from below the reference's range to above it, shape (bins + 2,)."""
    cells = np.array([0, *day.counts, 0])
    cells[[0, -1]] = day.below, day.above
    cells[1] -= day.below
    cells[-2] -= day.above
    return cells
