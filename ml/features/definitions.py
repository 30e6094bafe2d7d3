"""What a feature is, and what a feature module declares.

A module under ``ml/features/`` binds one team's problem: its entities, history views and request-time features. Everything that
computes them is shared, so training, batch scoring and serving cannot differ.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ml.config import Params, Table
from ml.errors import ConfigError
from ml.features import calendar

Value = float | str | None
Columns = Mapping[str, np.ndarray]
"""Arrays of shape (n,): float64 with NaN for missing, object (str or None) for text, datetime64[us] for times."""


@dataclass(frozen=True)
class Feature:
    """One model input.

    `kind`: ``numeric`` goes in as it is (missing allowed); ``cyclic`` holds integers ``0 … period-1`` and becomes sine and
    cosine inside the model's graph; ``text`` is encoded inside the graph.
    `formerly`: the names that models in use still know it by; it is served under these too.
    `retired`: still computed for the models in use, but no new model learns from it.
    """

    name: str
    description: str
    kind: Literal["numeric", "cyclic", "text"] = "numeric"
    unit: str = ""
    period: int = 0
    formerly: tuple[str, ...] = ()
    retired: bool = False


CALENDAR = {
    "hour": Feature("hour", "local hour of the event", "cyclic", "0-23", 24),
    "weekday": Feature("weekday", "local weekday of the event, Monday = 0", "cyclic", "0-6", 7),
}


@dataclass(frozen=True)
class Entity:
    """What history is kept of; its key is the text of `columns`, joined by ``|``."""

    name: str
    columns: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Recent:
    """Outcomes of the same entity that became known in ``(tick - hours, tick]``: count, rate of the label, mean of `value`.

    An outcome counts from when it first became known, with the value that was last known of it. `value` is an integer column, so
    that sums are exact and do not depend on the order of rows. No outcome: count 0, the others missing.
    `lag_hours`: a store that is further behind than this is not used for this view; its values are then as if nothing were known.
    """

    name: str
    entity: Entity
    value: str
    hours: tuple[int, ...]
    description: str
    owner: str
    lag_hours: int = 24

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{kind}_{h}h" for h in self.hours for kind in ("count", "rate", "mean"))

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """Columns of the view's history and of the online store."""
        return self.columns

    @cached_property
    def counts(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_count_{h}h" for h in self.hours)

    @property
    def horizon_hours(self) -> int:
        return max(self.hours)


@dataclass(frozen=True)
class Latest:
    """The newest row (by event time) of `table` for the same entity that was known at the tick.

    With `max_age_hours` it must have become known within these, and ``<name>_age`` gives hours from then to the tick. None: a
    table without time. `lag_hours`: as in `Recent`.
    """

    name: str
    table: str
    entity: Entity
    values: tuple[str, ...]
    max_age_hours: int | None
    description: str
    owner: str
    lag_hours: int = 24

    @cached_property
    def columns(self) -> tuple[str, ...]:
        age = (f"{self.name}_age",) if self.max_age_hours is not None else ()
        return tuple(f"{self.name}_{v}" for v in self.values) + age

    @property
    def since(self) -> str:
        """The stored column from which the age comes: when the row became known, seconds since 2000-01-01 UTC."""
        return f"{self.name}_since"

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """Columns of the view's history and of the online store."""
        since = (self.since,) if self.max_age_hours is not None else ()
        return tuple(f"{self.name}_{v}" for v in self.values) + since

    @property
    def horizon_hours(self) -> int:
        return self.max_age_hours or 0


View = Recent | Latest


@dataclass(frozen=True)
class FeatureModule:
    """Views, the features in order, and the pure function that makes the rest.

    A feature that has the name of a view's column is that column. All others come from `request`, which gets arrays of the raw
    rows (their non-outcome columns and ``event_time``) and of the view columns named in `reads`.
    """

    views: tuple[View, ...]
    features: tuple[Feature, ...]
    request: Callable[[Columns, Columns], Columns]
    reads: tuple[str, ...] = ()
    owner: str = "data-team"

    @cached_property
    def requested(self) -> list[Feature]:
        """The features that `request` makes."""
        return [f for f in self.features if f.name not in self.known]

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """What is kept of all views, in their order."""
        return tuple(c for view in self.views for c in view.stored)

    @cached_property
    def known(self) -> dict[str, int]:
        """By column of a view, its place in `stored`; an age stands in the place of ``since``."""
        return {c: i for i, c in enumerate(c for view in self.views for c in view.columns)}

    @cached_property
    def counts(self) -> list[int]:
        """Which of `stored` are counts."""
        return [self.known[c] for view in self.views if isinstance(view, Recent) for c in view.counts]

    @cached_property
    def ageing(self) -> list[tuple[int, int, int]]:
        """Of each view whose values can be too old: the first of its places in `stored`, the last (``since``), and hours."""
        views = [view for view in self.views if isinstance(view, Latest) and view.max_age_hours is not None]
        return [(self.known[view.columns[0]], self.known[view.columns[-1]], view.max_age_hours or 0) for view in views]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """All features that are numbers, retired ones too."""
        return tuple(f.name for f in self.features if f.kind != "text")

    @cached_property
    def taken(self) -> tuple[list[int], list[int]]:
        """Of the features that are a view's columns: their places in `numbers`, and in `stored`."""
        places = [(i, self.known[name]) for i, name in enumerate(self.numbers) if name in self.known]
        return [i for i, _ in places], [j for _, j in places]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features if f.kind == "text")

    @property
    def learned(self) -> tuple[Feature, ...]:
        """What a new model learns from."""
        return tuple(f for f in self.features if not f.retired)

    @property
    def numeric(self) -> list[str]:
        return [f.name for f in self.learned if f.kind != "text"]

    @property
    def text(self) -> list[str]:
        return [f.name for f in self.learned if f.kind == "text"]

    @property
    def entities(self) -> list[Entity]:
        return list({view.entity.name: view.entity for view in self.views}.values())

    @property
    def horizon_hours(self) -> int:
        return max((v.horizon_hours for v in self.views), default=0)


def source_table(view: View, problem_table: str) -> str:
    """The table that a view reads: outcomes live in the problem's own."""
    return problem_table if isinstance(view, Recent) else view.table


def columns_read(view: View) -> tuple[str, ...]:
    """The raw columns that a view reads, its key included."""
    return (*view.entity.columns, *((view.value,) if isinstance(view, Recent) else view.values))


def request_columns(params: Params) -> list[str]:
    """The raw columns that `FeatureModule.request` is given: no outcome, and nothing sensitive that is not allowed."""
    name = params.problem.table
    spec = params.tables[name]
    return [c for c in spec.columns if c not in spec.outcomes and may_read(params, name, c)]


def may_read(params: Params, table: str, column: str) -> bool:
    """Whether features may be made of a column: it is not sensitive, or `features.allow_sensitive` says why it may."""
    return column not in params.tables[table].sensitive or f"{table}.{column}" in params.features.allow_sensitive


def load_module(params: Params) -> FeatureModule:
    """The module that params.yaml names; without one, the raw columns and the calendar.

    Raises:
        ConfigError: there is no such module, it defines no ``MODULE``, or a view reads a sensitive column that is not allowed.
    """
    name = params.features.module
    if name is None:
        return _raw_module(params)
    try:
        module = importlib.import_module(name).MODULE
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"features.module = {name!r}: {error}", "name a module under ml/features/ that defines MODULE"
        ) from None
    assert isinstance(module, FeatureModule)
    for view in module.views:
        table = source_table(view, params.problem.table)
        for column in columns_read(view):
            if not may_read(params, table, column):
                why = params.tables[table].sensitive[column]
                raise ConfigError(
                    f"{name}: view '{view.name}' reads {table}.{column}, which is declared sensitive ({why})",
                    f"leave it out, or write the reason why it may be used under features.allow_sensitive: {table}.{column}",
                )
    return module


def code_digest(params: Params) -> str:
    """Names the feature code and the parameters that it reads: a feature set made under another digest is another feature set."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(path.name.encode() + path.read_bytes())
    for section in (params.features, params.problem, *params.tables.values()):
        sha.update(section.digest().encode())
    return sha.hexdigest()[:16]


def _raw_module(params: Params) -> FeatureModule:
    table = params.tables[params.problem.table]
    raw = [c for c in request_columns(params) if table.columns[c] in ("string", "int", "float", "bool") and c not in CALENDAR]
    features = [Feature(c, f"raw column {c}", _raw_kind(table, c)) for c in raw]

    def request(row: Columns, known: Columns) -> Columns:
        return {c: row[c] for c in raw} | calendar.local(row["event_time"], params.problem.timezone)

    return FeatureModule((), (*features, *CALENDAR.values()), request)


def _raw_kind(table: Table, column: str) -> Literal["numeric", "text"]:
    return "text" if table.columns[column] == "string" else "numeric"
