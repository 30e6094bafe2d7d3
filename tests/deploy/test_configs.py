"""Configuration of other people's programs, judged by those programs themselves (Debian's; the images hold newer ones)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import files

PROMETHEUS = files.DEPLOY / "prometheus"


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
    for path in PROMETHEUS.glob("*.yml"):
        (tmp_path / path.name).write_text(path.read_text().replace("/run/secrets/token", str(tmp_path / "token")))
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_rules__fire_when_they_should() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", PROMETHEUS / "rules_test.yml")


def test_alertmanager__takes_its_file_and_its_options() -> None:
    assert "SUCCESS" in run("amtool", "check-config", files.DEPLOY / "alertmanager.yml")
    known = run("prometheus-alertmanager", "--help")
    assert all(option.split("=")[0] in known for option in files.services()["alertmanager"]["command"])


def test_targets__are_services_at_their_ports() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    named = {name: each["port"] for job in jobs for each in job.get("dns_sd_configs", []) for name in each["names"]}
    listens = files.environment("proxy", {})["PROXY_WATCH_LISTEN"]
    proxied, _, port = files.environment("proxy", {})["SERVING"].partition(":")
    assert named == {proxied: int(port), "stream": 3001}
    assert int(dict(files.lineage("serving"))["EXPOSE"]) == int(port)
    fixed = [target for job in jobs for each in job.get("static_configs", []) for target in each["targets"]]
    assert f"proxy{listens}" in fixed
    assert {target.split(":")[0] for target in fixed} <= {*files.services(), "127.0.0.1"}
    assert set(yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]) == {"name", "rules"}
