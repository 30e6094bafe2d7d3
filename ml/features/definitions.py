"""What a feature is, and what a feature module declares.

A module under ``ml/features/`` binds one team's problem: its history views and its request-time features. Everything that
computes them is shared, so training, batch scoring and serving cannot differ.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml.config import Params
from ml.errors import ConfigError
from ml.features import calendar

Value = float | str | None
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Feature:
    """One model input.

    `kind`: ``numeric`` goes in as it is (missing allowed); ``cyclic`` holds integers ``0 … period-1`` and becomes sine and
    cosine inside the model's graph; ``text`` is encoded inside the graph.
    """

    name: str
    description: str
    kind: Literal["numeric", "cyclic", "text"] = "numeric"
    unit: str = ""
    period: int = 0


CALENDAR = {
    "hour": Feature("hour", "local hour of the event", "cyclic", "0-23", 24),
    "weekday": Feature("weekday", "local weekday of the event, Monday = 0", "cyclic", "0-6", 7),
}


@dataclass(frozen=True)
class Recent:
    """Outcomes of the same entity that became known in ``(tick - hours, tick]``: count, rate of the label, mean of `value`.

    `value` is an integer column, so that sums are exact and do not depend on the order of rows. No outcome: count 0, the others
    missing.
    """

    name: str
    entity: tuple[str, ...]
    value: str
    hours: tuple[int, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{kind}_{h}h" for h in self.hours for kind in ("count", "rate", "mean"))

    @property
    def defaults(self) -> dict[str, float | None]:
        return {c: 0.0 if c.startswith(f"{self.name}_count_") else None for c in self.columns}

    @property
    def horizon_hours(self) -> int:
        return max(self.hours)


@dataclass(frozen=True)
class Latest:
    """The newest row of `table` for the same entity that was known at the tick, if not older than `max_age_hours`.

    With `max_age_hours`, ``<name>_age`` gives hours from when the row became known to the tick. None: a table without time.
    """

    name: str
    table: str
    entity: tuple[str, ...]
    values: tuple[str, ...]
    max_age_hours: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        age = (f"{self.name}_age",) if self.max_age_hours is not None else ()
        return tuple(f"{self.name}_{v}" for v in self.values) + age

    @property
    def defaults(self) -> dict[str, float | None]:
        return dict.fromkeys(self.columns)

    @property
    def horizon_hours(self) -> int:
        return self.max_age_hours or 0


View = Recent | Latest


@dataclass(frozen=True)
class FeatureModule:
    """Views, the model's features in order, and the pure function that makes the rest.

    A feature that has the name of a view's column is that column. All others come from `request`, which gets the raw row (its
    non-outcome columns and ``event_time``) and the view columns named in `reads`.
    """

    views: tuple[View, ...]
    features: tuple[Feature, ...]
    request: Callable[[Row, Row], dict[str, Value]]
    reads: tuple[str, ...] = ()

    @property
    def requested(self) -> list[Feature]:
        """The features that `request` makes."""
        columns = {c for v in self.views for c in v.columns}
        return [f for f in self.features if f.name not in columns]

    @property
    def numeric(self) -> list[str]:
        return [f.name for f in self.features if f.kind != "text"]

    @property
    def text(self) -> list[str]:
        return [f.name for f in self.features if f.kind == "text"]

    @property
    def horizon_hours(self) -> int:
        return max((v.horizon_hours for v in self.views), default=0)


def load_module(params: Params) -> FeatureModule:
    """The module that params.yaml names; without one, the raw columns and the calendar.

    Raises:
        ConfigError: there is no such module, or it defines no ``MODULE``.
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
    raw = {c: t for c, t in table.columns.items() if c not in table.outcomes and t in ("string", "int", "float", "bool")}
    features = [
        Feature(c, f"raw column {c}", "text" if t == "string" else "numeric") for c, t in raw.items() if c not in CALENDAR
    ]

    def request(row: Row, looked_up: Row) -> dict[str, Value]:
        values: dict[str, Value] = {c: row[c] if t == "string" or row[c] is None else float(row[c]) for c, t in raw.items()}
        return values | calendar.local(row["event_time"], params.problem.timezone)

    return FeatureModule((), (*features, *CALENDAR.values()), request)
