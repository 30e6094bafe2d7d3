"""The images' build file: its form, what it copies, what it installs. Nothing is built: there may be no engine here."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml.packaging.bento import EXPLAINING, REQUIREMENTS
from ml.settings import ROOT
from tests.deploy import files

TARGETS = ("airflow", "serving")
HADOLINT = Path(sys.executable).parent / "hadolint"
PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+) \\$", re.MULTILINE)
BAD = {
    'FROM debian:latest\nCMD ["x"]\n': "DL3007",
    'FROM debian:12.1\nUSER root\nCMD ["x"]\n': "DL3002",
    "FROM debian:12.1\nCMD x\n": "DL3025",
    'FROM debian:12.1\nADD a /a\nCMD ["x"]\n': "DL3020",
}


def hadolint(text: str) -> str:
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_hadolint__finds_nothing() -> None:
    assert hadolint((ROOT / "Dockerfile").read_text()) == ""


@pytest.mark.parametrize(("text", "rule"), BAD.items(), ids=BAD.values())
def test_hadolint__finds_what_is_wrong(text: str, rule: str) -> None:
    assert rule in hadolint(text)


def test_bases__are_pinned_and_the_same() -> None:
    bases = {stage[0][1] for stage in files.stages().values()} - set(files.stages())
    (base,) = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


@pytest.mark.parametrize("target", TARGETS)
def test_target__runs_as_nobody_in_particular(target: str) -> None:
    steps = files.lineage(target)
    users = [(number, rest) for number, (instruction, rest) in enumerate(steps) if instruction == "USER"]
    number, user = users[-1]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert {instruction for instruction, _ in steps[number:]} <= {"USER", "EXPOSE", "HEALTHCHECK", "CMD"}  # nothing owned by it


@pytest.mark.parametrize("target", TARGETS)
def test_target__starts_and_is_checked_without_a_shell(target: str) -> None:
    said = dict(files.lineage(target))
    assert json.loads(said["CMD"])
    assert json.loads(said["HEALTHCHECK"].split(" CMD ")[1])[:2] == ["python", "deploy/healthy.py"]
    assert not {"ADD", "SHELL", "MAINTAINER"} & said.keys()


def test_installs__are_of_hashed_locks_alone() -> None:
    installs = [
        rest for steps in files.stages().values() for _, rest in steps if re.search(r"\b(pip|uv pip|apt|apt-get|curl)\b", rest)
    ]
    assert len(installs) == 3
    for rest in installs:
        assert "--require-hashes" in rest
        assert re.findall(r"\S+\.lock", rest)


@pytest.mark.parametrize("name", TARGETS)
def test_lock__has_hashes_and_the_versions_that_are_tested(name: str) -> None:
    text = (files.DEPLOY / f"{name}.lock").read_text()
    pins = dict(PIN.findall(text))
    assert len(pins) == len(re.findall(r"^[a-z]", text, re.MULTILINE)) > 40
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert pins.items() <= dict(PIN.findall((ROOT / "requirements.lock").read_text())).items()


def test_locks__hold_what_they_must_and_not_what_only_developers_need() -> None:
    airflow, serving = (dict(PIN.findall((files.DEPLOY / f"{name}.lock").read_text())) for name in TARGETS)
    explaining = {names[0] for names in EXPLAINING}
    assert {*REQUIREMENTS, *explaining} - {"bentoml"} <= serving.keys() <= airflow.keys()
    assert {
        "apache-airflow",
        "apache-airflow-providers-celery",
        "asyncpg",
        "psycopg2-binary",
        "mlflow",
        "boto3",
    } <= airflow.keys()
    assert not {"pytest", "hypothesis", "playwright"} & airflow.keys()
    assert not {"apache-airflow", "mlflow", "bentoml", "feast"} & serving.keys()


def sent() -> set[str]:
    """Files that the engine is sent: of those that git knows or would take, those that .dockerignore lets pass."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {path for path in listed if (ROOT / path).exists() and passes(path)}


def passes(path: str) -> bool:
    """Docker's rule: patterns in order, the last one that matches the path or a folder above it decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!").strip("/")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            kept = line.startswith("!")
    return kept


def test_copied__is_there_and_sent() -> None:
    context = sent()
    sources = [
        source
        for steps in files.stages().values()
        for instruction, rest in steps
        if instruction == "COPY" and "--from" not in rest
        for source in [word for word in rest.split() if not word.startswith("--")][:-1]
    ]
    assert {"ml", "dags", "plugins", "great_expectations", "params.yaml"} <= set(sources)
    for source in sources:
        assert any(path == source or path.startswith(f"{source}/") for path in context), source
    unused = {path for path in context if not any(path == s or path.startswith(f"{s}/") for s in sources)}
    assert not unused - {path for path in unused if path.startswith(("Dockerfile", ".dockerignore"))}


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "secrets.env",
        "deploy/kubernetes/secrets.env",
        ".git/config",
        "var/ledger.db",
        "data/raw/x",
        "ml/.env",
        "ml/__pycache__/a.pyc",
    ],
)
def test_never_sent(path: str) -> None:
    assert not passes(path)


def test_copied_from_other_stages__exists_there() -> None:
    for steps in files.stages().values():
        for instruction, rest in steps:
            if instruction == "COPY" and (source := re.search(r"--from=(\S+)", rest)):
                assert source[1] in files.stages()


def test_health_addresses__exist() -> None:
    """Those of the service are asked in test_running.py; Airflow's are looked up in what it publishes."""
    spec = importlib.util.find_spec("airflow")  # not imported: that takes seconds
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    published = "".join(path.read_text() for path in (folder / "api_fastapi" / "core_api" / "openapi").glob("*.yaml"))
    assert "\n  /api/v2/version:" in published
    assert '"/health"' in (folder / "utils" / "scheduler_health.py").read_text()
