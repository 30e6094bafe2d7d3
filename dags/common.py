"""What the DAGs share: defaults, assets, forms, and the one place where outcomes and times are mapped.

Nothing here does work: a task imports its step inside the callable and calls it once, within `step()`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import Any, get_type_hints

import pendulum
from airflow.sdk import Asset, AssetAlias, BaseOperatorLink, CronDataIntervalTimetable, Param, get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from ml.config import load_params, settings
from ml.errors import ConfigError, EvergreenError, NothingToDo, SnapshotError, StaleWriteError
from ml.refs import Ref, VersionRef, Window

RAW_DATA = Asset("raw_data")
RAW_DATA_UNLESS_BACKFILL = AssetAlias("raw_data_unless_backfill")
"""Airflow emits the events of `outlets` in a backfill too; an alias emits what the task adds to it, or nothing."""
CANDIDATE = Asset("candidate")
CHAMPION = Asset("champion")
RETRAIN_REQUEST = Asset("retrain_request")

Json = dict[str, Any]
"""A reference as it travels through XCom."""

DEFAULT_ARGS: dict[str, Any] = {
    "owner": "data-team",
    "retries": 3,
    "retry_delay": timedelta(seconds=10),  # 10, 20, 40 s: rides out a lock or a restart, not an outage
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(minutes=30),
}

_SCHEDULE = load_params().schedule


def dag_args(*tags: str, deadline: timedelta = timedelta(hours=2)) -> dict[str, Any]:
    """What every DAG is given. The dates bound scheduled runs only: manual, REST and asset-triggered runs are always possible."""
    return {
        "start_date": pendulum.instance(datetime.combine(_SCHEDULE.start, clock.min, UTC)),
        "end_date": pendulum.instance(datetime.combine(_SCHEDULE.end, clock.max, UTC)) if _SCHEDULE.end else None,
        "catchup": _SCHEDULE.catchup,
        "default_args": DEFAULT_ARGS,
        "dagrun_timeout": deadline,
        "max_active_runs": 1,
        "tags": ["evergreen", *tags],
    }


def cron(expression: str) -> CronDataIntervalTimetable:
    """A timetable whose runs have real data intervals (Airflow's default cron has empty ones), in UTC."""
    return CronDataIntervalTimetable(expression, timezone=pendulum.timezone("UTC"))


def date_param(title: str, description: str) -> Param:
    return Param(None, type=["null", "string"], format="date", title=title, description_md=description)


def time_param(
    title: str = "As of (UTC)",
    description: str = "What was not known then is invisible. Empty: the end of the run's data interval.",
) -> Param:
    return Param(None, type=["null", "string"], format="date-time", title=title, description_md=description)


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
            return naive_utc(self.asked["as_of"])
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
        if bool(start) != bool(end):
            raise ConfigError(f"start={start}, end={end}: only one of the two was given", "fill in both; end is not included")
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
    kinds = {"scheduled": "schedule", "asset_triggered": "request", "backfill": "backfill"}
    identity = newest.get("key") or f"{run.dag_id}/{run.run_id}"  # a request that is sent twice asks for one model
    start, end = run.data_interval_start, run.data_interval_end
    return Occasion(
        trigger=kinds.get(str(getattr(run.run_type, "value", run.run_type)), "manual"),
        run_key=hashlib.sha256(identity.encode()).hexdigest()[:16],
        asked=asked,
        interval=(naive_utc(start), naive_utc(end)) if start and end and start < end else None,
        run_after=naive_utc(run.run_after),
        hour=hour,
    )


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


def naive_utc(moment: str | datetime) -> datetime:
    """A time without a zone, in UTC; without an offset it is taken as UTC."""
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    parsed = parsed.astimezone(UTC).replace(tzinfo=None) if parsed.tzinfo else parsed
    return datetime(*parsed.timetuple()[:6], parsed.microsecond)  # a plain datetime, also from a pendulum one


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
    began, started, outcome = time.time(), time.perf_counter(), "failed"
    try:
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
        _note(outcome, began, time.perf_counter() - started)


def curable(error: EvergreenError) -> bool:
    """Whether another try may succeed: a lost race, or a remote, disk or network that may come back."""
    cause = error.__cause__
    return isinstance(error, StaleWriteError | SnapshotError) or (
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    )


class ReportLink(BaseOperatorLink):
    """The button on task `register` that opens the candidate's evaluation report."""

    name = "Evaluation report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Runs in the worker, after the task; without a version (the task failed) MLflow's first page."""
        from airflow.sdk.execution_time.xcom import XCom

        from ml import tracking

        version = XCom.get_value(ti_key=ti_key, key="return_value") or {}
        return tracking.page(version.get("run_id"), "report.html")


def _note(outcome: str, began: float, seconds: float) -> None:
    """One line in ``<var>/steps.jsonl``: wall time of the step without Airflow's share. One write, so lines never mix."""
    instance: Any = get_current_context()["ti"]
    line = {
        "dag": instance.dag_id,
        "run": instance.run_id,
        "task": instance.task_id,
        "map_index": instance.map_index,
        "try": instance.try_number,
        "outcome": outcome,
        "began": round(began, 3),
        "seconds": round(seconds, 3),
    }
    path = settings().var / "steps.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)
