"""`online`: brings the online features up to each tick, so that serving sees what training would."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from dags.common import cron, dag_args, occasion, step, time_param

DOC = """
### online: features for serving, each hour

**What** — hourly: `materialise` computes the history features known at the tick at or before *as of* and writes them to the online store,
by the same code that training uses.

**Who is called** — the data team, on *failed*. Meanwhile the service answers with the last features it has, and says how old they are.

| task failed | it means | do |
|---|---|---|
| `materialise` | the raw data or the online store cannot be read | check `EVERGREEN_DATA`, `EVERGREEN_ONLINE`; clear the task |
"""


@dag(
    schedule=cron("0 * * * *"),
    doc_md=DOC,
    params={"as_of": time_param()},
    **dag_args("data", deadline=timedelta(minutes=30)),
)
def online() -> None:
    @task
    def materialise() -> int:
        from ml import steps

        with step():
            return steps.materialise(occasion().as_of)

    materialise()


ONLINE = online()
