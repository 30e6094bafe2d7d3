"""`release`: proves that a candidate serves, shows it to a growing share of the traffic, then makes it the champion."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, PokeReturnValue, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import CANDIDATE, CHAMPION, Json, asked_version, dag_args, occasion, responder, say, step, time_param
from dags.links import VERSION_LINKS
from dags.words import words
from ml.config import load_params

WORDS = words("release")

LIMITS = load_params().release
CANARY_TIME = timedelta(hours=1 + LIMITS.max_hours * len(LIMITS.steps))
ANSWER_TIME = timedelta(hours=LIMITS.approval_hours)
NOT_ASKED: Json = {"chosen_options": [""]}


def _only_when_inconclusive(context: Any) -> None:
    state = context["ti"].xcom_pull(task_ids="canary")
    if state["verdict"] != "inconclusive":
        raise AirflowSkipException(f"nobody needs to be asked: {state['verdict']}, {state['reason']}")


@dag(
    "release",
    schedule=[CANDIDATE],
    params={
        "version": Param(
            None,
            type=["null", "string", "object"],
            pattern="^[1-9][0-9]*$",
            title="Version",
            description_md="Number of a registered version, as MLflow shows it. Those of backfills are refused.",
            section="What to release",
        ),
        "as_of": time_param("The moment written beside the promotion; fill it in when you release by hand."),
        "skip_canary": Param(
            None,
            type=["null", "string"],
            minLength=10,
            maxLength=500,
            title="Skip the canary",
            description_md="Emergencies only: a sentence that says why. It is noted in the ledger. Empty: the canary is run.",
            section="Emergency",
        ),
    },
    **WORDS.dag(),
    **dag_args("model", deadline=timedelta(hours=2) + CANARY_TIME + 2 * ANSWER_TIME),
)
def release() -> None:
    @task(**WORDS.task("smoke"))
    def smoke() -> Json:
        from ml import steps
        from ml.errors import EvergreenError

        with step():
            decision = steps.smoke(asked_version())
            if not decision.passed:
                raise EvergreenError(f"the package failed its smoke test: {decision.reason}", "read the checks in the ledger")
            return decision.to_xcom()

    @task.sensor(**WORDS.task("canary"), mode="reschedule", poke_interval=5, timeout=CANARY_TIME.total_seconds())
    def canary(*, ti: Any) -> PokeReturnValue:
        from ml import steps

        with step():
            when, answer = occasion(), ti.xcom_pull(task_ids="approve") or NOT_ASKED
            said, skip = answer["chosen_options"][0], when.asked.get("skip_canary") or ""
            state = steps.canary(asked_version(), when.as_of, skip, said, responder(answer))
            if state.verdict != "running":
                say(f"v{state.version}: canary {state.verdict}: {state.reason}")
            return PokeReturnValue(state.verdict != "running", state.to_xcom())

    ask = HITLOperator(
        **WORDS.task("ask"),
        subject="The canary has no verdict: promote it?",
        body="{{ ti.xcom_pull(task_ids='canary')['reason'] }}",
        options=["promote", "roll back"],
        defaults="roll back",
        response_timeout=ANSWER_TIME,
        pre_execute=_only_when_inconclusive,
    )

    @task(**WORDS.task("promote"), outlets=[CHAMPION], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def promote(*, ti: Any, outlet_events: Any) -> int:
        from ml import steps
        from ml.errors import NothingToDo

        with step():
            version, as_of = asked_version(), occasion().as_of
            answer = ti.xcom_pull(task_ids="ask") or NOT_ASKED
            try:
                manifest = steps.promote(version, as_of, answer["chosen_options"][0], responder(answer))
            except NothingToDo as refused:
                say(f"v{version.version} is not promoted: {refused}")
                raise
            say(f"v{version.version} is the champion as of {as_of:%Y-%m-%d %H:%M} (manifest {manifest})")
            outlet_events[CHAMPION].extra = {"version": version.version, "manifest": manifest, "as_of": as_of.isoformat()}
            return manifest

    watched = canary()
    watched.operator.operator_extra_links = VERSION_LINKS
    if LIMITS.approval:
        question = "Shall the candidate get traffic?"
        options = ["Approve", "Reject"]
        words_of = WORDS.task("approve")
        said = HITLOperator(**words_of, subject=question, options=options, defaults="Reject", response_timeout=ANSWER_TIME)
        smoke() >> said >> watched
    else:
        smoke() >> watched
    promoted = promote()
    watched >> ask >> promoted
    watched >> promoted


RELEASE = release()
