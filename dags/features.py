"""`features`: computes the history of the day that was landed, so that training finds it."""

from __future__ import annotations

from airflow.sdk import dag, task

from dags.common import cron, dag_args, days_params, occasion, say, step, time_param
from dags.words import words

WORDS = words("features")


@dag(
    "features",
    schedule=cron("30 2 * * *"),
    params=days_params("prepare", "the run's data interval")
    | {"as_of": time_param("Which version of the raw data: the one of then. Empty: 02:00 on *end*, or the interval's end.")},
    **WORDS.dag(),
    **dag_args("data", name="features"),
)
def features() -> None:
    @task(**WORDS.task("prepare_days"))
    def prepare_days() -> int:
        from ml import steps

        with step():
            when = occasion(hour=2)
            window = when.interval_window()
            made = steps.prepare_days(window, when.as_of)
        say(
            f"{window}: the history of {made} days was computed and stored" if made else f"{window}: everything was there already"
        )
        return made

    prepare_days()


FEATURES = features()
