"""What the DAGs share: defaults, assets, forms, and the one place where outcomes and times are mapped.

Nothing here does work: a task imports its step inside the callable and calls it once, within `step()`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from typing import Any, get_type_hints

import pendulum
from airflow.sdk import (
    Asset,
    AssetAlias,
    CronDataIntervalTimetable,
    Param,
    get_current_context,
)
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from ml.config import load_params
from ml.errors import ConfigError, EvergreenError, NothingToDo, SnapshotError, StaleWriteError
from ml.refs import Ref, VersionRef, Window, naive_utc, run_key
from ml.settings import settings
from plugins.alerting import failed

RAW_DATA = Asset("raw_data")
RAW_DATA_UNLESS_BACKFILL = AssetAlias("raw_data_unless_backfill")
"""Airflow emits the events of `outlets` in a backfill too; an alias emits what the task adds to it, or nothing."""
CANDIDATE = Asset("candidate")
CHAMPION = Asset("champion")
RETRAIN_REQUEST = Asset("retrain_request")

Json = dict[str, Any]
"""A reference as it travels through XCom."""

DEFAULT_ARGS: dict[str, Any] = {
    "owner": load_params().card.owner,
    "retries": 3,
    "retry_delay": timedelta(seconds=10),  # 10, 20, 40 s: rides out a lock or a restart, not an outage
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(minutes=30),
}

log = logging.getLogger(__name__)
_SCHEDULE = load_params().schedule
LATE = AsyncCallback("plugins.alerting.late")

TAGS = {"evergreen": "all DAGs of this repository", "data": "brings data and features", "model": "makes, releases or uses models"}
"""The closed set of tags, and what they mean."""
NOTE = "run_note"
"""The XCom key of which ``plugins/run_notes.py`` makes the run's note; the newest one of a run counts."""


def dag_args(*tags: str, deadline: timedelta = timedelta(hours=2), name: str = "") -> dict[str, Any]:
    """What every DAG is given. The dates bound scheduled runs only: manual, REST and asset-triggered runs are always possible.

    Args:
        tags: beside the project's own.
        deadline: when a run is stopped as failed.
        name: the DAG's id, by which `alerts.late_after_minutes` says when people hear that a run is late.
    """
    return {
        "on_failure_callback": failed,
        "deadline": _late_after(name),
        "start_date": pendulum.instance(datetime.combine(_SCHEDULE.start, clock.min, UTC)),
        "end_date": pendulum.instance(datetime.combine(_SCHEDULE.end, clock.max, UTC)) if _SCHEDULE.end else None,
        "catchup": _SCHEDULE.catchup,
        "default_args": DEFAULT_ARGS,
        "dagrun_timeout": deadline,
        "max_active_runs": 1,
        "tags": ["evergreen", *tags],
    }


def _late_after(name: str) -> DeadlineAlert | None:
    """Counted from when a run is queued: also one that no worker takes is late, and one by hand has no time of its own.

    The interval is a number of seconds, as Airflow before 3.2 had it and later ones read it: with a timedelta, Airflow 3.3 answers
    500 to whoever clears a task of a failed run whose deadline is still ahead, since it adds up what it stored as a number.
    """
    minutes = getattr(load_params().alerts.late_after_minutes, name, None)
    if not minutes:
        return None
    seconds: Any = minutes * 60.0
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, seconds, LATE, name=f"{name} is late")


def cron(expression: str) -> CronDataIntervalTimetable:
    """A timetable whose runs have real data intervals (Airflow's default cron has empty ones), in UTC."""
    return CronDataIntervalTimetable(expression, timezone=pendulum.timezone("UTC"))


TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?$"
"""JSON schema's own ``date-time`` demands an offset; here a time without one is UTC."""


def days_params(verb: str, empty: str) -> dict[str, Param]:
    """The two fields of a form that name days.

    Args:
        verb: what is done with them.
        empty: what is done when they are left empty.
    """
    shared: dict[str, Any] = {"type": ["null", "string"], "format": "date", "section": "Which days"}
    first = f"First data day to {verb}. Empty, both: {empty}."
    return {
        "start": Param(None, title="First day", description_md=first, **shared),
        "end": Param(None, title="End", description_md=f"The day **after** the last one to {verb}.", **shared),
    }


def time_param(description: str = "What was not known then is invisible. Empty: the end of the run's data interval.") -> Param:
    """The field of a form that names a moment."""
    return Param(
        None,
        type=["null", "string"],
        format="date-time",
        pattern=TIME,
        title="As of (UTC)",
        description_md=f"{description} Written `2013-04-18T03:00:00`; without an offset it is UTC.",
        section="As of when",
    )


def check_asked(asked: Mapping[str, Any]) -> None:
    """Whether what was filled in fits together, which no field's own schema can say.

    Raises:
        ConfigError: a time is none, only one of *start* and *end* is given, or they are in the wrong order.
    """
    start, end = asked.get("start"), asked.get("end")
    if bool(start) != bool(end):
        raise ConfigError(f"start={start}, end={end}: only one of the two was given", "fill in both; end is not included")
    try:
        if start and date.fromisoformat(str(start)) >= date.fromisoformat(str(end)):
            raise ConfigError(f"start={start} is not before end={end}", "end is the day after the last day")
        if asked.get("as_of"):
            naive_utc(datetime.fromisoformat(str(asked["as_of"])))
    except ValueError as error:
        raise ConfigError(f"{dict(asked)}: {error}", "write days as 2013-04-18 and times as 2013-04-18T03:00:00") from None


@dataclass(frozen=True)
class Occasion:
    """Why a run exists and for when; the same on every retry and after every *clear*."""

    trigger: str
    """``schedule``, ``request``, ``manual`` or ``backfill``."""
    run_key: str
    asked: dict[str, Any]
    """The triggering asset event's extra, overlaid with the params that were filled in."""
    interval: tuple[datetime, datetime] | None
    run_after: datetime
    hour: int
    """The hour at which the DAG is due, for a run that is given days but no as_of."""

    @property
    def as_of(self) -> datetime:
        """What was asked for; else the due hour after the last day asked for; else the end of the data interval; else when
        the run was asked for.

        Raises:
            ConfigError: it would be the present, and the source ended before.
        """
        if self.asked.get("as_of"):
            return naive_utc(datetime.fromisoformat(self.asked["as_of"]))
        if asked := self.window():
            return datetime.combine(asked.end, clock(self.hour))
        if self.interval:
            return self.interval[1]
        if _SCHEDULE.end and self.run_after.date() > _SCHEDULE.end:
            raise ConfigError(
                f"no as_of was given, and {self.run_after:%Y-%m-%d} lies after schedule.end ({_SCHEDULE.end})",
                f'fill in "As of" (conf {{"as_of": "{_SCHEDULE.start + timedelta(days=90)}T03:00:00"}}), or set schedule.end to null',
            )
        return self.run_after

    def window(self) -> Window | None:
        """The days asked for by `start` and `end`, if they were."""
        start, end = self.asked.get("start"), self.asked.get("end")
        return Window(start=start, end=end) if start else None

    def interval_window(self) -> Window:
        """The data days of the run: those asked for, else those of its data interval.

        Raises:
            ConfigError: the run has neither.
        """
        if asked := self.window():
            return asked
        if self.interval is None:
            raise ConfigError("this run has no data interval", 'fill in start and end (conf {"start": "…", "end": "…"})')
        return Window(start=self.interval[0].date(), end=self.interval[1].date())


def occasion(hour: int = 0, context: Any = None) -> Occasion:
    """Reads the run's occasion from the context of the running task; `hour`: see `Occasion`."""
    context = context or get_current_context()
    run = context["dag_run"]
    extras = [event.extra or {} for events in (context.get("triggering_asset_events") or {}).values() for event in events]
    newest = max(extras, key=lambda extra: str(extra.get("as_of", "")), default={})
    asked = newest | {name: value for name, value in context["params"].items() if value is not None}
    check_asked(asked)
    identity = newest.get("key") or f"{run.dag_id}/{run.run_id}"  # a request that is sent twice asks for one model
    start, end = run.data_interval_start, run.data_interval_end
    return Occasion(
        trigger=trigger_of(run),
        run_key=run_key(identity),
        asked=asked,
        interval=(naive_utc(start), naive_utc(end)) if start and end and start < end else None,
        run_after=naive_utc(run.run_after),
        hour=hour,
    )


def trigger_of(run: Any) -> str:
    """``schedule``, ``request``, ``manual`` or ``backfill``."""
    from ml import runs

    return runs.trigger_of(run.run_type)


def say(what: str) -> None:
    """Makes a sentence the run's note, which people read in the list of runs; a later one of the same run replaces it."""
    context: Any = get_current_context()
    backfill = trigger_of(context["dag_run"]) == "backfill"
    context["ti"].xcom_push(key=NOTE, value=f"Backfill: {what}" if backfill else what)


def asked_version() -> VersionRef:
    """The version to release: from the asset event (whole), or by its number from the form."""
    asked = occasion().asked.get("version")
    if asked is None:
        raise ConfigError("no version to release", 'fill in "Version" (conf {"version": "3"}); see the registry for its numbers')
    if isinstance(asked, dict):
        ref = VersionRef.model_validate(asked)
    else:
        from ml import tracking

        ref = tracking.version_ref(str(asked))
    if ref.backfill:
        raise EvergreenError(f"version {ref.version} comes from a backfill", "release a version that was trained on the day")
    return ref


def responder(answer: Json) -> str:
    """Who answered; empty when nobody did and the time ran out."""
    return str((answer.get("responded_by_user") or {}).get("name") or "")


def call(name: str, *arguments: Any) -> Any:
    """Runs the step of this name in `ml.steps`: XCom's plain values become the references that its signature names, and back."""
    from ml import steps

    with step():
        function = getattr(steps, name)
        hints = list(get_type_hints(function, vars(steps)).values())
        outcome = function(*(_parsed(hint, value) for hint, value in zip(hints, arguments, strict=False)))
        return outcome.to_xcom() if isinstance(outcome, Ref) else outcome


def _parsed(hint: Any, value: Any) -> Any:
    return hint.model_validate(value) if isinstance(value, dict) and isinstance(hint, type) and issubclass(hint, Ref) else value


@contextmanager
def step() -> Iterator[None]:
    """Maps a step's outcome to Airflow's, and notes how long the step itself took.

    ``NothingToDo`` → skipped; an `EvergreenError` that another try cannot cure → failed at once; anything else → retried.
    """
    from ml import costs, ledger, runs

    began, meter, outcome = time.time(), costs.Meter(), "failed"
    try:
        with ledger.acting(_actor()):
            yield
        outcome = "success"
    except NothingToDo as reason:
        outcome = "skipped"
        raise AirflowSkipException(str(reason)) from reason
    except EvergreenError as error:
        if curable(error):
            raise
        raise AirflowFailException(str(error)) from error
    finally:
        if outcome == "failed" and (problem := sys.exc_info()[1]):
            _say("why", runs.why(problem))
        cost = meter.read().to_json()
        _say("cost", cost)
        _note(outcome, began, cost)


def _actor() -> str:
    """Whom the running task acts for, as the ledger notes it."""
    from ml import ledger, runs

    run: Any = get_current_context().get("dag_run")
    return runs.actor(run.run_type, run.triggering_user_name) if run else ledger.NOBODY


def _say(key: str, value: Any) -> None:
    """For the run's note, the ledger and the alert: see `plugins.run_notes`."""
    try:
        get_current_context()["ti"].xcom_push(key=key, value=value)
    except Exception:  # the task's own outcome must come through
        log.exception("%s of the task cannot be said by XCom; the task's log has it", key)


def curable(error: EvergreenError) -> bool:
    """Whether another try may succeed: a lost race, or a remote, disk or network that may come back."""
    cause = error.__cause__
    return isinstance(error, StaleWriteError | SnapshotError) or (
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    )


def _note(outcome: str, began: float, cost: dict[str, float]) -> None:
    """One line in ``<var>/steps.jsonl``: the step's own cost, without Airflow's share. One write, so lines never mix."""
    instance: Any = get_current_context()["ti"]
    line = {
        "dag": instance.dag_id,
        "run": instance.run_id,
        "task": instance.task_id,
        "map_index": instance.map_index,
        "try": instance.try_number,
        "outcome": outcome,
        "began": round(began, 3),
        **cost,
    }
    path = settings().var / "steps.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)
