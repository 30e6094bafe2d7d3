"""Airflow's own metrics for Prometheus: an ear for what its processes send by StatsD, which `evergreen exporter` shows.

A task is a process of a few seconds that nobody could scrape: Airflow sends each event as a datagram, and here they are counted.
Only the names of `KNOWN` are kept, each with the labels that stand there: no run id, host or file path becomes a label, and
`MOST_SERIES` is the end in any case. What is left out is counted, by reason.

Airflow must put its variables into tags (``AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED=true``, ``…LEGACY_NAMES_ON=false``). Then a
datagram is ``airflow.ti.finish,dag_id=train,task_id=fit,state=success:1|c``.
"""

from __future__ import annotations

import math
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from ml.errors import ConfigError

TASK, DAG = ("dag_id", "task_id"), ("dag_id",)
POOL, EXECUTOR = ("pool_name",), ("executor_class_name",)
KNOWN: dict[str, tuple[str, ...]] = {
    "scheduler_heartbeat": (),
    "dag_processor_heartbeat": (),
    "triggerer_heartbeat": (),
    "scheduler.scheduler_loop_duration": (),
    "scheduler.critical_section_duration": (),
    "scheduler.critical_section_busy": (),
    "scheduler.tasks.starving": (),
    "scheduler.tasks.executable": (),
    "scheduler.tasks.killed_externally": TASK,
    "scheduler.orphaned_tasks.cleared": (),
    "scheduler.orphaned_tasks.adopted": (),
    "scheduler.dagruns.running": (),
    "task_instances_without_heartbeats_killed": TASK,
    "dagbag_size": (),
    "dag_processing.import_errors": (),
    "dag_processing.total_parse_time": (),
    "dag_processing.file_path_queue_size": (),
    "dag_processing.processor_timeouts": (),
    "dag_processing.last_duration": ("file_name",),
    "executor.open_slots": EXECUTOR,
    "executor.queued_tasks": EXECUTOR,
    "executor.running_tasks": EXECUTOR,
    "pool.open_slots": POOL,
    "pool.queued_slots": POOL,
    "pool.running_slots": POOL,
    "pool.deferred_slots": POOL,
    "pool.scheduled_slots": POOL,
    "pool.starving_tasks": POOL,
    "ti.start": TASK,
    "ti.finish": (*TASK, "state"),
    "ti.scheduled": TASK,
    "ti.queued": TASK,
    "ti.running": TASK,
    "ti.deferred": TASK,
    "ti_failures": TASK,
    "ti_successes": TASK,
    "task.duration": TASK,
    "task.scheduled_duration": TASK,
    "dagrun.duration.success": DAG,
    "dagrun.duration.failed": DAG,
    "dagrun.schedule_delay": DAG,
    "dagrun.first_task_start_delay": DAG,
    "dag.callback_exceptions": DAG,
    "deadline_alerts.deadline_missed": DAG,
    "asset.updates": (),
    "asset.triggered_dagruns": (),
    "triggers.failed": (),
    "celery.task_timeout_error": (),
    "celery.execute_command.failure": (),
}
"""Airflow's name → the tags that become labels. Counters lose the others by adding up, which is right; gauges lose none."""
IN_SECONDS = {"dag_processing.last_duration"}
"""Timers that Airflow 3.3 sends in seconds; all others are in milliseconds."""
KINDS = {"c": "counter", "g": "gauge", "ms": "timer"}
MOST_SERIES = 5_000
GAUGE_SECONDS = 900.0
"""A gauge that was not heard for so long is not known any more; the rarest is sent whenever all DAG files were read."""

Key = tuple[str, str, tuple[str, ...]]
"""kind, name, values of the labels."""


class Heard(Collector):
    """What was heard, as metrics.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._busy = clock, threading.Lock()
        self._values: dict[Key, float] = {}
        self._timers: Counter[Key] = Counter()
        self._at: dict[Key, float] = {}
        self._lines = 0
        self._dropped: Counter[str] = Counter()

    def hear(self, datagram: bytes) -> None:
        """Takes a datagram in; what cannot be read or kept is counted, and no sender is ever told."""
        with self._busy:
            for line in datagram.decode("utf-8", "replace").splitlines():
                self._lines += 1
                if reason := self._take(line):
                    self._dropped[reason] += 1

    def _take(self, line: str) -> str:
        """Takes a line in; gives why not."""
        head, _, tail = line.partition("|")
        stat, _, number = head.rpartition(":")
        unit, _, sampled = tail.partition("|")
        name, *pairs = stat.removeprefix("airflow.").split(",")
        if name not in KNOWN:
            return "unknown"
        tags = dict(pair.partition("=")[::2] for pair in pairs)
        try:
            labels = tuple(tags[label][:200] for label in KNOWN[name])
            key, value = (KINDS[unit], name, labels), float(number)
            weight = 1 / float(sampled.removeprefix("@")) if sampled else 1.0
        except KeyError:
            return "untagged" if unit in KINDS else "malformed"
        except (ValueError, ZeroDivisionError):
            return "malformed"
        if not math.isfinite(value * weight):
            return "malformed"
        if key not in self._values and len(self._values) >= MOST_SERIES:
            return "full"
        self._at[key] = self._clock()
        if key[0] == "gauge":
            self._values[key] = value + (self._values.get(key, 0.0) if number[0] in "+-" else 0.0)
        else:
            scale = 0.001 if key[0] == "timer" and name not in IN_SECONDS else 1.0
            self._values[key] = self._values.get(key, 0.0) + max(value, 0.0) * scale * weight
            self._timers[key] += key[0] == "timer"
        return ""

    def collect(self) -> Iterator[Metric]:
        """One scrape's families: ``airflow_…``, and what was left out."""
        with self._busy:
            self._forget(self._clock() - GAUGE_SECONDS)
            values, timers = dict(self._values), dict(self._timers)
            lines, dropped = self._lines, dict(self._dropped)
        families: dict[tuple[str, str], Any] = {}
        for (kind, name, labels), value in sorted(values.items()):
            if (kind, name) not in families:
                families[kind, name] = _family(kind, name)
            figures = (timers[kind, name, labels], value) if kind == "timer" else (value,)
            families[kind, name].add_metric(labels, *figures)
        yield from families.values()
        heard = CounterMetricFamily("evergreen_statsd_lines", "lines that Airflow sent")
        heard.add_metric((), lines)
        yield heard
        left = CounterMetricFamily("evergreen_statsd_dropped", "of these, lines that are not shown", labels=("reason",))
        for reason, count in sorted(dropped.items()):
            left.add_metric((reason,), count)
        yield left

    def _forget(self, before: float) -> None:
        """Gauges that were heard last before then."""
        for key in [key for key, at in self._at.items() if at < before and key[0] == "gauge"]:
            del self._values[key], self._at[key]


def _family(kind: str, name: str) -> Any:
    labels = [{"pool_name": "pool", "executor_class_name": "executor"}.get(label, label) for label in KNOWN[name]]
    shown = "airflow_" + name.replace(".", "_")
    made: Mapping[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "timer": SummaryMetricFamily}
    return made[kind](f"{shown}_seconds" if kind == "timer" else shown, f"Airflow's {name}", labels=labels)


def listen(heard: Heard, host: str, port: int) -> Callable[[], None]:
    """Hears datagrams in a thread of its own; returns what stops it.

    Raises:
        ConfigError: the port is taken.
    """

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.hear(self.request[0])

    try:
        server = socketserver.UDPServer((host, port), Datagram)
    except OSError as error:
        raise ConfigError(f"EVERGREEN_STATSD_PORT={port}: {error.strerror}", "name a free UDP port") from None
    thread = threading.Thread(target=server.serve_forever, name="statsd", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
