"""The Models pages in Airflow: navigation, tabs on DAGs and runs, and a card on the first page.

Airflow imports this file in every process, tasks included. So it holds addresses only; the pages (`plugins/models`) are
imported by the API server when the first request comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from threading import Lock
from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/models"


class Pages:
    """The ASGI application, built on its first request."""

    def __init__(self) -> None:
        self._app: Any = None
        self._lock = Lock()

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        # in a thread: what is imported takes a second or two, and Airflow's API goes on meanwhile
        app = self._app or await asyncio.to_thread(self._made)
        await app(scope, receive, send)

    def _made(self) -> Any:
        with self._lock:
            if self._app is None:
                from plugins.models.app import create

                self._app = create()
            return self._app


# Addresses are relative to Airflow's own, which may lie below a path.
class ModelsPages(AirflowPlugin):
    name = "evergreen_models"
    fastapi_apps: list[dict[str, Any]] = [{"app": Pages(), "url_prefix": PREFIX, "name": "Models"}]  # noqa: RUF012 - Airflow reads the class
    external_views = [  # noqa: RUF012 - Airflow reads the class
        {"name": "Models", "href": "models/", "destination": "nav", "url_route": "models", "nav_top_level": True,
         "icon": "models/static/models.svg", "icon_dark_mode": "models/static/models-dark.svg"},
        {"name": "Models", "href": "models/run?dag_id={DAG_ID}&run_id={RUN_ID}", "destination": "dag_run",
         "url_route": "models-run"},
        {"name": "Models", "href": "models/dag?dag_id={DAG_ID}", "destination": "dag", "url_route": "models-dag"},
    ]  # fmt: skip
    react_apps = [  # noqa: RUF012 - Airflow reads the class
        {"name": "EvergreenModels", "bundle_url": "models/static/widget.js", "destination": "dashboard",
         "url_route": "models-card"},
    ]  # fmt: skip
