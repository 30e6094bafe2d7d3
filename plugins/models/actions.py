"""What people can do on the Models pages: retrain now, hold and release retraining, roll back, approve or reject.

Each route asks Airflow who calls and whether he may, wants a token that only a page made for him carries (another site cannot
send it), and a reason, which goes to the ledger together with his name.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.tokens import get_signing_key
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from fastapi import APIRouter, Depends, Header, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from itsdangerous import BadSignature, URLSafeTimedSerializer
from pydantic import BaseModel, ConfigDict, StringConstraints

TOKEN_SECONDS = 12 * 3600
"""A page that is older must be loaded again before it can act."""


class Reasoned(BaseModel):
    """Why; it is written into the ledger, where others read it."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=500)]


class Rollback(Reasoned):
    """`manifest`: the number of the manifest that the page showed; if it is another by now, nothing is done."""

    manifest: int


class Answer(Reasoned):
    """A person's answer to a question of a run of `release`."""

    run_id: str
    task_id: Literal["approve", "ask"]
    option: str


def _signer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(get_signing_key("api", "secret_key"), salt="evergreen-actions")


def action_token(user: Any) -> str:
    """What a page for this user carries, and sends back in the header ``X-Evergreen-Token``."""
    return _signer().dumps(str(user.get_id()))


def require_token(user: GetUserDep, x_evergreen_token: Annotated[str, Header()] = "") -> None:
    """Raises:
    HTTPException: 403: the request does not come from a page that was made for this user in the last hours.
    """
    try:
        made_for = _signer().loads(x_evergreen_token, max_age=TOKEN_SECONDS)
    except BadSignature:
        made_for = None
    if made_for != str(user.get_id()):
        raise HTTPException(403, "this page is too old, or was made for somebody else: load it again")


WANTED: dict[str, tuple[str, Literal["POST", "PUT"], DagAccessEntity]] = {
    "retrain": ("train", "POST", DagAccessEntity.RUN),
    "hold": ("drift", "POST", DagAccessEntity.RUN),
    "rollback": ("release", "POST", DagAccessEntity.RUN),
    "answer": ("release", "PUT", DagAccessEntity.HITL_DETAIL),
}
"""Airflow's permission for each action: who may start `train` may ask for a retrain, and so on."""


def _may(action: str) -> Any:
    dag, method, entity = WANTED[action]
    return Depends(requires_access_dag(method, entity, dag))


router = APIRouter(prefix="/actions", dependencies=[Depends(get_user), Depends(require_token)])


def can_act(user: Any) -> bool:
    """Whether the user may do all that this module offers, so that pages show him buttons."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails

    manager = get_auth_manager()
    return all(
        manager.is_authorized_dag(method=method, access_entity=entity, details=DagDetails(id=dag), user=user)
        for dag, method, entity in WANTED.values()
    )


@router.post("/hold", dependencies=[_may("hold")])
def hold(asked: Reasoned, user: GetUserDep) -> dict[str, str]:
    """No retrain is asked for until somebody says resume."""
    _order("hold", asked, user)
    return {"message": "Retraining is on hold. Nightly training and what serves go on."}


@router.post("/resume", dependencies=[_may("hold")])
def resume(asked: Reasoned, user: GetUserDep) -> dict[str, str]:
    """Ends a hold, and closes the breaker."""
    _order("resume", asked, user)
    return {"message": "The policy decides by itself again, from its next run on."}


def _order(kind: Literal["hold", "resume"], asked: Reasoned, user: Any) -> None:
    from ml import ledger
    from ml.monitoring import requests

    with ledger.acting(f"ui:{user.get_name()}"):
        requests.give(kind, user.get_name(), asked.reason, ledger.data_now())


@router.post("/rollback", dependencies=[_may("rollback")])
def rollback(asked: Rollback, user: GetUserDep) -> dict[str, str]:
    """Ends a running canary or experiment; without one, the previous champion serves again."""
    from ml import ledger
    from ml.errors import EvergreenError, StaleWriteError
    from ml.serving import manifest, release

    now = manifest.current()
    if now is not None and now.version != asked.manifest:
        raise StaleWriteError(
            f"manifest {now.version} serves by now, not {asked.manifest}", "load the page again, and look first"
        )
    try:
        with ledger.acting(f"ui:{user.get_name()}"):
            published = release.rollback(None, user.get_name(), asked.reason)
    except EvergreenError:
        raise
    except Exception as error:
        if (out := manifest.current()) is None or out.champion is None or not out.key.startswith("rollback-"):
            raise
        cure = "press the button again when it answers: what serves is not changed twice"
        raise EvergreenError(
            f"version {out.champion.version} serves all, but registry or ledger do not know yet: {error}", cure
        ) from error
    champion = published.champion
    assert champion is not None  # `rollback` has checked
    return {"message": f"Version {champion.version} serves all (manifest {published.version}). Services follow within a second."}


@router.post("/retrain", dependencies=[_may("retrain")])
async def retrain(asked: Reasoned, user: GetUserDep, request: Request) -> dict[str, str]:
    """Starts `train` with the reason, as if it were now; where the source has ended, as of the newest day that is known."""
    as_of = await run_in_threadpool(_data_now)
    conf = {"reason": asked.reason, "as_of": as_of.isoformat()}
    started = await _airflow(
        request, "POST", "/api/v2/dags/train/dagRuns", {"logical_date": None, "conf": conf, "note": asked.reason}
    )
    run_id = started["dag_run_id"]
    evidence = {"run_id": run_id, "conf": conf}
    await run_in_threadpool(_note, f"retrain-{run_id}", as_of, "retrains", "retrain", asked.reason, user, evidence)
    return {"message": f"Training has started (run {run_id}).", "href": f"/dags/train/runs/{run_id}"}


@router.post("/answer", dependencies=[_may("answer")])
async def answer(asked: Answer, user: GetUserDep, request: Request) -> dict[str, str]:
    """Answers a question that a run of `release` waits with."""
    path = f"/api/v2/dags/release/dagRuns/{quote(asked.run_id, safe='')}/taskInstances/{asked.task_id}/-1/hitlDetails"
    await _airflow(request, "PATCH", path, {"chosen_options": [asked.option], "params_input": {}})
    evidence = {"run_id": asked.run_id, "task": asked.task_id, "option": asked.option}
    key, as_of = f"answer-{asked.run_id}-{asked.task_id}", await run_in_threadpool(_data_now)
    await run_in_threadpool(_note, key, as_of, "release", asked.option, asked.reason, user, evidence)
    return {"message": f"Answered: {asked.option}.", "href": f"/dags/release/runs/{asked.run_id}"}


def _data_now() -> datetime:
    from ml import ledger

    return ledger.data_now()


def _note(key: str, as_of: datetime, subject: str, verdict: str, reason: str, user: Any, evidence: dict[str, Any]) -> None:
    from ml import ledger

    with ledger.acting(f"ui:{user.get_name()}"):
        ledger.record("action", key, as_of, subject, verdict, f"{user.get_name()}: {reason}", evidence)


async def _airflow(request: Request, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Asks Airflow's own API in this process, with the caller's own credentials: its checks and its audit log apply.

    Raises:
        HTTPException: what Airflow answered.
    """
    import httpx

    credentials = {name: request.headers[name] for name in ("cookie", "authorization") if name in request.headers}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=_airflow_app()), base_url=str(request.base_url)) as airflow:
        given = await airflow.request(method, path, json=body, headers=credentials | {"referer": str(request.url)})
    if given.is_error:
        raise HTTPException(given.status_code, given.json().get("detail", given.text))
    return dict(given.json())


def _airflow_app() -> Any:
    from airflow.api_fastapi.main import app  # the server has imported it: it is the app that answers this request

    return app
