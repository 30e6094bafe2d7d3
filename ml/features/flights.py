"""The flights problem: will this flight arrive 15 or more minutes late? The only module that knows what a flight is."""

from __future__ import annotations

from ml.features import calendar
from ml.features.definitions import CALENDAR, Feature, FeatureModule, Latest, Recent, Row, Value

TIMEZONE = "America/New_York"
DAY = 24

WEATHER = Latest(
    "weather",
    "weather",
    ("origin",),
    ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    max_age_hours=6,
)
PLANE = Latest("plane", "planes", ("tailnum",), ("year", "seats"), max_age_hours=None)
AIRCRAFT_LAST = Latest("aircraft_last", "flights", ("tailnum",), ("arr_delay",), max_age_hours=2 * DAY)
ORIGIN = Recent("origin", ("origin",), "arr_delay", (2, 6, DAY))
CARRIER = Recent("carrier", ("carrier",), "arr_delay", (6, DAY))
ROUTE = Recent("route", ("origin", "dest"), "arr_delay", (DAY, 28 * DAY))
DESTINATION = Recent("dest", ("dest",), "arr_delay", (6,))
AIRCRAFT = Recent("aircraft", ("tailnum",), "arr_delay", (7 * DAY,))
FLIGHT_NUMBER = Recent("number", ("carrier", "flight"), "arr_delay", (28 * DAY,))

VIEWS = (WEATHER, PLANE, AIRCRAFT_LAST, ORIGIN, CARRIER, ROUTE, DESTINATION, AIRCRAFT, FLIGHT_NUMBER)

_UNITS = {"temp": "°F", "dewp": "°F", "humid": "%", "wind_dir": "°", "wind_speed": "mph", "wind_gust": "mph", "precip": "inch",
          "pressure": "hPa", "visib": "mile", "arr_delay": "minute", "age": "hour"}  # fmt: skip
_KINDS = {"count": "arrivals that became known", "rate": "share that was late", "mean": "mean arrival delay"}


def _history_features() -> tuple[Feature, ...]:
    described = []
    for view in VIEWS:
        if view is PLANE:
            continue  # enters as aircraft_age and seats
        for column in view.columns:
            if isinstance(view, Recent):
                _, kind, span = column.removeprefix(view.name).split("_")
                unit = {"count": "flights", "rate": "share", "mean": "minute"}[kind]
                described.append(Feature(column, f"same {' and '.join(view.entity)}, last {span}: {_KINDS[kind]}", unit=unit))
            else:
                value = column.removeprefix(f"{view.name}_")
                what = "hours since it became known" if value == "age" else value
                described.append(Feature(column, f"last known {view.name.replace('_', ' ')}: {what}", unit=_UNITS[value]))
    return tuple(described)


FEATURES = (
    CALENDAR["hour"],
    CALENDAR["weekday"],
    Feature("minute_of_day", "scheduled departure, local", unit="minute"),
    Feature("days_to_holiday", "days to the nearest US public holiday", unit="day, at most 7"),
    Feature("distance", "great-circle distance", unit="mile"),
    Feature("scheduled_minutes", "scheduled arrival less departure, both local", unit="minute"),
    Feature("aircraft_age", "year of the flight less year of manufacture", unit="year"),
    Feature("seats", "seats of the aircraft", unit="seats"),
    Feature("carrier", "operating carrier", "text"),
    Feature("origin", "airport of departure", "text"),
    Feature("dest", "airport of arrival", "text"),
    *_history_features(),
)


def request_features(row: Row, looked_up: Row) -> dict[str, Value]:
    """What is known of a flight without its history, from its raw columns, ``event_time`` and its aircraft."""
    there = calendar.to_local(row["event_time"], TIMEZONE)
    year = looked_up["plane_year"]
    departure, arrival = row["sched_dep_time"], row["sched_arr_time"]
    return {
        "hour": float(there.hour),
        "weekday": float(there.weekday()),
        "minute_of_day": float(there.hour * 60 + there.minute),
        "days_to_holiday": calendar.days_to_holiday(there.date(), "US"),
        "distance": row["distance"],
        "scheduled_minutes": None
        if departure is None or arrival is None
        else float((_minutes(arrival) - _minutes(departure)) % 1440),
        "aircraft_age": None if year is None else there.year - year,
        "seats": looked_up["plane_seats"],
        "carrier": row["carrier"],
        "origin": row["origin"],
        "dest": row["dest"],
    }


def _minutes(hhmm: int) -> int:
    return hhmm // 100 * 60 + hhmm % 100


MODULE = FeatureModule(VIEWS, FEATURES, request_features, reads=("plane_year", "plane_seats"))
