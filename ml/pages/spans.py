"""Which version served in which span of data time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ml.serving.manifest import Deployed, Manifest


@dataclass(frozen=True)
class Span:
    """A stretch of data time with one champion. `until`: None while it serves. `manifest`: the version that began it."""

    version: str
    since: datetime
    until: datetime | None
    by: str
    reason: str
    manifest: int
    bundle: str
    again: bool
    """It served before: a rollback, or a promotion of what was there once."""


def spans(documents: Sequence[Manifest]) -> list[Span]:
    """Who was champion when, oldest first; changes that keep the champion make no span of their own."""
    found: list[Span] = []
    for document in documents:
        version = document.champion.version if document.champion else None
        if found and found[-1].until is None:
            if found[-1].version == version:
                continue
            found[-1] = Span(**{**vars(found[-1]), "until": document.changed_at})
        if document.champion is None:
            continue
        again = any(span.version == version for span in found)
        about = (document.by, document.reason, document.version, document.champion.bundle, again)
        found.append(Span(document.champion.version, document.changed_at, None, *about))
    return found


def at(documents: Sequence[Manifest], moment: datetime) -> Manifest | None:
    """The manifest that was in force at a moment of data time; None before the first."""
    return next((document for document in reversed(documents) if document.changed_at <= moment), None)


def bundles(documents: Sequence[Manifest]) -> dict[str, str]:
    """Digest of the bundle by version, of every version that was ever deployed in any part."""
    parts: list[Deployed | None] = []
    for document in documents:
        parts += [document.champion, document.previous, document.canary, document.shadow]
        parts += list(document.experiment.arms.values()) if document.experiment else []
    return {part.version: part.bundle for part in parts if part is not None}
