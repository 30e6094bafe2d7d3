"""Features use what was known at the tick before prediction time, and nothing else."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.config import load_params
from ml.features import flights as module
from ml.features import history, offline
from ml.features.assembly import Assembler
from ml.features.definitions import Entity, Latest, Recent, View, load_module, source_table
from ml.features.online import SQLiteStore
from tests.features import oracle
from tests.features.rows import CORRECTED, FLIGHT, ONE, START, WEATHER, flights, join, planes, versions, weather

PARAMS = load_params()
AS_OF = datetime(2013, 5, 1)
BEGIN, END = START - timedelta(days=30), AS_OF
DRAWN = st.lists(FLIGHT, min_size=5, max_size=25)
CHANGING = st.lists(CORRECTED, min_size=3, max_size=12)
OBSERVED = st.lists(WEATHER, max_size=10)

AIRCRAFT = Entity("aircraft", ("tailnum",), "")
VIEWS: tuple[View, ...] = (
    Recent("route", Entity("route", ("origin", "dest"), ""), "arr_delay", (2, 24), "", ""),
    Recent("craft", AIRCRAFT, "arr_delay", (1, 6), "", ""),
    Latest("last", "flights", AIRCRAFT, ("arr_delay", "distance"), 6, "", ""),
)


def histories(tables: dict[str, pa.Table], begin: datetime = BEGIN, end: datetime = END) -> dict[str, pa.Table]:
    return {
        view.name: history.changes(PARAMS, view, tables[source_table(view, "flights")], begin, end)
        for view in load_module(PARAMS).views
    }


def compute(rows: pa.Table, known: pa.Table, observed: pa.Table, as_of: datetime = AS_OF) -> list[dict]:
    found = histories({"flights": known, "weather": observed, "planes": planes()})
    return offline.compute(PARAMS, rows, join(PARAMS, found), as_of).to_pylist()


@settings(max_examples=200, deadline=None)
@given(CHANGING, st.lists(st.integers(-20, 60), min_size=3, max_size=8), st.sampled_from(VIEWS))
def test_history__equals_brute_force_over_corrections_copies_ties_and_late_arrivals(
    drawn: list, hours: list[int], view: View
) -> None:
    known = versions(drawn)
    changed = history.changes(PARAMS, view, known, BEGIN, END)
    entities = [("EWR", "BOS"), ("JFK", "LAX"), ("EWR", "LAX")] if view.entity.name == "route" else [("N1",), ("N2",)]
    points = [(entity, START + timedelta(hours=h)) for entity in entities for h in hours]
    table = pa.table(
        {view.entity.name: ["|".join(e) for e, _ in points], "tick": pa.array([t for _, t in points], pa.timestamp("us"))}
    )
    stored = history.values_at(view, table, "changed", changed=changed).to_pylist()
    for (entity, tick), row in zip(points, stored, strict=True):
        assert derived(view, row, tick) == oracle.known_values(PARAMS, view, known.to_pylist(), entity, tick), (entity, tick)


def derived(view: View, stored: dict, tick: datetime) -> dict:
    """Model-facing columns from stored ones, by the shared code."""
    import numpy as np

    from ml.features.assembly import _known
    from ml.features.definitions import FeatureModule

    only = FeatureModule((view,), (), lambda row, known: {})
    arrays = np.array([[stored[c]] for c in view.stored], float)
    known = dict(zip(view.columns, _known(only, arrays, np.array([tick], "datetime64[us]")), strict=True))
    return {c: None if known[c][0] != known[c][0] else known[c][0] for c in view.columns}


@settings(max_examples=60, deadline=None)
@given(CHANGING, st.sampled_from(VIEWS), st.lists(st.integers(0, 72), max_size=4))
def test_history__of_parts_is_that_of_the_whole(drawn: list, view: View, cuts: list[int]) -> None:
    known = versions(drawn)
    moments = [BEGIN, *sorted(START + timedelta(hours=h) for h in cuts), END]
    parts = [history.changes(PARAMS, view, known, a, b) for a, b in itertools.pairwise(moments)]
    assert pa.concat_tables(parts).equals(history.changes(PARAMS, view, known, BEGIN, END))


@settings(max_examples=60, deadline=None)
@given(CHANGING, st.sampled_from(VIEWS), st.integers(0, 72))
def test_history__of_one_horizon_is_enough_for_a_tick(drawn: list, view: View, hours: int) -> None:
    known, tick = versions(drawn), START + timedelta(hours=hours)
    whole = history.changes(PARAMS, view, known, BEGIN, END)
    short = history.changes(PARAMS, view, known, tick - timedelta(hours=view.horizon_hours), END)
    values = [history.last_values(view, changed, tick) for changed in (whole, short)]
    if isinstance(view, Latest):  # what is older than the horizon is dropped when it is read
        values = [{key: derived(view, row, tick) for key, row in found.items()} for found in values]
        values = [{key: row for key, row in found.items() if row["last_age"] is not None} for found in values]
    assert values[0] == values[1]


def test_recent__a_moment_at_which_changes_cancel_out_is_kept() -> None:
    first = ONE | {"event": 0, "taken": 0, "arr_delay": 20}
    known = versions([(first, [], 1), (first | {"flight": 2, "event": 8}, [], 1)])  # one enters as the other leaves, equal in all
    changed = history.changes(PARAMS, Recent("craft", AIRCRAFT, "arr_delay", (2,), "", ""), known, BEGIN, END)
    assert [(m - START, n) for m, n in zip(changed["moment"].to_pylist(), changed["craft_count_2h"].to_pylist(), strict=True)] == [
        (timedelta(hours=0), 1.0), (timedelta(hours=2), 1.0), (timedelta(hours=4), 0.0)]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(CHANGING, st.sampled_from(VIEWS), st.integers(0, 72))
def test_history__does_not_move_when_more_becomes_known(drawn: list, view: View, hours: int) -> None:
    known, until = versions(drawn), START + timedelta(hours=hours)
    then = known.filter(pc.less(known["known_at"], pa.scalar(until, pa.timestamp("us"))))
    before = history.changes(PARAMS, view, then, BEGIN, until)
    assert before.equals(history.changes(PARAMS, view, known, BEGIN, until))


@settings(max_examples=60, deadline=None)
@given(DRAWN, OBSERVED, st.data())
def test_features__do_not_move_when_the_unknown_changes(drawn: list[dict], observed: list[dict], data: st.DataObject) -> None:
    rows, seen = flights(drawn), weather(observed)
    at = data.draw(st.integers(0, len(drawn) - 1))
    before = compute(rows, rows, seen)[at]
    tick = before["tick"]
    changed = []
    for each, known_at in zip(drawn, rows["known_at"].to_pylist(), strict=True):
        if known_at is not None and known_at <= tick:
            changed.append(each)  # known: stays
        elif data.draw(st.booleans()):
            # Not known yet: another outcome, but never one that would have become known by the tick.
            event = START + timedelta(minutes=15 * each["event"])
            least = max(0, (tick - event) // timedelta(minutes=15) + 1)
            changed.append(each | {"arr_delay": data.draw(st.integers(-60, 300)), "taken": least + data.draw(st.integers(0, 8))})
    other = [each if each["known_at"] <= tick else each | {"temp": -99.0} for each in seen.to_pylist()]
    known = flights(changed) if changed else rows.slice(0, 0)
    after = compute(rows.slice(at, 1), known, pa.Table.from_pylist(other, schema=seen.schema))[0]
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}


@settings(max_examples=30, deadline=None)
@given(CHANGING, OBSERVED, st.randoms(use_true_random=False))
def test_features__do_not_depend_on_the_order_of_rows(drawn: list, observed: list[dict], random: object) -> None:
    known, seen = versions(drawn), weather(observed)
    rows = flights([flight for flight, _, _ in drawn])
    order = list(range(len(known)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert compute(rows, known, seen) == compute(rows, known.take(pa.array(order, pa.int64())), seen)


@settings(max_examples=12, deadline=None)
@given(CHANGING, OBSERVED)
def test_online__is_equal_to_offline_to_the_last_bit(tmp_path_factory: object, drawn: list, observed: list[dict]) -> None:
    rows = flights([flight for flight, _, _ in drawn])
    tables = {"flights": versions(drawn), "weather": weather(observed), "planes": planes()}
    expected = compute(rows, tables["flights"], tables["weather"])
    store = SQLiteStore(Path(tmp_path_factory.mktemp("online")) / "online.db")  # type: ignore[attr-defined]
    assembler, found = Assembler(PARAMS), histories(tables)
    raw = [c for c in PARAMS.tables["flights"].columns if c not in PARAMS.tables["flights"].outcomes]
    for tick in sorted({row["tick"] for row in expected}):
        store.write(tick, {v.name: history.last_values(v, found[v.name], tick) for v in load_module(PARAMS).views})
        due = [i for i, row in enumerate(expected) if row["tick"] == tick]
        served = assembler.assemble(store, [{c: rows[c][i].as_py() for c in raw} for i in due])
        for i, features in zip(due, served.features, strict=True):
            assert {name: expected[i][name] for name in features} == features
        assert all(flags == [] for flags in served.flags)


def test_static_table__is_known_from_its_oldest_file_on_and_changes_with_later_ones() -> None:
    view = Latest("plane", "planes", AIRCRAFT, ("seats",), None, "", "")
    later = datetime(2013, 4, 2)
    rows = [
        {"tailnum": "N1", "seats": 150, "known_at": None},
        {"tailnum": "N2", "seats": 50, "known_at": None},
        {"tailnum": "N1", "seats": 160, "known_at": later},
    ]
    changed = history.changes(PARAMS, view, pa.Table.from_pylist(rows, schema=planes().schema), later, later)
    before, after = later - timedelta(hours=1), later
    points = pa.table({"aircraft": ["N1", "N2"] * 2, "tick": pa.array([before, before, after, after], pa.timestamp("us"))})
    assert history.values_at(view, points, "changed", changed=changed)["plane_seats"].to_pylist() == [150.0, 50.0, 160.0, None]


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
    outcomes = set(PARAMS.tables["flights"].outcomes)
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
