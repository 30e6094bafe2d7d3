"""Files that several machines share: what each keeps below `data` and `var` and another one reads.

``EVERGREEN_SHARED=true`` says that there are several. Then the bytes of such a file go to the store, and a row of the ledger's
database says which digest its name has now; a reader brings its own copy up to date first. Rows change in one transaction, so
that many files appear as one, or not at all. Without the setting all is as on one machine: nothing is sent, nothing asked.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ml import ledger, store
from ml.errors import ConfigError, StaleWriteError
from ml.settings import settings

log = logging.getLogger(__name__)

_files = sa.Table(
    "shared_files",
    ledger.metadata,
    sa.Column("name", sa.String(500), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
)


def wanted() -> bool:
    """Whether there are several machines.

    Raises:
        ConfigError: the setting says so, and ledger or store are on this machine alone.
    """
    if not settings().shared:
        return False
    if "://" not in settings().store or settings().ledger.startswith("sqlite"):
        raise ConfigError(
            "EVERGREEN_SHARED is set, and EVERGREEN_STORE or EVERGREEN_LEDGER is a file of this machine",
            "set EVERGREEN_STORE to a URL such as s3://bucket/store and EVERGREEN_LEDGER to postgresql+psycopg2://…",
        )
    return True


def files() -> dict[str, str]:
    """All that is shared: ``data/…`` or ``var/…`` → digest in the store."""
    with ledger.engine().connect() as connection:
        return {row.name: row.digest for row in connection.execute(sa.select(_files).order_by(_files.c.name))}


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Waits for, and holds, the only right to something in the whole deployment; nothing on one machine, where a file lock does.

    A holder that dies lets it go, as its connection ends.
    """
    if not wanted():
        yield
        return
    with ledger.engine().begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(current_schema() || :name))"), {"name": f".{name}"})
        yield


def pull(*folders: Path) -> dict[str, str]:
    """Makes local files and folders below `data` or `var` what they are for everybody; what others do not have is removed.

    Each file is replaced by one rename. Callers hold a lock: what was written here and not shared would be lost.

    Returns:
        What everybody has, for `push`.
    """
    there = add(*folders)
    for path in (path for folder in folders if wanted() for path in _local(folder)):
        if name_of(path) not in there:
            path.unlink(missing_ok=True)
    return there


def add(*folders: Path) -> dict[str, str]:
    """As `pull`, but what is only here stays."""
    there = {name: digest for folder in folders if wanted() for name, digest in _rows(folder).items()}
    for name, digest in there.items():
        _bring(_path(name), digest)
    return there


def push(before: Mapping[str, str], *folders: Path) -> None:
    """Shares folders as they are here, in one transaction: names that are gone here go for everybody.

    Args:
        before: what `pull` of the same folders returned.

    Raises:
        StaleWriteError: another one shared something since, as when the database was restarted and let the lock go.
    """
    if not wanted():
        return
    here = {name_of(path): path for folder in folders for path in _local(folder)}
    changed = {name: path for name, path in here.items() if before.get(name) != _digest(path)}
    if not changed and before.keys() <= here.keys():
        return
    digests = {name: store.put(path.read_bytes()) for name, path in changed.items()}
    with ledger.engine().begin() as connection:
        connection.execute(sa.text("LOCK TABLE shared_files IN EXCLUSIVE MODE"))
        now = {name: digest for folder in folders for name, digest in _rows(folder, connection).items()}
        if now != before:
            which = ", ".join(sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))[:3])
            raise StaleWriteError(f"another machine changed what is shared in between: {which}", "run the step again")
        _write(connection, digests | dict.fromkeys(before.keys() - here.keys()))


def share(files: Mapping[Path, bytes]) -> None:
    """Shares files with these contents, in one transaction; others are left as they are for everybody."""
    if wanted():
        digests = {name_of(path): store.put(content) for path, content in files.items()}
        with ledger.engine().begin() as connection:
            _write(connection, digests)


def offer(folder: Path, pattern: str) -> None:
    """Shares files of a folder that never change, where that is not done yet."""
    if wanted():
        there = _rows(folder)
        share({path: path.read_bytes() for path in folder.glob(pattern) if name_of(path) not in there})


def _write(connection: sa.Connection, changes: Mapping[str, str | None]) -> None:
    for name in sorted(changes):  # in one order, so that two writers never wait for each other
        if (digest := changes[name]) is None:
            connection.execute(sa.delete(_files).where(_files.c.name == name))
        else:
            put = postgresql.insert(_files).values(name=name, digest=digest)
            connection.execute(put.on_conflict_do_update(index_elements=["name"], set_={"digest": digest}))
    log.info("shared %d files", len(changes))


def _rows(folder: Path, connection: sa.Connection | None = None) -> dict[str, str]:
    """Of a file, or of all below a folder: name → digest."""
    name = name_of(folder)
    chosen = sa.select(_files.c.name, _files.c.digest).where(
        (_files.c.name == name) | _files.c.name.startswith(name + "/", autoescape=True)
    )
    with nullcontext(connection) if connection is not None else ledger.engine().connect() as reading:
        return {row.name: row.digest for row in reading.execute(chosen.order_by(_files.c.name))}


def _local(folder: Path) -> list[Path]:
    """Files here, without hidden ones: locks, and what is being written."""
    if folder.is_file():
        return [folder]
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _bring(path: Path, digest: str) -> None:
    if path.is_file() and _digest(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    aside.write_bytes(store.get(digest))
    aside.rename(path)


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=100_000)
def _digest_of(path: Path, changed: int, size: int, inode: int) -> str:
    return store.sha256(path.read_bytes())


def name_of(path: Path) -> str:
    """``data/…`` or ``var/…``, the same on every machine."""
    for root, folder in (("data", settings().data), ("var", settings().var)):
        if path.is_relative_to(folder):
            return f"{root}/{path.relative_to(folder).as_posix()}"
    raise ValueError(f"{path} is neither below {settings().data} nor below {settings().var}")


def _path(name: str) -> Path:
    root, _, rest = name.partition("/")
    if ".." in rest.split(os.sep):
        raise ValueError(f"{name} leads out of {root}")
    return (settings().data if root == "data" else settings().var) / rest
