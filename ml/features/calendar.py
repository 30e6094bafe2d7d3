"""Calendar features of a moment, in local time."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import holidays


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def to_local(moment: datetime, timezone: str) -> datetime:
    """`moment` is UTC without a zone.

    >>> to_local(datetime(2013, 7, 4, 13, 30), "America/New_York").hour
    9
    """
    return moment.replace(tzinfo=UTC).astimezone(_zone(timezone))


def local(moment: datetime, timezone: str) -> dict[str, float]:
    """Hour 0–23 and weekday 0 (Monday) – 6 in local time.

    >>> local(datetime(2013, 7, 4, 13, 30), "America/New_York")
    {'hour': 9.0, 'weekday': 3.0}
    """
    there = to_local(moment, timezone)
    return {"hour": float(there.hour), "weekday": float(there.weekday())}


@cache
def days_to_holiday(day: date, country: str, cap: int = 7) -> float:
    """Days to the nearest public holiday, before or after; at most `cap`.

    >>> days_to_holiday(date(2013, 11, 27), "US")
    1.0
    """
    known = _holidays(country, day.year)
    return float(min((abs(k) for k in range(-cap, cap + 1) if day + timedelta(days=k) in known), default=cap))


@cache
def _holidays(country: str, year: int) -> holidays.HolidayBase:
    return holidays.country_holidays(country, years=[year - 1, year, year + 1])
