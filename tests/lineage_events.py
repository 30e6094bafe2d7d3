"""OpenLineage events as they were written, held against the client's own classes and our schema."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import event_v2, generated
from openlineage.client.generated.base import BaseFacet

from ml.settings import ROOT

SCHEMA = json.loads((ROOT / "docs" / "lineage-facets.json").read_text())


def _classes() -> dict[str, type[BaseFacet]]:
    modules = [importlib.import_module(f"{generated.__name__}.{m.name}") for m in pkgutil.iter_modules(generated.__path__)]
    every = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {kind.__name__: kind for kind in every if issubclass(kind, BaseFacet)}


CLASSES = _classes()


def read(path: Path) -> list[dict[str, Any]]:
    """Every line, parsed and checked."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        check(event)
    return events


def check(event: dict[str, Any]) -> None:
    """Raises when the event is not what the client would build: names, required fields, times, ids, and the schema of our facets."""
    run, job = event["run"], event["job"]
    built = event_v2.RunEvent(
        eventType=event_v2.RunState(event["eventType"]),
        eventTime=event["eventTime"],
        run=event_v2.Run(runId=run["runId"], facets=_facets(run["facets"])),
        job=event_v2.Job(namespace=job["namespace"], name=job["name"], facets=_facets(job["facets"])),
        inputs=[event_v2.InputDataset(d["namespace"], d["name"], _facets(d.get("facets", {}))) for d in event["inputs"]],
        outputs=[event_v2.OutputDataset(d["namespace"], d["name"], _facets(d.get("facets", {}))) for d in event["outputs"]],
        producer=event["producer"],
    )
    assert event["schemaURL"] == built.schemaURL


def _facets(facets: dict[str, Any]) -> dict[str, Any]:
    """The facets as the client's classes; of those that are no class of its own, ours are held against our schema."""
    built: dict[str, Any] = {}
    for name, facet in facets.items():
        place, _, pointer = facet["_schemaURL"].partition("#/$defs/")
        if name.startswith("evergreen_"):
            assert (place, pointer) == (SCHEMA["$id"], name)
            Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}, format_checker=FormatChecker()).validate(facet)
        elif pointer not in ("RunFacet", "JobFacet"):
            kind = CLASSES[pointer]
            built[name] = kind(**{key: value for key, value in facet.items() if not key.startswith("_")})
    return built


def versions(datasets: list[dict[str, Any]]) -> dict[str, str]:
    """By name, the version; empty where the event has none."""
    return {d["name"]: d.get("facets", {}).get("version", {}).get("datasetVersion", "") for d in datasets}


def of(events: list[dict[str, Any]], job: str, kind: str = "COMPLETE") -> list[dict[str, Any]]:
    return [event for event in events if (event["job"]["name"], event["eventType"]) == (job, kind)]
