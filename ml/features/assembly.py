"""From raw rows and stored history values to features: the one implementation that training, batch scoring and serving share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ml.config import Params
from ml.data.query import query
from ml.data.schema import ARROW
from ml.errors import EvergreenError
from ml.features.definitions import Columns, FeatureModule, Value, load_module, request_columns
from ml.features.history import EPOCH
from ml.features.online import Key, OnlineStore, Payload, StoreDownError

MISSING, STALE, EXPIRED, AHEAD = "features_missing", "features_stale", "features_expired", "features_ahead"
HOUR = timedelta(hours=1)
NO_CLOCK = np.datetime64(EPOCH, "us")
_KINDS: dict[str, Any] = {"string": object, "timestamp": "datetime64[us]"}
"""Of a raw column's array, by declared type; float64 for all others."""


def finish(module: FeatureModule, raw: Columns, stored: np.ndarray, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features of n rows.

    Args:
        raw: arrays of the raw columns that the request function is given, and ``event_time``.
        stored: float64 [S, n], a row for each of `module.stored`, at each row's tick; NaN where nothing was known. Overwritten.
        ticks: datetime64[us], the tick that each row is due.

    Returns:
        float64 with a row for each of `module.numbers` (NaN: missing), and object with a row for each of `module.texts` (None:
        missing).

    Raises:
        EvergreenError: the request function does not return the declared features.
    """
    known = _known(module, stored, ticks)
    computed = module.request(raw, {name: known[module.known[name]] for name in module.reads})
    declared = {f.name for f in module.requested}
    if set(computed) != declared:
        odd = sorted(set(computed) ^ declared)
        raise EvergreenError(f"features declared and computed differ in {odd}", "make FEATURES and the request function agree")
    numbers = np.empty((len(module.numbers), len(ticks)))
    to, taken = module.taken
    numbers[to] = known[taken]
    for row, name in enumerate(module.numbers):
        if name in declared:
            numbers[row] = computed[name]
    texts = np.array([computed[name] for name in module.texts], dtype=object).reshape(len(module.texts), len(ticks))
    return numbers, texts


def _known(module: FeatureModule, stored: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """View columns in the place of stored ones: no outcome counts 0; too old is missing; age from when it became known."""
    counts = stored[module.counts]
    counts[np.isnan(counts)] = 0.0
    stored[module.counts] = counts
    for first, last, max_age_hours in module.ageing:
        clock = (ticks - NO_CLOCK).astype(np.int64) / 1e6
        stored[last] = (clock - stored[last]) / 3600.0
        stored[first : last + 1, ~(stored[last] <= max_age_hours)] = np.nan  # NaN is not fresh
    return stored


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


class Known(NamedTuple):
    """What the online store says: its tick (None: nothing can be said), and values by view and entity key."""

    tick: datetime | None
    found: Mapping[Key, Payload]


NOTHING = Known(None, {})


class Prepared(NamedTuple):
    """A row of raw fields, and what follows from them alone."""

    row: Mapping[str, Any]
    event_time: datetime
    due: datetime
    """The tick whose values the row should be answered with."""
    keys: tuple[Key | None, ...]
    """By view; None: there is no such entity."""
    entity_id: str


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
    numbers: np.ndarray
    """float64, a row for each of `Assembler.numbers`; NaN: missing."""
    texts: np.ndarray
    """object, a row for each of `Assembler.texts`; None: missing."""


class Assembler:
    """From raw request fields to features, for one problem. Safe to share between threads."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.module = load_module(params)
        self.spec = params.tables[params.problem.table]
        self.lead = timedelta(hours=params.problem.lead_hours)
        names = (c for c in self.spec.columns if c not in self.spec.outcomes)
        self._clock = [c for c in names if re.search(rf"\b{re.escape(c)}\b", self.spec.event_time or "")]
        self._moments = lru_cache(100_000)(self._moments_of)
        self._views = [(view.name, view.lag_hours, view.stored, [None] * len(view.stored)) for view in self.module.views]
        self._raw: dict[Any, list[str]] = {}
        for column in request_columns(params):
            self._raw.setdefault(_KINDS.get(self.spec.columns[column], float), []).append(column)
        self.numbers, self._numbers = _with_aliases(self.module, self.module.numbers)
        """Names of the features that are numbers, those included that models in use still know them by."""
        self.texts, self._texts = _with_aliases(self.module, self.module.texts)
        self._names = self.numbers + self.texts
        self._key_columns = list(dict.fromkeys(c for view in self.module.views for c in view.entity.columns))
        self._keys = lru_cache(50_000, typed=True)(self._keys_of)  # 1 and 1.0 are other keys

    def assemble(self, store: OnlineStore, rows: Sequence[Mapping[str, Any]]) -> Assembled:
        """Features of raw rows; reads the store once for all rows and views.

        Flags of a row: ``features_missing``: the store cannot be read or was never written, every view answers as if nothing were
        known. ``features_stale``: its tick is older than the last one before the row's prediction time. ``features_expired``: so
        much older that at least one view (`lag_hours`) is not used. ``features_ahead``: its tick is newer, as for a request that
        comes after its own prediction time.
        """
        prepared = [self.prepare(row) for row in rows]
        try:
            known = Known(*store.read(sorted({key for each in prepared for key in each.keys if key is not None})))
        except StoreDownError:
            known = NOTHING  # answered as if nothing were known, and flagged
        return self.complete(prepared, [known] * len(rows))

    def prepare(self, row: Mapping[str, Any]) -> Prepared:
        """What a row's raw fields say by themselves: its name, its moment, and which entities' histories it needs."""
        at, stamp, due = self._moments(*(row[c] for c in self._clock))
        name = "-".join([*(str(row[c]) for c in self.params.problem.id), stamp])
        return Prepared(row, at, due, self._keys(*(row[c] for c in self._key_columns)), name)

    def complete(self, prepared: Sequence[Prepared], known: Sequence[Known]) -> Assembled:
        """Features of prepared rows, n ≥ 0, each with what the store says for it; flags as in `assemble`."""
        n, filled = len(prepared), {name: 0 for name, *_ in self._views}
        lags = [inf if k.tick is None else (each.due - k.tick) / HOUR for each, k in zip(prepared, known, strict=True)]
        values: list[list[float | None]] = []
        for each, (_, found), lag in zip(prepared, known, lags, strict=True):
            line: list[float | None] = []
            for (name, lag_hours, columns, nothing), key in zip(self._views, each.keys, strict=True):
                if lag > lag_hours:
                    filled[name] += 1
                    line += nothing
                elif key is None or (payload := found.get(key)) is None:
                    line += nothing
                else:
                    line += map(payload.get, columns)
            values.append(line)
        stored = np.array(values, dtype=float).reshape(n, len(self.module.stored)).T  # None becomes NaN
        event_times = [each.event_time for each in prepared]
        raw = self._arrays([each.row for each in prepared], event_times)
        made = finish(self.module, raw, stored, np.array([each.due for each in prepared], "datetime64[us]"))
        numbers, texts = made[0][self._numbers], made[1][self._texts]
        return Assembled(
            [
                dict(zip(self._names, [None if v != v else v for v in line] + words, strict=True))
                for line, words in zip(numbers.T.tolist(), texts.T.tolist(), strict=True)
            ],
            [self._flags(k.tick, lag) for k, lag in zip(known, lags, strict=True)],
            [each.entity_id for each in prepared],
            event_times,
            [at - self.lead for at in event_times],
            known[0].tick if n else None,
            filled,
            numbers,
            texts,
        )

    def _flags(self, tick: datetime | None, lag: float) -> list[str]:
        if not self.module.views or lag == 0:
            return []
        if tick is None:
            return [MISSING]
        if lag < 0:
            return [AHEAD]
        return [STALE] if all(lag <= view.lag_hours for view in self.module.views) else [EXPIRED]

    def _moments_of(self, *values: Any) -> tuple[datetime, str, datetime]:
        """Event time by the declared expression, asked of the engine that evaluates it on landed data; its name; the tick due."""
        columns = {c: pa.array([v], ARROW[self.spec.columns[c]]) for c, v in zip(self._clock, values, strict=True)}
        sql = f"SELECT ({self.spec.event_time})::TIMESTAMP AS moment FROM rows"
        at: datetime = query(sql, rows=pa.table(columns))["moment"][0].as_py()
        return at, f"{at:%Y%m%dT%H%M}", floor_to_tick(at - self.lead, self.params.features.tick_minutes)

    def _keys_of(self, *values: Any) -> tuple[Key | None, ...]:
        row = dict(zip(self._key_columns, values, strict=True))
        keys = [(view.name, entity_key(view.entity.columns, row)) for view in self.module.views]
        return tuple((name, key) if key is not None else None for name, key in keys)

    def _arrays(self, rows: Sequence[Mapping[str, Any]], event_times: Sequence[datetime]) -> dict[str, np.ndarray]:
        arrays = {"event_time": np.array(event_times, "datetime64[us]")}
        for kind, columns in self._raw.items():  # one array of all columns of a kind: each array has its price
            arrays.update(zip(columns, np.array([[row[c] for row in rows] for c in columns], kind), strict=True))
        return arrays


def _with_aliases(module: FeatureModule, names: Sequence[str]) -> tuple[tuple[str, ...], list[int] | slice]:
    """Names, then former names; and the place in `names` of what each stands for."""
    former = {old: f.name for f in module.features if f.name in names for old in f.formerly}
    if not former:
        return (*names,), slice(None)
    return (*names, *former), [*range(len(names)), *(names.index(name) for name in former.values())]


def entity_key(columns: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """The key of a row's entity: ``UA|1545``; None when a part is missing, which is no entity."""
    parts = [row[c] for c in columns]
    return None if any(p is None for p in parts) else "|".join(str(p) for p in parts)
