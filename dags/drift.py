"""`drift`: watches data and realised quality, decides with reasons, and asks for a retrain when harm is shown."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import RETRAIN_REQUEST, Json, call, cron, dag_args, occasion, say, step, time_param
from dags.links import DriftReportLink
from dags.words import words

WORDS = words("drift")


@dag("drift", schedule=cron("0 5 * * *"), params={"as_of": time_param()}, **WORDS.dag(), **dag_args("model", name="drift"))
def drift() -> None:
    @task(**WORDS.task("monitor"))
    def monitor() -> Json:
        from ml import steps

        with step():
            as_of = occasion().as_of
            return steps.monitor(as_of.date(), as_of).to_xcom()

    @task(**WORDS.task("decide"))
    def decide(monitored: Json) -> Json:
        watched: Json = call("decide", monitored, occasion().trigger)
        say(watched["note"])
        return watched

    @task(**WORDS.task("request_retrain"), outlets=[RETRAIN_REQUEST])
    def request_retrain(watched: Json, *, outlet_events: Any) -> None:
        if not watched["request"]:
            raise AirflowSkipException(watched["note"])
        outlet_events[RETRAIN_REQUEST].extra = {
            "reason": watched["decision"]["reason"],
            "as_of": watched["as_of"],
            "key": watched["request"],
        }

    @task(**WORDS.task("skew"))
    def skew() -> Json:
        from ml import steps

        with step():
            as_of = occasion().as_of
            return steps.skew(as_of.date(), as_of).to_xcom()

    skew()
    decided = decide(monitor())
    decided.operator.operator_extra_links = (DriftReportLink(),)
    request_retrain(decided)


DRIFT = drift()
