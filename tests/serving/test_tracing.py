"""Traces of requests at a real collector's address: one span a request, with its features and its model below it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import forget
from tests.sample_bundle import ENTITY_ID, REQUEST, sample_bundle
from tests.serving.conftest import Serve, eventually, serves
from tests.serving.test_app import deploy, stored

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        spans = [span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans]
        self.server.spans += spans  # type: ignore[attr-defined]  # ours, set in the fixture
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """What came is in `spans`."""


@pytest.fixture
def spans(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Span]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        collector.spans = []  # type: ignore[attr-defined]
        threading.Thread(target=collector.serve_forever, args=(0.02,)).start()
        monkeypatch.setenv("EVERGREEN_TRACES", f"http://127.0.0.1:{collector.server_port}/v1/traces")
        forget()
        yield collector.spans  # type: ignore[attr-defined]
        collector.shutdown()


def test_trace__request_features_model__below_the_callers_span(serve: Serve, spans: list[Span]) -> None:
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        before = len(spans)
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}
        assert client.post("/predict", json=REQUEST, headers=headers).json()["entity_id"] == ENTITY_ID
    mine = {span.name: span for span in spans[before:] if span.trace_id.hex() == TRACE}
    assert set(mine) == {"predict", "features", "model"}
    request, features, model = mine["predict"], mine["features"], mine["model"]
    assert request.parent_span_id.hex() == PARENT
    assert {features.parent_span_id, model.parent_span_id} == {request.span_id}
    told = {each.key: each.value for each in request.attributes}
    assert told["evergreen.request_id"].string_value == "r-1"
    assert [value.string_value for value in told["evergreen.model_version"].array_value.values] == ["1"]
    moments = [request.start_time_unix_nano, features.start_time_unix_nano, features.end_time_unix_nano]
    moments += [model.start_time_unix_nano, model.end_time_unix_nano, request.end_time_unix_nano]
    assert moments == sorted(moments)


def test_trace__collector_is_down__answers_all_the_same(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TRACES", "http://127.0.0.1:1/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    forget()
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        assert client.post("/predict", json=REQUEST).status_code == 200


def test_trace__off__nothing_of_opentelemetry_is_asked(serve: Serve) -> None:
    from ml.serving import tracing

    assert tracing.tracing() is None
