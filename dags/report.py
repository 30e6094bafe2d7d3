"""`report`: the week in one page, for whoever owns the budget; by mail, where mail is set up."""

from __future__ import annotations

from airflow.sdk import dag, task

from dags.common import Json, cron, dag_args, occasion, say, step, time_param
from dags.links import SummaryLink
from dags.words import words

WORDS = words("report")


@dag(
    "report",
    schedule=cron("0 7 * * 1"),
    params={"as_of": time_param("The week is that of the seven days before. Empty: the end of the run's data interval.")},
    **WORDS.dag(),
    **dag_args("model", name="report"),
)
def report() -> None:
    @task(**WORDS.task("report"))
    def summary() -> Json:
        from ml import steps

        with step():
            as_of = occasion().as_of
            written = steps.report(as_of.date(), as_of)
        say(written.headline)
        return written.to_xcom()

    @task(**WORDS.task("mail"))
    def mail(written: Json) -> str:
        import asyncio

        from ml import store
        from plugins.alerting import mail_page

        with step():
            when = occasion()
            if when.trigger == "backfill":
                return "not mailed: a backfill"
            week = written["week"]["start"]
            return asyncio.run(
                mail_page(f"report-{week}-{written['page']}", f"[evergreen] week of {week}", store.get(written["page"]))
            )

    written = summary()
    written.operator.operator_extra_links = (SummaryLink(),)
    mail(written)


REPORT = report()
