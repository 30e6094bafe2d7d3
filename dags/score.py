"""`score`: the champion's predictions for the coming day, one partition per day."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from dags.common import Json, cron, dag_args, days_params, occasion, say, step, time_param
from dags.words import words

WORDS = words("score")


@dag(
    "score",
    schedule=cron("0 4 * * *"),
    params=days_params("score", "the day on which the run's data interval ends")
    | {"as_of": time_param("Who was champion, and what was known, then. Empty: 04:00 on *end*, or the interval's end.")},
    **WORDS.dag(),
    **dag_args("model", name="score"),
)
def score() -> None:
    @task(**WORDS.task("score"))
    def score_days() -> Json:
        from ml import steps
        from ml.refs import Window

        with step():
            when = occasion(hour=4)
            today = when.as_of.date()
            window = when.window() or Window(start=today, end=today + timedelta(days=1))
            scored = steps.score(window, when.as_of)
        say(f"{window}: {scored.rows:,} rows scored by v{scored.version}")
        return scored.to_xcom()

    score_days()


SCORE = score()
