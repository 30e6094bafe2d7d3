"""The environment of the services: what `make up` sets that a container or a unit file would set elsewhere."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

from ml.settings import ROOT, Settings

BIN = Path(sys.executable).parent
USER = "admin"

PRELOAD = (
    "numpy,pandas,pyarrow.parquet,duckdb,sklearn.linear_model,xgboost,optuna,mlflow,mlflow.models,matplotlib.pyplot,"
    "great_expectations,onnx,onnxruntime,onnxmltools,skl2onnx,dvc.repo,httpx,sqlalchemy,holidays,prometheus_client,feast,redis"
)
QUIET = {
    "GX_ANALYTICS_ENABLED": "false",
    "BENTOML_DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true",
    "MPLBACKEND": "Agg",
}


def airflow_home(settings: Settings) -> Path:
    return settings.var / "airflow"


def password(settings: Settings) -> str:
    """Airflow's password of `USER`: made once, kept in a file that only its owner reads."""
    path = airflow_home(settings) / "passwords.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({USER: secrets.token_urlsafe(12)}, file)
    return str(json.loads(path.read_text())[USER])


def common() -> dict[str, str]:
    """This process's environment with the venv first, quiet libraries, and byte code written.

    Without byte code every task would compile its imports again.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return env | QUIET | {"PATH": f"{BIN}:{env.get('PATH', '')}", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def mlflow(settings: Settings) -> dict[str, str]:
    return common() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _lineage_file(settings: Settings) -> str:
    """The OpenLineage transport that needs no server: every process adds lines to one file, each line in one write."""
    return json.dumps({"type": "file", "log_file_path": str(settings.var / "lineage.jsonl"), "append": True})


def airflow(settings: Settings) -> dict[str, str]:
    """Airflow on SQLite, on loopback, set for few cores and short waits; every key can be overridden from outside."""
    home = airflow_home(settings)
    port = settings.airflow_port
    password(settings)
    config = {
        "CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "CORE__LOAD_EXAMPLES": "false",
        "CORE__EXECUTOR": "warm_executor.WarmLocalExecutor",
        "CORE__PARALLELISM": "4",  # idle workers hold memory
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "CORE__EXECUTION_API_SERVER_URL": f"http://{settings.host}:{port}/execution/",
        "API__HOST": settings.host,
        "API__PORT": str(port),
        "API__BASE_URL": f"http://{settings.host}:{port}",
        "API__WORKERS": "1",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # default 5 s: what a task's end takes to be noticed when its pipes closed first
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",  # default 1 s: it is waited for between any two tasks
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",  # a file that was edited is read at once nevertheless
        "DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "LOGGING__NAMESPACE_LEVELS": "great_expectations=WARNING alembic=WARNING",
        "OPENLINEAGE__TRANSPORT": _lineage_file(settings),
        "OPENLINEAGE__NAMESPACE": "evergreen",
        "OPENLINEAGE__EXTRACTORS": "dags.lineage.StepExtractor",
        "OPENLINEAGE__EXECUTE_IN_THREAD": "true",  # a fork of a task that holds a model costs more than its event
    }
    if settings.statsd_port:
        config |= {
            "METRICS__STATSD_ON": "true",
            "METRICS__STATSD_HOST": settings.host,
            "METRICS__STATSD_PORT": str(settings.statsd_port),
            "METRICS__STATSD_INFLUXDB_ENABLED": "true",  # variables as tags
            "METRICS__LEGACY_NAMES_ON": "false",  # and not in names
        }
    defaults = {f"AIRFLOW__{name}": value for name, value in config.items()}
    paths = {
        "AIRFLOW_HOME": str(home),
        "EVERGREEN_AIRFLOW": str(BIN / "airflow"),
        "PATH": f"{ROOT / 'ops' / 'bin'}:{BIN}:{os.environ.get('PATH', '')}",
    }
    return {"EVERGREEN_PRELOAD": PRELOAD} | defaults | common() | paths
