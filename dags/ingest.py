"""`ingest`: lands, validates and snapshots one interval of the source."""

from __future__ import annotations

from typing import Any

from airflow.sdk import TriggerRule, dag, task

from dags.common import (
    RAW_DATA,
    RAW_DATA_UNLESS_BACKFILL,
    Json,
    call,
    cron,
    dag_args,
    days_params,
    occasion,
    say,
    step,
    time_param,
)
from dags.links import DataDocsLink
from dags.words import words

WORDS = words("ingest")


@dag(
    "ingest",
    schedule=cron("0 2 * * *"),
    params=days_params("land", "the run's data interval")
    | {"as_of": time_param("When the source was asked. Empty: 02:00 on *end*, or the interval's end.")},
    **WORDS.dag(),
    **dag_args("data", name="ingest"),
)
def ingest() -> None:
    @task(**WORDS.task("land"))
    def land() -> Json:
        from ml import steps

        with step():
            when = occasion(hour=2)
            # the days of a backfill are landed at the same time, and in any order
            return steps.land(when.interval_window(), when.as_of, when.trigger == "backfill").to_xcom()

    @task(**WORDS.task("validate"))
    def validate(landing: Json) -> Json:
        return call("validate", landing)

    @task(**WORDS.task("snapshot"), outlets=[RAW_DATA_UNLESS_BACKFILL])
    def snapshot(landing: Json, validated: Json, *, outlet_events: Any) -> Json:
        from ml import steps

        with step():
            when = occasion(hour=2)
            version = steps.snapshot(when.as_of).to_xcom()
        counts = ", ".join(f"{count:,} {table}" for table, count in sorted(validated["rows"].items()))
        days = f"{landing['window']['start']} until {landing['window']['end']}"
        say(f"{days}: {counts} rows landed (late outcomes of the days before included), none quarantined")
        if when.trigger != "backfill":
            outlet_events[RAW_DATA_UNLESS_BACKFILL].add(RAW_DATA, extra={"digest": version["digest"], "as_of": version["as_of"]})
        return version

    @task(**WORDS.task("data_docs"), trigger_rule=TriggerRule.ALL_DONE)
    def data_docs(landing: Json | None) -> str:
        from ml import steps
        from ml.errors import NothingToDo

        with step():
            if landing is None:
                raise NothingToDo("nothing was landed")
            from ml.data.validation import stored  # a validation that failed returns nothing, and its pages matter most

            return steps.data_docs(stored("landing", landing["key"]))

    landed = land()
    validated = validate(landed)
    docs = data_docs(landed)
    for task_with_pages in (validated, docs):
        task_with_pages.operator.operator_extra_links = (DataDocsLink(),)
    snapshot(landed, validated)
    validated >> docs


INGEST = ingest()
