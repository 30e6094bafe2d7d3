"""The store gives back what was put, or says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import store
from ml.errors import IntegrityError, NotFoundError
from ml.settings import settings


def test_get__refuses_truncated_bytes(workspace: Path) -> None:
    digest = store.put(b"some bytes")
    path = Path(settings().store) / digest[:2] / digest
    path.write_bytes(b"some byt")
    with pytest.raises(IntegrityError, match=digest):
        store.get(digest)


def test_get__of_nothing_says_where_it_looked(workspace: Path) -> None:
    with pytest.raises(NotFoundError, match="EVERGREEN_STORE"):
        store.get("0" * 64)


def test_recall__forgets_what_is_gone(workspace: Path) -> None:
    digest = store.put(b"x")
    store.remember("key", digest)
    assert store.recall("key") == digest
    (Path(settings().store) / digest[:2] / digest).unlink()
    assert store.recall("key") is None


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True), st.binary(max_size=50), max_size=5))
def test_pack__round_trip_and_same_bytes(files: dict[str, bytes]) -> None:
    assert store.unpack(store.pack(files)) == files
    assert store.pack(dict(reversed(files.items()))) == store.pack(files)
