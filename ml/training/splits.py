"""Splits by time: train window, tuning folds inside it, untouched holdout after it, a gap of the label's delay before each
judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from ml.config import Train
from ml.errors import NotEnoughDataError
from ml.refs import Window

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Split:
    """`folds` are pairs (fit, validation) inside `train`, oldest first."""

    train: Window
    holdout: Window
    folds: list[tuple[Window, Window]]


def split(as_of: datetime, params: Train) -> Split:
    """The windows of a training run at `as_of` (UTC).

    A day is matured when it ended `embargo_hours` before `as_of`; the holdout is the last `holdout_days` matured days.

    >>> made = split(datetime(2013, 4, 1, 3), Train(window_days=90, holdout_days=7, folds=1, fold_days=7, embargo_hours=24,
    ...     min_rows=1, max_rounds=1, early_stopping_rounds=1, threads=1, seed=0, xgboost={}))
    >>> print(made.train, made.holdout, *made.folds[0])
    2012-12-31..2013-03-22 2013-03-24..2013-03-30 2012-12-31..2013-03-14 2013-03-16..2013-03-22

    Raises:
        NotEnoughDataError: the gaps leave nothing to train on.
    """
    gap = math.ceil(params.embargo_hours / 24) * DAY
    end = (as_of - timedelta(hours=params.embargo_hours)).date()
    start, holdout_start = end - params.window_days * DAY, end - params.holdout_days * DAY
    train_end = holdout_start - gap
    folds = []
    for i in reversed(range(params.folds)):
        validation_start = train_end - (i + 1) * params.fold_days * DAY
        if validation_start - gap <= start:
            raise NotEnoughDataError(
                f"fold {i + 1} of {params.folds} × {params.fold_days} days leaves no day to fit on in {params.window_days} days",
                "raise train.window_days, or lower train.folds or train.fold_days",
            )
        validation = Window(start=validation_start, end=validation_start + params.fold_days * DAY)
        folds.append((Window(start=start, end=validation_start - gap), validation))
    return Split(Window(start=start, end=train_end), Window(start=holdout_start, end=end), folds)
