"""Two times: what a landing brought late is invisible before it, and old answers stay. Random histories against brute force."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ml.data import landed
from ml.data.landed import raw_folder, read_rows
from ml.data.rows import table_versions
from ml.settings import settings as places
from tests.data.kinds import (
    DAY,
    EVER,
    FIRST,
    HOUR,
    TABLES,
    Row,
    answer,
    day_name,
    delivered,
    key_of,
    own_account,
    plain,
    publish_rows,
    rank,
)


@dataclass
class Memory:
    """Remembers what each landing of a day delivered, and what was answered after it."""

    table: str
    landings: dict[int, list[tuple[datetime, dict[tuple[Any, ...], Row]]]] = field(default_factory=dict)
    answers: dict[tuple[int, datetime], pa.Table] = field(default_factory=dict)

    def brings(self, day: int, rows: list[Row], as_of: datetime, ended: bool = True) -> None:
        """Of rows that share a key the first one counts; a key that is missing now stays as it was delivered last.

        Args:
            ended: else it was killed, and a retry may still change what is answered for moments after the landing before.
        """
        brought: dict[tuple[Any, ...], Row] = {}
        for row in sorted(rows, key=lambda row: rank(self.table, row)):
            brought.setdefault(key_of(self.table, row), row)
        self.landings.setdefault(day, []).append((as_of, brought))
        shown: dict[tuple[Any, ...], Row] = {}
        for _, one in self.landings[day]:
            shown |= one
        seen = answer(self.table, day, as_of)
        inside = [row for row in shown.values() if (row["moment"] - FIRST) // DAY == day]
        assert plain(self.table, seen) == plain(self.table, inside), "right after a landing one sees what it delivered"
        self.answers[day, as_of] = seen
        for earlier in [as_of - 3 * HOUR, as_of - 10 * HOUR] if ended else []:
            self.answers.setdefault((day, earlier), answer(self.table, day, earlier))

    def check(self) -> None:
        for (day, as_of), seen in self.answers.items():
            assert answer(self.table, day, as_of).equals(seen), f"the answer of {as_of} changed"
        for day in self.landings:
            self.check_versions(day)

    def check_versions(self, day: int) -> None:
        start, end = FIRST + day * DAY, FIRST + (day + 1) * DAY
        versions = table_versions(raw_folder(), self.table, start, end, EVER)
        assert len({(key_of(self.table, v), v["known_at"]) for v in versions.to_pylist()}) == len(versions)
        for version in versions.to_pylist():
            self.check_moment(day, version)
        for as_of in {moment for d, moment in self.answers if d == day}:
            known = table_versions(raw_folder(), self.table, start, end, as_of)
            assert known.equals(versions.filter(pa.array([v <= as_of for v in versions["known_at"].to_pylist()], pa.bool_())))
            self.check_same(known.to_pylist(), self.answers[day, as_of].to_pylist(), as_of)

    def check_moment(self, day: int, version: Row) -> None:
        """No version is known before a landing showed it, but where it says so itself and no landing had shown otherwise."""
        own, at = own_account(self.table, version), version["known_at"]
        taken_back = bool(TABLES[self.table]["outcomes"]) and (own is None or own > at)
        shown = []
        for as_of, brought in self.landings[day]:
            row = brought.get(key_of(self.table, version))
            if row is not None and plain(self.table, [row]) == plain(self.table, [version]):
                shown.append(as_of)
        assert shown, f"no landing delivered {version}"
        first = shown[0]
        before = max(
            (as_of for as_of, _ in self.landings[day] if as_of < first), default=None
        )  # of two as of one moment the last counts
        believed = at == own and (before is None or at > before)
        assert at >= first or believed, f"{version} leaks: it was landed at {first}"
        assert at <= max(first, own or first) or (
            len(self.landings[day]) > 1 and at <= max(self.landings[day][-1][0], own or first)
        )
        if taken_back:
            assert at >= first, "nobody can know before a landing that an outcome is taken back"

    def check_same(self, versions: list[Row], rows: list[Row], as_of: datetime) -> None:
        """The newest version of each key is the row, where the row is known."""
        newest = {key_of(self.table, v): v for v in sorted(versions, key=lambda v: v["known_at"])}
        for row in rows:
            version = newest.pop(key_of(self.table, row), None)
            if row["known_at"] is not None and row["known_at"] <= as_of:
                assert version == row
            elif TABLES[self.table]["known_at"]:
                assert version is None or all(version[c] is None for c in TABLES[self.table]["outcomes"])
        assert not newest


small = st.integers(0, 2)
rows_of = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["put", "put", "put", "copy", "drop"]),
        "id": st.sampled_from(["a", "b", None]),
        "hour": st.sampled_from([3, 13, 14, 30]),
        "price": small,
        "late": st.one_of(st.none(), small),
        "after": st.one_of(st.none(), st.integers(0, 40)),
    }
)
steps_of = st.lists(
    st.fixed_dictionaries(
        {
            "edits": st.lists(rows_of, min_size=1, max_size=4),
            "forward": st.sampled_from([0, 1, 5, 12, 24]),
            "back": st.sampled_from([0, 0, 0, 0, 4]),
            "days": st.sampled_from([[0, 1], [0, 1], [0], [1]]),
            "kill": st.sampled_from(["no", "no", "no", "before", "after"]),
            "retry": st.booleans(),
        }
    ),
    min_size=2,
    max_size=7,
)


def edit(table: str, rows: list[Row], change: Row) -> list[Row]:
    """A correction, a new row, one withdrawn, or a second row of the same key."""
    moment = FIRST + change["hour"] * HOUR
    made = {
        "id": change["id"],
        "moment": moment,
        "price": change["price"],
        "late": change["late"],
        "resolved": None if change["after"] is None else moment + change["after"] * HOUR,
    }
    others = [row for row in rows if key_of(table, row) != key_of(table, made)]
    return {"put": [*others, made], "copy": [*rows, made], "drop": others}[change["op"]]


class Killed(BaseException):
    """What nothing catches."""


def killed(table: str, days: dict[int, list[Row]], as_of: datetime, when: str) -> list[int]:
    """A landing that ends after it has noted that it begins, ``before`` or ``after`` it put its files in place; the days it brought."""
    found: dict[str, str] = {}
    real = landed._publish_one

    def one(name: str, day: str, *rest: Any) -> Any:
        if when == "before":
            raise Killed
        outcome = real(name, day, *rest)
        found[day] = outcome[0]
        if len(found) == len(days):
            raise Killed
        return outcome

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(landed, "_publish_one", one)
        publish_rows(table, days, as_of)
    return [day for day in days if found.get(day_name(day), "stale") != "stale"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=st.sampled_from(sorted(TABLES)), steps=steps_of)
def test_old_answers__stay_whatever_the_source_does(tables: Path, table: str, steps: list[Row]) -> None:
    shutil.rmtree(places().data, ignore_errors=True)
    memory, rows, clock = Memory(table), list[Row](), FIRST + 12 * HOUR
    for step in steps:
        for change in step["edits"]:
            rows = edit(table, rows, change)
        clock += step["forward"] * HOUR
        as_of = clock - step["back"] * HOUR
        days = {day: found for day, found in delivered(table, rows, as_of).items() if day in step["days"]}
        if step["kill"] != "no":
            event("killed")
            for day in killed(table, days, as_of, step["kill"]):
                memory.brings(day, days[day], as_of, ended=False)
            if not step["retry"]:
                continue
        for day, outcome in publish_rows(table, days, as_of).items():
            event(outcome)
            if outcome != "stale":
                memory.brings(day, days[day], as_of)
            else:
                memory.answers.setdefault((day, as_of), answer(table, day, as_of))
    memory.check()
    recorded = [path for path in (raw_folder() / table).glob("*") if "recorded_at" in read_rows(path).column_names]
    event(f"files with versions: {len(recorded)}")
    assert not list(raw_folder().rglob(".*")), "nothing half-made"
