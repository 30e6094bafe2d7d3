"""The Models pages on a real server with Airflow's authentication and database, over a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ops import pages_server
from ops.pages_server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pages_server.running(tmp_path_factory.mktemp("pages"), days=10, versions=4) as started:
        yield started
