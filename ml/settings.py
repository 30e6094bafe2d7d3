"""The only reader of ``EVERGREEN_*``: where things are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where things are: EVERGREEN_* variables. Relative paths are below the repository."""

    model_config = SettingsConfigDict(env_prefix="EVERGREEN_", frozen=True)

    params: Path = Field(Path("params.yaml"), description="the parameter file")
    data: Path = Field(Path("data"), description="raw data, staging and quarantine")
    var: Path = Field(Path("var"), description="everything else that is local state")
    store: str = Field("", description="content-addressed store, any fsspec URL; default <var>/store")
    dvc_remote: str = Field("", description="DVC remote, any URL DVC knows; default <var>/dvc-remote")
    ledger: str = Field(
        "", description="ledger and deployment manifest, SQLAlchemy URL of SQLite or PostgreSQL; default SQLite in <var>"
    )
    mlflow: str = Field("", description="MLflow tracking and registry URI; default SQLite in <var>")
    mlflow_pages: str = Field("", description="where people open MLflow in a browser; default where it is reached")
    optuna: str = Field("", description="Optuna storage URL; default a journal file per study in <var>")
    online: str = Field(
        "", description="online feature store: a file (SQLite), redis://… or kafka://<topic>; default <var>/online.db"
    )
    feast: str = Field("", description="Feast's registry, SQLAlchemy URL; default SQLite in <var>")
    engine: Literal["local", "ray", "spark", "beam"] = Field(
        "local", description="what carries batch scoring and, with train_workers, training"
    )
    engine_address: str = Field(
        "", description="its cluster: a Ray address, a Spark master, options of a Beam pipeline; default: this machine"
    )
    train_workers: int = Field(
        1, ge=1, description="processes that train XGBoost's trees together, by `engine`, each on its share of the rows"
    )
    kafka: str = Field("", description="Kafka's bootstrap servers, host:port,…; empty: no stream")
    kafka_properties: str = Field("", description="file of librdkafka properties, name=value a line: security, timeouts")
    kafka_group: str = Field("evergreen", description="consumer group of the stream")
    kafka_member: str = Field(
        "", description="lasting name of this member: back within the session timeout, nothing is rebalanced"
    )
    kafka_requests: str = Field("evergreen-requests", description="topic that the stream reads")
    kafka_predictions: str = Field("evergreen-predictions", description="topic of its answers")
    kafka_dead_letters: str = Field("evergreen-dead-letters", description="topic of what cannot be answered, with the reason")
    kafka_log: str = Field(
        "", description="topic that the prediction log goes to, for `evergreen stream collect`; empty: files below <var>"
    )
    shared: bool = Field(
        False, description="true: several machines; landed data, predictions and pages are shared by store and ledger"
    )
    host: str = Field("127.0.0.1", description="address that servers bind to")
    airflow_port: int = 8080
    airflow_url: str = Field("", description="where the exporter asks Airflow how it is; default http://<host>:<airflow_port>")
    mlflow_port: int = 5000
    serving_port: int = 3000
    logs: Literal["text", "json", "requests"] = Field(
        "text",
        description="json: commands log one JSON object a line, as service and stream always do; requests: and each request",
    )
    traces: str = Field(
        "", description="where traces of requests go, OTLP over HTTP: http://127.0.0.1:4318/v1/traces; empty: none"
    )
    exporter_port: int = Field(9109, description="where `evergreen exporter` answers Prometheus")
    statsd_port: int = Field(
        0, description="UDP port where the exporter hears Airflow's own metrics, and where `make up` sends them; 0: none"
    )
    serving_workers: int = Field(1, ge=1, description="processes of the prediction service; with two, one may die unfelt")
    revision: str = Field("", description="git revision of the code where there is no checkout, as in an image")
    stream_port: int = Field(3001, description="metrics of `evergreen stream`")
    collect_port: int = Field(3002, description="metrics of `evergreen stream collect`")
    token: SecretStr = Field(SecretStr(""), description="bearer token that the service asks for; empty: none")

    @model_validator(mode="after")
    def _defaults(self) -> Self:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("params", "data", "var"):
            put(name, (ROOT / getattr(self, name)).resolve())
        put("online", self.online if "://" in self.online else str((ROOT / (self.online or self.var / "online.db")).resolve()))
        put("feast", self.feast or f"sqlite:///{self.var}/feast.db")
        put("store", self.store or f"{self.var}/store")
        put("dvc_remote", self.dvc_remote or f"{self.var}/dvc-remote")
        put("ledger", self.ledger or f"sqlite:///{self.var}/ledger.db")
        put("mlflow", self.mlflow or f"sqlite:///{self.var}/mlflow.db")
        served = self.mlflow if self.mlflow.startswith("http") else f"http://{self.host}:{self.mlflow_port}"
        put("airflow_url", (self.airflow_url or f"http://{self.host}:{self.airflow_port}").rstrip("/"))
        put("mlflow_pages", (self.mlflow_pages or served).rstrip("/"))
        return self


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        ConfigError: a variable has a value that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "EVERGREEN_" + str(first["loc"][0]).upper()
        raise ConfigError(f"{name}={first['input']!r}: {first['msg']}", f"set {name} to an allowed value") from None
