"""When and why a run exists: scheduled, by hand, by REST, by an asset event, or in a backfill."""

from __future__ import annotations

from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from dags.common import Occasion, call, check_asked, curable, occasion, say, step
from ml import steps
from ml.errors import ConfigError, DataQualityError, EvergreenError, NothingToDo, SnapshotError, SourceError, StaleWriteError
from ml.refs import Window

NIGHT = (datetime(2013, 4, 4, 2, tzinfo=UTC), datetime(2013, 4, 5, 2, tzinfo=UTC))


def _occasion(
    run_type: str,
    interval: tuple[datetime, datetime] | None = None,
    extras: tuple[dict[str, Any], ...] = (),
    hour: int = 2,
    **params: Any,
) -> Occasion:
    start, end = interval or (None, None)
    run = SimpleNamespace(
        dag_id="d",
        run_id="r",
        run_type=run_type,
        data_interval_start=start,
        data_interval_end=end,
        run_after=datetime(2013, 6, 1, tzinfo=UTC),
    )
    events = {"asset": [SimpleNamespace(extra=extra) for extra in extras]}
    return occasion(hour, {"dag_run": run, "params": params, "triggering_asset_events": events})


def test_occasion__scheduled() -> None:
    when = _occasion("scheduled", NIGHT)
    assert when.trigger == "schedule"
    assert when.interval_window() == Window(start=date(2013, 4, 4), end=date(2013, 4, 5))
    assert when.as_of == datetime(2013, 4, 5, 2)
    assert when.as_of.tzinfo is None


def test_occasion__by_hand_with_days() -> None:
    when = _occasion("manual", start="2013-01-01", end="2013-04-01", as_of=None)
    assert when.trigger == "manual"
    assert when.interval_window() == Window(start=date(2013, 1, 1), end=date(2013, 4, 1))
    assert when.as_of == datetime(2013, 4, 1, 2)


def test_occasion__params_win_over_the_interval() -> None:
    assert _occasion("manual", NIGHT, as_of="2013-04-09T10:00:00+02:00").as_of == datetime(2013, 4, 9, 8)


def test_occasion__by_hand_with_half_of_the_days() -> None:
    with pytest.raises(EvergreenError, match="only one of the two"):
        _occasion("manual", start="2013-01-01").interval_window()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"start": "2013-01-01"}, "start=2013-01-01, end=None: only one"),
        ({"end": "2013-01-01"}, "start=None, end=2013-01-01: only one"),
        ({"start": "2013-01-02", "end": "2013-01-02"}, "start=2013-01-02 is not before end=2013-01-02"),
        ({"start": "2013-01-02", "end": "2013-02-30"}, "day is out of range"),
        ({"as_of": "2013-04-18T25:00:00"}, "hour must be in"),
        ({"as_of": "yesterday"}, "write .* times as 2013-04-18T03:00:00"),
    ],
    ids=["no-end", "no-start", "empty", "no-such-day", "no-such-hour", "no-time"],
)
def test_occasion__that_does_not_fit_together(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_asked(asked)
    with pytest.raises(ConfigError, match=said):
        _occasion("manual", **asked)


def test_asked__that_fits_together() -> None:
    check_asked({"start": "2013-01-01", "end": "2013-01-02", "as_of": "2013-01-02T02:00:00Z", "reason": "why not"})
    check_asked({"start": None, "end": "", "as_of": None})


@pytest.mark.parametrize(("run_type", "note"), [("manual", "3 rows"), ("scheduled", "3 rows"), ("backfill", "Backfill: 3 rows")])
def test_say__names_a_backfill(run_type: str, note: str) -> None:
    from airflow.sdk.execution_time.context import set_current_context

    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    context: Any = {"ti": instance, "dag_run": SimpleNamespace(run_type=run_type)}
    with set_current_context(context):
        say("3 rows")
    assert pushed == {"run_note": note}


def test_occasion__by_hand_without_days() -> None:
    with pytest.raises(EvergreenError, match="no data interval"):
        _occasion("manual").interval_window()


def test_occasion__by_hand_without_time_counts_from_when_it_was_asked_for() -> None:
    assert _occasion("manual").as_of == datetime(2013, 6, 1)


def test_occasion__by_hand_without_time_after_the_source_ended() -> None:
    with pytest.raises(EvergreenError, match=r"no as_of was given, and 2026-11-20 lies after schedule.end"):
        Occasion("manual", "k", {}, None, datetime(2026, 11, 20), 0).as_of  # noqa: B018 - a property that raises


def test_occasion__requested_by_drift_takes_the_newest_event() -> None:
    old = {"reason": "old", "as_of": "2013-04-20T05:00:00", "key": "request/1"}
    new = {"reason": "new", "as_of": "2013-04-21T05:00:00", "key": "request/2"}
    when = _occasion("asset_triggered", None, (new, old), as_of=None, reason=None)
    assert (when.trigger, when.as_of, when.asked["reason"]) == ("request", datetime(2013, 4, 21, 5), "new")
    assert when.run_key == _occasion("asset_triggered", None, (new,)).run_key  # the same request sent twice
    assert when.run_key != _occasion("asset_triggered", None, (old,)).run_key


def test_occasion__backfill() -> None:
    assert _occasion("backfill", NIGHT).trigger == "backfill"


def test_run_key__is_the_runs_and_the_same_on_every_try() -> None:
    assert _occasion("manual").run_key == _occasion("manual", NIGHT).run_key
    assert len(_occasion("manual").run_key) == 16


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (StaleWriteError("a", "b"), True),
        (SnapshotError("a", "b"), True),
        (DataQualityError("a", "b"), False),
        (SourceError("a", "b"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_curable__tells_a_lost_race_from_bad_data(error: EvergreenError, retried: bool) -> None:
    assert curable(error) is retried


@pytest.mark.parametrize(
    ("cause", "retried"), [(TimeoutError(), True), (FileNotFoundError(), False), (ValueError(), False)], ids=str
)
def test_curable__looks_at_the_cause(cause: Exception, retried: bool) -> None:
    error = SourceError("a", "b")
    error.__cause__ = cause
    assert curable(error) is retried


@pytest.fixture
def running_task(workspace: Any) -> Any:
    """A task's context, as Airflow sets it while a task runs."""
    from airflow.sdk.execution_time.context import set_current_context

    instance = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1)
    with set_current_context({"ti": instance}):  # type: ignore[typeddict-item]
        yield workspace


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (NothingToDo("no"), "AirflowSkipException"),
        (DataQualityError("bad", "mend"), "AirflowFailException"),
        (StaleWriteError("late", "again"), "StaleWriteError"),
        (ValueError("bug"), "ValueError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_step__maps_outcomes(raised: Exception, becomes: str, running_task: Any) -> None:
    with pytest.raises(Exception) as caught, step():
        raise raised
    assert type(caught.value).__name__ == becomes
    assert str(raised) in str(caught.value)


def test_step__notes_how_long_it_took(running_task: Any) -> None:
    import json

    with step():
        pass
    line = json.loads((running_task / "var" / "steps.jsonl").read_text())
    assert (line["task"], line["outcome"]) == ("t", "success")
    assert 0 <= line["seconds"] < 1


def test_call__parses_references_and_gives_them_back_plain(running_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def following(window: Window, days: int) -> Window:
        return Window(start=window.end, end=date.fromordinal(window.end.toordinal() + days))

    monkeypatch.setattr(steps, "following", following, raising=False)
    assert call("following", {"start": "2013-01-01", "end": "2013-01-02"}, 2) == {"start": "2013-01-02", "end": "2013-01-04"}
