"""What feature computations read: history of every table, as known at a moment, far enough back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

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
    """The tables that the feature module's views need to answer for ticks in [start, end).

    Rows that took longer than `features.outcome_hours` to become known are left out, however far back is read, so that
    training (which reads months at once) and the online refresh (which reads just enough) use the same ones.
    """
    module = load_module(params)
    limit = timedelta(hours=params.features.outcome_hours)
    back = start - timedelta(hours=module.horizon_hours) - limit
    tables = {}
    for table in sorted({source_table(view, params.problem.table) for view in module.views}):
        rows = read(table, back, end)
        in_time = pc.less_equal(pc.subtract(rows["known_at"], rows["event_time"]), pa.scalar(limit))
        tables[table] = rows.filter(pc.fill_null(in_time, True))
    return tables


def midnight(day: date) -> datetime:
    """The first moment of a data day."""
    return datetime.combine(day, clock.min)
