"""What the containers of the deployment would be, as processes: replicas, their proxy, and the names by which it finds them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ml.settings import ROOT
from tests.contracts.conftest import postgres_url  # noqa: F401 - a fixture
from tests.deploy import files

USER = 10001
"""Of the images; only root can take it on, and anybody else is a normal user already."""


@pytest.fixture
def state() -> Iterator[Path]:
    """What ``/state`` is in a container: a folder of the images' user. Not below pytest's, which only root may enter."""
    folder = Path(tempfile.mkdtemp(prefix="evergreen-state-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_user() -> list[str]:
    """What a command is begun with to be a normal user's.

    Where the interpreter lies in root's own folder, that user gets one right: to read what it could not. It can write nothing more.
    """
    if os.getuid() != 0:
        return []
    words = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    places = [ROOT, Path(sys.executable).resolve().parent, Path(sys.prefix)]
    if all(folder.stat().st_mode & 0o005 == 0o005 for place in places for folder in (place, *place.parents)):
        return words
    return [*words, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@contextlib.contextmanager
def process(words: Sequence[str], environment: Mapping[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command as in a container: a normal user, an empty working folder, and no variables but those given."""
    bare = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home)}
    empty = Path(tempfile.mkdtemp(prefix="empty-", dir=home))
    for folder in (home, empty):
        os.chmod(folder, 0o755)
        if os.getuid() == 0:
            os.chown(folder, USER, USER)
    with (home / "said.log").open("ab") as said:
        program = shutil.which(words[0], path=bare["PATH"]) or words[0]
        command = [*as_user(), program, *words[1:]]
        started = subprocess.Popen(command, cwd=empty, env=bare | dict(environment), stdout=said, stderr=said)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Names(threading.Thread):
    """A name server for one name, over UDP, as an engine has one: it answers with the replicas' addresses."""

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                query, asker = self._socket.recvfrom(4096)
            except OSError:  # closed
                return
            if not query:  # what a shut down socket gives
                return
            end = query.index(b"\0", 12) + 5  # header, name, type, class
            listed = [b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(a) for a in self.addresses]
            head = query[:2] + b"\x84\x00" + struct.pack(">HHHH", 1, len(listed), 0, 0)
            self._socket.sendto(head + query[12:end] + b"".join(listed), asker)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.join()


def container(service: str, **changes: str) -> dict[str, str]:
    """The environment of a service as image and compose file set it, with other places for what is not here."""
    image = files.services()[service]["build"]["target"]
    baked = {
        name: value
        for instruction, rest in files.lineage(image)
        if instruction == "ENV"
        for name, value in (pair.split("=", 1) for pair in rest.split())
        if name.startswith(("EVERGREEN_", "MPL", "PYTHON"))
    }
    given = baked | files.environment(service, files.example() | {"EVERGREEN_TOKEN": "s3cret"}) | changes
    assert not set(changes) - set(given) - {"EVERGREEN_SERVING_PORT"}, "only what the deployment sets may be set elsewhere"
    return given | {"EVERGREEN_REVISION": ""}
