"""What histories are made of: versions of rows, from a restored snapshot and, for what is not landed yet, from the source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path

import pyarrow as pa

from ml.config import Params
from ml.data import rows

Reader = Callable[[str, datetime, datetime], pa.Table]
"""(table, start, end) → versions of the rows with event time in [start, end)."""
EVER = datetime(9999, 1, 1)
"""A history needs no `as_of`: what became known later changes it later."""


@dataclass(frozen=True)
class Inputs:
    """Where histories are read from, and how far what is landed is whole."""

    root: Path
    """A restored snapshot."""
    landed_until: datetime
    """Histories before this moment come from landed rows alone, and never change for this snapshot."""
    read: Reader


def landed(root: Path, last_day: date) -> Inputs:
    """A restored snapshot, and nothing else."""
    until = midnight(last_day) + timedelta(days=1)
    return Inputs(root, until, lambda table, start, end: rows.table_versions(root, table, start, end, EVER))


def landed_and_live(params: Params, root: Path, last_day: date, as_of: datetime) -> Inputs:
    """A restored snapshot, and the source itself for what was not landed yet or may since have got its outcomes.

    The source is read from `landing.lookback_days` - 1 days before the newest landed day on.
    """
    cut = midnight(last_day) - timedelta(days=max(params.landing.lookback_days - 1, 0))

    def read(table: str, start: datetime, end: datetime) -> pa.Table:
        if params.tables[table].event_time is None or end <= cut:
            return rows.table_versions(root, table, start, end, as_of)
        fresh = rows.live_rows(table, max(start, cut), end, as_of)
        return fresh if start >= cut else pa.concat_tables([rows.table_versions(root, table, start, cut, as_of), fresh])

    return Inputs(root, midnight(last_day) + timedelta(days=1), read)


def to_score(params: Params, root: Path, last_day: date, start: datetime, end: datetime, as_of: datetime) -> pa.Table:
    """Rows to predict with event time in [start, end): landed ones, and from the source what is not landed."""
    until, table = midnight(last_day) + timedelta(days=1), params.problem.table
    parts = [rows.problem_rows(root, start, min(end, until), as_of)] if start < until else []
    parts += [rows.live_rows(table, max(start, until), end, as_of)] if end > until else []
    return pa.concat_tables(parts)


def midnight(day: date) -> datetime:
    """The first moment of a data day."""
    return datetime.combine(day, clock.min)
