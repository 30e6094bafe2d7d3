"""Alert rules by Prometheus' own tools: each fires and is silent where it should, has a runbook, and reads metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from ml.monitoring import exporter
from ml.serving.telemetry import Telemetry
from ml.settings import ROOT
from ml.streaming.gauges import CollectorGauges, Gauges
from ops import history

FOLDER = ROOT / "monitoring"
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
TIERS = ("page", "ticket", "info")


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Of both files the rules of a kind (``alert`` or ``record``) by name."""
    documents = [yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "rules").glob("*.yml"))]
    return {rule[kind]: rule for document in documents for group in document["groups"] for rule in group["rules"] if kind in rule}


def run(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: `sh ops/install_debian.sh prometheus prometheus-alertmanager`")
    done = subprocess.run([tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool__rules_and_their_tests() -> None:
    assert "SUCCESS" in run("promtool", "check", "config", "monitoring/prometheus.yml")
    assert "FAILED" not in run("promtool", "test", "rules", *map(str, TESTS))


def test_tests__each_alert_fires_once_and_is_silent_once() -> None:
    cases = [case for path in TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    fires, silent = Counter[str](), Counter[str]()
    for case in cases:
        for expected in case["alert_rule_test"]:
            (fires if expected["exp_alerts"] else silent)[expected["alertname"]] += 1
    assert set(rules("alert")) == set(fires) == set(silent)


@pytest.mark.parametrize("name", sorted(rules("alert")))
def test_alert__has_a_tier_an_impact_and_a_runbook_of_its_own(name: str) -> None:
    alert = rules("alert")[name]
    assert alert["labels"]["severity"] in TIERS
    assert alert["annotations"]["impact"].endswith(".")
    text = (ROOT / alert["annotations"]["runbook"]).read_text()
    assert text.startswith(f"# {name}\n\nTier: {alert['labels']['severity']}. ")
    assert "\n## Look\n" in text
    assert "\n## Do\n" in text


def test_runbooks__links_lead_somewhere() -> None:
    for path in (ROOT / "docs" / "runbooks").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def metrics(tmp_path: Path) -> set[str]:
    """Names of the series that service, stream and exporter have."""
    history.make(30, 6)
    stream = CollectorRegistry()
    for gauges in (Gauges, CollectorGauges):
        gauges(stream)
    families = [*exporter.Loop().collect(), *Telemetry().registry.collect(), *stream.collect()]
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for family in families for ending in endings[family.type]}


def test_rules__read_only_metrics_that_exist(workspace: Path) -> None:
    there = metrics(workspace) | set(rules("record"))
    for rule in (*rules("alert").values(), *rules("record").values()):
        for name in re.findall(r"(?<![\w:])(?:\w+:)?evergreen_[\w:]+", rule["expr"]):
            assert name in there, f"{rule.get('alert', rule.get('record'))} reads {name}"


def test_amtool__who_hears_what() -> None:
    where = "--config.file=monitoring/alertmanager.yml"
    assert "SUCCESS" in run("amtool", "check-config", "monitoring/alertmanager.yml")
    heard = {tier: run("amtool", "config", "routes", "test", where, f"severity={tier}").strip() for tier in TIERS}
    assert heard == {"page": "pages", "ticket": "tickets", "info": "nobody"}


def test_inhibitions__name_alerts_that_exist() -> None:
    for rule in yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["inhibit_rules"]:
        named = [
            m.split("=", 1)[1].strip(' ~"')
            for key in ("source_matchers", "target_matchers")
            for m in rule[key]
            if "alertname" in m
        ]
        assert {name for each in named for name in each.split("|")} <= set(rules("alert"))
