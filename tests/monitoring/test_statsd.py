"""Airflow's own metrics: what Airflow's own code sends by UDP, with the settings of `make up`, and what becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ml.errors import ConfigError
from ml.monitoring import exporter, statsd
from ml.monitoring.statsd import GAUGE_SECONDS, IN_SECONDS, KNOWN, Heard
from ml.settings import ROOT, Settings
from ops import environment
from ops.ports import free_port

SEND = """
import json, sys
from airflow._shared.observability.metrics import stats
from airflow._shared.observability.metrics.metrics_registry import MetricsRegistry
from airflow.configuration import conf
from airflow.observability.metrics import stats_utils

known, registry = json.load(sys.stdin), MetricsRegistry()
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=conf.getboolean("metrics", "legacy_names_on"))
kinds = {}
for name, labels in known.items():
    about = registry.get(name=name)
    if about is None:
        continue
    kinds[name] = about["type"]
    tags = {label: f"{label}-1" for label in {*labels, *about["name_variables"]}}
    tags |= {"run_id": "manual__2013", "dagrun_id": "manual__2013", "job_id": "7", "hostname": "h", "queue": "default"}
    if about["type"] == "counter":
        stats.incr(name, tags=tags)
        stats.incr(name, 2, tags=tags)
    elif about["type"] == "gauge":
        stats.gauge(name, 5, tags=tags)
        stats.gauge(name, 4, tags=tags)
    else:
        stats.timing(name, 1500.0, tags=tags)
        stats.timing(name, 500.0, tags=tags)
stats.incr("ol.emit.failed")  # a name that we do not know
print(json.dumps(kinds))
"""


def shown(text: str) -> dict[str, float]:
    """series → value, of Airflow's."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(("airflow_", "evergreen_statsd"))]
    return {series: float(value) for series, value in lines if "_created" not in series}


def test_airflow__every_name_that_is_known_is_one_of_airflows_and_arrives_with_its_labels_alone(workspace: Path) -> None:
    port, statsd_port = free_port(), free_port()
    env = environment.airflow(Settings(statsd_port=statsd_port, var=workspace / "var"))
    stop = exporter.serve("127.0.0.1", port, statsd_port)
    try:
        done = subprocess.run(
            [sys.executable, "-c", SEND], input=json.dumps(KNOWN), env=env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-1500:]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            found = shown(answer.read().decode())
    finally:
        stop()
    kinds = json.loads(done.stdout.splitlines()[-1])
    assert set(kinds) == set(KNOWN), "names that Airflow's registry does not have"
    unknown = found.pop('evergreen_statsd_dropped_total{reason="unknown"}')
    assert 1 <= unknown < 10, "Airflow's names of old are sent, too"
    expected = {"evergreen_statsd_lines_total": 2 * len(KNOWN) + unknown}
    for name, labels in KNOWN.items():
        told = {"pool_name": "pool", "executor_class_name": "executor"}
        pairs = ",".join(sorted(f'{told.get(label, label)}="{label}-1"' for label in labels))
        series, where = "airflow_" + name.replace(".", "_"), f"{{{pairs}}}" if pairs else ""
        if kinds[name] == "counter":
            expected[f"{series}_total{where}"] = 3
        elif kinds[name] == "gauge":
            expected[series + where] = 4
        else:
            expected |= {f"{series}_seconds_count{where}": 2, f"{series}_seconds_sum{where}": 2000 if name in IN_SECONDS else 2}
    assert found == expected


def test_airflow__off_by_default(tmp_path: Path) -> None:
    assert not [name for name in environment.airflow(Settings(var=tmp_path)) if name.startswith("AIRFLOW__METRICS")]


@pytest.fixture
def heard() -> Heard:
    return Heard(lambda: now[0])


now = [0.0]


def values(heard: Heard) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(heard)
    return shown(generate_latest(registry).decode())


def test_gauge__not_heard_for_long__is_absent_and_a_counter_is_not(heard: Heard) -> None:
    now[0] = 0.0
    heard.hear(b"airflow.dagbag_size:8|g\nairflow.scheduler_heartbeat:1|c")
    now[0] = GAUGE_SECONDS + 1
    heard.hear(b"airflow.pool.open_slots,pool_name=default_pool:3|g")
    found = values(heard)
    assert "airflow_dagbag_size" not in found
    assert (found['airflow_pool_open_slots{pool="default_pool"}'], found["airflow_scheduler_heartbeat_total"]) == (3, 1)


def test_gauge__with_a_sign__moves_by_it(heard: Heard) -> None:
    heard.hear(b"airflow.dagbag_size:8|g\nairflow.dagbag_size:-3|g\nairflow.dagbag_size:+1|g")
    assert values(heard)["airflow_dagbag_size"] == 6


def test_counter__that_was_sampled__counts_for_what_was_not_sent(heard: Heard) -> None:
    heard.hear(b"airflow.ti.start,dag_id=a,task_id=b:1|c|@0.25")
    assert values(heard)['airflow_ti_start_total{dag_id="a",task_id="b"}'] == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("airflow.ti.finish.train.fit.success:1|c", "unknown"),  # Airflow's names of old
        ("airflow.ti.start:1|c", "untagged"),
        ("airflow.ti.start,dag_id=train:1|c", "untagged"),
        ("airflow.scheduler_heartbeat:one|c", "malformed"),
        ("airflow.scheduler_heartbeat:nan|c", "malformed"),
        ("airflow.scheduler_heartbeat:1|c|@0", "malformed"),
        ("airflow.scheduler_heartbeat:1|x", "malformed"),
        ("airflow.scheduler_heartbeat:|c", "malformed"),
        ("\x00\xff", "unknown"),
    ],
)
def test_line__that_cannot_be_shown__is_counted(heard: Heard, line: str, reason: str) -> None:
    heard.hear(line.encode("latin-1"))
    assert values(heard) == {"evergreen_statsd_lines_total": 1, f'evergreen_statsd_dropped_total{{reason="{reason}"}}': 1}


def test_series__do_not_grow_without_end(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statsd, "MOST_SERIES", 3)
    for number in range(5):
        heard.hear(b"airflow.ti.start,dag_id=a,task_id=%d:1|c" % number)
    heard.hear(b"airflow.ti.start,dag_id=a,task_id=0:1|c")
    found = values(heard)
    assert found['evergreen_statsd_dropped_total{reason="full"}'] == 2
    assert found['airflow_ti_start_total{dag_id="a",task_id="0"}'] == 2


def test_port__that_is_taken__is_named() -> None:
    port = free_port()
    stop = statsd.listen(Heard(), "127.0.0.1", port)
    try:
        with pytest.raises(ConfigError, match=f"EVERGREEN_STATSD_PORT={port}"):
            statsd.listen(Heard(), "127.0.0.1", port)
    finally:
        stop()
