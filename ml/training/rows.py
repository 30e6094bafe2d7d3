"""Labelled rows of a stored feature set, without holding the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ml import store
from ml.features import stored
from ml.features.batches import batches
from ml.refs import FeatureSetRef, Window
from ml.training.fit import labelled


def rows_of(features: FeatureSetRef, window: Window) -> pd.DataFrame:
    """As ``labelled(stored.read(features), window)``."""
    return _kept(features, lambda table: labelled(table, window).index)


def rows_for(features: FeatureSetRef, folds: Sequence[tuple[Window, Window]], newest: int) -> pd.DataFrame:
    """Of each fold the newest rows of the fit window, so many as `folds.build` takes, and those of its validation window."""
    skipped = {fit: -newest for fit, _ in folds}
    for _, table in batches(features.digest, ["event_time", "label"]):
        for fit in skipped:
            skipped[fit] += len(labelled(table, fit))

    def wanted(table: pd.DataFrame) -> np.ndarray:
        found = []
        for _, validation in folds:
            found += [labelled(table, validation).index]
        for fit in skipped:
            inside = labelled(table, fit).index
            found += [inside[max(skipped[fit], 0) :]]
            skipped[fit] -= len(inside)
        return np.unique(np.concatenate(found))

    return _kept(features, wanted)


def _kept(features: FeatureSetRef, wanted: Callable[[pd.DataFrame], pd.Index | np.ndarray]) -> pd.DataFrame:
    store.verify(features.digest)
    parts, nothing = [], None
    for at, table in batches(features.digest):
        kept = table.loc[wanted(table)]
        nothing = kept if nothing is None else nothing
        if len(kept):
            parts.append(kept.set_axis(kept.index + at))
    if not parts:
        return stored.read(features)[:0] if nothing is None else nothing
    return pd.concat(parts)
