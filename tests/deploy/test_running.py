"""What the deployment starts, really running, without an engine: replicas as a normal user in an empty folder with nothing but
environment variables; PostgreSQL, Redis, an S3 server; HAProxy with the file that is deployed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ml import ledger, store
from ml.features.online import open_store
from ml.serving import manifest
from ml.settings import ROOT
from ops.ports import free_port
from tests.conftest import forget
from tests.deploy import files
from tests.deploy.conftest import Names, container, process
from tests.redis_server import RedisServer
from tests.sample_bundle import REQUEST, fresh_features, sample_bundle, stored
from tests.serving.conftest import eventually

pytestmark = pytest.mark.e2e

TOKEN = {"authorization": "Bearer s3cret"}
PATIENCE = 120.0
"""Seconds for what takes two on a quiet machine."""
CALLERS = 4
REPLICAS = ("127.0.0.2", "127.0.0.3")
"""Replicas have one port and addresses of their own, as containers have."""
ONLY_LOCKED = """
import re, sys
from importlib.metadata import packages_distributions
allowed = {name.lower().replace("_", "-") for name in re.findall(r"(?m)^([a-z0-9._-]+)==", open(LOCK).read())}
foreign = {module for module, owners in packages_distributions().items()
           if not allowed & {owner.lower().replace("_", "-") for owner in owners}}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign:
            raise ModuleNotFoundError(f"No module named {name!r} (not in the image)", name=name)
sys.meta_path.insert(0, Absent())
from ml.cli import main
main()
"""


@pytest.fixture
def object_store() -> Iterator[str]:
    """A real S3 server (moto's, in memory), with the bucket that service `buckets` makes."""
    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: _status(f"http://127.0.0.1:{port}/moto-api/"), PATIENCE)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def database(postgres_url: str) -> str:
    """SQLAlchemy URL of database `evergreen`, made by the script that PostgreSQL's image runs; twice, as it must bear."""
    at = sa.make_url(postgres_url)
    where = {"PGHOST": str(at.host), "PGPORT": str(at.port), "PGPASSWORD": str(at.password), "POSTGRES_USER": str(at.username)}
    for _ in range(2):
        script = ["sh", files.DEPLOY / "postgres" / "databases.sh"]
        subprocess.run(script, env=os.environ | where, check=True, capture_output=True)
    names = sa.text("SELECT datname FROM pg_database")
    with sa.create_engine(postgres_url, poolclass=sa.NullPool).connect() as connection:
        assert {"airflow", "mlflow", "evergreen", "feast", "optuna"} <= set(connection.execute(names).scalars())
    return postgres_url.rsplit("/", 1)[0] + "/evergreen"


@pytest.fixture
def deployed(
    database: str, redis_server: RedisServer, object_store: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """A champion in ledger, object store and online store; gives the environment of a replica of the service."""
    places = {
        "EVERGREEN_LEDGER": database,
        "EVERGREEN_ONLINE": redis_server.url.removesuffix("/0") + "/1",
        "AWS_ENDPOINT_URL": object_store,
        "EVERGREEN_VAR": str(state / "var"),
        "EVERGREEN_DATA": str(state / "data"),
    }
    replica = container("serving", **places, AWS_SECRET_ACCESS_KEY="long-enough")
    with monkeypatch.context() as patched:
        for name, value in replica.items():
            patched.setenv(name, value)
        forget()
        (words,) = [words for name, words in files.commands() if name == "buckets"]
        subprocess.run([sys.executable, *words[1:]], env=os.environ, check=True)
        manifest.promote(stored(sample_bundle(), "1"), datetime(2013, 4, 1), "test", "", uuid.uuid4().hex)
        fresh_features(open_store(replica["EVERGREEN_ONLINE"]))
        ledger.engine().dispose()  # PostgreSQL waits for open connections when it ends
        store._fs()[0].clear_instance_cache()
    forget()
    return lambda host, port: replica | {"EVERGREEN_HOST": host, "EVERGREEN_SERVING_PORT": str(port)}


def test_replica__has_nothing_but_variables_and_the_image_s_packages(
    deployed: Callable[..., dict[str, str]], state: Path, tmp_path: Path
) -> None:
    """The packages that the lock of the image does not hold cannot be imported; answer, explanation, probes and page are right."""
    port = free_port()
    code = f"LOCK = {str(files.DEPLOY / 'serving.lock')!r}\n{ONLY_LOCKED}"
    environment = deployed("127.0.0.1", port) | {"PYTHONPATH": str(ROOT)}
    with process([sys.executable, "-c", code, "serve"], environment, state) as replica:
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: replica.poll() is not None or _status(f"{url}/readyz") == 200, PATIENCE)
        finally:
            said = (state / "said.log").read_text()
        assert replica.poll() is None, said[-2000:]
        assert _healthy(f"{url}/livez", f"{url}/readyz") == 0
        assert _healthy(f"{url}/nowhere") == 1
        assert _status(f"{url}/metrics") == httpx.post(f"{url}/predict", json=REQUEST).status_code == 401
        answer = httpx.post(f"{url}/predict", json=REQUEST, headers=TOKEN, timeout=60).json()
        assert (answer["model_version"], answer["flags"]) == ("1", [])  # no flag: the features came from Redis
        assert "evergreen_" in httpx.get(f"{url}/metrics", headers=TOKEN, timeout=60).text
        replica.send_signal(signal.SIGTERM)
        assert replica.wait(60) in (0, -signal.SIGTERM)
    _exporter_reads(deployed("127.0.0.1", port), state)
    logged = list((state / "var" / "predictions" / "online").glob("*.parquet"))
    assert len(logged) == 1
    if os.getuid() == 0:
        assert logged[0].stat().st_uid == 10001


def _exporter_reads(places: dict[str, str], state: Path) -> None:
    """The exporter's command, with what the compose file sets but for places and ports, reads ledger and store."""
    port, url = free_port(), "http://127.0.0.1:1"
    changes = {"EVERGREEN_EXPORTER_PORT": str(port), "EVERGREEN_STATSD_PORT": str(free_port()), "EVERGREEN_AIRFLOW_URL": url}
    own = {name: value for name, value in container("exporter").items() if name not in places}
    assert changes.keys() - own.keys() == {"EVERGREEN_EXPORTER_PORT"}
    with process(files.services()["exporter"]["command"], own | places | changes | {"PYTHONPATH": str(ROOT)}, state):
        metrics = f"http://127.0.0.1:{port}/metrics"
        eventually(lambda: _body(metrics), PATIENCE)
        shown = _body(metrics)
        assert 'evergreen_model_share{role="champion",version="1"} 1.0' in shown
        assert 'evergreen_airflow_healthy{component="api_server"} 0.0' in shown
        assert "evergreen_statsd_lines_total 0.0" in shown
        assert _healthy(metrics.replace("metrics", "favicon.ico")) == 0


def test_replicas_behind_the_proxy__one_is_killed_and_comes_back__each_request_is_answered(
    deployed: Callable[..., dict[str, str]], state: Path
) -> None:
    port, names = free_port(), Names(REPLICAS)
    names.start()
    proxy_port, watch_port = free_port(), free_port()
    listens = {"PROXY_LISTEN": f"127.0.0.1:{proxy_port}", "PROXY_WATCH_LISTEN": f"127.0.0.1:{watch_port}"}
    where = files.environment("proxy", {}) | listens | {"DNS_SERVER": names.address, "SERVING": f"serving:{port}"}
    start = json.loads(dict(files.lineage("serving"))["CMD"])
    with contextlib.ExitStack() as stack:
        stack.callback(names.stop)
        first, _ = [stack.enter_context(process(start, deployed(host, port), state)) for host in REPLICAS]
        _installed("haproxy")
        for host in REPLICAS:  # a replica that the proxy has only found by name, and not yet looked at, counts as up
            eventually(lambda host=host: _status(f"http://{host}:{port}/readyz") == 200, PATIENCE)
        stack.enter_context(process(["haproxy", "-db", "-f", str(files.DEPLOY / "haproxy.cfg")], where, state))
        watch, ask = f"http://127.0.0.1:{watch_port}", f"http://127.0.0.1:{proxy_port}"
        eventually(lambda: _up(watch) == 2, PATIENCE)
        assert _healthy(f"{watch}/livez") == 0
        with _callers(ask) as seen:
            eventually(lambda: len(seen) >= 200, PATIENCE)
            eventually(lambda: all(_answered(host, port) for host in REPLICAS), PATIENCE)
            first.kill()
            first.wait()
            killed = len(seen)
            eventually(lambda: _up(watch) == 1 and len(seen) >= killed + 200, PATIENCE)
            before = _answered(REPLICAS[1], port)
            stack.enter_context(process(start, deployed(REPLICAS[0], port), state))
            eventually(lambda: _up(watch) == 2, PATIENCE)
            eventually(lambda: _answered(REPLICAS[0], port) >= 50, PATIENCE)
            assert _answered(REPLICAS[1], port) > before
        failed = [one for one in seen if one != 200]
        told = [line for line in (state / "said.log").read_text().splitlines() if re.search("is DOWN|is UP|no server", line)]
        assert len(failed) <= CALLERS, f"{len(failed)} of {len(seen)} requests failed: {failed[:10]}; {told}"


@contextlib.contextmanager
def _callers(url: str) -> Iterator[list[int]]:
    """Callers that ask one request after the other, on connections that they keep; gives the list of statuses, which grows."""
    seen: list[int] = []
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, headers=TOKEN, timeout=60) as client:
            while not enough.is_set():
                try:
                    seen.append(client.post("/predict", json=REQUEST).status_code)
                except httpx.TransportError:
                    seen.append(0)

    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def _up(watch: str) -> int:
    """Replicas that the proxy sends requests to."""
    found = re.findall(r'haproxy_backend_active_servers\{proxy="serving"\} (\d+)', _body(f"{watch}/metrics"))
    return int(found[0]) if found else 0


def _answered(host: str, port: int) -> int:
    """Predictions that a replica has answered since it was started."""
    return int(
        sum(map(float, re.findall(r"(?m)^evergreen_predictions_total\{.*\} (\S+)$", _body(f"http://{host}:{port}/metrics"))))
    )


def _body(url: str) -> str:
    try:
        return httpx.get(url, headers=TOKEN, timeout=30).text
    except httpx.TransportError:
        return ""


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=30).status_code
    except httpx.TransportError:
        return 0


def _healthy(*urls: str) -> Any:
    """Exit code of the images' health check."""
    command = [sys.executable, ROOT / "deploy" / "healthy.py", *urls]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


def _installed(program: str) -> None:
    if not Path("/usr/sbin", program).exists():
        pytest.skip(f"{program} is not installed: sh ops/install_debian.sh {program}")
