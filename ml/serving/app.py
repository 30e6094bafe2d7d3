"""The HTTP routes. One ASGI app, two ways in: `serve` follows the deployment manifest; a Bento mounts it with a fixed bundle."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pydantic_core
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline

from ml.packaging.bundle import Bundle
from ml.serving.explaining import MAX_EXPLAINED
from ml.serving.predictor import PredictionError
from ml.serving.schema import Answer, Explained, RequestError
from ml.serving.service import NotReadyError, Service

SANDBOX = "EVERGREEN_SANDBOX"
"""Set to 1 for a smoke test: nothing is logged as a prediction, and ``POST /parity`` answers feature values."""
MAX_BODY_BYTES = 8 << 20

_EXPLAIN = (
    f"true: each answer also has `explanation`, the features' shares in it; at most {MAX_EXPLAINED} rows in one request. An "
    "answer that cannot be explained has the flag `explanation_missing` instead."
)
_ERRORS: dict[int | str, dict[str, Any]] = {
    413: {"description": "more rows or bytes than the limit"},
    422: {"description": "a field is unknown, missing or of the wrong type, it is named; or too many rows to explain"},
    503: {"description": "no model is loaded"},
}


def create_app(fixed: Callable[[], Bundle] | None = None) -> FastAPI:
    """The service as an ASGI app; its lifespan starts and stops the threads.

    Args:
        fixed: reads the one bundle to serve; without it, the app follows the deployment manifest.
    """
    sandbox = os.environ.get(SANDBOX) == "1"
    service = Service(fixed, write_log=not sandbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPIOffline(
        title="Evergreen", description="Predictions of the deployed champion.", redoc_url=None, lifespan=lifespan
    )
    app.state.service = service
    _error_handlers(app)
    _prediction_route(app, service)
    _probe_routes(app, service)
    if sandbox:
        _parity_route(app, service)
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


def serve(host: str, port: int) -> None:
    """Runs the service until SIGTERM or SIGINT: requests in flight end, the log is written, then it returns."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvicorn.run(create_app(), host=host, port=port, log_level="info", access_log=False, timeout_graceful_shutdown=10)


def _prediction_route(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses={200: {"model": Answer | list[Answer] | Explained | list[Explained]}, **_ERRORS})
    async def predict(request: Request, explain: Annotated[bool, Query(description=_EXPLAIN)] = False) -> Response:
        """The probability for one row, or for each row of a list."""
        body, request_id = await _body(request), request.headers.get("x-request-id", "")[:64] or None
        answer = await (service.explain if explain else service.predict)(body, request_id)
        return Response(pydantic_core.to_json(answer), media_type="application/json")


def _probe_routes(app: FastAPI, service: Service) -> None:
    @app.get("/livez", response_class=PlainTextResponse)
    async def livez() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: _ERRORS[503]})
    async def readyz() -> str:
        """A model is loaded."""
        service.ready()
        return "ok"

    @app.get("/metadata")
    async def metadata() -> dict[str, Any]:
        """What serves: manifest, version, digests, since when, feature tick; and what was refused last."""
        about: dict[str, Any] = await asyncio.to_thread(service.metadata)
        return about

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and the latency histogram, for Prometheus."""
        return PlainTextResponse(service.telemetry.text(), media_type="text/plain; version=0.0.4")


def _parity_route(app: FastAPI, service: Service) -> None:
    @app.post("/parity")
    async def parity(request: Request) -> Response:
        """Probabilities for feature values as they were recorded: online features may have moved since."""
        features = pydantic_core.from_json(await _body(request))
        try:
            y_proba = await service.run(service.ready().predictor.predict, features)
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


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RequestError(413, f"the body exceeds {MAX_BODY_BYTES:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document of what serves now: the request's fields are the served model's."""
    document = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    if service.serving is not None:
        row = service.serving.schema.row.model_json_schema()
        document["components"]["schemas"]["Row"] = row
        of = {"$ref": "#/components/schemas/Row"}
        either = {"anyOf": [of, {"type": "array", "items": of, "maxItems": service.serving.schema.max_batch}]}
        document["paths"]["/predict"]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": either}},
        }
    return document
