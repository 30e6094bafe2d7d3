"""What features read: the same rows, however far back is read."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa

from ml.config import load_params
from ml.features import inputs
from tests.features.rows import START, flights, planes, weather

FLIGHT = {"carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "sched_dep_time": 900,
          "sched_arr_time": 1100, "event": 0, "taken": 4, "arr_delay": 20}  # fmt: skip
LIMIT = timedelta(hours=load_params().features.outcome_hours)


def read(table: str, start: datetime, end: datetime) -> pa.Table:
    quarters = LIMIT // timedelta(minutes=15)
    taken = [4, quarters, quarters + 1]
    rows = flights([FLIGHT | {"taken": t} for t in taken] + [FLIGHT | {"arr_delay": None}])
    static = (
        planes()
        .append_column("event_time", pa.nulls(2, pa.timestamp("us")))
        .append_column("known_at", pa.nulls(2, pa.timestamp("us")))
    )
    return {"flights": rows, "weather": weather([{"origin": "EWR", "event": 0, "temp": 1.0}]), "planes": static}[table]


def test_history__leaves_out_what_took_too_long_to_become_known() -> None:
    tables = inputs.history(load_params(), START, START + timedelta(days=3), read)
    took = [None if known is None else known - START for known in tables["flights"]["known_at"].to_pylist()]
    assert took == [timedelta(hours=1), LIMIT, None]


def test_history__keeps_tables_without_time() -> None:
    assert len(inputs.history(load_params(), START, START + timedelta(days=3), read)["planes"]) == 2


def test_history__reads_far_enough_back_for_the_longest_window() -> None:
    asked = {}

    def noted(table: str, start: datetime, end: datetime) -> pa.Table:
        asked[table] = start
        return read(table, start, end)

    inputs.history(load_params(), START, START, noted)
    assert asked["flights"] == START - timedelta(days=28) - LIMIT
