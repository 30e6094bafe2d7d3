"""Refuses a run whose form does not fit together when it is asked for, not in its first task.

Airflow checks each field by its own schema; that *end* comes after *start* no schema of one field can say. This stands before the
API (the form in the UI posts there too) and answers as Airflow does: 400, and what is wrong. Airflow's command line does not pass
here; there the first task fails at once, with the same words.
"""

from __future__ import annotations

import json
import re
from typing import Any

from airflow.plugins_manager import AirflowPlugin

ASKS = re.compile(r"/api/v2/dags/(ingest|features|train|release|drift|score|online|report)/dagRuns/?$")
LARGEST = 1_000_000
"""Bytes of a body that is looked at; a form has a few hundred."""


class FormCheck:
    """ASGI middleware: reads the body of a request for a run, and passes everything else through untouched."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not ASKS.search(scope["path"]):
            await self.app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body") and sum(len(message.get("body", b"")) for message in messages) < LARGEST:
            messages.append(await receive())
        wrong = what_is_wrong(b"".join(message.get("body", b"") for message in messages))
        if wrong is None:
            waiting = iter(messages)

            async def again() -> Any:
                return next(waiting, None) or await receive()

            await self.app(scope, again, send)
            return
        body = json.dumps({"detail": wrong}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def what_is_wrong(body: bytes) -> str | None:
    """What does not fit together in the conf of a request; None when it does, or when it is for Airflow to say what is wrong."""
    try:
        asked = json.loads(body).get("conf") or {}
    except (ValueError, AttributeError):
        return None
    if not isinstance(asked, dict):
        return None
    from dags.common import check_asked
    from ml.errors import ConfigError

    try:
        check_asked(asked)
    except ConfigError as error:
        return str(error)
    return None


class Forms(AirflowPlugin):
    name = "evergreen_forms"
    fastapi_root_middlewares = [{"middleware": FormCheck, "name": "Evergreen: forms"}]  # noqa: RUF012 - Airflow reads the class
