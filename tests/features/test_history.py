"""Features use what was known at the tick before prediction time, and nothing else."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.config import load_params
from ml.features import flights as module
from ml.features import offline, online
from ml.features.definitions import Latest, Recent, load_module
from ml.features.history import values_at
from tests.features.rows import FLIGHT, WEATHER, flights, planes, weather

AS_OF = datetime(2013, 5, 1)
DRAWN = st.lists(FLIGHT, min_size=5, max_size=25)
OBSERVED = st.lists(WEATHER, max_size=10)


def tables(rows: pa.Table, observed: pa.Table) -> dict[str, pa.Table]:
    return {"flights": rows, "weather": observed, "planes": planes()}


def compute(rows: pa.Table, history: pa.Table, observed: pa.Table, as_of: datetime = AS_OF) -> list[dict]:
    return offline.compute(load_params(), rows, tables(history, observed), as_of).to_pylist()


def same(a: object, b: object) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


@settings(max_examples=60, deadline=None)
@given(DRAWN, OBSERVED, st.data())
def test_features__do_not_move_when_the_unknown_changes(drawn: list[dict], observed: list[dict], data: st.DataObject) -> None:
    rows, seen = flights(drawn), weather(observed)
    at = data.draw(st.integers(0, len(drawn) - 1))
    before = compute(rows, rows, seen)[at]
    tick = before["tick"]
    changed, changed_weather = [], []
    for each, known_at in zip(drawn, rows["known_at"].to_pylist(), strict=True):
        if known_at is not None and known_at <= tick:
            changed.append(each)  # known: stays
        elif data.draw(st.booleans()):
            # Not known yet: another outcome, but never one that would have become known by the tick.
            event = datetime(2013, 4, 1) + timedelta(minutes=15 * each["event"])
            least = max(0, math.floor((tick - event) / timedelta(minutes=15)) + 1)
            other = data.draw(st.integers(-60, 300))
            changed.append(each | {"arr_delay": other, "taken": least + data.draw(st.integers(0, 8))})
    for each, known_at in zip(seen.to_pylist(), seen["known_at"].to_pylist(), strict=True):
        changed_weather.append(each if known_at <= tick else each | {"temp": -99.0})
    history = flights(changed) if changed else rows.slice(0, 0)
    after = compute(rows.slice(at, 1), history, pa.Table.from_pylist(changed_weather, schema=seen.schema))[0]
    moved = {name: (before[name], after[name]) for name in before if not same(before[name], after[name])}
    assert not moved


@settings(max_examples=60, deadline=None)
@given(DRAWN)
def test_recent__equals_brute_force(drawn: list[dict]) -> None:
    view = Recent("route", ("origin", "dest"), "arr_delay", (2, 24))
    rows = flights(drawn)
    points = rows.append_column("tick", offline.ticks(rows["prediction_time"], AS_OF, 60))
    found = values_at(view, points, rows).to_pylist()
    for point, values in zip(points.to_pylist(), found, strict=True):
        for hours in view.hours:
            window = [
                r
                for r in rows.to_pylist()
                if (r["origin"], r["dest"]) == (point["origin"], point["dest"])
                and r["known_at"] is not None
                and point["tick"] - timedelta(hours=hours) < r["known_at"] <= point["tick"]
            ]
            n = len(window)
            assert values[f"route_count_{hours}h"] == n
            assert values[f"route_rate_{hours}h"] == (sum(r["label"] for r in window) / n if n else None)
            assert values[f"route_mean_{hours}h"] == (sum(r["arr_delay"] for r in window) / n if n else None)


@settings(max_examples=60, deadline=None)
@given(DRAWN)
def test_latest__equals_brute_force(drawn: list[dict]) -> None:
    view = Latest("last", "flights", ("tailnum",), ("arr_delay",), max_age_hours=12)
    rows = flights(drawn)
    points = rows.append_column("tick", offline.ticks(rows["prediction_time"], AS_OF, 60))
    for point, values in zip(points.to_pylist(), values_at(view, points, rows).to_pylist(), strict=True):
        known = [
            r
            for r in rows.to_pylist()
            if r["tailnum"] is not None
            and r["tailnum"] == point["tailnum"]
            and r["known_at"] is not None
            and r["known_at"] <= point["tick"]
        ]
        newest = max(known, key=lambda r: (r["known_at"], r["event_time"], -r["arr_delay"]), default=None)
        fresh = newest is not None and point["tick"] - newest["known_at"] <= timedelta(hours=12)
        assert values["last_arr_delay"] == (newest["arr_delay"] if fresh else None)
        assert values["last_age"] == ((point["tick"] - newest["known_at"]).total_seconds() / 3600 if fresh else None)


@settings(max_examples=30, deadline=None)
@given(DRAWN, OBSERVED, st.randoms(use_true_random=False))
def test_features__do_not_depend_on_the_order_of_rows(drawn: list[dict], observed: list[dict], random: object) -> None:
    rows, seen = flights(drawn), weather(observed)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert compute(rows, rows, seen) == compute(rows, rows.take(pa.array(order)), seen)


@settings(max_examples=12, deadline=None)
@given(DRAWN, OBSERVED)
def test_online__is_equal_to_offline_to_the_last_bit(tmp_path_factory: object, drawn: list[dict], observed: list[dict]) -> None:
    params, rows, seen = load_params(), flights(drawn), weather(observed)
    expected = compute(rows, rows, seen)
    store = online.OnlineStore(tmp_path_factory.mktemp("online") / "online.db")  # type: ignore[attr-defined]
    assembler = online.Assembler(params)
    raw = [c for c, _ in params.tables["flights"].columns.items() if c not in params.tables["flights"].outcomes]
    for tick in sorted({row["tick"] for row in expected}):
        store.write(tick, online.snapshot_views(load_module(params), tables(rows, seen), "flights", tick))
        due = [i for i, row in enumerate(expected) if row["tick"] == tick]
        served = assembler.assemble(store, [{c: rows[c][i].as_py() for c in raw} for i in due])
        for i, features in zip(due, served.features, strict=True):
            assert {name: expected[i][name] for name in features} == features
        assert all(flags == [] for flags in served.flags)


def test_ticks__never_lie_after_as_of() -> None:
    times = pa.chunked_array([pa.array([datetime(2013, 4, 1, 9, 59), datetime(2013, 4, 1, 12, 0)], pa.timestamp("us"))])
    assert offline.ticks(times, datetime(2013, 4, 1, 10, 30), 60).to_pylist() == [
        datetime(2013, 4, 1, 9),
        datetime(2013, 4, 1, 10),
    ]


def test_flights_module__declares_what_it_computes() -> None:
    names = [f.name for f in module.MODULE.features]
    assert len(names) == len(set(names))
    columns = {c for view in module.VIEWS for c in view.columns}
    assert set(module.MODULE.reads) <= columns
    assert all(f.description for f in module.MODULE.features)


def test_outcome_columns__are_no_features() -> None:
    outcomes = set(load_params().tables["flights"].outcomes)
    assert not outcomes & {f.name for f in module.MODULE.features}


def test_history_features__have_values_on_ordinary_rows() -> None:
    one = {"carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "sched_dep_time": 900,
           "sched_arr_time": 1100, "event": 0, "taken": 8, "arr_delay": 20}  # fmt: skip
    rows = flights([one, one | {"event": 40, "arr_delay": None}])
    last = compute(rows, rows, weather([{"origin": "EWR", "event": 30, "temp": 50.0}]))[1]
    assert last["route_rate_24h"] == 1.0
    assert last["aircraft_last_arr_delay"] == 20.0
    assert last["weather_temp"] == 50.0
    assert last["aircraft_age"] == 2013 - 1999
    assert pc.is_valid(rows["label"]).to_pylist() == [True, False]
