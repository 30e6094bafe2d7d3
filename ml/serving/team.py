"""Who answers whom under one version of a manifest: the lanes of its models, and the ladder of each cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ml.serving.answering import Serving
from ml.serving.asked import FALLBACK_CHAMPION, FALLBACK_PREVIOUS, Rung, Team
from ml.serving.lane import Lane
from ml.serving.manifest import Deployed, Manifest
from ml.serving.router import BASELINE, CANARY, CHAMPION, EXPERIMENT, deployed_for, shadows_of


def team_of(document: Manifest, loaded: Mapping[Deployed, Serving], before: Team | None, lane: Callable[[Serving], Lane]) -> Team:
    """The team of a manifest; models that serve already keep their lanes.

    Args:
        loaded: those of its models that may serve: the champion, or, while the champion is broken, the previous one.
        before: the team that served until now.
        lane: makes a lane.
    """
    old = {each.serving: each for each in before.by_version.values()} if before else {}
    # by version, and not by bundle: two versions may share one, and each answers under its own name
    lanes = {deployed: old.get(serving) or lane(serving) for deployed, serving in loaded.items()}
    cohorts = [
        CHAMPION,
        CANARY,
        BASELINE,
        *(EXPERIMENT + arm for arm in (document.experiment.arms if document.experiment else ())),
    ]
    ladders = {cohort: _ladder(document, cohort, lanes) for cohort in cohorts}
    copies = {cohort: tuple(lanes[each].serving for each in shadows_of(document, cohort) if each in lanes) for cohort in cohorts}
    return Team(
        document.name,
        document,
        ladders[CHAMPION][0].lane,
        MappingProxyType(ladders),
        MappingProxyType({deployed.version: lane for deployed, lane in lanes.items()}),
        MappingProxyType({cohort: servings for cohort, servings in copies.items() if servings}),
    )


def team_of_one(serving: Serving, lane: Callable[[Serving], Lane]) -> Team:
    """The team of a fixed bundle."""
    only = lane(serving)
    ladder = MappingProxyType({CHAMPION: (Rung(only),)})
    return Team(serving.bundle.card.name, None, only, ladder, MappingProxyType({serving.version: only}), MappingProxyType({}))


def _ladder(document: Manifest, cohort: str, lanes: Mapping[Deployed, Lane]) -> tuple[Rung, ...]:
    """Rungs from the cohort's own model down; those that are not loaded are left out, each model is asked once."""
    own = deployed_for(document, cohort)
    wanted = [(own, None), (document.champion, FALLBACK_CHAMPION), (document.previous, FALLBACK_PREVIOUS)]
    rungs: dict[Lane, Rung] = {}
    for deployed, flag in wanted:
        if deployed is not None and (lane := lanes.get(deployed)) is not None:
            rungs.setdefault(lane, Rung(lane, flag))
    return tuple(rungs.values())
