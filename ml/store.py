"""The content-addressed store: bytes in, digest out; every read verifies the digest.

Local folder by default, any fsspec URL by ``EVERGREEN_STORE`` (``s3://bucket/prefix``).
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import uuid
from typing import IO

import fsspec

from ml.errors import IntegrityError, NotFoundError
from ml.settings import settings


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(data: bytes) -> str:
    """Stores `data` once and returns its SHA-256 hex digest. Atomic: written aside, then renamed."""
    digest = sha256(data)
    fs, root = _fs()
    path = f"{root}/{digest[:2]}/{digest}"
    if not fs.exists(path):
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        aside = f"{path}.{uuid.uuid4().hex}"
        fs.pipe_file(aside, data)
        fs.mv(aside, path)
    return digest


def get(digest: str) -> bytes:
    """Returns the bytes with this digest.

    Raises:
        NotFoundError: nothing is stored under it.
        IntegrityError: what is stored is something else (truncated, edited).
    """
    fs, root = _fs()
    path = f"{root}/{digest[:2]}/{digest}"
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise NotFoundError(
            f"no object {digest} in {settings().store}", "check EVERGREEN_STORE, or run the step that made it again"
        ) from None
    if sha256(data) != digest:
        raise IntegrityError(
            f"object {digest} in {settings().store} has digest {sha256(data)} ({len(data):,} bytes)",
            f"delete {path} and run the step that made it again",
        )
    return data


def opened(digest: str) -> IO[bytes]:
    """An object, open for reading anywhere in it, so that no more of it is held than is asked for. Its digest is not checked:
    `verify` does that.

    Raises:
        NotFoundError: nothing is stored under it.
    """
    fs, root = _fs()
    try:
        return fs.open(f"{root}/{digest[:2]}/{digest}", "rb")
    except FileNotFoundError:
        raise NotFoundError(
            f"no object {digest} in {settings().store}", "check EVERGREEN_STORE, or run the step that made it again"
        ) from None


def verify(digest: str) -> None:
    """Reads an object through, some megabytes at a time.

    Raises:
        NotFoundError: nothing is stored under it.
        IntegrityError: what is stored is something else.
    """
    sha = hashlib.sha256()
    with opened(digest) as file:
        while piece := file.read(1 << 22):
            sha.update(piece)
    if sha.hexdigest() != digest:
        raise IntegrityError(
            f"object {digest} in {settings().store} has digest {sha.hexdigest()}", "delete it and run the step that made it again"
        )


def exists(digest: str) -> bool:
    fs, root = _fs()
    return bool(fs.exists(f"{root}/{digest[:2]}/{digest}"))


def remember(key: str, digest: str) -> None:
    """Notes that the work named `key` has the outcome `digest`, so that it need not be done twice."""
    fs, root = _fs()
    fs.makedirs(f"{root}/keys", exist_ok=True)
    aside = f"{root}/keys/{key}.{uuid.uuid4().hex}"
    fs.pipe_file(aside, digest.encode())
    fs.mv(aside, f"{root}/keys/{key}")


def recall(key: str) -> str | None:
    """The digest noted for `key`, or None; also None when the object itself is gone."""
    fs, root = _fs()
    try:
        digest = fs.cat_file(f"{root}/keys/{key}").decode()
    except FileNotFoundError:
        return None
    return digest if exists(digest) else None


def pack(files: dict[str, bytes]) -> bytes:
    """An archive of `files` (tar) with the same bytes for the same content: names sorted, times and owners zero."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The inverse of `pack`; nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(m, archive.extractfile(m)) for m in archive.getmembers()]
        return {m.name: f.read() for m, f in members if f is not None}


def _fs() -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.core.url_to_fs(settings().store)
    return fs, root.rstrip("/")
