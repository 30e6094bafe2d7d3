"""Routes of the Models pages. Each one asks Airflow who the reader is, and whether they may read runs of DAG `drift`.

Airflow mounts a plugin's application without any authentication of its own, static files included; so the one dependency
stands at the application, and there is no route and no mount beside it. Handlers are plain functions: the reading of ledger and
files happens in threads, and Airflow's API goes on meanwhile.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as PlainHTTPException

from ml import ledger
from ml.errors import ConfigError, EvergreenError, NotFoundError
from ml.pages import dates, drift, journal, models, overview, runs, timeline
from ml.refs import naive_utc
from plugins.models import actions, airflow_state
from plugins.models.render import inside, render
from plugins.models.shield import Shield

STATIC = Path(__file__).parent / "static"
FILES = {path.name: path for path in STATIC.iterdir()}
"""All that may be asked for by name: nothing of a name reaches the file system."""
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
READER = requires_access_dag("GET", DagAccessEntity.RUN, param_dag_id="drift")
"""What the pages show are findings of runs of DAG `drift` and what followed from them: who may read these may read the pages."""
RUN_READER = requires_access_dag("GET", DagAccessEntity.RUN)
"""Who may read runs of the DAG named in the query."""
MONTH = 62
"""Days on a page of dates."""

Day = Annotated[str, Query(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]


def create() -> FastAPI:
    """The application; Airflow's auth manager must have been made before its first request."""
    app = FastAPI(
        title="Models", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, dependencies=[Depends(READER)]
    )
    app.add_middleware(Shield)
    app.add_exception_handler(PlainHTTPException, _refused)
    app.add_exception_handler(EvergreenError, _broken)
    _add_pages(app)
    _add_tabs(app)
    _add_data(app)
    app.include_router(actions.router)
    return app


def _add_pages(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse)
    def first(request: Request, user: GetUserDep) -> Response:
        return render(request, "overview.html.j2", user=user, airflow=airflow_state.now(user), **overview.collect())

    @app.get("/timeline", response_class=HTMLResponse)
    def over_time(request: Request, user: GetUserDep, days: Annotated[int, Query(ge=0, le=4000)] = 90) -> Response:
        return render(request, "timeline.html.j2", user=user, **timeline.collect(days))

    @app.get("/versions", response_class=HTMLResponse)
    def versions(request: Request, user: GetUserDep) -> Response:
        return render(request, "versions.html.j2", user=user, **models.collect())

    @app.get("/versions/{version}", response_class=HTMLResponse)
    def version(request: Request, user: GetUserDep, version: str) -> Response:
        return render(request, "candidate.html.j2", user=user, **models.candidate(version))

    @app.get("/drift", response_class=HTMLResponse)
    def heat(
        request: Request, user: GetUserDep, days: Annotated[int, Query(ge=1, le=400)] = 60, until: Day = "", whole: bool = False
    ) -> Response:
        last = _date(until) if until else None
        return render(request, "drift.html.j2", user=user, **drift.heat_map(days, last, whole))

    @app.get("/drift/{name}", response_class=HTMLResponse)
    def feature(request: Request, user: GetUserDep, name: str, day: Day = "") -> Response:
        return render(request, "feature.html.j2", user=user, **drift.feature(name, day or None))

    @app.get("/dates", response_class=HTMLResponse)
    def landed(request: Request, user: GetUserDep, until: Day = "") -> Response:
        now = ledger.data_now()
        found = dates.days(now)
        end = _date(until) if until else (found[-1].day if found else now.date())
        kept = [day for day in found if day.day <= end]
        shown = kept[-MONTH:]
        older = shown[0].day.fromordinal(shown[0].day.toordinal() - 1) if len(kept) > MONTH else None
        return render(request, "dates.html.j2", user=user, now=now, found=shown[::-1], weeks=dates.weeks(found), older=older,
                      newest=len(kept) == len(found), reasons=dates.reasons())  # fmt: skip

    @app.get("/ledger", response_class=HTMLResponse)
    def entries(
        request: Request, user: GetUserDep, kind: str = "", subject: str = "", actor: str = "", since: str = "", until: str = "",
        before: Annotated[int | None, Query(ge=1)] = None, at: str = "",
    ) -> Response:  # fmt: skip
        asked = {"kind": kind, "subject": subject.strip(), "actor": actor}
        found = journal.collect(**asked, since=journal.moment(since), until=journal.moment(until), before=before)
        then = journal.moment(at)
        production = journal.production(then) if then else None
        return render(request, "ledger.html.j2", user=user, **found, production=production, before=before,
                      asked=asked | {"since": since, "until": until, "at": at})  # fmt: skip

    @app.get("/ledger/{number}", response_class=HTMLResponse)
    def entry(request: Request, user: GetUserDep, number: int) -> Response:
        return render(request, "entry.html.j2", user=user, **journal.entry(number))


def _add_tabs(app: FastAPI) -> None:
    @app.get("/run", response_class=HTMLResponse, dependencies=[Depends(RUN_READER)])
    def run(request: Request, user: GetUserDep, dag_id: str, run_id: str) -> Response:
        found = airflow_state.run(dag_id, run_id)
        began, ended = (at and naive_utc(at) for at in (found.start_date, found.end_date)) if found else (None, None)
        written = runs.written(dag_id, run_id, began, ended)
        return render(request, "run.html.j2", user=user, now=ledger.data_now(), dag=dag_id, run=run_id, found=found, **written,
                      ours=dag_id in runs.KINDS, tab=True)  # fmt: skip

    @app.get("/dag", response_class=HTMLResponse, dependencies=[Depends(RUN_READER)])
    def dag(request: Request, user: GetUserDep, dag_id: str) -> Response:
        return render(request, "dag.html.j2", user=user, dag=dag_id, ours=dag_id in runs.KINDS, tab=True, **runs.newest(dag_id))


def _add_data(app: FastAPI) -> None:
    @app.get("/data/summary")
    def summary(user: GetUserDep) -> dict[str, Any]:
        told = overview.summary()
        return told | {"waiting": [one.subject for one in airflow_state.questions(user)] + told["waiting"]}

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"no file {name!r}")
        return FileResponse(FILES[name], media_type=TYPES[FILES[name].suffix])


async def _refused(request: Request, refusal: Exception) -> Response:
    """A page sends a person who is not logged in to the login, and back afterwards; data and files answer plainly."""
    assert isinstance(refusal, PlainHTTPException)
    data = inside(request.scope).startswith(("data/", "static/", "actions/"))
    page = "text/html" in request.headers.get("accept", "") and not data
    if refusal.status_code == 401 and page:
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), status_code=303)
    if page:
        return render(request, "error.html.j2", refusal.status_code, what=str(refusal.detail), cure="", user=None)
    return Response(str(refusal.detail), refusal.status_code, media_type="text/plain")


async def _broken(request: Request, error: Exception) -> Response:
    """What is wrong, and the cure: our own errors are made to be read."""
    assert isinstance(error, EvergreenError)
    if inside(request.scope).startswith("actions/"):
        return PlainTextResponse(str(error), 409)
    status = 404 if isinstance(error, NotFoundError) else 400 if isinstance(error, ConfigError) else 503
    return render(request, "error.html.j2", status, what=error.what, cure=error.cure, user=None)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no day", "write it like 2013-04-19") from None
