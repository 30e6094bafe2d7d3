"""Configuration of other people's programs, judged by those programs themselves (Debian's; the images hold newer ones)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml.settings import ROOT, Settings
from ops import environment
from tests.deploy import files

MONITORING = ROOT / "monitoring"


def run(*words: object, **environment: str) -> str:
    """What a program says; skips where it is not installed."""
    program = shutil.which(str(words[0]), path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{words[0]} is not installed: sh ops/install_debian.sh haproxy prometheus prometheus-alertmanager")
    done = subprocess.run(
        [program, *map(str, words[1:])], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_haproxy__takes_its_file_without_a_warning() -> None:
    said = run("haproxy", "-c", "-f", files.DEPLOY / "haproxy.cfg", **files.environment("proxy", files.example()))
    assert "WARNING" not in said


def test_haproxy__refuses_a_file_that_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "haproxy.cfg"
    wrong.write_text((files.DEPLOY / "haproxy.cfg").read_text().replace("balance leastconn", "balance leastcon"))
    with pytest.raises(AssertionError, match="leastcon"):
        run("haproxy", "-c", "-f", wrong, **files.environment("proxy", files.example()))


def test_prometheus__takes_its_file(tmp_path: Path) -> None:
    """With the token's file where this machine can have one."""
    (tmp_path / "token").write_text("t")
    (tmp_path / "rules").symlink_to(MONITORING / "rules")
    text = (MONITORING / "prometheus-compose.yml").read_text().replace("/run/secrets/token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(text)
    said = run("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert "SUCCESS" in said and "2 rule files found" in said


def test_prometheus__has_the_same_rules_and_jobs_as_on_one_computer() -> None:
    here, there = (yaml.safe_load((MONITORING / name).read_text()) for name in ("prometheus.yml", "prometheus-compose.yml"))
    same = ("global", "rule_files")
    assert {name: here[name] for name in same} == {name: there[name] for name in same}
    assert jobs(here) < jobs(there) == {*jobs(here), "proxy", "stream"}


def jobs(config: dict[str, Any]) -> set[str]:
    return {job["job_name"] for job in config["scrape_configs"]}


def test_alertmanager__takes_its_file_and_its_options() -> None:
    assert "SUCCESS" in run("amtool", "check-config", MONITORING / "alertmanager.yml")
    known = run("prometheus-alertmanager", "--help")
    assert all(option.split("=")[0] in known for option in files.services()["alertmanager"]["command"])


def test_prometheus__knows_its_options_and_finds_its_file() -> None:
    options = files.services()["prometheus"]["command"]
    known = run("prometheus", "--help")
    assert all(option.split("=")[0] in known for option in options)
    assert seen("prometheus", options[0].split("=")[1]) == MONITORING / "prometheus-compose.yml"


def test_grafana__finds_the_dashboards_and_prometheus() -> None:
    (provider,) = yaml.safe_load((MONITORING / "grafana" / "dashboards.yml").read_text())["providers"]
    assert seen("grafana", provider["options"]["path"]) == MONITORING / "dashboards"
    for kind in ("dashboards", "datasources"):
        assert seen("grafana", f"/etc/grafana/provisioning/{kind}/evergreen.yml") == MONITORING / "grafana" / f"{kind}.yml"


def seen(service: str, path: str) -> Path:
    """What is at a path of a container; it exists."""
    volumes = [volume.split(":") for volume in files.services()[service]["volumes"] if volume.startswith(".")]
    (found,) = [ROOT / here / Path(path).relative_to(there) for here, there, _ in volumes if Path(path).is_relative_to(there)]
    assert found.exists()
    return found


def test_targets__are_services_at_their_ports(tmp_path: Path) -> None:
    config = yaml.safe_load((MONITORING / "prometheus-compose.yml").read_text())
    named = {
        name: each["port"] for job in config["scrape_configs"] for each in job.get("dns_sd_configs", []) for name in each["names"]
    }
    listens = files.environment("proxy", {})["PROXY_WATCH_LISTEN"]
    proxied, _, port = files.environment("proxy", {})["SERVING"].partition(":")
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert named == {proxied: int(port), "stream": defaults["stream_port"]}
    assert int(dict(files.lineage("serving"))["EXPOSE"]) == int(port) == defaults["serving_port"]
    targets = [each for job in config["scrape_configs"] for each in job.get("static_configs", [])]
    (alertmanager,) = config["alerting"]["alertmanagers"][0]["static_configs"]
    fixed = {target for each in [*targets, alertmanager] for target in each["targets"]}
    assert fixed == {f"proxy{listens}", f"exporter:{defaults['exporter_port']}", "alertmanager:9093"}
    assert {target.split(":")[0] for target in [*fixed, *named]} <= set(files.services())
    api = files.environment("airflow-api", files.example())
    assert (
        files.environment("exporter", files.example())["EVERGREEN_AIRFLOW_URL"]
        == f"http://airflow-api:{api['AIRFLOW__API__PORT']}"
    )
    exporter = files.environment("exporter", files.example())
    assert exporter["EVERGREEN_STATSD_PORT"] == api["AIRFLOW__METRICS__STATSD_PORT"]
    assert api["AIRFLOW__METRICS__STATSD_HOST"] == "exporter"
    sent = {
        name: value
        for name, value in environment.airflow(Settings(statsd_port=8125, var=tmp_path)).items()
        if "__METRICS__" in name
    }
    assert {name for name in api if "__METRICS__" in name} == set(sent)
    assert all(api[name] == sent[name] for name in sent if not name.endswith(("STATSD_ON", "_HOST")))
