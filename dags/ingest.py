"""`ingest`: lands, validates and snapshots one interval of the source."""

from __future__ import annotations

from typing import Any

from airflow.sdk import TriggerRule, dag, task

from dags.common import RAW_DATA, RAW_DATA_UNLESS_BACKFILL, Json, call, cron, dag_args, date_param, occasion, step, time_param

DOC = """
### ingest: one interval of the source, landed, checked and versioned

**What** — day D arrives at D+1 02:00 UTC: `land` reads it (and the days before it again, whose outcomes arrive late), `validate` runs the
expectation suite, `snapshot` writes a new version of the raw data and pushes it (asset `raw_data`). `data_docs` builds the readable report.

**Who is called** — the data team, on *failed*. Nothing downstream runs on data that did not pass.

| task failed | it means | do |
|---|---|---|
| `land` | the source cannot be read, or a file or column is not as declared | the message names it; mend the source, clear the task |
| `validate` | rows broke a rule; they are in `data/quarantine`, good days are in place | read the message or Data Docs; mend the source, clear `land` |
| `snapshot` | the DVC remote does not answer | check `EVERGREEN_DVC_REMOTE`; clear the task, nothing is lost |
| `data_docs` | the report could not be built; the data is fine | clear it whenever you like |

**By hand** — give *start* and *end* to land any interval as one run; landing the same bytes again makes no new version.
"""


@dag(
    schedule=cron("0 2 * * *"),
    doc_md=DOC,
    params={
        "start": date_param("First day", "First data day to land. Empty: the run's data interval."),
        "end": date_param("End", "The day after the last one to land."),
        "as_of": time_param(description="When the source was asked. Empty: 02:00 on *end*, or the interval's end."),
    },
    **dag_args("data"),
)
def ingest() -> None:
    @task
    def land() -> Json:
        from ml import steps

        with step():
            when = occasion(hour=2)
            return steps.land(when.interval_window(), when.as_of).to_xcom()

    @task
    def validate(landing: Json) -> Json:
        return call("validate", landing)

    @task(outlets=[RAW_DATA_UNLESS_BACKFILL])
    def snapshot(*, outlet_events: Any) -> Json:
        from ml import steps

        with step():
            when = occasion(hour=2)
            version = steps.snapshot(when.as_of).to_xcom()
        if when.trigger != "backfill":
            outlet_events[RAW_DATA_UNLESS_BACKFILL].add(RAW_DATA, extra={"digest": version["digest"], "as_of": version["as_of"]})
        return version

    @task(trigger_rule=TriggerRule.ALL_DONE)
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
    validated >> [snapshot(), data_docs(landed)]


INGEST = ingest()
