"""Small random tables in the shape of the shipped problem, for the feature tests."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
from hypothesis import strategies as st

START = datetime(2013, 4, 1)
MINUTE = timedelta(minutes=1)

FLIGHT = st.fixed_dictionaries(
    {
        "carrier": st.sampled_from(["UA", "B6"]),
        "flight": st.sampled_from([1, 2]),
        "origin": st.sampled_from(["EWR", "JFK"]),
        "dest": st.sampled_from(["BOS", "LAX"]),
        "tailnum": st.sampled_from(["N1", "N2", None]),
        "distance": st.just(200.0),
        "sched_dep_time": st.just(900),
        "sched_arr_time": st.just(1100),
        "event": st.integers(0, 40),  # quarters of an hour after START: few, so that ties and near misses are common
        "taken": st.integers(0, 16),  # quarters of an hour until the outcome is known
        "arr_delay": st.one_of(st.none(), st.integers(-60, 300)),
    }
)
WEATHER = st.fixed_dictionaries(
    {
        "origin": st.sampled_from(["EWR", "JFK"]),
        "event": st.integers(0, 4 * 24 * 4),
        "temp": st.one_of(st.none(), st.floats(0, 100)),
    }
)


def flights(drawn: list[dict]) -> pa.Table:
    """Problem rows as `ml.data.rows.problem_rows` gives them; a row without arr_delay has no known outcome."""
    rows = []
    for i, each in enumerate(drawn):
        row = {k: v for k, v in each.items() if k not in ("event", "taken")}
        event = START + 15 * MINUTE * each["event"]
        known = row["arr_delay"] is not None
        row |= {
            "time_hour": event,
            "hour": event.hour,
            "minute": 0,
            "dep_time": None,
            "dep_delay": None,
            "arr_time": None,
            "air_time": None,
            "arr_delay": float(row["arr_delay"]) if known else None,
            "entity_id": f"flight-{i}",
            "event_time": event,
            "prediction_time": event - timedelta(hours=2),
            "known_at": event + 15 * MINUTE * each["taken"] if known else None,
            "label": float(row["arr_delay"] >= 15) if known else None,
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=FLIGHT_SCHEMA)


def weather(drawn: list[dict]) -> pa.Table:
    """One observation per origin and moment."""
    seen = {(w["origin"], w["event"]): w for w in drawn}
    rows = []
    for each in seen.values():
        at = START + 15 * MINUTE * each["event"]
        row = dict.fromkeys(WEATHER_SCHEMA.names)
        rows.append(row | {"origin": each["origin"], "temp": each["temp"], "time_hour": at, "event_time": at, "known_at": at})
    return pa.Table.from_pylist(rows, schema=WEATHER_SCHEMA)


def planes() -> pa.Table:
    rows = [{"tailnum": "N1", "year": 1999.0, "seats": 150}, {"tailnum": "N2", "year": None, "seats": 50}]
    return pa.Table.from_pylist(rows, schema=pa.schema([("tailnum", pa.string()), ("year", pa.float64()), ("seats", pa.int64())]))


STAMP = pa.timestamp("us")
FLIGHT_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("carrier", "origin", "dest", "tailnum", "entity_id")]
    + [(n, pa.int64()) for n in ("flight", "hour", "minute", "sched_dep_time", "sched_arr_time")]
    + [(n, pa.float64()) for n in ("distance", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "label")]
    + [(n, STAMP) for n in ("time_hour", "event_time", "prediction_time", "known_at")]
)
WEATHER_SCHEMA = pa.schema(
    [("origin", pa.string())]
    + [(n, pa.float64()) for n in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")]
    + [(n, STAMP) for n in ("time_hour", "event_time", "known_at")]
)
