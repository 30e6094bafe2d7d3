"""The HTTP service. One ASGI app, two ways in: `serve` follows the deployment manifests; a Bento mounts it for one bundle."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pydantic_core
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from starlette.routing import Route

from ml import logs
from ml.packaging.bundle import Bundle
from ml.serving.about import metadata as about_service
from ml.serving.front import Front, Hot, body_of
from ml.serving.openapi import document
from ml.serving.predictor import PredictionError
from ml.serving.schema import RequestError
from ml.serving.service import NotReadyError, Service
from ml.serving.telemetry import COUNTS, SHARED
from ml.settings import settings

SANDBOX = "EVERGREEN_SANDBOX"
"""Set to 1 for a smoke test: nothing is logged as a prediction, and ``POST /parity`` answers feature values."""
GRACE_SECONDS = 10
"""How long requests in flight may take once the service is told to stop."""
KEEP_ALIVE_SECONDS = 75


def create_app(fixed: Callable[[], Bundle] | None = None) -> FastAPI:
    """The service as an ASGI app; its lifespan starts and stops the threads.

    Args:
        fixed: reads the one bundle to serve; without it, the app follows the deployment manifests.
    """
    sandbox = os.environ.get(SANDBOX) == "1"
    service = Service(fixed, write_log=not sandbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start, asyncio.get_running_loop())
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPIOffline(title="Evergreen", description="Predictions of the deployed models.", redoc_url=None, lifespan=lifespan)
    token = settings().token.get_secret_value()
    hot = Hot(service)
    app.router.routes[:0] = [Route(path, hot) for path in Hot.PATHS]  # where a Bento looks up what the app answers
    app.add_middleware(Front, hot=hot, token=token)
    app.state.service = service
    _error_handlers(app)
    _probe_routes(app, service)
    if sandbox:
        _parity_route(app, service)
    app.openapi = lambda: document(app, service, bool(token))  # type: ignore[method-assign]  # FastAPI's way
    return app


def serve(host: str, port: int, workers: int) -> None:
    """Runs the service until SIGTERM or SIGINT: requests in flight end, the log is written, then it returns.

    Args:
        workers: processes that share the port; one that dies is replaced, and the others answer meanwhile.
    """
    logs.configure()
    with tempfile.TemporaryDirectory(prefix="evergreen-metrics-") as counts:
        if workers > 1:
            os.environ |= {COUNTS: counts, SHARED: "1"}
        uvicorn.run(
            "ml.serving.app:worker" if workers > 1 else create_app(),
            factory=workers > 1,
            workers=workers,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


def worker() -> FastAPI:
    """The app in one of several processes; it ends with the process that began it."""
    logs.configure()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent", daemon=True).start()
    return create_app()


def _probe_routes(app: FastAPI, service: Service) -> None:
    @app.get("/livez", response_class=PlainTextResponse)
    async def livez() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "no model is loaded"}})
    async def readyz() -> str:
        """A model is loaded."""
        service.team()
        return "ok"

    @app.get("/metadata")
    async def metadata() -> dict[str, Any]:
        """What serves: manifest, version, digests, since when, feature tick, who answers whom; and what was refused last."""
        return about_service(service)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and the latency histogram, for Prometheus."""
        return PlainTextResponse(service.telemetry.text(), media_type="text/plain; version=0.0.4")


def _parity_route(app: FastAPI, service: Service) -> None:
    @app.post("/parity")
    async def parity(request: Request) -> Response:
        """Probabilities for feature values as they were recorded: online features may have moved since."""
        features = pydantic_core.from_json(await body_of(request.receive))
        try:
            y_proba = await asyncio.to_thread(service.team().lead.serving.predictor.predict, features)
        except PredictionError as error:
            raise RequestError(422, str(error)) from None
        return JSONResponse({"probabilities": y_proba.tolist()})


def _error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def at_fault(_: Request, error: RequestError) -> Response:
        return JSONResponse({"detail": error.detail}, error.status)

    @app.exception_handler(NotReadyError)
    async def not_ready(_: Request, error: NotReadyError) -> Response:
        return JSONResponse({"detail": str(error)}, 503)
