"""What the stream counts, beside what the service counts (`ml.serving.telemetry`), on a port of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from confluent_kafka import KafkaException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ml.errors import ConfigError

LOOK_SECONDS = 2.0
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

logger = logging.getLogger(__name__)


class Gauges:
    """The metrics of one member."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answered = Counter("evergreen_stream_answered", "records whose answer the brokers have", registry=registry)
        self.dead = Counter("evergreen_stream_dead_letters", "records that could not be answered", ["reason"], registry=registry)
        self.repeated = Counter("evergreen_stream_repeated", "records left alone: they were answered before", registry=registry)
        self.commits = Counter("evergreen_stream_commits", "commits of offsets", ["outcome"], registry=registry)
        self.seconds = Histogram(
            "evergreen_stream_seconds",
            "from a record's timestamp to its answer's acknowledgement",
            buckets=BUCKETS,
            registry=registry,
        )
        self.lag = Gauge("evergreen_stream_lag", "records of a partition that are not answered", ["partition"], registry=registry)
        self.partitions = Gauge("evergreen_stream_partitions", "partitions that this member has", registry=registry)
        self.waiting = Gauge("evergreen_stream_waiting", "records read and not yet acknowledged", registry=registry)
        self.paused = Gauge(
            "evergreen_stream_paused", "1 while nothing is read: no model, or brokers slower than answers", registry=registry
        )


class CollectorGauges:
    """The metrics of one collector."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.collected = Counter("evergreen_collect_entries", "entries of the log that are in files", registry=registry)
        self.lag = Gauge("evergreen_collect_lag", "records of a partition that are in no file", ["partition"], registry=registry)
        self.waiting = Gauge("evergreen_collect_waiting", "records read that are in no file yet", registry=registry)


def serve(registry: CollectorRegistry, host: str, port: int, variable: str) -> Callable[[], None]:
    """Shows metrics at ``/metrics``; gives what ends that.

    Args:
        variable: that says the port, for the error.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"{variable}={port}: {error.strerror}", "name a free port") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


class LagWatch:
    """Asks the brokers every two seconds how far behind this member is, whether or not it reads.

    Args:
        done: by partition of this member, the offset below which all is answered.
        behind: records of a partition from an offset on.
    """

    def __init__(self, done: Callable[[], dict[int, int]], behind: Callable[[int, int], int], lag: Gauge) -> None:
        self._done, self._behind, self._lag = done, behind, lag
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        silent = False
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                found = {partition: self._behind(partition, done) for partition, done in self._done().items()}
            except KafkaException as error:
                if not silent:
                    logger.warning("the lag is not known: %s", error.args[0].str())
                silent = True
                continue
            silent = False
            self._lag.clear()
            for partition, records in found.items():
                self._lag.labels(partition).set(records)
