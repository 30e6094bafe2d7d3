"""Calendar features of many moments at once, in local time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import holidays
import numpy as np

QUARTER = np.timedelta64(15 * 60 * 1_000_000, "us")  # no zone changes its offset in between
FEW = 64
"""Values for which finding the distinct ones costs more than asking for each."""


def to_local(moments: np.ndarray, timezone: str) -> np.ndarray:
    """Wall-clock time, datetime64[us], of moments in UTC without a zone; shape (n,).

    >>> to_local(np.array(["2013-07-04T13:30"], "datetime64[us]"), "America/New_York").astype(str).tolist()
    ['2013-07-04T09:30:00.000000']
    """
    moments = moments.astype("datetime64[us]")
    quarters = moments.astype(np.int64) // QUARTER.astype(np.int64)
    seconds = _of_distinct(quarters, lambda quarter: _offset(quarter, timezone))
    return moments + (seconds * 1_000_000).astype("timedelta64[us]")


def local(moments: np.ndarray, timezone: str) -> dict[str, np.ndarray]:
    """Hour 0–23 and weekday 0 (Monday) – 6 in local time, float64 of shape (n,).

    >>> local(np.array(["2013-07-04T13:30"], "datetime64[us]"), "America/New_York")
    {'hour': array([9.]), 'weekday': array([3.])}
    """
    return hour_and_weekday(to_local(moments, timezone))


def hour_and_weekday(there: np.ndarray) -> dict[str, np.ndarray]:
    """The same of moments that are local time already."""
    days = there.astype("datetime64[D]")
    hours = (there - days) // np.timedelta64(1, "h")
    return {"hour": hours.astype(float), "weekday": ((days.astype(np.int64) + 3) % 7).astype(float)}  # 1970 began on a Thursday


def days_to_holiday(moments: np.ndarray, country: str, cap: int = 7) -> np.ndarray:
    """Days from the date of each moment to the nearest public holiday, before or after; at most `cap`; float64 of shape (n,).

    >>> days_to_holiday(np.array(["2013-11-27T09:00"], "datetime64[us]"), "US")
    array([1.])
    """
    days = moments.astype("datetime64[D]")
    return _of_distinct(days, lambda day: _nearest_holiday(day, country, cap)).astype(float)


def _of_distinct(values: np.ndarray, function: Callable[[Any], int]) -> np.ndarray:
    """`function`, which remembers its answers, of each value as a Python object; called once for equal ones of many."""
    if len(values) <= FEW:
        return np.array([function(value) for value in values.tolist()], dtype=np.int64)
    distinct, where = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in distinct.tolist()], dtype=np.int64)[where]


@cache
def _offset(quarter: int, timezone: str) -> int:
    moment = datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(timezone))
    return int((moment.utcoffset() or timedelta(0)).total_seconds())


@cache
def _nearest_holiday(day: date, country: str, cap: int) -> int:
    known = _holidays(country, day.year)
    return min((abs(k) for k in range(-cap, cap + 1) if day + timedelta(days=k) in known), default=cap)


@cache
def _holidays(country: str, year: int) -> holidays.HolidayBase:
    return holidays.country_holidays(country, years=[year - 1, year, year + 1])
