"""What feature computations read: history of every table, as known at a moment, far enough back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path

import pyarrow as pa

from ml.config import Params
from ml.data import rows
from ml.features.definitions import load_module
from ml.features.offline import source_table

Reader = Callable[[str, datetime, datetime], pa.Table]
"""(table, start, end) → rows with event time in [start, end)."""


def landed(root: Path, as_of: datetime) -> Reader:
    """Reads a restored snapshot."""
    return lambda table, start, end: rows.table_rows(root, table, start, end, as_of)


def landed_and_live(params: Params, root: Path, last_day: datetime, as_of: datetime) -> Reader:
    """Reads a restored snapshot, and the source itself for what was not landed yet or may since have got its outcomes.

    Args:
        last_day: midnight of the newest landed day; the source is read from `landing.lookback_days` - 1 days before it on.
    """
    cut = last_day - timedelta(days=max(params.landing.lookback_days - 1, 0))

    def read(table: str, start: datetime, end: datetime) -> pa.Table:
        if params.tables[table].event_time is None or end <= cut:
            return rows.table_rows(root, table, start, end, as_of)
        fresh = rows.live_rows(table, max(start, cut), end, as_of)
        return fresh if start >= cut else pa.concat_tables([rows.table_rows(root, table, start, cut, as_of), fresh])

    return read


def history(params: Params, start: datetime, end: datetime, read: Reader) -> dict[str, pa.Table]:
    """The tables that the feature module's views need to answer for ticks in [start, end)."""
    module = load_module(params)
    wanted = {source_table(view, params.problem.table) for view in module.views}
    longest_outcome = timedelta(days=2)  # an outcome may become known this long after its event
    back = start - timedelta(hours=module.horizon_hours) - longest_outcome
    return {table: read(table, back, end) for table in sorted(wanted)}


def midnight(day: date) -> datetime:
    """The first moment of a data day."""
    return datetime.combine(day, clock.min)
