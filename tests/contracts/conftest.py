"""A real PostgreSQL server, started by the tests themselves."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL server on a free loopback port; it is gone when the session ends."""
    if postgres.installed() is None:
        pytest.skip("no PostgreSQL server here: run `ops/install_debian.sh postgresql` as root")
    folder = Path(tempfile.mkdtemp(prefix="evergreen-postgres-"))
    try:
        with postgres.running(folder, "se:cr@t", "reader") as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)
