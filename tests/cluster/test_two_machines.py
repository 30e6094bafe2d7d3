"""Steps on two machines that share PostgreSQL, Redis and an object store, and no folder: references travel, and a step that both
run at the same time has one effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from ml import steps
from ops.cluster_loop import digest, faults, state
from tests.cluster.conftest import Machine, stores

pytestmark = pytest.mark.e2e
MEASURED = {"seconds", "cpu_seconds", "report", "bento_archive"}
TIMED = {"latency", "latency_ratio", "boots"}
"""What a step says of itself and not of its outcome: times, documents and archives that hold times, checks that measure them."""
Run = Callable[..., Any]


def chain(run: Run) -> set[str]:
    """Every step, with what the ones before it returned; returns which were called."""
    called: set[str] = set()

    def do(step: str, **arguments: Any) -> Any:
        called.add(step)
        return run(step, **arguments)

    def night(start: str, end: str) -> None:
        landing = do("land", window={"start": start, "end": end}, as_of=f"{end}T02:00:00", beside_others=False)
        checked = do("validate", landing=landing)
        do("snapshot", as_of=f"{end}T02:00:00")
        do("data_docs", validation=checked)

    def candidate(as_of: str, key: str) -> Any:
        plan = do("plan", as_of=as_of, reason="a test", trigger="manual", run_key=key)
        do("pull", snapshot=plan["snapshot"])
        do("validate_training", plan=plan)
        table = do("features", plan=plan)
        do("tune", plan=plan, features=table, worker=0, workers=1)
        model = do("fit", plan=plan, features=table)
        verdict = do("evaluate", plan=plan, features=table, model=model)
        shipped = do("refit", plan=plan, features=table, evaluation=verdict)
        bundle = do("package", plan=plan, features=table, shipped=shipped)
        return do("register", plan=plan, features=table, evaluation=verdict, shipped=shipped, bundle=bundle)

    night("2013-01-01", "2013-02-01")
    do("prepare_days", window={"start": "2013-01-31", "end": "2013-02-01"}, as_of="2013-02-01T02:00:00")
    first = candidate("2013-02-01T03:00:00", "first") | {"verdict": "promote"}
    do("smoke", version=first)
    do("promote", version=first, as_of="2013-02-01T04:00:00", said="", by="")
    do("materialise", as_of="2013-02-01T06:00:00")
    do("score", window={"start": "2013-02-01", "end": "2013-02-02"}, as_of="2013-02-01T04:00:00")
    night("2013-02-01", "2013-02-02")
    watched = do("monitor", window_end="2013-02-02", as_of="2013-02-02T05:00:00")
    do("decide", monitor=watched, trigger="schedule")
    do("report", week_end="2013-02-03", as_of="2013-02-03T06:00:00")
    second = candidate("2013-02-02T03:00:00", "second") | {"verdict": "promote"}
    do("canary", version=second, as_of="2013-02-02T04:00:00", skip="a test of two machines", said="", by="")
    do("promote", version=second, as_of="2013-02-02T04:00:00", said="", by="")
    do("rollback", to=None, by="test", reason="a test of two machines")
    return called


def leaves(outcome: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a step's outcome by where they are, without what it says of itself."""
    if isinstance(outcome, dict | list):
        for key, value in outcome.items() if isinstance(outcome, dict) else enumerate(outcome):
            if key not in MEASURED and not (isinstance(value, dict) and value.get("name") in TIMED):
                yield from leaves(value, f"{name}.{key}")
    else:  # `pull` and `data_docs` say where on their machine the copy is that they made
        yield name, outcome.replace("/worker-b/", "/worker-a/") if isinstance(outcome, str) else outcome


def test_steps__in_turns_on_two_machines_and_twice_at_the_same_time__end_in_one_state(tmp_path: Path) -> None:
    public = {
        name for name, found in vars(steps).items() if callable(found) and getattr(found, "__module__", "") == steps.__name__
    }
    public = {name for name in public if not name.startswith("_")}
    ends: list[dict[str, Any]] = []
    wrong: list[Any] = []
    for way in ("in turns", "at the same time"):
        with stores(tmp_path / way.replace(" ", "-")) as place:
            machines = [Machine(place, "worker-a"), Machine(place, "worker-b")]
            calls: list[str] = []

            def in_turns(step: str, machines: list[Machine] = machines, calls: list[str] = calls, **arguments: Any) -> Any:
                calls.append(step)
                return machines[len(calls) % 2].run(step, **arguments)

            def at_once(step: str, machines: list[Machine] = machines, **arguments: Any) -> Any:
                for machine in machines:
                    machine.ask(step, **arguments)
                answers = [machine.answer() for machine in machines]
                done = [answer["outcome"] for answer in answers if "outcome" in answer]
                refused = [answer["error"] for answer in answers if "error" in answer]
                assert done, f"{step}: {refused}"
                # the loser of a race may be told so, and be tried again, as Airflow does
                done += [machines[0].run(step, **arguments) for _ in refused]
                pairs = (
                    zip_longest(leaves(done[0]), leaves(done[1])) if step != "tune" else ()
                )  # which says how many trials it did itself
                wrong.extend((step, one, other) for one, other in pairs if one != other)
                return done[0]

            try:
                called = chain(in_turns if way == "in turns" else at_once)
                assert called == public - {"skew"}, "skew needs a service's answers: tests/cluster/test_loop.py"
                ends.append(state(place))
                assert faults(place) == {"duplicate registrations": [], "double promotions": [], "half-written partitions": []}
            finally:
                for machine in machines:
                    machine.close()
    assert ends[0]["champion"] and ends[0]["landed"] and ends[0]["scored"]
    assert {name: digest(ends[1][name]) for name in ends[1]} == {name: digest(ends[0][name]) for name in ends[0]}
    assert not wrong
