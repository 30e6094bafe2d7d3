"""`train`: a candidate from the raw data, judged against the baseline and the champion, packaged and registered."""

from __future__ import annotations

from typing import Any

from airflow.sdk import AssetOrTimeSchedule, Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import CANDIDATE, RETRAIN_REQUEST, Json, ReportLink, call, cron, dag_args, occasion, step, time_param
from ml.config import load_params

DOC = """
### train: one candidate, judged and registered

**What** — nightly at 03:00 UTC, or when `drift` asks for it (asset `retrain_request`; its reason is stored with the model). `plan` fixes
windows and data version, `pull` restores exactly that version, `tune` runs on parallel workers that share one study, `fit` makes the twin,
`evaluate` judges it by all gates on days that neither it nor the champion has learnt from, `refit` fits what was promoted up to the last
matured day. `register` has a button *Evaluation report*: figures, verdicts, pictures and lineage on one page. `announce` emits asset
`candidate` when the verdict is *promote*.

**Who is called** — the data team, on *failed*. A rejected candidate is a **success**: it is registered, `announce` is *skipped* and the
champion stays. A backfill registers models marked `backfill`, announces nothing and never moves the champion.

| task failed | it means | do |
|---|---|---|
| `plan` | too little matured data for the windows in `params.yaml`, or no snapshot yet | run `ingest` for the days that are named |
| `pull` | the DVC remote does not answer or lacks the version | check `EVERGREEN_DVC_REMOTE`; clear the task |
| `validate_training` | the training rows broke a rule | the message names it; mend the data, start a new run |
| `features`, `tune`, `fit` | code, memory or a killed worker | read the log; clear the task: it starts again and registers one version |
| `evaluate` | the holdout could not be judged (not: judged badly) | read the log |
| `refit` | the recipe could not be fitted again | read the log; clear the task |
| `package` | ONNX and the model disagree beyond `gates.parity_tolerance` | do not ship it; keep the run for the engineer |
| `register` | the registry does not answer | check `EVERGREEN_MLFLOW`; clear the task |

**By hand** — give *as of* to train as if it were that moment. `airflow backfill create --dag-id train …` trains past nights.
"""


@dag(
    schedule=AssetOrTimeSchedule(timetable=cron("0 3 * * *"), assets=[RETRAIN_REQUEST]),
    doc_md=DOC,
    params={
        "as_of": time_param(),
        "reason": Param(None, type=["null", "string"], maxLength=500, title="Reason", description_md="Is stored with the model."),
    },
    **dag_args("model"),
)
def train() -> None:
    @task
    def plan() -> Json:
        from ml import steps

        with step():
            when = occasion()
            reason = when.asked.get("reason") or f"{when.trigger} run"
            return steps.plan(when.as_of, reason, when.trigger, when.run_key).to_xcom()

    @task
    def pull(plan: Json) -> str:
        return call("pull", plan["snapshot"])

    @task
    def validate_training(plan: Json) -> Json:
        return call("validate_training", plan)

    @task
    def features(plan: Json) -> Json:
        return call("features", plan)

    @task(map_index_template="worker {{ task.op_kwargs['worker'] }}")
    def tune(plan: Json, features: Json, worker: int, workers: int) -> int:
        return call("tune", plan, features, worker, workers)

    @task
    def fit(plan: Json, features: Json) -> Json:
        return call("fit", plan, features)

    @task
    def evaluate(plan: Json, features: Json, model: Json) -> Json:
        return call("evaluate", plan, features, model)

    @task
    def refit(plan: Json, features: Json, evaluation: Json) -> Json:
        return call("refit", plan, features, evaluation)

    @task
    def package(plan: Json, features: Json, shipped: Json) -> Json:
        return call("package", plan, features, shipped)

    @task
    def register(plan: Json, features: Json, evaluation: Json, shipped: Json, bundle: Json) -> Json:
        return call("register", plan, features, evaluation, shipped, bundle)

    @task(outlets=[CANDIDATE])
    def announce(plan: Json, version: Json, *, outlet_events: Any) -> None:
        if plan["trigger"] == "backfill" or version["backfill"]:
            raise AirflowSkipException(f"version {version['version']} comes from a backfill: never released")
        if version["verdict"] != "promote":
            raise AirflowSkipException(f"version {version['version']}: the verdict is {version['verdict']!r}; the champion stays")
        outlet_events[CANDIDATE].extra = {"version": version, "as_of": plan["as_of"], "reason": plan["reason"]}

    planned = plan()
    table = features(planned)
    pull(planned) >> [table, checked := validate_training(planned)]
    workers = load_params().tune.workers
    tuned = tune.partial(plan=planned, features=table, workers=workers).expand(worker=list(range(workers)))
    model = fit(planned, table)
    [tuned, checked] >> model
    verdict = evaluate(planned, table, model)
    shipped = refit(planned, table, verdict)
    version = register(planned, table, verdict, shipped, package(planned, table, shipped))
    version.operator.operator_extra_links = (ReportLink(),)
    announce(planned, version)


TRAIN = train()
