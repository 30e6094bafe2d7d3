"""The compose file against its schema, and against the code that it configures. No engine is needed, and none is used."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from cryptography.fernet import Fernet

from ml.cli import app
from ml.settings import ROOT, Settings
from ops import environment
from tests.deploy import files

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|FERNET|JWT")
OWN = {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields}
FREE_SECTIONS = {"celery_broker_transport_options"}
"""Sections of Airflow's configuration that take any option and hand it on."""
ASK_AIRFLOW = """
import json, sys
from airflow.cli.cli_parser import get_parser
from airflow.configuration import retrieve_configuration_description
given = json.load(sys.stdin)
for words in given:
    get_parser().parse_args(words)  # exits on what it does not know
described = retrieve_configuration_description(include_providers=True)
print(json.dumps({section: sorted(about["options"]) for section, about in described.items()}))
"""


def all_environments() -> dict[str, dict[str, object]]:
    return {name: service.get("environment", {}) for name, service in files.services().items()}


def test_schema__is_that_of_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(files.COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", files.services())
def test_own_variables__are_settings(service: str) -> None:
    given = {name for name in all_environments()[service] if name.startswith("EVERGREEN_")}
    assert given <= OWN, f"no setting: {given - OWN}"


def test_airflow__knows_every_option_and_every_command(tmp_path: Path) -> None:
    asked = [words[1:] for _, words in files.commands() if words[0] == "airflow"]
    assert len(asked) >= 8
    done = subprocess.run(
        [sys.executable, "-c", ASK_AIRFLOW], input=json.dumps(asked), env=os.environ | {"AIRFLOW_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    known = json.loads(done.stdout.splitlines()[-1])
    given = {name for names in all_environments().values() for name in names if name.startswith("AIRFLOW__")}
    given |= {item["name"] for item in files.values()["env"] if item["name"].startswith("AIRFLOW__")}
    given |= {
        name for name in environment.airflow(Settings(var=tmp_path, statsd_port=1)) if name.startswith("AIRFLOW__")
    }  # `make up`
    options = {tuple(name.lower().split("__")[1:]) for name in given}
    options |= {(section, option) for section, chosen in files.values()["config"].items() for option in chosen}
    assert len(options) > 20
    unknown = {(s, o) for s, o in options if s not in FREE_SECTIONS and o not in known.get(s, [])}
    assert not unknown


@pytest.mark.parametrize(("place", "words"), [c for c in files.commands() if c[1][0] != "airflow"], ids=lambda v: str(v)[:40])
def test_command__exists(place: str, words: list[str]) -> None:
    program, *rest = words
    if program == "evergreen":
        assert rest[0] in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    elif program == "mlflow":
        from mlflow.cli import cli

        cli.commands[rest[0]].make_context(rest[0], rest[1:])
    elif program == "celery":
        assert rest[:2] == ["--app", "airflow.providers.celery.executors.celery_executor.app"]
    elif rest[0] == "-c":
        compile(rest[1], place, "exec")
    else:
        assert program == "python"
        assert (ROOT / rest[0]).is_file()


def test_celery__can_be_imported_by_its_provider(tmp_path: Path) -> None:
    """Not every Celery can: 5.7 could not."""
    code = "from airflow.providers.celery.executors.celery_executor import app; print(app.main)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"AIRFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]


def test_images__are_pinned_by_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in files.services().items():
        image, _, tag = files.filled(service["image"], {}).partition(":")
        assert re.search(r"\d", tag), f"{name}: {service['image']}"
        assert "/" not in image or image.count("/") == 1, "no registry is named"
        assert not image.startswith("evergreen-") or tag == version


def test_env_example__holds_what_the_compose_file_needs_and_nothing_else() -> None:
    asked = {name for name, _, _ in files.places()} | {"EVERGREEN_TOKEN"}
    assert asked == set(files.example())


def test_secrets__have_no_default_and_are_asked_for() -> None:
    secret = {name for name in files.example() if SECRET.search(name)}
    assert secret == {name for name, how, _ in files.places() if how == ":?"}
    assert len(secret) == 8
    assert all(not files.example()[name] for name in secret)
    assert not [name for name, how, _ in files.places() if how == ":-" and SECRET.search(name)]
    for service, names in all_environments().items():
        for name, value in names.items():
            literal = SECRET.search(name) and not str(value).startswith("$") and not name.endswith("_FILE")
            assert not literal, f"{service}: {name} is written out"


def test_other_defaults__are_those_of_the_example() -> None:
    assert {name: then for name, how, then in files.places() if how == ":-"}.items() <= files.example().items()


def test_new_env__fills_in_each_secret_once(tmp_path: Path) -> None:
    target, again = tmp_path / ".env", tmp_path / "again"
    for each in (target, again):
        subprocess.run(["sh", files.DEPLOY / "new-env.sh", each], check=True, capture_output=True)
    made = files.env_file(target)
    assert set(made) == set(files.example())
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    secret = [made[name] for name in made if SECRET.search(name)]
    assert len({value for value in secret if len(value) >= 32}) == 8
    assert not {*secret} & {value for name, value in files.env_file(again).items() if SECRET.search(name)}
    Fernet(made["AIRFLOW_FERNET_KEY"])  # ValueError if Airflow could not use it
    refused = subprocess.run(["sh", files.DEPLOY / "new-env.sh", target], capture_output=True, text=True, check=False)
    assert (refused.returncode, files.env_file(target)) == (2, made)


def test_profiles__full_holds_small_and_each_is_whole() -> None:
    held = {profile: {n for n, s in files.services().items() if profile in s["profiles"]} for profile in ("small", "full")}
    assert held["small"] < held["full"] == set(files.services())
    for members in held.values():
        for name in members:
            assert set(files.services()[name].get("depends_on", {})) <= members


def test_services__are_those_that_a_deployment_needs() -> None:
    needed = {
        "postgres",
        "redis",
        "minio",
        "mlflow",
        "serving",
        "proxy",
        "kafka",
        "stream",
        "exporter",
        "prometheus",
        "alertmanager",
        "grafana",
    }
    airflow = {"api", "scheduler", "scheduler-2", "dag-processor", "triggerer", "worker", "worker-2"}
    assert needed | {f"airflow-{part}" for part in airflow} <= set(files.services())


def test_each_service__has_a_health_check_and_comes_back() -> None:
    for name, service in files.services().items():
        once = name in ("buckets", "airflow-setup")
        own = any(i == "HEALTHCHECK" for i, _ in files.stages()[service["build"]["target"]]) if "build" in service else False
        assert service.get("healthcheck", {}).get("disable", False) == once, name
        assert once or own or service["healthcheck"]["test"], name
        assert service["restart"].startswith("on-failure" if once else "unless-stopped"), name


def test_ports__are_published_on_loopback_once_each() -> None:
    published = [files.filled(port, files.example()) for s in files.services().values() for port in s.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    hosts = [port.split(":")[1] for port in published]
    assert len(hosts) == len(set(hosts)) >= 6


def test_mounted_files__exist() -> None:
    mounts = [v.split(":")[0] for s in files.services().values() for v in s.get("volumes", []) if isinstance(v, str)]
    assert {m for m in mounts if not m.startswith(".")} == set(files.compose()["volumes"])
    assert all((ROOT / m).exists() for m in mounts if m.startswith("."))


def test_hosts__named_in_addresses_are_services() -> None:
    texts = [str(value) for names in all_environments().values() for value in names.values()]
    texts += re.findall(r"\S+:\d+", (ROOT / "monitoring" / "grafana" / "datasources.yml").read_text())
    hosts = {m[1] for text in texts for m in re.finditer(r"(?:@|http://|(?<![\w/:.]))([a-z][a-z-]*):\d{4,5}\b", text)}
    assert {"postgres", "redis", "minio", "mlflow", "airflow-api", "serving", "kafka"} <= hosts
    assert hosts - {"localhost"} <= set(files.services())
