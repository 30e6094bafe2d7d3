"""The Bento: the bundle, the serving code and its pinned requirements in one archive that BentoML runs anywhere.

It is built in a process of its own, because BentoML imports the service that it packs and keeps its home folder for the life of a
process; so no step needs to import BentoML. Nothing is fetched and no git is asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import ml
from ml import store
from ml.errors import EvergreenError
from ml.packaging.bundle import Bundle
from ml.settings import settings

REQUIREMENTS = (
    *(
        "bentoml",
        "duckdb",
        "fastapi",
        "fastapi-offline",
        "fsspec",
        "holidays",
        "httptools",  # with uvloop: uvicorn takes them when they are there, and is slow without
        "numpy",
        "onnxruntime",
        "orjson",
        "prometheus-client",
        "pyarrow",
    ),
    *("pydantic", "pydantic-settings", "pyyaml", "redis", "sqlalchemy", "tzdata", "uvicorn", "uvloop"),
)
"""What serving imports; pinned to the versions that the model was judged with."""
EXPLAINING = (("pandas",), ("xgboost-cpu", "xgboost"))
"""What explanations import besides, by the names of which one is installed."""
FAMILY = {"lightgbm": (("lightgbm",),)}
"""What those of one model family import besides these."""
BOOT_SECONDS = 60.0
STOP_SECONDS = 10.0
_MEMBER = "bundle.tar"
_SERVICE = '''"""The Evergreen service inside a Bento: one fixed bundle. Made by ml/packaging/bento.py."""

from pathlib import Path

import bentoml

from ml.packaging.bundle import Bundle
from ml.serving.app import create_app

BUNDLE = bentoml.models.BentoModel("{model}")
app = create_app(lambda: Bundle.from_bytes(Path(BUNDLE.resolve().path_of("{member}")).read_bytes()))


@bentoml.service(name="{name}", workers=1, metrics={{"enabled": False}}, traffic={{"timeout": 30}})
@bentoml.asgi_app(app, path="/")
class Service:
    bundle = BUNDLE

    def __is_ready__(self) -> bool:
        return app.state.service.serving is not None
'''


class BentoError(EvergreenError):
    """A Bento cannot be built or does not start."""


def build_bento(bundle: bytes, name: str, labels: Mapping[str, str]) -> tuple[str, bytes]:
    """Builds a Bento that serves `bundle`, and nothing else.

    The tag is made from the bundle and the serving code, so building again gives the same tag. The archive is kept in the store,
    where `archive_of` finds it.

    Args:
        bundle: archive made by `ml.packaging.bundle.build`.
        name: name of the Bento and of the BentoML model in it.
        labels: shown by ``bentoml list``.

    Returns:
        The tag ``name:version`` and the exported ``.bento`` archive.

    Raises:
        IntegrityError: `bundle` is none.
        BentoError: BentoML refused; its last lines are in the message.
    """
    source, requirements = Path(ml.__file__).parent, requirements_of(Bundle.from_bytes(bundle))
    tag = f"{name}:{_digest(bundle, source, requirements)}"
    with tempfile.TemporaryDirectory(prefix="evergreen-bento-") as folder:
        context, archive = Path(folder, "context"), Path(folder, "archive.bento")
        shutil.copytree(source, context / "ml", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        (context / "service.py").write_text(_SERVICE.format(model=tag, name=name, member=_MEMBER))
        Path(folder, _MEMBER).write_bytes(bundle)
        order = {
            "tag": tag,
            "labels": dict(labels),
            "context": str(context),
            "bundle": f"{folder}/{_MEMBER}",
            "archive": str(archive),
            "requirements": requirements,
        }
        command = [sys.executable, "-P", __file__, json.dumps(order)]
        home = settings().var / "bentoml"
        environment = _environment(home) | {"PYTHONPATH": str(context)}
        with _alone(home):
            done = subprocess.run(command, cwd=context, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not archive.exists():
            lines = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise BentoError(f"building {tag} failed with exit code {done.returncode}: {lines}", "mend what BentoML names")
        exported = archive.read_bytes()
    store.remember(f"bento-{store.sha256(bundle)}", store.put(exported))
    return tag, exported


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One build at a time in a BentoML home: each reads what is there, and fails on another that is half there."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def archive_of(digest: str) -> bytes:
    """The Bento of the bundle with this digest: as it was built, or built again where that is gone.

    Raises:
        NotFoundError: there is no such bundle in the store.
        BentoError: it has to be built, and cannot.
    """
    if (built := store.recall(f"bento-{digest}")) is not None:
        return store.get(built)
    bundle = store.get(digest)
    return build_bento(bundle, Bundle.from_bytes(bundle).card.name, {})[1]


@contextlib.contextmanager
def boot(archive: bytes, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Runs a Bento as its users do, ``bentoml serve``, on a free loopback port, from the archive alone.

    Args:
        archive: an exported ``.bento``.
        environment: added to that of the process.

    Yields:
        The base URL, once the service says that it is ready. The process and its children are gone when the block is left.

    Raises:
        BentoError: it ended or was not ready within `BOOT_SECONDS`; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-boot-") as folder:
        home, bento, log = Path(folder, "home"), Path(folder, "bento"), Path(folder, "log")
        Path(folder, "archive").write_bytes(archive)
        with tarfile.open(Path(folder, "archive")) as members:
            members.extractall(bento, filter="data")
        port = _free_port()
        command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(home) | dict(environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal to our process group is not meant for it
            )
        try:
            _wait_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _wait_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and process.poll() is None and "startup failed" not in log.read_text(errors="replace"):
        try:
            with urllib.request.urlopen(f"{base_url}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    lines = " / ".join(log.read_text(errors="replace").strip().splitlines()[-8:])
    state = "is not ready" if process.poll() is None else f"ended with exit code {process.returncode}"
    raise BentoError(f"the Bento {state}: {lines}", "mend what its log names")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers, which have sessions of their own: first politely, then for certain."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.terminate()
        _, alive = psutil.wait_procs(family, STOP_SECONDS)
        for each in [*alive, *(child for one in alive for child in _children(one))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, STOP_SECONDS)
    process.wait()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _environment(home: Path) -> dict[str, str]:
    """This process's environment, with BentoML quiet and at home in `home`, and no way to this working tree."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BENTOML_CONFIG")}
    return kept | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}


def requirements_of(bundle: Bundle) -> list[str]:
    """Pinned requirements of the service: what answers need, and, with an explainer, what explanations need.

    Raises:
        BentoError: one of them is not installed here.
    """
    wanted: tuple[tuple[str, ...], ...] = tuple((name,) for name in REQUIREMENTS)
    if bundle.explainer is not None:
        wanted += EXPLAINING + FAMILY.get(json.loads(bundle.explainer_files()["family.json"])["family"], ())
    return [_pinned(names) for names in wanted]


def _pinned(names: tuple[str, ...]) -> str:
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return f"{name}=={version(name)}"
    raise BentoError(f"{' or '.join(names)} is not installed", f"pip install {names[0]}")


def _digest(bundle: bytes, source: Path, requirements: list[str]) -> str:
    """Sixteen hex digits for the bundle, the code that serves it and its requirements."""
    sha = hashlib.sha256(store.sha256(bundle).encode())
    for path in sorted(source.rglob("*.py")):
        sha.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    sha.update("\n".join(requirements).encode())
    return sha.hexdigest()[:16]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _build(order: Mapping[str, str], labels: Mapping[str, str], requirements: list[str]) -> None:
    """The part that runs in the build process."""
    import bentoml

    name, bento_version = order["tag"].split(":")
    try:
        bentoml.models.get(order["tag"])
    except bentoml.exceptions.NotFound:
        with bentoml.models.create(order["tag"], labels=dict(labels)) as model:
            shutil.copy(order["bundle"], model.path_of(_MEMBER))
    try:
        bento = bentoml.get(order["tag"])
    except bentoml.exceptions.NotFound:
        bento = bentoml.build(
            "service:Service",
            name=name,
            version=bento_version,
            labels=dict(labels),
            include=["service.py", "ml/**"],
            python={"packages": requirements, "lock_packages": False},
            build_ctx=order["context"],
        )
    bento.export(order["archive"])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _build(given, given.pop("labels"), given.pop("requirements"))
