"""The deployment manifest: one small versioned document that says what serves.

Each version is a row of the ledger's database. Its primary key is name and version, so that of two writers who saw the same
version one succeeds and the other is refused: compare-and-set without a lock.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import Field, ValidationError, model_validator

from ml import ledger
from ml.config import load_params
from ml.errors import ConfigError, StaleWriteError
from ml.refs import Ref

KIND = "manifest"
"""Of the ledger entry that each manifest has: one transaction writes both, so the ledger's chain proves what served when."""

_table = sa.Table(
    "manifests",
    ledger.metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("name", "key"),
)


class Deployed(Ref):
    """A model version that may serve: registry version, digest of its bundle, digest of its graph."""

    version: str
    bundle: str
    model: str


class Experiment(Ref):
    """An A/B test: `share` of all entities are in it, split evenly between the arms, of which ``control`` is the champion."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    share: float = Field(gt=0, le=1)
    arms: dict[str, Deployed] = Field(min_length=2)
    started_at: datetime


class Manifest(Ref):
    """Who serves which share of one model name, since when (data time), by whom and why."""

    version: int
    name: str
    """The model's name in the registry."""
    key: str
    """Idempotency key of the change that made this version."""
    champion: Deployed | None
    previous: Deployed | None
    canary: Deployed | None = None
    canary_share: float = Field(0.0, ge=0, le=0.5)
    """Of entities; a cohort of the same size, answered by the champion, is what the canary is compared with."""
    shadow: Deployed | None = None
    """Answers a copy of every request, unseen."""
    experiment: Experiment | None = None
    changed_at: datetime
    by: str
    reason: str

    @model_validator(mode="after")
    def _one_trial_at_a_time(self) -> Manifest:
        if self.canary is not None and self.experiment is not None:
            raise ValueError("a canary and an experiment at the same time: end one of them first")
        return self


def current(name: str | None = None) -> Manifest | None:
    """The newest manifest of a model (default: the problem's), or None when nothing was ever deployed."""
    query = sa.select(_table.c.document).where(_table.c.name == _named(name)).order_by(_table.c.version.desc()).limit(1)
    with ledger.engine().connect() as connection:
        document = connection.execute(query).scalar()
    return None if document is None else Manifest.model_validate_json(document)


def current_versions() -> dict[str, int]:
    """The newest version's number by model name; empty when nothing was ever deployed."""
    query = sa.select(_table.c.name, sa.func.max(_table.c.version)).group_by(_table.c.name)
    with ledger.engine().connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def current_version(name: str | None = None) -> int:
    """The newest version's number; 0 when nothing was ever deployed."""
    return current_versions().get(_named(name), 0)


def history(name: str | None = None) -> list[Manifest]:
    """All manifests of a model, oldest first."""
    query = sa.select(_table.c.document).where(_table.c.name == _named(name)).order_by(_table.c.version)
    with ledger.engine().connect() as connection:
        return [Manifest.model_validate_json(document) for document in connection.execute(query).scalars()]


def publish(document: Manifest, expected_version: int) -> Manifest:
    """Makes `document` the current manifest, if the current version is still `expected_version`.

    Args:
        document: its version must be ``expected_version + 1``.
        expected_version: the version the writer has read; 0 for none.

    Returns:
        The manifest that holds the change: `document`, or what was written under the same key before (run twice, same effect).

    Raises:
        StaleWriteError: somebody else was first, or the key was used for another champion. Nothing was written.
    """
    if (done := _by_key(document)) is not None:
        return _same_or_stale(done, document)
    found = current_version(document.name)
    if document.version != expected_version + 1 or found != expected_version:
        raise _stale(document, expected_version, found)
    row = {"name": document.name, "version": document.version, "key": document.key, "document": document.model_dump_json()}
    try:
        with ledger.locked(ledger.engine()) as connection:
            connection.execute(sa.insert(_table).values(**row))
            subject, key = (
                f"v{document.champion.version}" if document.champion else "none",
                f"{KIND}-{document.name}-{document.version}",
            )
            ledger.append(connection, KIND, key, document.changed_at, subject, "published", document.reason, document.to_xcom())
    except sa.exc.IntegrityError:
        if (done := _by_key(document)) is not None:
            return _same_or_stale(done, document)
        raise _stale(document, expected_version, current_version(document.name)) from None
    return document


def change(key: str, changed_at: datetime, by: str, reason: str, name: str | None = None, **changes: Any) -> Manifest:
    """Publishes the current manifest with `changes` of its fields; no change, or the same key again, changes nothing.

    Returns:
        The manifest that holds the change.

    Raises:
        StaleWriteError: another change came in between, or the key was used for another change.
        ConfigError: the changes do not fit together.
    """
    now = current(name)
    if now is not None and all(getattr(now, field) == value for field, value in changes.items()):
        return now
    version = now.version if now else 0
    empty = {"champion": None, "previous": None}
    kept = now.model_dump(exclude={"version", "key", "changed_at", "by", "reason"}) if now else {"name": _named(name), **empty}
    about = {"version": version + 1, "key": key, "changed_at": changed_at, "by": by, "reason": reason}
    try:
        document = Manifest.model_validate(
            kept | {f: v.model_dump() if isinstance(v, Ref) else v for f, v in changes.items()} | about
        )
    except ValidationError as error:
        raise ConfigError(f"manifest {version + 1} would be wrong: {error.errors()[0]['msg']}", "see evergreen lineage") from None
    return publish(document, version)


def promote(champion: Deployed, as_of: datetime, by: str, reason: str, key: str, name: str | None = None) -> Manifest:
    """Makes `champion` serve all; the one that served becomes `previous`, and canary, shadow and experiment end.

    Promoting what already serves, or the same champion again under the same key, changes nothing.

    Raises:
        StaleWriteError: another change came in between, or the key was used for another champion.
    """
    now = current(name)
    before = now.previous if now and now.champion == champion else now.champion if now else None
    return change(key, as_of, by, reason, name, champion=champion, previous=before, canary=None, canary_share=0.0, shadow=None,
                  experiment=None)  # fmt: skip


def _named(name: str | None) -> str:
    return name or load_params().problem.name


def _by_key(document: Manifest) -> Manifest | None:
    query = sa.select(_table.c.document).where(_table.c.name == document.name, _table.c.key == document.key)
    with ledger.engine().connect() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else Manifest.model_validate_json(found)


def _same_or_stale(done: Manifest, document: Manifest) -> Manifest:
    same = {"champion", "canary", "canary_share", "shadow", "experiment"}
    if done.model_dump(include=same) == document.model_dump(include=same):
        return done
    raise StaleWriteError(
        f"key {document.key!r} already made manifest version {done.version}, which deploys something else: {done.champion}",
        "use a key of its own for each change",
    )


def _stale(document: Manifest, expected: int, found: int) -> StaleWriteError:
    return StaleWriteError(
        f"manifest is at version {found}, the writer had read {expected} and offers {document.version}; nothing was written",
        "read the manifest again, decide again, publish again",
    )
