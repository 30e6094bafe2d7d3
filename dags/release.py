"""`release`: proves that a candidate serves, shows it to a growing share of the traffic, then makes it the champion."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, PokeReturnValue, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import CANDIDATE, CHAMPION, Json, asked_version, dag_args, occasion, responder, step, time_param
from ml.config import load_params

DOC = """
### release: from candidate to champion

**What** — runs when `train` announces a candidate (asset `candidate`). `smoke` boots the packaged service and compares its answers with the
recorded ones. `canary` gives it growing shares of the live traffic (`release.steps`) and judges it at each; a refused one is taken out at once.
`promote` moves the deployment manifest by compare-and-set, and the alias (asset `champion`). The service follows the manifest.

**Who is asked** — with `release.approval`, `approve` before any traffic; `ask` when a canary has no verdict after `release.max_hours`. No answer
means no. Under *Required actions*. The ledger notes who said what (`evergreen ledger --kind canary`).

**Who is called** — the data team, on *failed*. Until `promote` has succeeded the old champion serves. Versions marked `backfill` are refused.
A candidate that the canary or a person refuses is no failure: `promote` is skipped, and its log says why.

| task failed | it means | do |
|---|---|---|
| `smoke` | the package does not start, or answers otherwise than when it was built | do not promote it; read the log, train again |
| `approve` | the question could not be put | clear the task |
| `canary` | another canary or an experiment is in the way, or log or registry does not answer | read its log; clear the task: it goes on where it was |
| `ask` | the question could not be put; the canary keeps its share | clear the task, or `evergreen rollback` |
| `promote` | somebody else moved the champion meanwhile, or the registry does not answer | clear the task: it reads the state anew |

**By hand** — give *version* to release a registered version again. Runbooks: docs/runbooks/deploy.md, docs/runbooks/rollback.md.
"""
LIMITS = load_params().release
CANARY_TIME = timedelta(hours=1 + LIMITS.max_hours * len(LIMITS.steps))
ANSWER_TIME = timedelta(hours=LIMITS.approval_hours)
NOT_ASKED: Json = {"chosen_options": [""]}


def _only_when_inconclusive(context: Any) -> None:
    state = context["ti"].xcom_pull(task_ids="canary")
    if state["verdict"] != "inconclusive":
        raise AirflowSkipException(f"nobody needs to be asked: {state['verdict']}, {state['reason']}")


@dag(
    schedule=[CANDIDATE],
    doc_md=DOC,
    params={
        "version": Param(
            None, type=["null", "string", "object"], title="Version", description_md="Number of a registered version."
        ),
        "as_of": time_param(description="The moment written beside the promotion; fill it in when you release by hand."),
        "skip_canary": Param(
            None, type=["null", "string"], title="Skip the canary", description_md="Emergencies only: why? Noted in the ledger."
        ),
    },
    **dag_args("model", deadline=timedelta(hours=2) + CANARY_TIME + 2 * ANSWER_TIME),
)
def release() -> None:
    @task
    def smoke() -> Json:
        from ml import steps
        from ml.errors import EvergreenError

        with step():
            decision = steps.smoke(asked_version())
            if not decision.passed:
                raise EvergreenError(f"the package failed its smoke test: {decision.reason}", "read the checks in the ledger")
            return decision.to_xcom()

    @task.sensor(mode="reschedule", poke_interval=5, timeout=CANARY_TIME.total_seconds())
    def canary(*, ti: Any) -> PokeReturnValue:
        from ml import steps

        with step():
            when, answer = occasion(), ti.xcom_pull(task_ids="approve") or NOT_ASKED
            said, skip = answer["chosen_options"][0], when.asked.get("skip_canary") or ""
            state = steps.canary(asked_version(), when.as_of, skip, said, responder(answer))
            return PokeReturnValue(state.verdict != "running", state.to_xcom())

    ask = HITLOperator(
        task_id="ask",
        subject="The canary has no verdict: promote it?",
        body="{{ ti.xcom_pull(task_ids='canary')['reason'] }}",
        options=["promote", "roll back"],
        defaults="roll back",
        response_timeout=ANSWER_TIME,
        pre_execute=_only_when_inconclusive,
    )

    @task(outlets=[CHAMPION], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def promote(*, ti: Any, outlet_events: Any) -> int:
        from ml import steps

        with step():
            version, as_of = asked_version(), occasion().as_of
            answer = ti.xcom_pull(task_ids="ask") or NOT_ASKED
            manifest = steps.promote(version, as_of, answer["chosen_options"][0], responder(answer))
            outlet_events[CHAMPION].extra = {"version": version.version, "manifest": manifest, "as_of": as_of.isoformat()}
            return manifest

    watched = canary()
    if LIMITS.approval:
        question = "Shall the candidate get traffic?"
        options = ["Approve", "Reject"]
        said = HITLOperator(task_id="approve", subject=question, options=options, defaults="Reject", response_timeout=ANSWER_TIME)
        smoke() >> said >> watched
    else:
        smoke() >> watched
    promoted = promote()
    watched >> ask >> promoted
    watched >> promoted


RELEASE = release()
