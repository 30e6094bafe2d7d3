"""Serves the Models pages alone, with Airflow's own authentication: no scheduler, no UI.

    python -m ops.pages_server --port 8099 [--runs 365]

For measurements and tests. Airflow's database and passwords are those of the environment (``AIRFLOW__…``); `prepare` makes an
empty database. Each answer says in ``x-queries`` how many statements it took, of Airflow's database and the ledger's together,
and in ``x-cpu-ms`` the processor time of the whole process meanwhile, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.errors import EvergreenError
from ml.settings import ROOT
from ops import environment
from ops.ports import free_port

DAGS = ("ingest", "train", "release", "drift", "score", "online")
_statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)


class Counting:
    """Counts statements that are executed for a request, also in the threads that work for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        sa.event.listen(sa.Engine, "before_cursor_execute", self._count)

    @staticmethod
    def _count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if (found := _statements.get()) is not None:
            found.append(statement)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found: list[str] = []
        _statements.set(found)
        began = time.process_time()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {"x-queries": str(len(found)), "x-cpu-ms": f"{1000 * (time.process_time() - began):.1f}"}
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self.app(scope, receive, noted)


def create() -> FastAPI:
    """Login, refresh of tokens and the plugin's application, as Airflow's API server puts them together."""
    from airflow.api_fastapi.app import init_auth_manager
    from airflow.api_fastapi.auth.middlewares.refresh_token import JWTRefreshMiddleware

    from plugins.models_pages import ModelsPages

    app = FastAPI()
    for each in ModelsPages.fastapi_apps:
        app.mount(each["url_prefix"], each["app"])
    init_auth_manager(app)
    app.add_middleware(JWTRefreshMiddleware)
    app.add_middleware(Counting)
    return app


def prepare(runs: int) -> None:
    """An Airflow database with the DAGs and so many runs of each."""
    from airflow.models.dag import DagModel, DagTag
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    initdb()
    start = datetime(2013, 1, 1, tzinfo=UTC)
    with create_session() as session:
        session.add(DagBundleModel(name="dags-folder"))
        session.flush()
        session.add_all(DagModel(dag_id=dag, bundle_name="dags-folder", is_stale=False, is_paused=False) for dag in DAGS)
        session.flush()
        session.add_all(DagTag(dag_id=dag, name="evergreen") for dag in DAGS)
        for i in range(runs):
            began = start + timedelta(days=i)
            for dag in DAGS:
                run = DagRun(
                    dag_id=dag, run_id=f"scheduled__{began.isoformat()}", run_type=DagRunType.SCHEDULED, logical_date=began,
                    run_after=began, start_date=began, state=DagRunState.FAILED if i % 40 == 39 else DagRunState.SUCCESS,
                    data_interval=(began - timedelta(days=1), began), triggered_by=DagRunTriggeredByType.TIMETABLE,
                )  # fmt: skip
                run.end_date = began + timedelta(minutes=4)
                session.add(run)


@dataclass(frozen=True)
class Server:
    """One that runs: its address, and users' passwords."""

    base: str
    passwords: dict[str, str]
    env: dict[str, str]

    def client(self, user: str = "") -> httpx.Client:
        """Logged in with the browser's cookie; without a user a stranger."""
        client = httpx.Client(base_url=self.base, headers={"accept": "text/html"}, timeout=60)
        if user:
            client.cookies.set("_token", self.token(user))
        return client

    def token(self, user: str) -> str:
        asked = httpx.post(f"{self.base}/auth/token", json={"username": user, "password": self.passwords[user]}, timeout=60)
        return str(asked.raise_for_status().json()["access_token"])


@contextmanager
def running(folder: Path, days: int, versions: int) -> Iterator[Server]:
    """A server in a place of its own below `folder`, with a history of so many days; it ends with the block.

    Users: ``admin``, ``viewer``, and ``stranger``, who has no role.
    """
    passwords = {user: secrets.token_urlsafe(9) for user in ("admin", "viewer", "stranger")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "passwords.json").write_text(json.dumps(passwords))
    config = {
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer,stranger:",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "CORE__DAGS_FOLDER": str(folder), "CORE__LOAD_EXAMPLES": "false", "CORE__PLUGINS_FOLDER": str(folder),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db", "API_AUTH__JWT_SECRET": secrets.token_hex(32),
    }  # fmt: skip
    env = {**environment.common(), **{f"AIRFLOW__{name}": value for name, value in config.items()}}
    env |= {"AIRFLOW_HOME": str(folder), "EVERGREEN_VAR": str(folder / "var"), "EVERGREEN_DATA": str(folder / "data")}
    making = [sys.executable, "-m", "ops.history", "--days", str(days), "--versions", str(versions)]
    subprocess.run(making, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    command = [sys.executable, "-m", "ops.pages_server", "--port", str(port), "--runs", str(days)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            _wait(process, f"http://127.0.0.1:{port}", folder / "server.log")
            yield Server(f"http://127.0.0.1:{port}", passwords, env)
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], base: str, log: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{base}/models/static/models.css", timeout=30)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise EvergreenError(f"the server did not come up: {log.read_text()[-2000:]}", "see the message")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--runs", type=int, default=0, help="make Airflow's database first, with so many runs of each DAG")
    asked = parser.parse_args()
    if asked.runs:
        prepare(asked.runs)
    uvicorn.run(create(), host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
