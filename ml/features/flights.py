"""The flights problem: will this flight arrive 15 or more minutes late? The only module that knows what a flight is."""

from __future__ import annotations

import numpy as np

from ml.features import calendar
from ml.features.definitions import CALENDAR, Columns, Entity, Feature, FeatureModule, Latest, Recent

TIMEZONE = "America/New_York"
DAY = 24
TEAM = "data-team"

ORIGIN = Entity("origin", ("origin",), "airport of departure")
DESTINATION = Entity("destination", ("dest",), "airport of arrival")
CARRIER = Entity("carrier", ("carrier",), "operating carrier")
ROUTE = Entity("route", ("origin", "dest"), "airports of departure and arrival")
AIRCRAFT = Entity("aircraft", ("tailnum",), "one aircraft, by its registration")
FLIGHT_NUMBER = Entity("flight_number", ("carrier", "flight"), "a carrier's flight number: the same trip, day after day")

WEATHER_VALUES = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")

VIEWS = (
    Latest("weather", "weather", ORIGIN, WEATHER_VALUES, 6, "last hourly observation at the airport", TEAM, lag_hours=6),
    Latest("plane", "planes", AIRCRAFT, ("year", "seats"), None, "register of aircraft", TEAM, lag_hours=7 * DAY),
    Latest("aircraft_last", "flights", AIRCRAFT, ("arr_delay",), 2 * DAY, "last flight of the same aircraft", TEAM),
    Recent("origin", ORIGIN, "arr_delay", (2, 6, DAY), "how flights from here have fared", TEAM),
    Recent("carrier", CARRIER, "arr_delay", (6, DAY), "how the carrier has fared", TEAM),
    Recent("route", ROUTE, "arr_delay", (DAY, 28 * DAY), "how the route has fared", TEAM, lag_hours=2 * DAY),
    Recent("dest", DESTINATION, "arr_delay", (6,), "how flights to there have fared", TEAM),
    Recent("aircraft", AIRCRAFT, "arr_delay", (7 * DAY,), "how the aircraft has fared", TEAM, lag_hours=2 * DAY),
    Recent("number", FLIGHT_NUMBER, "arr_delay", (28 * DAY,), "how the flight number has fared", TEAM, lag_hours=2 * DAY),
)

_UNITS = {"temp": "°F", "dewp": "°F", "humid": "%", "wind_dir": "°", "wind_speed": "mph", "wind_gust": "mph", "precip": "inch",
          "pressure": "hPa", "visib": "mile", "arr_delay": "minute", "age": "hour"}  # fmt: skip
_KINDS = {"count": "arrivals that became known", "rate": "share that was late", "mean": "mean arrival delay"}


def _history_features() -> tuple[Feature, ...]:
    described = []
    for view in VIEWS:
        if view.name == "plane":
            continue  # enters as aircraft_age and seats
        for column in view.columns:
            if isinstance(view, Recent):
                _, kind, span = column.removeprefix(view.name).split("_")
                unit = {"count": "flights", "rate": "share", "mean": "minute"}[kind]
                same = view.entity.name.replace("_", " ")
                described.append(Feature(column, f"same {same}, last {span}: {_KINDS[kind]}", unit=unit))
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


def request_features(row: Columns, known: Columns) -> Columns:
    """What is known of flights without their history, from their raw columns, ``event_time`` and their aircraft."""
    there = calendar.to_local(row["event_time"], TIMEZONE)
    minutes = (there - there.astype("datetime64[D]")) // np.timedelta64(1, "m")
    years = there.astype("datetime64[Y]").astype(np.int64) + 1970
    return calendar.hour_and_weekday(there) | {
        "minute_of_day": minutes.astype(float),
        "days_to_holiday": calendar.days_to_holiday(there, "US"),
        "distance": row["distance"],
        "scheduled_minutes": (_minutes(row["sched_arr_time"]) - _minutes(row["sched_dep_time"])) % 1440,
        "aircraft_age": years - known["plane_year"],
        "seats": known["plane_seats"],
        "carrier": row["carrier"],
        "origin": row["origin"],
        "dest": row["dest"],
    }


def _minutes(hhmm: np.ndarray) -> np.ndarray:
    return hhmm // 100 * 60 + hhmm % 100


MODULE = FeatureModule(VIEWS, FEATURES, request_features, reads=("plane_year", "plane_seats"))
