"""`drift`: watches data and realised quality, decides with reasons, and asks for a retrain when harm is shown."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import RETRAIN_REQUEST, Json, call, cron, dag_args, occasion, step, time_param

DOC = """
### drift: is the champion still good?

**What** — daily at 05:00 UTC: `monitor` joins predictions with the labels that have matured and measures drift per feature and realised
quality, `decide` applies the policy (every verdict with its reasons is in the ledger), `request_retrain` emits asset `retrain_request` with
the reason, which starts `train`.

**Who is called** — the data team, on *failed*. *Skipped* `request_retrain` is the policy's "no": nothing is wrong.

| task failed | it means | do |
|---|---|---|
| `monitor` | there is no champion yet, or the day was not landed | run `ingest` or `train` first; clear the task |
| `skew` | served features are not what landed data gives; the message names the worst and an example | `evergreen ledger --kind skew`; late data, other request fields, or other feature code. Retraining is not held up |
| `decide` | the ledger does not answer | check `EVERGREEN_LEDGER`; clear the task |

A backfill measures and decides, and never asks for a retrain.
"""


@dag(schedule=cron("0 5 * * *"), doc_md=DOC, params={"as_of": time_param()}, **dag_args("model"))
def drift() -> None:
    @task
    def monitor() -> Json:
        from ml import steps

        with step():
            as_of = occasion().as_of
            return steps.monitor(as_of.date(), as_of).to_xcom()

    @task
    def decide(monitored: Json) -> Json:
        return call("decide", monitored)

    @task(outlets=[RETRAIN_REQUEST])
    def request_retrain(decision: Json, *, outlet_events: Any) -> None:
        when = occasion()
        if decision["verdict"] != "retrain":
            raise AirflowSkipException(f"{decision['verdict']}: {decision['reason']}")
        if when.trigger == "backfill":
            raise AirflowSkipException("a backfill asks for nothing")
        outlet_events[RETRAIN_REQUEST].extra = {
            "reason": decision["reason"],
            "as_of": when.as_of.isoformat(),
            "key": f"request/{when.run_key}",
        }

    @task
    def skew() -> Json:
        from ml import steps

        with step():
            as_of = occasion().as_of
            return steps.skew(as_of.date(), as_of).to_xcom()

    skew()
    request_retrain(decide(monitor()))


DRIFT = drift()
