"""`online`: brings the online features up to each tick, so that serving sees what training would."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from dags.common import cron, dag_args, occasion, say, step, time_param
from dags.words import words

WORDS = words("online")


@dag(
    "online",
    schedule=cron("0 * * * *"),
    params={"as_of": time_param()},
    allowed_run_types=["scheduled", "manual", "operator_triggered"],  # a backfill could only set the store back
    **WORDS.dag(),
    **dag_args("data", deadline=timedelta(minutes=30)),
)
def online() -> None:
    @task(**WORDS.task("materialise"))
    def materialise() -> int:
        from ml import steps

        with step():
            as_of = occasion().as_of
            rows = steps.materialise(as_of)
        moment = f"{as_of:%Y-%m-%d %H:%M}"
        say(f"{rows:,} values as of {moment}" if rows else f"nothing was written: the store holds a later tick than {moment}")
        return rows

    materialise()


ONLINE = online()
