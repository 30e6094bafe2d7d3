"""What the service counts, in Prometheus' format. One registry per app, so that two apps in a process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Telemetry:
    """The metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "requests to /predict", "status")
        self.rows = self._counter("predictions", "rows answered", "model_version")
        self.flags = self._counter("flags", "rows answered with this flag", "flag")
        self.filled = self._counter("features_filled", "rows answered as if nothing were known of this view", "view")
        self.logged = self._counter("predictions_logged", "rows written to the prediction log")
        self.dropped = self._counter("predictions_dropped", "rows lost to the prediction log")
        self.swaps = self._counter("swaps", "models taken into service")
        self.refused = self._counter("bundles_refused", "bundles that failed verification or probe")
        self.manifest = Gauge("evergreen_manifest_version", "deployment manifest that is served", registry=self.registry)
        help_text = "time from body read to answer built"
        self.latency = Histogram("evergreen_request_seconds", help_text, buckets=BUCKETS, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"evergreen_{name}", help_text, labels, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
