"""Who answers whom: a stable hash of the entity id decides on the cohort, so that the same entity meets the same model.

Canary and baseline are two ends of one line: as the canary's share grows, who was in it stays in it, and the baseline (answered
by the champion) is as large, over the same time.
"""

from __future__ import annotations

from hashlib import blake2b

from ml.serving.manifest import Deployed, Manifest

CHAMPION, CANARY, BASELINE, SHADOW = "champion", "canary", "baseline", "shadow"
EXPERIMENT = "experiment:"


def bucket(entity_id: str, salt: str) -> float:
    """Where an entity lies in [0, 1); the same for ever, on every machine, and independent for another salt.

    >>> bucket("UA-1545-EWR-20130101T1015", "canary") == bucket("UA-1545-EWR-20130101T1015", "canary")
    True
    """
    return int.from_bytes(blake2b(f"{salt}\0{entity_id}".encode(), digest_size=8).digest()) / 2**64


def cohort_of(manifest: Manifest, entity_id: str) -> str:
    """The cohort of an entity: champion, canary, baseline, or ``experiment:<arm>``."""
    if manifest.canary is not None and manifest.canary_share > 0:
        at = bucket(entity_id, CANARY)
        if at < manifest.canary_share:
            return CANARY
        return BASELINE if at >= 1 - manifest.canary_share else CHAMPION
    if (trial := manifest.experiment) is not None:
        at = bucket(entity_id, trial.name)
        if at < trial.share:
            arms = sorted(trial.arms)
            return EXPERIMENT + arms[int(at / trial.share * len(arms))]
    return CHAMPION


def deployed_for(manifest: Manifest, cohort: str) -> Deployed | None:
    """The model that answers a cohort; for a cohort that the manifest does not know, the champion."""
    if cohort == CANARY and manifest.canary is not None:
        return manifest.canary
    if cohort.startswith(EXPERIMENT) and manifest.experiment is not None:
        return manifest.experiment.arms.get(cohort.removeprefix(EXPERIMENT), manifest.champion)
    return manifest.champion


def shadows_of(manifest: Manifest, cohort: str) -> list[Deployed]:
    """Models that answer a copy of the cohort's requests off the request path: canary and baseline are each shadowed by the
    other's model, so that they can be compared row by row; `manifest.shadow` sees all.
    """
    found = [manifest.champion] if cohort == CANARY else [manifest.canary] if cohort == BASELINE else []
    found += [manifest.shadow] if manifest.shadow != deployed_for(manifest, cohort) else []
    return [deployed for deployed in dict.fromkeys(found) if deployed is not None]
