"""Small random tables in the shape of the shipped problem, for the feature tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import pyarrow as pa
from hypothesis import strategies as st

from ml.config import Params
from ml.features import offline
from ml.features.definitions import load_module
from ml.features.history import values_at

START = datetime(2013, 4, 1)
MINUTE = timedelta(minutes=1)

ONE = {"carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "sched_dep_time": 900,
       "sched_arr_time": 1100, "event": 0, "taken": 4, "arr_delay": 20}  # fmt: skip
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
CORRECTION = st.fixed_dictionaries(
    {
        "after": st.integers(0, 60),  # quarters of an hour after the version before it; 0 is a tie
        "arr_delay": st.one_of(st.none(), st.integers(-60, 300)),
        "tailnum": st.sampled_from(["N1", "N2", None]),
    }
)
CORRECTED = st.tuples(FLIGHT, st.lists(CORRECTION, max_size=3), st.integers(1, 2))
"""A flight, its corrections in the order in which they arrive, and how many equal copies of each version there are."""
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


def versions(drawn: list[tuple[dict, list[dict], int]]) -> pa.Table:
    """Versions as `ml.data.rows.table_versions` gives them: each with its own known_at; a correction may take the outcome away."""
    rows = []
    for flight, corrections, copies in drawn:
        (first,) = flights([flight]).to_pylist()
        known, chain = first["known_at"], [first] if first["known_at"] is not None else []
        for each in corrections:
            known = (known or first["event_time"]) + 15 * MINUTE * each["after"]
            delay = each["arr_delay"]
            outcome = (
                {"arr_delay": None, "label": None} if delay is None else {"arr_delay": float(delay), "label": float(delay >= 15)}
            )
            chain.append(first | outcome | {"tailnum": each["tailnum"], "known_at": known})
        rows += chain * copies
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
    none = {"event_time": None, "known_at": None}
    rows = [{"tailnum": "N1", "year": 1999.0, "seats": 150} | none, {"tailnum": "N2", "year": None, "seats": 50} | none]
    return pa.Table.from_pylist(rows, schema=PLANE_SCHEMA)


STAMP = pa.timestamp("us")
PLANE_SCHEMA = pa.schema(
    [("tailnum", pa.string()), ("year", pa.float64()), ("seats", pa.int64()), ("event_time", STAMP), ("known_at", STAMP)]
)
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


def join(params: Params, histories: Mapping[str, pa.Table]) -> offline.Lookup:
    """Looks up in histories that are in memory, without Feast."""
    module = load_module(params)

    def lookup(points: pa.Table) -> pa.Table:
        found: dict[str, pa.ChunkedArray] = {}
        for view in module.views:
            values = values_at(view, points, "history", history=histories[view.name])
            found |= {c: values[c] for c in view.stored}
        return pa.table(found)

    return lookup
