"""`score`: the champion's predictions for the coming day, one partition per day."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from dags.common import Json, cron, dag_args, date_param, occasion, step, time_param

DOC = """
### score: the coming day, by the champion

**What** — daily at 04:00 UTC: scores every row of the day that begins, with what is known at 04:00. A partition is written whole and
replaced whole: running it again changes nothing.

**Who is called** — the data team, on *failed*.

| task failed | it means | do |
|---|---|---|
| `score` | there is no champion yet, or the source has no rows for the day | run `train` or `ingest`; clear the task |

**By hand** — give *start* and *end* to score any days.
"""


@dag(
    schedule=cron("0 4 * * *"),
    doc_md=DOC,
    params={
        "start": date_param("First day", "First data day to score. Empty: the day on which the run's data interval ends."),
        "end": date_param("End", "The day after the last one to score."),
        "as_of": time_param(),
    },
    **dag_args("model"),
)
def score() -> None:
    @task(task_id="score")
    def score_days() -> Json:
        from ml import steps
        from ml.refs import Window

        with step():
            when = occasion(hour=4)
            today = when.as_of.date()
            window = when.window() or Window(start=today, end=today + timedelta(days=1))
            return steps.score(window, when.as_of).to_xcom()

    score_days()


SCORE = score()
