"""What the service counts, in Prometheus' format. One registry per app, so that two apps in a process do not mix.

Where several processes share the port, each counts in files of its own, and whichever is asked adds them up.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from ml.serving.log import Entry

COUNTS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of these files; the library reads it when it is imported. Others set it too, BentoML does."""
SHARED = "EVERGREEN_SHARED_COUNTS"
"""Set where what is in that folder is ours."""

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


SCORES = tuple(step / 20 for step in range(1, 21))


class Telemetry:
    """The metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "requests for predictions", "status")
        self.rows = self._counter("predictions", "rows answered", "model_version", "cohort")
        self.flags = self._counter("flags", "rows answered with this flag", "flag")
        self.filled = self._counter("features_filled", "rows answered as if nothing were known of this view", "view")
        self.logged = self._counter("predictions_logged", "rows written to the prediction log")
        self.dropped = self._counter("predictions_dropped", "rows lost to the prediction log")
        self.shadowed = self._counter("shadow_rows", "copies of rows for shadow models", "outcome")
        self.failures = self._counter("model_failures", "rows that a model did not answer", "model_version", "reason")
        self.swaps = self._counter("swaps", "models taken into service")
        self.refused = self._counter("bundles_refused", "bundles that failed verification or probe")
        self.manifest = Gauge(
            "evergreen_manifest_version",
            "deployment manifest that is served; of several processes, the last to follow",
            ["name"],
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        help_text = "time from body read to answer built"
        self.latency = Histogram("evergreen_request_seconds", help_text, buckets=BUCKETS, registry=self.registry)
        by = ("model_version", "cohort")
        help_text = "time from body read to answer built, once for each version and cohort that a request was answered by"
        self.answers = Histogram("evergreen_answer_seconds", help_text, by, buckets=BUCKETS, registry=self.registry)
        self.scores = Histogram("evergreen_probability", "probabilities answered", by, buckets=SCORES, registry=self.registry)
        self._status = cache(self.requests.labels)
        self._rows = cache(self.rows.labels)
        self._answers = cache(self.answers.labels)
        self._scores = cache(self.scores.labels)

    def answered(self, status: int, seconds: float) -> None:
        """Counts one request."""
        self._status(str(status)).inc()
        self.latency.observe(seconds)

    def gave(self, entries: Sequence[Entry]) -> None:
        """Counts the answers of one request by model version and cohort, and their flags."""
        rows: Tally[tuple[str, str]] = Tally()
        for entry in entries:
            rows[entry.model_version, entry.cohort] += 1
            self._scores(entry.model_version, entry.cohort).observe(entry.probability)
            for flag in entry.flags:
                self.flags.labels(flag).inc()
        for labels, n in rows.items():
            self._rows(*labels).inc(n)
            self._answers(*labels).observe(entries[0].seconds)

    def filled_in(self, views: Tally[str] | dict[str, int]) -> None:
        """Counts, by view, the rows whose values were filled in."""
        for view, count in views.items():
            if count:
                self.filled.labels(view).inc(count)

    def text(self) -> bytes:
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        for path in Path(os.environ[COUNTS]).glob("gauge_live*.db"):
            pid = int(path.stem.rpartition("_")[2])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                multiprocess.mark_process_dead(pid)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"evergreen_{name}", help_text, labels, registry=self.registry)
