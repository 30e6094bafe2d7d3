"""What earlier training runs left: recipes that are worth trying again, and how often the days of a holdout were used."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from ml import ledger
from ml.refs import Recipe, Window

WARM = 4
"""Recipes of so many last models are tried again, beside the champion's."""


def warm(champion: Recipe | None, as_of: datetime, run_key: str) -> list[Recipe]:
    """The champion's recipe, then those of the last models that were judged by `as_of`, newest first, each once."""
    earlier = [Recipe.model_validate(e.evidence["recipe"]) for e in reversed(_judged(as_of, run_key))]
    earlier = [recipe for recipe in earlier if not recipe.brought]  # there is nothing to try
    found: list[Recipe] = [champion] if champion else []
    for recipe in earlier:
        if recipe not in found:
            found.append(recipe)
    return found[: WARM + 1]


def uses(holdout: Window, as_of: datetime, run_key: str) -> tuple[list[str], int]:
    """Versions that were judged by `as_of` on days of this holdout, and how many of them on its most used day.

    Whatever their verdict, and backfills too: somebody has seen how they did.
    """
    days, versions = set(holdout.days()), []
    counted: Counter[object] = Counter()
    for entry in _judged(as_of, run_key):
        shared = days & set(Window.model_validate(entry.evidence["plan"]["holdout"]).days())
        counted.update(shared)
        if shared:
            versions.append(entry.subject.removeprefix("v"))
    return versions, max(counted.values(), default=0)


def _judged(as_of: datetime, run_key: str) -> list[ledger.Entry]:
    """Gate entries until then, but this run's own (a retried run sees what its first try saw)."""
    return [entry for entry in ledger.entries("gate", until=as_of) if entry.key != f"gate-{run_key}"]
