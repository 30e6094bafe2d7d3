"""The routes that are asked all day, straight on ASGI: a web framework's share of a request would exceed the model's."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote

import pydantic_core

from ml.serving import inference
from ml.serving.asked import Team
from ml.serving.inference import HEADER_LENGTH
from ml.serving.lane import Lane
from ml.serving.schema import RequestError
from ml.serving.service import NotReadyError, Service, new_id
from ml.settings import settings

MAX_BODY_BYTES = 8 << 20
BODY_SECONDS = 10.0
"""A caller that sends its body more slowly than this is turned away."""
OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Probes: they need no token."""
REQUEST_ID = "evergreen.request_id"
JSON = (b"content-type", b"application/json")
INFERRED = (b"content-type", b"application/octet-stream")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


class Reply:
    """What is sent; JSON unless headers say otherwise."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        self.body, self.status, self.headers = body, status, headers or (JSON,)


class Front:
    """Middleware: turns away who may not ask, and hands what is asked all day to `hot`, past all routing.

    Args:
        app: what answers all else.
        token: bearer token that is asked for; empty: none.
    """

    def __init__(self, app: App, hot: Hot, token: str) -> None:
        self._app, self._hot = app, hot
        self._expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._expected and path not in OPEN and not self._may(scope):
            await _send(send, _refused(path, 401, "a bearer token is needed", (b"www-authenticate", b"Bearer")))
        elif path in ("/predict", "/explain", "/v2") or path.startswith(("/models/", "/v2/")):
            await self._hot(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


class Hot:
    """Predictions, explanations and the Open Inference Protocol, as an ASGI app."""

    PATHS = ("/predict", "/explain", "/models/{rest:path}", "/v2", "/v2/{rest:path}")

    def __init__(self, service: Service) -> None:
        self._service, self._log_each = service, settings().logs == "requests"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        reply = await self._reply(scope, receive)
        await _send(send, reply)
        if self._log_each:
            told = {
                "request_id": _request_id(scope),
                "status": reply.status,
                "ms": round(1000 * (time.perf_counter() - started), 2),
            }
            logger.info("%s %s", scope["method"], scope["path"], extra=told)

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        path = scope["path"]
        try:
            return await (self._v2 if path.startswith("/v2") else self._predict)(scope, receive)
        except RequestError as error:
            return _refused(path, error.status, error.detail)
        except NotReadyError as error:
            return _refused(path, 503, str(error))
        except Exception:
            logger.exception("%s %s", scope["method"], path, extra={"request_id": _request_id(scope)})
            return _refused(path, 500, "the service failed; its log says why")

    async def _predict(self, scope: Scope, receive: Receive) -> Reply:
        name, explain = None, scope["path"] == "/explain"
        if scope["path"].startswith("/models/"):
            _, _, name, *rest = scope["path"].split("/")
            if rest not in (["predict"], ["explain"]):
                raise RequestError(404, "Not Found")
            explain = rest == ["explain"]
        if scope["method"] != "POST":
            raise RequestError(405, "Method Not Allowed")
        if scope["query_string"]:
            explain = explain or _asks_to_explain(scope["query_string"])
        request_id = traceparent = ""
        for header, value in scope["headers"]:
            if header == b"x-request-id":
                request_id = value[:64].decode("latin-1")
            elif header == b"traceparent":
                traceparent = value[:64].decode("latin-1")
        if not request_id and self._log_each:  # the one that the answer and the prediction log get
            request_id = scope[REQUEST_ID] = new_id()
        body = await body_of(receive)
        return Reply(pydantic_core.to_json(await self._service.predict(name, body, request_id, explain, traceparent)))

    async def _v2(self, scope: Scope, receive: Receive) -> Reply:
        method, parts = scope["method"], scope["path"].strip("/").split("/")
        match [method, *parts[1:]]:
            case ["GET"]:
                return _json({"name": "evergreen", "version": "1", "extensions": ["binary_tensor_data"]})
            case ["GET", "health", "live"]:
                return _json({"live": True})
            case ["GET", "health", "ready"]:
                self._service.team()
                return _json({"ready": True})
            case ["GET", "models", name, *version]:
                ready = version[-1:] == ["ready"]
                team, lane = self._lane(name, version[:-1] if ready else version)
                told = {"ready": True, "name": team.name} if ready else _about(team, lane)
                return _json(told)
            case ["POST", "models", name, *version, "infer"]:
                team, lane = self._lane(name, version)
                return await self._infer(team, lane, scope, await body_of(receive))
        raise RequestError(404 if method in ("GET", "POST") else 405, f"there is no {method} {scope['path']}")

    def _lane(self, name: str, version: list[str]) -> tuple[Team, Lane]:
        """The champion, or the version that is named: any that the manifest names."""
        team = self._service.team(unquote(name))
        match version:
            case []:
                return team, team.lead
            case ["versions", wanted] if wanted in team.by_version:
                return team, team.by_version[wanted]
        raise RequestError(404, f"model {team.name!r} serves the versions {', '.join(sorted(team.by_version))}")

    async def _infer(self, team: Team, lane: Lane, scope: Scope, body: bytes) -> Reply:
        given = next((value for name, value in scope["headers"] if name == HEADER_LENGTH), None)
        if given is not None and (not given.isdigit() or int(given) > len(body)):
            raise RequestError(400, f"Inference-Header-Content-Length is {given.decode('latin-1')!r} of {len(body)} bytes")
        started, status = time.perf_counter(), 500
        try:
            length = int(given) if given is not None else None
            question = inference.parse(body, length, lane.serving.predictor, lane.serving.schema.max_batch)
            y_proba = await self._service.infer(lane, question.feed, question.n)
            status = 200
        except RequestError as error:
            status = error.status
            raise
        finally:
            self._service.telemetry.answered(status, time.perf_counter() - started)
        answer, head = inference.render(question, y_proba, team.name, lane.serving.version)
        return Reply(answer) if head is None else Reply(answer, 200, INFERRED, (HEADER_LENGTH, b"%d" % head))


def _request_id(scope: Scope) -> str:
    """The caller's, or the one that was made; empty when there is none."""
    given = next((value[:64].decode("latin-1") for header, value in scope["headers"] if header == b"x-request-id"), "")
    return given or str(scope.get(REQUEST_ID, ""))


def _about(team: Team, lane: Lane) -> dict[str, Any]:
    return inference.about_model(team.name, sorted(team.by_version), lane.serving.predictor)


def _asks_to_explain(query: bytes) -> bool:
    """The parameter ``explain``, a truth value as FastAPI reads them."""
    given = parse_qs(query.decode("latin-1")).get("explain", ["false"])[-1].lower()
    if given in ("true", "1", "yes", "on"):
        return True
    if given in ("false", "0", "no", "off"):
        return False
    raise RequestError(422, [{"loc": ["query", "explain"], "msg": "must be true or false", "type": "bool_parsing"}])


async def body_of(receive: Receive) -> bytes:
    """The whole body of a request.

    Raises:
        RequestError: 413, it is too large; 408, it comes too slowly; 400, it is cut off.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _rest(body, receive)
        except TimeoutError:
            raise RequestError(408, f"the body took longer than {BODY_SECONDS:.0f} s") from None
    if len(body) > MAX_BODY_BYTES:
        raise RequestError(413, f"the body exceeds {MAX_BODY_BYTES:,} bytes")
    return body


async def _rest(first: bytes, receive: Receive) -> bytes:
    chunks, size, more = [first], len(first), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the body is cut off")
        chunks.append(message.get("body", b""))
        size, more = size + len(chunks[-1]), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise RequestError(413, f"the body exceeds {MAX_BODY_BYTES:,} bytes")
    return b"".join(chunks)


def _json(document: Any) -> Reply:
    return Reply(pydantic_core.to_json(document))


def _refused(path: str, status: int, detail: Any, *headers: tuple[bytes, bytes]) -> Reply:
    """An error as the route's protocol words it."""
    document = {"error": detail if isinstance(detail, str) else str(detail)} if path.startswith("/v2") else {"detail": detail}
    return Reply(pydantic_core.to_json(document), status, JSON, *headers)


async def _send(send: Send, reply: Reply) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
