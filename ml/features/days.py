"""Histories at rest: one pack a day, stored by the data and the code that it comes from. Only new days are computed."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ml import store
from ml.config import Params
from ml.features.definitions import FeatureModule, View, code_digest, load_module, source_table
from ml.features.history import changes
from ml.features.inputs import Inputs, Reader, midnight

CHUNK_DAYS = 120  # computed at once: bounds memory, and each chunk reads the horizon before it again
DAY = timedelta(days=1)

log = logging.getLogger(__name__)


def histories(params: Params, inputs: Inputs, start: datetime, end: datetime) -> dict[str, pa.Table]:
    """Each view's history, long enough to answer for any tick in [start, end]; days that were computed before are read."""
    module = load_module(params)
    first = (start - timedelta(hours=module.horizon_hours)).date()
    whole = _days(first, min((end + DAY).date(), inputs.landed_until.date()))
    packs = _packs(params, module, inputs, whole)
    tail_start = max(inputs.landed_until, midnight(first))
    tail = _compute(params, module, inputs.read, tail_start, end + timedelta(microseconds=1)) if tail_start <= end else {}
    found = {}
    for view in module.views:
        if _is_static(view):
            found[view.name] = changes(
                params, view, inputs.read(source_table(view, params.problem.table), start, end), start, end
            )
            continue
        needed = (start - timedelta(hours=view.horizon_hours)).date()
        parts = [pq.read_table(io.BytesIO(pack[view.name])) for day, pack in packs.items() if day >= needed]
        found[view.name] = pa.concat_tables([*parts, *([tail[view.name]] if tail else [])])
    return found


def prepare(params: Params, inputs: Inputs, days: list[date]) -> list[date]:
    """Stores the histories of landed days, for whoever asks for them later; returns the days that were not there yet.

    Any number of processes may do so at once: equal inputs have one name in the store, and each write is whole.
    """
    module = load_module(params)
    if not days or all(_is_static(view) for view in module.views):
        return []
    return _digests(params, module, inputs, days)[1]


def _packs(params: Params, module: FeatureModule, inputs: Inputs, days: list[date]) -> dict[date, dict[str, bytes]]:
    """By day, Parquet of each view's history of that day."""
    digests, _ = _digests(params, module, inputs, days)
    return {day: store.unpack(store.get(digest)) for day, digest in digests.items()}


def _digests(params: Params, module: FeatureModule, inputs: Inputs, days: list[date]) -> tuple[dict[date, str], list[date]]:
    """Digest of each day's pack, computed where it is missing; and the days that were."""
    keys = _keys(params, module, inputs.root, days)
    found = {day: store.recall(key) for day, key in keys.items()}
    missing = [day for day, digest in found.items() if digest is None]
    for run in _runs(missing):
        log.info("computing history, days %s to %s", run[0], run[-1])
        made = _compute(params, module, inputs.read, midnight(run[0]), midnight(run[-1] + DAY))
        for day in run:
            found[day] = digest = store.put(store.pack({name: _of_day(table, day) for name, table in made.items()}))
            store.remember(keys[day], digest)
    return {day: digest for day, digest in found.items() if digest is not None}, missing


def _compute(params: Params, module: FeatureModule, read: Reader, start: datetime, end: datetime) -> dict[str, pa.Table]:
    """The history of [start, end) of every view that has time."""
    limit = timedelta(hours=params.features.outcome_hours)
    made, tables = {}, {}
    for view in module.views:
        if _is_static(view):
            continue
        table = source_table(view, params.problem.table)
        if table not in tables:
            horizon = max(v.horizon_hours for v in module.views if source_table(v, params.problem.table) == table)
            tables[table] = read(table, start - timedelta(hours=horizon) - limit, end)
        made[view.name] = changes(params, view, tables[table], start, end)
    return made


def _keys(params: Params, module: FeatureModule, root: Path, days: list[date]) -> dict[date, str]:
    """What a day's history depends on: the feature code, and the landed files that it may have read."""
    code = code_digest(params)
    back = timedelta(hours=module.horizon_hours + params.features.outcome_hours) + DAY
    tables = sorted({source_table(view, params.problem.table) for view in module.views if not _is_static(view)})
    first, last = ((days[0] - back).isoformat(), days[-1].isoformat()) if days else ("", "")
    files = {
        table: {
            path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (root / table).glob("*.parquet")
            if first <= path.stem <= last
        }
        for table in tables
    }
    keys = {}
    for day in days:
        read = sorted(
            f"{table}/{stem}:{digest}"
            for table, found in files.items()
            for stem, digest in found.items()
            if (day - back).isoformat() <= stem <= day.isoformat()
        )
        keys[day] = "history-" + hashlib.sha256(f"{code}/{day}/{'/'.join(read)}".encode()).hexdigest()
    return keys


def _of_day(table: pa.Table, day: date) -> bytes:
    """The slice of one day of a history, which is ordered by moment."""
    moments = table["moment"].to_numpy()
    first, last = np.searchsorted(moments, np.array([day, day + DAY], "datetime64[us]"))
    buffer = io.BytesIO()
    pq.write_table(table.slice(first, last - first).combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()


def _is_static(view: View) -> bool:
    """A table without time: its history is short, and is computed each time."""
    return view.horizon_hours == 0


def _days(start: date, end: date) -> list[date]:
    return [start + k * DAY for k in range((end - start).days)]


def _runs(days: list[date]) -> Iterator[list[date]]:
    """Days that follow one another, at most `CHUNK_DAYS` at a time."""
    run: list[date] = []
    for day in days:
        if run and (day != run[-1] + DAY or len(run) == CHUNK_DAYS):
            yield run
            run = []
        run.append(day)
    if run:
        yield run
