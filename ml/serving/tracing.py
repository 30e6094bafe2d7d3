"""Traces of requests, request → features → model, to a collector by OpenTelemetry; off unless ``EVERGREEN_TRACES`` names one.

A request's spans are made when it is answered, from the times that it carries: while it is at work nothing is traced, so that a
request without a collector pays for one comparison, and one with it for three small objects after its answer is built.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ml.errors import ConfigError
from ml.settings import settings

if TYPE_CHECKING:
    from ml.serving.asked import Asked


class Tracing:
    """Sends spans in batches from a thread of its own; what a collector does not take is dropped, and its log says so.

    Args:
        endpoint: of OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``.

    Raises:
        ConfigError: OpenTelemetry's exporter is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation import set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            cure = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or leave EVERGREEN_TRACES empty"
            raise ConfigError(f"EVERGREEN_TRACES={endpoint}: {error}", cure) from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "evergreen-serving"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("evergreen")
        self._extract, self._within = TraceContextTextMapPropagator().extract, set_span_in_context
        self._clock = time.time_ns() - time.perf_counter_ns()

    def answered(self, asked: Asked) -> None:
        """The spans of a request that is about to be answered; below the caller's, if it sent ``traceparent``."""
        began, known = self._at(asked.started), self._at(asked.known_at)
        ended = self._at(asked.started + asked.seconds)
        told: dict[str, Any] = {
            "evergreen.request_id": asked.request_id,
            "evergreen.model": asked.team.name,
            "evergreen.model_version": sorted({entry.model_version for entry in asked.entries}),
            "evergreen.cohort": sorted({entry.cohort for entry in asked.entries}),
            "evergreen.flags": sorted({flag for entry in asked.entries for flag in entry.flags}),
            "evergreen.rows": len(asked.entries),
        }
        above = self._extract({"traceparent": asked.traceparent}) if asked.traceparent else None
        request = self._tracer.start_span("predict", context=above, start_time=began, attributes=told)
        within = self._within(request)
        for name, start, end in (("features", began, known), ("model", known, ended)):
            self._tracer.start_span(name, context=within, start_time=start).end(end)
        request.end(ended)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()

    def _at(self, seconds: float) -> int:
        """Nanoseconds since 1970 of a time of `time.perf_counter`."""
        return self._clock + int(seconds * 1e9)


def tracing() -> Tracing | None:
    """As the settings say."""
    return Tracing(settings().traces) if settings().traces else None
