"""A real PostgreSQL server, started by the tests themselves."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL server on a free loopback port; it is gone when the session ends."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("no PostgreSQL server here: run `ops/install_debian.sh postgresql` as root")
    binary, account = binaries[-1].parent, _account()
    folder = Path(tempfile.mkdtemp(prefix="evergreen-postgres-"))
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    os.chown(folder, account.pw_uid, account.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = folder / "password"
    password.write_text("se:cr@t\n")
    os.chown(password, account.pw_uid, account.pw_gid)
    subprocess.run(
        [binary / "initdb", "-D", folder / "db", "-U", "reader", f"--pwfile={password}", "-A", "scram-sha-256", "-N"],
        check=True,
        capture_output=True,
        cwd=folder,
        **identity,
    )
    server = subprocess.Popen(
        [
            binary / "postgres",
            "-D",
            folder / "db",
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
        ],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **identity,
    )
    try:
        url = f"postgresql+psycopg2://reader:se%3Acr%40t@127.0.0.1:{port}/postgres"
        _wait(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    """Who may run the server: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    for _ in range(150):
        assert server.poll() is None, "PostgreSQL ended while starting"
        try:
            engine.connect().close()
            return
        except sa.exc.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL did not answer within 15 s")
