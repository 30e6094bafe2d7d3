"""`train`: a candidate from the raw data, judged against the baseline and the champion, packaged and registered."""

from __future__ import annotations

from typing import Any

from airflow.sdk import AssetOrTimeSchedule, Param, TaskGroup, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import CANDIDATE, RETRAIN_REQUEST, Json, call, cron, dag_args, occasion, say, step, time_param
from dags.links import VERSION_LINKS
from dags.words import words
from ml.config import load_params

WORDS = words("train")
GROUPS = {
    "prepare": "data version, windows, features",
    "learn": "the search, and the twin that is judged",
    "prove": "the gates, and the refit of what they let through",
    "ship": "package, registry, announcement",
}


def _group(name: str) -> TaskGroup:
    """Task ids keep their names: links, logs and the ledger know them by these."""
    return TaskGroup(name, prefix_group_id=False, group_display_name=name.capitalize(), tooltip=GROUPS[name])


@dag(
    "train",
    schedule=AssetOrTimeSchedule(timetable=cron("0 3 * * *"), assets=[RETRAIN_REQUEST]),
    params={
        "as_of": time_param(),
        "reason": Param(
            None,
            type=["null", "string"],
            maxLength=500,
            title="Reason",
            description_md="Why this model is trained. It is stored with the model and shown wherever it is.",
            section="Why",
        ),
    },
    **WORDS.dag(),
    **dag_args("model", name="train"),
)
def train() -> None:
    @task(**WORDS.task("plan"))
    def plan() -> Json:
        from ml import steps

        with step():
            when = occasion()
            reason = when.asked.get("reason") or f"{when.trigger} run"
            return steps.plan(when.as_of, reason, when.trigger, when.run_key).to_xcom()

    @task(**WORDS.task("pull"))
    def pull(plan: Json) -> str:
        return call("pull", plan["snapshot"])

    @task(**WORDS.task("validate_training"))
    def validate_training(plan: Json) -> Json:
        return call("validate_training", plan)

    @task(**WORDS.task("features"))
    def features(plan: Json) -> Json:
        return call("features", plan)

    @task(**WORDS.task("tune"), map_index_template="worker {{ task.op_kwargs['worker'] }}")
    def tune(plan: Json, features: Json, worker: int, workers: int) -> int:
        return call("tune", plan, features, worker, workers)

    @task(**WORDS.task("fit"))
    def fit(plan: Json, features: Json) -> Json:
        return call("fit", plan, features)

    @task(**WORDS.task("evaluate"))
    def evaluate(plan: Json, features: Json, model: Json) -> Json:
        return call("evaluate", plan, features, model)

    @task(**WORDS.task("refit"))
    def refit(plan: Json, features: Json, evaluation: Json) -> Json:
        return call("refit", plan, features, evaluation)

    @task(**WORDS.task("package"))
    def package(plan: Json, features: Json, shipped: Json) -> Json:
        return call("package", plan, features, shipped)

    @task(**WORDS.task("register"))
    def register(plan: Json, features: Json, evaluation: Json, shipped: Json, bundle: Json) -> Json:
        version: Json = call("register", plan, features, evaluation, shipped, bundle)
        decision = shipped["decision"] if shipped["decision"]["verdict"] == "differs" else evaluation["decision"]
        came_to = "goes to release" if version["verdict"] == "promote" else "is not released, the champion stays"
        if version["backfill"]:
            came_to = f"is kept for the record, never released; the gates would say {version['verdict']}"
        say(f"v{version['version']} {came_to}: {decision['reason']}")
        return version

    @task(**WORDS.task("announce"), outlets=[CANDIDATE])
    def announce(plan: Json, version: Json, *, outlet_events: Any) -> None:
        if plan["trigger"] == "backfill" or version["backfill"]:
            raise AirflowSkipException(f"version {version['version']} comes from a backfill: never released")
        if version["verdict"] != "promote":
            raise AirflowSkipException(f"version {version['version']}: the verdict is {version['verdict']!r}; the champion stays")
        outlet_events[CANDIDATE].extra = {"version": version, "as_of": plan["as_of"], "reason": plan["reason"]}

    with _group("prepare"):
        planned = plan()
        table = features(planned)
        pull(planned) >> [table, checked := validate_training(planned)]
    with _group("learn"):
        workers = load_params().tune.workers
        tuned = tune.partial(plan=planned, features=table, workers=workers).expand(worker=list(range(workers)))
        model = fit(planned, table)
        [tuned, checked] >> model
    with _group("prove"):
        verdict = evaluate(planned, table, model)
        shipped = refit(planned, table, verdict)
    with _group("ship"):
        version = register(planned, table, verdict, shipped, package(planned, table, shipped))
        version.operator.operator_extra_links = VERSION_LINKS
        announce(planned, version)


TRAIN = train()
