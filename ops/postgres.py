"""A real PostgreSQL server of our own on a loopback port: for the cluster, for benchmarks and for tests."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from ml.errors import EvergreenError
from ops.ports import free_port

USER = "evergreen"
START_SECONDS = 60.0
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
"""For servers that nobody cuts the power of: what a killed process has written stays written."""


def installed() -> Path | None:
    """The folder of the newest server's programs; None where none is installed. (The one on the PATH may be a wrapper.)"""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def identity() -> dict[str, Any]:
    """Whom a subprocess of the server must run as: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return {}
    account = pwd.getpwnam("postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def make(folder: Path, password: str, user: str = USER) -> None:
    """Makes an empty database cluster in ``<folder>/db``, unless there is one.

    Raises:
        EvergreenError: no server is installed, or it cannot be made there.
    """
    if (folder / "db" / "PG_VERSION").exists():
        return
    if (binary := installed()) is None:
        raise EvergreenError("no PostgreSQL server is installed", "run `sh ops/install_debian.sh postgresql` as root")
    who = identity()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "password", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(password + "\n")
    if who:
        os.chown(folder, who["user"], who["group"])
        os.chown(folder / "password", who["user"], who["group"])
    options = ["-U", user, f"--pwfile={folder / 'password'}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
    command: list[str | Path] = [binary / "initdb", "-D", folder / "db", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **who)
    if done.returncode != 0:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise EvergreenError(f"initdb in {folder} ended with exit code {done.returncode}: {last}", "see the message")


def command(folder: Path, port: int) -> list[str]:
    """Starts the server of `make`, in the foreground, as `identity`."""
    options = [f"unix_socket_directories={folder}", "listen_addresses=127.0.0.1", f"port={port}", "max_connections=300", *QUICK]
    given = [word for option in options for word in ("-c", option)]
    return [str((installed() or Path()) / "postgres"), "-D", str(folder / "db"), *given]


def url(port: int, password: str, database: str = "postgres", user: str = USER) -> str:
    """SQLAlchemy URL of a database."""
    return f"postgresql+psycopg2://{user}:{quote(password, safe='')}@127.0.0.1:{port}/{database}"


def answers(address: str) -> bool:
    engine = sa.create_engine(address, poolclass=sa.NullPool)
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        return False
    return True


def create(address: str, *databases: str) -> None:
    """Creates those of `databases` that are not there yet, on the server at `address`."""
    engine = sa.create_engine(address, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        there = set(connection.execute(sa.text("SELECT datname FROM pg_database")).scalars())
        for name in databases:
            if name not in there:
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))


@contextmanager
def running(folder: Path, password: str, user: str = USER) -> Iterator[str]:
    """A server in `folder` on a free port; yields the URL of its database ``postgres``. It is gone when the block is left.

    Raises:
        EvergreenError: none is installed, or it does not answer.
    """
    make(folder, password, user)
    port = free_port()
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(command(folder, port), cwd=folder, stdout=log, stderr=log, **identity())
    try:
        address, deadline = url(port, password, user=user), time.monotonic() + START_SECONDS
        while not answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise EvergreenError(f"PostgreSQL in {folder} does not answer", f"read {folder / 'log'}")
            time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # "fast": does not wait for clients
        server.wait()
