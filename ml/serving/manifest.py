"""The deployment manifest: one small versioned document that says what serves.

Each version is a row of the ledger's database. Its primary key is the version, so that of two writers who saw the same
version one succeeds and the other is refused: compare-and-set without a lock.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from ml import ledger
from ml.errors import StaleWriteError
from ml.refs import Ref

_table = sa.Table(
    "manifest",
    ledger.metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(255), nullable=False, unique=True),
    sa.Column("document", sa.Text, nullable=False),
)


class Deployed(Ref):
    """A model version that may serve: registry version, digest of its bundle, digest of its graph."""

    version: str
    bundle: str
    model: str


class Manifest(Ref):
    """Who serves, since when (data time), by whom and why."""

    version: int
    key: str
    """Idempotency key of the change that made this version."""
    champion: Deployed | None
    previous: Deployed | None
    changed_at: datetime
    by: str
    reason: str


def current() -> Manifest | None:
    """The newest manifest, or None when nothing was ever deployed."""
    query = sa.select(_table.c.document).order_by(_table.c.version.desc()).limit(1)
    with ledger.engine().connect() as connection:
        document = connection.execute(query).scalar()
    return None if document is None else Manifest.model_validate_json(document)


def current_version() -> int:
    """The newest version's number; 0 when nothing was ever deployed."""
    with ledger.engine().connect() as connection:
        return connection.execute(sa.select(sa.func.max(_table.c.version))).scalar() or 0


def history() -> list[Manifest]:
    """All manifests, oldest first."""
    with ledger.engine().connect() as connection:
        documents = connection.execute(sa.select(_table.c.document).order_by(_table.c.version)).scalars()
        return [Manifest.model_validate_json(document) for document in documents]


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
    if (done := _by_key(document.key)) is not None:
        return _same_or_stale(done, document)
    found = current_version()
    if document.version != expected_version + 1 or found != expected_version:
        raise _stale(document, expected_version, found)
    row = {"version": document.version, "key": document.key, "document": document.model_dump_json()}
    try:
        with ledger.engine().begin() as connection:
            connection.execute(sa.insert(_table).values(**row))
    except sa.exc.IntegrityError:
        if (done := _by_key(document.key)) is not None:
            return _same_or_stale(done, document)
        raise _stale(document, expected_version, current_version()) from None
    return document


def promote(champion: Deployed, as_of: datetime, by: str, reason: str, key: str) -> Manifest:
    """Makes `champion` serve; the one that served becomes `previous`.

    Promoting what already serves, or the same champion again under the same key, changes nothing.

    Returns:
        The manifest that holds the change.

    Raises:
        StaleWriteError: another change came in between, or the key was used for another champion.
    """
    now = current()
    if now is not None and now.champion == champion:
        return now
    version = now.version if now else 0
    document = Manifest(
        version=version + 1,
        key=key,
        champion=champion,
        previous=now.champion if now else None,
        changed_at=as_of,
        by=by,
        reason=reason,
    )
    return publish(document, version)


def _by_key(key: str) -> Manifest | None:
    with ledger.engine().connect() as connection:
        document = connection.execute(sa.select(_table.c.document).where(_table.c.key == key)).scalar()
    return None if document is None else Manifest.model_validate_json(document)


def _same_or_stale(done: Manifest, document: Manifest) -> Manifest:
    if done.champion == document.champion:
        return done
    raise StaleWriteError(
        f"key {document.key!r} already deployed {done.champion} in manifest version {done.version}, not {document.champion}",
        "use a key of its own for each deployment",
    )


def _stale(document: Manifest, expected: int, found: int) -> StaleWriteError:
    return StaleWriteError(
        f"manifest is at version {found}, the writer had read {expected} and offers {document.version}; nothing was written",
        "read the manifest again, decide again, publish again",
    )
