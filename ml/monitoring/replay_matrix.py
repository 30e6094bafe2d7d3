"""The matrix behind `evergreen replay`: a model of every night, and what each would have answered on all later days.

Every night's model is one fixed recipe on the newest `train.window_days` of days whose labels were known by then, so that nights
differ in their data alone. Each night is fitted once and kept in the store under data, code and parameters: a broken run goes on
where it stopped, and a second one reads.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from ml import metrics, store
from ml.config import Params, load_params
from ml.errors import ConfigError, NotEnoughDataError
from ml.features import stored
from ml.features.definitions import load_module
from ml.monitoring.harm import bounded
from ml.refs import FeatureSetRef, Window
from ml.training import encoding, models
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import labelled
from ml.training.models import XGBoost, settings_of

MIN_DAYS = 30
"""Days of data that the first night learns from at least; later ones from up to `train.window_days`."""
ROUNDS = 100
"""Boosting rounds of every night's model: about what the search's winners on the shipped data have."""
STEPS = 65535
"""Probabilities are kept in such steps: two bytes, and no log-loss differs by more than rounding."""
DAY = timedelta(days=1)

Done = TypeVar("Done")


@dataclass(frozen=True)
class Matrix:
    """What every night's model answers on every later day.

    Nights are `days` too: model i is the one that was fitted in the early morning of ``days[i]``, on days up to the one
    `gap` + 1 days before. It answers rows from its own day on; nothing in it has learned from those.

    `rows_from`: number of the first row of each day, and of the end, shape (days + 1,). `answers[i]`: probabilities for rows from
    ``rows_from[i]`` on, as uint16 in steps of 1 / `STEPS`. Arrays of sums are (nights, days), NaN where a model does not answer:
    `loss` log-loss in nats, `bounded` as `ml.monitoring.harm` has it. `cpu`: seconds of a fit.
    """

    days: tuple[date, ...]
    gap: int
    y_true: np.ndarray
    rows_from: np.ndarray
    answers: tuple[np.ndarray, ...]
    loss: np.ndarray
    bounded: np.ndarray
    cpu: np.ndarray

    @cached_property
    def n(self) -> np.ndarray:
        """Labelled rows of each day, shape (days,)."""
        return np.diff(self.rows_from)

    def at(self, day: date) -> int:
        """The number of a day.

        Raises:
            NotEnoughDataError: it is none of the matrix.
        """
        if not self.days[0] <= day <= self.days[-1]:
            raise NotEnoughDataError(
                f"{day} is not among {self.days[0]}..{self.days[-1]}, for which there are models",
                "land more days, or choose another period",
            )
        return (day - self.days[0]).days

    def matured(self, day: int) -> int:
        """The newest day whose labels are known on the morning of `day`: the last that the model of that night learned from."""
        return day - 1 - self.gap

    def served(self, serving: Sequence[Sequence[int]], first: int) -> np.ndarray:
        """Probabilities for the rows of days `first`, `first` + 1 …, each the mean of the models that `serving` names."""
        return np.concatenate([
            np.mean([self.of(model, first + k) for model in together], axis=0) for k, together in enumerate(serving)
        ])  # fmt: skip

    def of(self, model: int, day: int) -> np.ndarray:
        """A model's probabilities for one day's rows, float64."""
        start = self.rows_from[model]
        return self.answers[model][self.rows_from[day] - start : self.rows_from[day + 1] - start] / STEPS


@dataclass(frozen=True)
class Plan:
    """What is fitted: labelled rows of `features`, nights ``[first, end)``; `code` names what fits them.

    One process makes the plan: were the code changed while others fit, they would file their models under another name.
    """

    features: FeatureSetRef
    first: date
    end: date
    code: str
    rounds: int = ROUNDS

    def key(self, params: Params, night: date) -> str:
        parts = [self.features.digest, params.train.digest(), params.tune.digest(), params.problem.digest(), self.code]
        return "replay-" + hashlib.sha256("/".join([*parts, str(self.rounds), str(night)]).encode()).hexdigest()


def build(features: FeatureSetRef, first: date, end: date, processes: int, told: Callable[[str], None]) -> Matrix:
    """Fits what is not in the store yet, and reads all of it.

    Args:
        features: rows of the whole period, with the labels that ever became known.
        first: first night; `MIN_DAYS` days must lie before it. end: day after the last.
        told: hears of the progress.

    Raises:
        ConfigError: the task is not binary.
        NotEnoughDataError: too few days before `first`.
    """
    params = load_params()
    if params.problem.task != "binary":
        raise ConfigError(f"replay knows task binary; problem.task is {params.problem.task}", "there is no replay for it yet")
    plan = Plan(features, first, end, _code())
    start = features.window.start
    if (first - start).days < MIN_DAYS + _gap(params):
        raise NotEnoughDataError(
            f"the first night, {first}, has fewer than {MIN_DAYS} days to learn from, as data begins on {start}",
            "choose a later first night, or land earlier days",
        )
    nights = Window(start=first, end=end).days()
    missing = [night for night in nights if store.recall(plan.key(params, night)) is None]
    told(f"{len(nights) - len(missing)} of {len(nights)} nights are in the store; {len(missing)} to fit, {processes} processes")
    for _ in each(partial(_fit, plan), missing, processes, "nights", told):
        pass
    return _read(plan, params, nights)


def window(night: date, earliest: date, params: Params) -> Window:
    """The days that the model of a night learns from: `train.window_days`, fewer where the data begins later."""
    end = night - _gap(params) * DAY
    return Window(start=max(earliest, end - params.train.window_days * DAY), end=end)


def _code() -> str:
    """Digest of the code that makes a night's answers."""
    learning = b"".join(Path(m.__file__).read_bytes() for m in (models, encoding) if m.__file__)
    return hashlib.sha256(learning + inspect.getsource(_fit).encode()).hexdigest()


def _gap(params: Params) -> int:
    return math.ceil(params.train.embargo_hours / 24)


# ---- fitting


def each(
    work: Callable[[date], Done], days: Sequence[date], processes: int, what: str, told: Callable[[str], None]
) -> Iterator[Done]:
    """What `work` makes of each day, as each is done, in so many processes; tells of the progress and the time that is left."""
    began = time.monotonic()
    for done, made in enumerate(_spread(work, days, processes), start=1):
        if done % 20 == 0 or done == len(days):
            spent = time.monotonic() - began
            told(f"{done} of {len(days)} {what}; {spent:.0f} s, {spent / done * (len(days) - done):.0f} s to go")
        yield made


def _spread(work: Callable[[date], Done], days: Sequence[date], processes: int) -> Iterator[Done]:
    if processes == 1 or len(days) < 2:
        yield from map(work, days)
        return
    context = multiprocessing.get_context("spawn")  # a forked copy of XGBoost's threads hangs
    with ProcessPoolExecutor(min(processes, len(days)), mp_context=context) as pool:
        for future in as_completed([pool.submit(work, day) for day in days]):
            yield future.result()


def _fit(plan: Plan, night: date) -> None:
    """Fits one night, and stores its answers to all rows from its own day on."""
    params, table = load_params(), rows_of(plan.features)
    began = time.process_time()
    train = labelled(table, window(night, plan.features.window.start, params))
    train = train[train["known_at"] <= pd.Timestamp(night)]  # an outcome that took longer than the embargo
    y_true = train["label"].to_numpy()
    encoded = fit_encoding(load_module(params).learned, train, y_true)
    recipe = {name: dimension.default for name, dimension in params.tune.space.items()}
    settings = settings_of("xgboost", "binary", 0, params.train, recipe, params.tune.integers("xgboost"), threads=1)
    model = XGBoost.fit(encode(encoded, train), y_true, settings, plan.rounds, "binary")
    cpu = time.process_time() - began
    y_proba = model.predict(encode(encoded, labelled(table, Window(start=night, end=plan.features.window.end))))
    meta = {"cpu": cpu, "rows": len(train)}
    files = {"answers.npy": _npy(np.rint(y_proba * STEPS).astype(np.uint16)), "meta.json": json.dumps(meta).encode()}
    store.remember(plan.key(params, night), store.put(store.pack(files)))


_TABLES: dict[str, pd.DataFrame] = {}


def rows_of(features: FeatureSetRef) -> pd.DataFrame:
    """The feature rows, read once a process."""
    if features.digest not in _TABLES:
        _TABLES.clear()
        _TABLES[features.digest] = stored.read(features)
    return _TABLES[features.digest]


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


# ---- reading


def _read(plan: Plan, params: Params, nights: Sequence[date]) -> Matrix:
    rows = labelled(rows_of(plan.features), Window(start=plan.first, end=plan.end))
    day_of = (rows["event_time"].dt.floor("D") - pd.Timestamp(plan.first)).dt.days.to_numpy()
    y_true = rows["label"].to_numpy()
    rows_from = np.searchsorted(day_of, np.arange(len(nights) + 1))
    answers, cpu = [], np.zeros(len(nights))
    sums = np.full((2, len(nights), len(nights)), np.nan)
    for i, night in enumerate(nights):
        digest = store.recall(plan.key(params, night))
        assert digest is not None, f"the model of {night} was stored a moment ago"
        files = store.unpack(store.get(digest))
        found = np.load(io.BytesIO(files["answers.npy"]), allow_pickle=False)
        answers.append(found[: rows_from[-1] - rows_from[i]])
        cpu[i] = json.loads(files["meta.json"])["cpu"]
        truth, found = y_true[rows_from[i] :], answers[i] / STEPS
        by_row = metrics.log_losses(truth, found), bounded("binary", truth, found)
        for k, values in enumerate(by_row):
            sums[k, i, i:] = np.bincount(day_of[rows_from[i] :] - i, weights=values, minlength=len(nights) - i)
    return Matrix(tuple(nights), _gap(params), y_true, rows_from, tuple(answers), sums[0], sums[1], cpu)
