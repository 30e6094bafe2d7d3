"""What a day of watching has at hand: the champion, its answers, landed rows, and when what was known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pandas as pd

from ml import store
from ml.config import Params
from ml.data import rows, snapshots
from ml.errors import NotFoundError
from ml.features import inputs, stored
from ml.features.inputs import midnight
from ml.monitoring import collect
from ml.packaging.bundle import Bundle
from ml.refs import Ref, SnapshotRef, Window
from ml.serving.manifest import Deployed

LONGEST = 90
"""Days of answers that are looked back on at most."""
DAY = timedelta(days=1)
R = TypeVar("R", bound=Ref)


@dataclass(frozen=True)
class Scene:
    """One day: `last` is the newest day that is looked at; what became known after `as_of` is invisible.

    `root` is the restored snapshot `version`.
    """

    params: Params
    champion: Deployed
    version: SnapshotRef
    root: Path
    last: date
    as_of: datetime

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle.load(self.champion.bundle)

    @property
    def end(self) -> datetime:
        return midnight(self.last) + DAY

    @property
    def matured_end(self) -> datetime:
        """Labels of the days before this moment are in, whatever they are: they ended `train.embargo_hours` ago."""
        return min(self.end, midnight((self.as_of - timedelta(hours=self.params.train.embargo_hours)).date()))

    @cached_property
    def answers(self) -> pd.DataFrame:
        """Answers of the last days to rows whose day is over, whoever gave them, one per entity; with column ``day``."""
        found = collect.predictions(self.end - LONGEST * DAY, self.end)
        return found.assign(day=found["event_time"].dt.date)

    @cached_property
    def mine(self) -> pd.DataFrame:
        """The champion's own, with ``label``: NaN where it has not matured, or there is none."""
        mine = self.answers[self.answers["model_version"] == self.champion.version].reset_index(drop=True)
        first = mine["event_time"].min() if len(mine) else self.end
        known = rows.problem_rows(self.root, midnight(first.date()), self.end, self.as_of)
        found = collect.with_labels(mine, known)
        found.loc[found["event_time"] >= self.matured_end, "label"] = float("nan")
        return found

    def known(self, day: date, after: timedelta = DAY) -> tuple[SnapshotRef, datetime]:
        """The data version, and the moment, at which a day was first looked at: `after` its beginning, at this run's hour.

        What is made of a day's data as it was then is made once. Before the first version of all: this run's own.
        """
        moment = min(self.as_of, midnight(day) + after + (self.as_of - midnight(self.as_of.date())))
        try:
            return snapshots.find(moment), moment
        except NotFoundError:
            return self.version, self.as_of

    def features(self, window: Window, as_of: datetime) -> pd.DataFrame:
        """Feature rows of the window as known at `as_of`, with ``event_time``, ``known_at`` and ``label``."""
        wanted = rows.problem_rows(self.root, midnight(window.start), midnight(window.end), as_of)
        return stored.compute(self.params, wanted, inputs.landed(self.root, self.version.last_day), as_of).to_pandas()

    def days(self, count: int, end: date | None = None) -> list[date]:
        """The `count` days before `end` (default: `last` and the ones before it), oldest first."""
        stop = end or self.last + DAY
        return [stop - k * DAY for k in range(count, 0, -1)]


def digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def digest_of(answers: pd.DataFrame) -> str:
    """Names the answers: whom to, by whom, what, and when."""
    named = answers[["entity_id", "model_version", "probability", "logged_at"]]
    return hashlib.sha256(pd.util.hash_pandas_object(named, index=False).to_numpy().tobytes()).hexdigest()


def remembered(kind: type[R], key: str, make: Callable[[], R]) -> R:
    """What was made under this key before; else makes it, and remembers it."""
    found = store.recall(key)
    if found is not None:
        return kind.model_validate_json(store.get(found))
    made = make()
    store.remember(key, store.put(made.model_dump_json().encode()))
    return made
