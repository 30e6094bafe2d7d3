"""From raw rows and stored history values to features: the one implementation that training, batch scoring and serving share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from ml.config import Params, Table
from ml.data.query import query
from ml.data.schema import ARROW
from ml.errors import EvergreenError
from ml.features.definitions import Columns, Feature, FeatureModule, Recent, Value, load_module, request_columns
from ml.features.history import EPOCH
from ml.features.online import OnlineStore, StoreDownError

MISSING, STALE, EXPIRED, AHEAD = "features_missing", "features_stale", "features_expired", "features_ahead"
NO_CLOCK = np.datetime64(EPOCH, "us")


def finish(module: FeatureModule, raw: Columns, stored: Columns, ticks: np.ndarray) -> dict[str, np.ndarray]:
    """The features of n rows, in the module's order.

    Args:
        raw: arrays of the raw columns that the request function is given, and ``event_time``.
        stored: float64 arrays of every view's ``stored`` columns at each row's tick; NaN where nothing was known.
        ticks: datetime64[us], the tick that each row is due.

    Returns:
        By feature name: float64 (NaN: missing) or, for text, object (None: missing).

    Raises:
        EvergreenError: the request function does not return the declared features.
    """
    known = _known(module, stored, ticks)
    computed = module.request(raw, {name: known[name] for name in module.reads})
    declared = {f.name for f in module.requested}
    if set(computed) != declared:
        odd = sorted(set(computed) ^ declared)
        raise EvergreenError(f"features declared and computed differ in {odd}", "make FEATURES and the request function agree")
    return {f.name: computed[f.name] if f.name in declared else known[f.name] for f in module.features}


def _known(module: FeatureModule, stored: Columns, ticks: np.ndarray) -> dict[str, np.ndarray]:
    """View columns from stored ones: no outcome counts 0; what is too old is missing; age from the moment it became known."""
    clock = (ticks - NO_CLOCK).astype(np.int64) / 1e6
    known: dict[str, np.ndarray] = {}
    for view in module.views:
        if isinstance(view, Recent):
            known |= {c: stored[c] for c in view.columns}
            known |= {c: np.nan_to_num(stored[c], nan=0.0) for c in view.counts}
        elif view.max_age_hours is None:
            known |= {c: stored[c] for c in view.columns}
        else:
            age = (clock - stored[view.since]) / 3600.0
            fresh = age <= view.max_age_hours  # False for NaN
            known |= {f"{view.name}_{v}": np.where(fresh, stored[f"{view.name}_{v}"], np.nan) for v in view.values}
            known[f"{view.name}_age"] = np.where(fresh, age, np.nan)
    return known


def raw_arrays(params: Params, rows: pa.Table) -> dict[str, np.ndarray]:
    """What `finish` takes as `raw`, from a table of problem rows."""
    types = params.tables[params.problem.table].columns
    arrays = {}
    for name in request_columns(params):
        if types[name] == "string":
            coded = rows[name].combine_chunks().dictionary_encode()  # one Python text for equal values
            texts = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
            arrays[name] = texts[coded.indices.fill_null(len(texts) - 1).to_numpy()]
        else:
            number = types[name] in ("int", "float", "bool")
            arrays[name] = (rows[name].cast(pa.float64()) if number else rows[name]).to_numpy()
    return arrays | {"event_time": rows["event_time"].to_numpy().astype("datetime64[us]")}


def floor_to_tick(moment: datetime, tick_minutes: int) -> datetime:
    """The last tick at or before `moment`.

    >>> floor_to_tick(datetime(2013, 4, 18, 9, 59), 60)
    datetime.datetime(2013, 4, 18, 9, 0)
    """
    step = timedelta(minutes=tick_minutes)
    return EPOCH + (moment - EPOCH) // step * step


@dataclass(frozen=True)
class Assembled:
    """Features of some requests; lists are in the order of the requests."""

    features: list[dict[str, Value]]
    flags: list[list[str]]
    entity_ids: list[str]
    event_times: list[datetime]
    prediction_times: list[datetime]
    tick: datetime | None
    filled: dict[str, int]
    """By view, of how many rows the values were replaced by what the view declares for "nothing known"."""


class Assembler:
    """From raw request fields to features, for one problem. Safe to share between threads."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.module = load_module(params)
        self.spec = params.tables[params.problem.table]
        self._event_time = _event_times(self.spec)
        self._raw = request_columns(params)
        self._stored = [(view, c) for view in self.module.views for c in view.stored]
        self._aliases = {f.name: f.formerly for f in self.module.features if f.formerly}

    def assemble(self, store: OnlineStore, rows: Sequence[Mapping[str, Any]]) -> Assembled:
        """Features of raw rows; reads the store once for all rows and views.

        Flags of a row: ``features_missing``: the store cannot be read or was never written, every view answers as if nothing were
        known. ``features_stale``: its tick is older than the last one before the row's prediction time. ``features_expired``: so
        much older that at least one view (`lag_hours`) is not used. ``features_ahead``: its tick is newer, as for a request that
        comes after its own prediction time.
        """
        event_times = [self._event_time(row) for row in rows]
        lead, minutes = timedelta(hours=self.params.problem.lead_hours), self.params.features.tick_minutes
        due = [floor_to_tick(at - lead, minutes) for at in event_times]
        keys = [[entity_key(view.entity.columns, row) for view in self.module.views] for row in rows]
        names = [view.name for view in self.module.views]
        try:
            wanted = {(name, key) for row in keys for name, key in zip(names, row, strict=True) if key is not None}
            tick, found = store.read(sorted(wanted))
        except StoreDownError:
            tick, found = None, {}  # answered as if nothing were known, and flagged
        filled = dict.fromkeys(names, 0)
        lags = [np.inf if tick is None else (at - tick) / timedelta(hours=1) for at in due]
        values = np.full((len(rows), len(self._stored)), np.nan)
        for i, (row, lag) in enumerate(zip(keys, lags, strict=True)):
            usable = {}
            for view, key in zip(self.module.views, row, strict=True):
                if lag > view.lag_hours:
                    filled[view.name] += 1
                elif key is not None:
                    usable[view.name] = found.get((view.name, key), {})
            values[i] = [usable.get(view.name, {}).get(c) for view, c in self._stored]  # None becomes NaN
        stored = {c: values[:, j] for j, (_, c) in enumerate(self._stored)}
        raw = self._arrays(rows, event_times)
        columns = finish(self.module, raw, stored, np.array(due, "datetime64[us]"))
        return Assembled(
            self._by_row(columns, len(rows)),
            [self._flags(tick, lag) for lag in lags],
            [self._name(row, at) for row, at in zip(rows, event_times, strict=True)],
            event_times,
            [at - lead for at in event_times],
            tick,
            filled,
        )

    def _flags(self, tick: datetime | None, lag: float) -> list[str]:
        if not self.module.views or lag == 0:
            return []
        if tick is None:
            return [MISSING]
        if lag < 0:
            return [AHEAD]
        return [STALE] if all(lag <= view.lag_hours for view in self.module.views) else [EXPIRED]

    def _name(self, row: Mapping[str, Any], at: datetime) -> str:
        return "-".join([*(str(row[c]) for c in self.params.problem.id), f"{at:%Y%m%dT%H%M}"])

    def _arrays(self, rows: Sequence[Mapping[str, Any]], event_times: Sequence[datetime]) -> dict[str, np.ndarray]:
        kinds: dict[str, Any] = {"string": object, "timestamp": "datetime64[us]"}
        arrays = {c: np.array([row[c] for row in rows], kinds.get(self.spec.columns[c], float)) for c in self._raw}
        return arrays | {"event_time": np.array(event_times, "datetime64[us]")}

    def _by_row(self, columns: dict[str, np.ndarray], n: int) -> list[dict[str, Value]]:
        columns = columns | {old: columns[name] for name, others in self._aliases.items() for old in others}
        lists = [_plain(self.module.features, name, values) for name, values in columns.items()]
        return [dict(zip(columns, (values[i] for values in lists), strict=True)) for i in range(n)]


def _plain(features: Sequence[Feature], name: str, values: np.ndarray) -> list[Value]:
    if values.dtype == object:
        return list(values.tolist())
    return [None if v != v else v for v in values.tolist()]


def entity_key(columns: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """The key of a row's entity: ``UA|1545``; None when a part is missing, which is no entity."""
    parts = [row[c] for c in columns]
    return None if any(p is None for p in parts) else "|".join(str(p) for p in parts)


def _event_times(spec: Table) -> Any:
    """The declared expression over raw fields, by the engine that evaluates it on landed data; equal fields are asked once."""
    expression = spec.event_time or ""
    names = [c for c in spec.columns if c not in spec.outcomes and re.search(rf"\b{re.escape(c)}\b", expression)]

    @lru_cache(100_000)
    def ask(values: tuple[Any, ...]) -> datetime:
        row = pa.table({c: pa.array([v], ARROW[spec.columns[c]]) for c, v in zip(names, values, strict=True)})
        moment: datetime = query(f"SELECT ({expression})::TIMESTAMP AS moment FROM rows", rows=row)["moment"][0].as_py()
        return moment

    return lambda row: ask(tuple(row[c] for c in names))
