"""What a cluster on one computer is made of: its place, the environment of its machines, and the processes on them."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ml.settings import ROOT, Settings
from ops import environment, postgres, services
from ops.ports import free_port

PORTS = ("postgres", "redis", "s3", "mlflow", "airflow", "serving")
DATABASES = ("airflow", "evergreen", "mlflow", "optuna", "feast")
WORKERS = ("worker-a", "worker-b")
BUCKET = "evergreen"
KEYS = {"AWS_ACCESS_KEY_ID": "evergreen", "AWS_DEFAULT_REGION": "us-east-1"}
QUICK = {
    "CORE__EXECUTOR": "CeleryExecutor",
    "CELERY__WORKER_CONCURRENCY": "2",
    "CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
    "CELERY__TASK_ACKS_LATE": "true",
    # a message that a dead worker held is given to another one; a task that is under way already is refused by the API server
    "CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "60",
    # a task whose worker is dead is tried again after so long; default 300
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    # a task whose message was lost is queued again after so long; default 600
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "75",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "5",
    # a scheduler that is dead is noticed after so long; defaults 30 and 300
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
}
"""How soon what was lost comes back; Airflow's own values are for larger places."""


@dataclass(frozen=True)
class Place:
    """Where the cluster lives: its folder, ports and secrets, made once."""

    folder: Path
    ports: dict[str, int]
    secret: dict[str, str]
    params: Path
    postgres: Path
    """Its own folder: the server runs as another user, who may not look into ours."""

    @classmethod
    def at(cls, folder: Path, params: Path | None = None) -> Place:
        kept = folder / "place.json"
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = {
                "ports": {name: free_port() for name in PORTS},
                "secret": {name: secrets.token_urlsafe(24) for name in ("postgres", "jwt", "api", "s3")},
                "params": str(params or ROOT / "params.yaml"),
                "postgres": tempfile.mkdtemp(prefix="evergreen-postgres-"),
            }
            handle = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(made, file)
        found = json.loads(kept.read_text())
        return cls(folder, found["ports"], found["secret"], Path(found["params"]), Path(found["postgres"]))

    def database(self, name: str) -> str:
        return postgres.url(self.ports["postgres"], self.secret["postgres"], name)

    def settings(self, machine: str) -> Settings:
        """Of one of the machines."""
        return Settings.model_validate({name.lower(): value for name, value in self._where(machine).items()})

    def environment(self, machine: str) -> dict[str, str]:
        """What a machine's processes are given: by this alone they are a cluster."""
        where = {f"EVERGREEN_{name}": value for name, value in self._where(machine).items()}
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}", "AWS_SECRET_ACCESS_KEY": self.secret["s3"], **KEYS}
        inherited = {
            name: value for name, value in environment.common().items() if not name.startswith(("EVERGREEN_", "AIRFLOW"))
        }
        return inherited | where | store

    def airflow(self, machine: str) -> dict[str, str]:
        """The same for Airflow's processes."""
        made = environment.airflow(self.settings(machine))
        config = {name: value for name, value in made.items() if name.startswith("AIRFLOW")}
        broker = f"redis://127.0.0.1:{self.ports['redis']}/0"
        more = QUICK | {
            "DATABASE__SQL_ALCHEMY_CONN": self.database("airflow"),
            "CELERY__BROKER_URL": broker,
            "CELERY__RESULT_BACKEND": f"db+{self.database('airflow')}",
            "API_AUTH__JWT_SECRET": self.secret["jwt"],
            "API__SECRET_KEY": self.secret["api"],
            "CORE__PARALLELISM": "8",
        }
        return self.environment(machine) | config | {f"AIRFLOW__{name}": value for name, value in more.items()}

    def _where(self, machine: str) -> dict[str, str]:
        home, ports = self.folder / machine, self.ports
        return {
            "VAR": str(home / "var"),
            "DATA": str(home / "data"),
            "PARAMS": str(self.params),
            "SHARED": "true",
            "STORE": f"s3://{BUCKET}/store",
            "DVC_REMOTE": f"s3://{BUCKET}/dvc",
            "LEDGER": self.database("evergreen"),
            "MLFLOW": f"http://127.0.0.1:{ports['mlflow']}",
            "OPTUNA": self.database("optuna"),
            "FEAST": self.database("feast"),
            "ONLINE": f"redis://127.0.0.1:{ports['redis']}/1",
            "AIRFLOW_PORT": str(ports["airflow"]),
            "MLFLOW_PORT": str(ports["mlflow"]),
            "SERVING_PORT": str(ports["serving"]),
        }


@dataclass(frozen=True)
class Part:
    """A process of the cluster."""

    name: str
    command: list[str]
    env: dict[str, str]
    cwd: Path
    healthy: Callable[[], bool] = lambda: True
    identity: dict[str, Any] = field(default_factory=dict)


def stores(place: Place) -> list[Part]:
    """What everything else needs."""
    ports, env = place.ports, environment.common()
    pg, redis = place.postgres, place.folder / "redis"
    moto = [str(environment.BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(ports["s3"])]
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    cache = ["redis-server", "--port", str(ports["redis"]), *options, "--dir", str(redis)]
    return [
        Part("postgres", postgres.command(pg, ports["postgres"]), env, pg, lambda: _postgres_answers(place), postgres.identity()),
        Part("redis", cache, env, redis, lambda: _redis_answers(place)),
        Part("s3", moto, env, place.folder, lambda: services.fetch(f"http://127.0.0.1:{ports['s3']}/moto-api/") is not None),
    ]


def parts(place: Place) -> list[Part]:
    """What runs on them, machine by machine."""
    ports = place.ports
    control, airflow = place.folder / "control", str(environment.BIN / "airflow")

    def of(machine: str, name: str, words: str, healthy: Callable[[], bool] = lambda: True) -> Part:
        return Part(name, [airflow, *words.split()], place.airflow(machine), place.folder / machine, healthy)

    mlflow = [
        str(environment.BIN / "mlflow"),
        *f"server --workers 1 --host 127.0.0.1 --port {ports['mlflow']}".split(),
        *["--backend-store-uri", place.database("mlflow"), "--artifacts-destination", f"s3://{BUCKET}/mlflow"],
    ]
    quiet = environment.mlflow(place.settings("control"))["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]
    health = f"http://127.0.0.1:{ports['airflow']}/api/v2/monitor/health"
    serving = [sys.executable, "-c", "from ml.cli import main; main()", "serve"]
    return [
        Part(
            "mlflow",
            mlflow,
            place.environment("control") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": quiet},
            control,
            lambda: services.fetch(f"http://127.0.0.1:{ports['mlflow']}/health") is not None,
        ),
        of("control", "api-server", "api-server", lambda: _all_healthy(services.fetch(health))),
        of("control", "scheduler", "scheduler --skip-serve-logs"),
        of("control", "dag-processor", "dag-processor"),
        of("control", "triggerer", "triggerer --skip-serve-logs"),
        *(
            of(name, name, f"celery worker --skip-serve-logs --celery-hostname {name}@%h", partial(_works, place, name))
            for name in WORKERS
        ),
        Part(
            "serving",
            serving,
            place.environment("serving"),
            place.folder / "serving",
            lambda: services.fetch(f"http://127.0.0.1:{ports['serving']}/livez") is not None,
        ),
    ]


def members(place: Place, name: str) -> list[psutil.Process]:
    """The living processes of a part, with those that they started in sessions of their own."""
    try:
        record = json.loads((place.folder / "run" / f"{name}.json").read_text())
    except FileNotFoundError:
        return []
    found = {process.pid: process for process in services.session(record["pid"], record["started"])}
    for process in list(found.values()) if name != "keeper" else []:  # whose children are the parts
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def _postgres_answers(place: Place) -> bool:
    return postgres.answers(place.database("postgres"))


def _redis_answers(place: Place) -> bool:
    import redis

    try:
        return bool(redis.Redis(port=place.ports["redis"]).ping())
    except redis.RedisError:
        return False


def _all_healthy(body: bytes | None) -> bool:
    found = json.loads(body) if body else {}
    return len(found) >= 4 and all(part["status"] == "healthy" for part in found.values())


def _works(place: Place, name: str) -> bool:
    """Whether a worker listens to its queue: it has said so in its log since it was started last."""
    record = place.folder / "run" / f"{name}.json"
    if not record.exists():
        return False
    with (place.folder / "logs" / f"{name}.log").open("rb") as log:
        log.seek(json.loads(record.read_text())["log"])
        return b"ready." in log.read()
