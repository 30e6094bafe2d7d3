"""What the deployment's files say, read as their tools read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ml.settings import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"

_PLACE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<then>[^}]*))?\})")


@cache
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


@cache
def example() -> dict[str, str]:
    """`.env.example`, as an env file is read."""
    return env_file(ROOT / ".env.example")


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def places() -> list[tuple[str, str, str]]:
    """Every ``${NAME…}`` of the compose file: name, ``:-`` or ``:?`` or nothing, and what follows that."""
    code = "\n".join(line for line in COMPOSE.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [(m["name"], m["how"] or "", m["then"] or "") for m in _PLACE.finditer(code) if m["name"]]


def filled(text: object, values: Mapping[str, str]) -> str:
    """`text` as compose hands it to a container."""

    def value(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        return values.get(match["name"]) or (match["then"] if match["how"] == ":-" else "")

    return _PLACE.sub(value, str(text))


def environment(service: str, values: Mapping[str, str]) -> dict[str, str]:
    return {name: filled(text, values) for name, text in services()[service].get("environment", {}).items()}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Commands and health checks of services on our own images: name, words. A shell's words are those of its last part."""
    for name, service in services().items():
        if not service["image"].startswith("evergreen-"):
            continue
        if command := service.get("command"):
            yield name, command
        kind, *words = service.get("healthcheck", {}).get("test") or ["NONE"]
        if kind in ("CMD", "CMD-SHELL"):
            yield f"{name} healthcheck", words if kind == "CMD" else shlex.split(words[0])


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages: (instruction, rest) each; the first is FROM, with what it is made from."""
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#"))).splitlines()
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, map(str.strip, lines)):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = []
            rest = source
        found[list(found)[-1]].append((instruction, " ".join(rest.split())))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """All instructions of a stage, those of the stages that it is made from first."""
    own = stages()[stage]
    below = lineage(own[0][1]) if own[0][1] in stages() else []
    return [*below, *own]


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object of the kustomization."""
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [made for name in listed for made in yaml.safe_load_all((KUBERNETES / name).read_text())]


def values() -> dict[str, Any]:
    """Values for Airflow's Helm chart."""
    return dict(yaml.safe_load((KUBERNETES / "airflow-values.yaml").read_text()))
