"""`GET /metadata`: what serves, since when, from which data, and what was refused last."""

from __future__ import annotations

from typing import Any

from ml.serving.asked import Team
from ml.serving.service import Service


def metadata(service: Service) -> dict[str, Any]:
    """What the service knows of itself; nothing is read."""
    team = service.teams.get(service.default)
    about: dict[str, Any] = {
        "feature_tick": service.features.known.tick,
        "feature_store_problem": service.features.problem,
        "problem": service.problem or None,
        "model_version": None,
    }
    about |= _champion(team) if team else {}
    models = {name: _team(each) | {"problem": service.problems.get(name)} for name, each in service.teams.items()}
    return about | {"models": models}


def _champion(team: Team) -> dict[str, Any]:
    serving = team.lead.serving
    card = serving.bundle.card
    return {
        "name": card.name,
        "task": card.task,
        "model_version": serving.version,
        "manifest_version": team.version,
        "bundle": serving.bundle.digest,
        "model": card.model_digest,
        "since": serving.since,
        "threshold": card.threshold,
        "max_batch": serving.schema.max_batch,
        "explains": serving.bundle.explainer is not None,
        "features": card.numeric + card.text,
        "lineage": card.lineage,
    }


def _team(team: Team) -> dict[str, Any]:
    """Who answers whom: by cohort, the version that is asked first."""
    manifest = team.manifest
    return {
        "manifest_version": team.version,
        "loaded": sorted(team.by_version),
        "cohorts": {cohort: rungs[0].lane.serving.version for cohort, rungs in team.ladders.items()},
        "canary_share": manifest.canary_share if manifest else 0.0,
        "experiment": manifest.experiment.name if manifest and manifest.experiment else None,
        "shadow": manifest.shadow.version if manifest and manifest.shadow else None,
    }
