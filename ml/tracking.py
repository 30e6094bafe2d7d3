"""Experiments and the model registry: the only module that imports mlflow.

MLflow has no unique constraint that would make a retried step harmless, so every object that is made once per idempotency key
(run, logged model, version) is made, then *claimed* by a primary key in the ledger's database. Who comes second takes the first
one's object and deletes its own; a stray that a killed process left behind is deleted by the next call with the key.

No pickle: the graph is an artifact beside an ``MLmodel`` file with a real signature, as ``mlflow.onnx.load_model`` reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from ml import ledger
from ml.config import load_params
from ml.errors import NotFoundError
from ml.refs import VersionRef
from ml.settings import settings

KEY = "evergreen.key"

_claims = sa.Table(
    "mlflow_claims",
    ledger.metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("what", sa.String(20), primary_key=True),
    sa.Column("value", sa.String(64), nullable=False),
)


class Signature(ModelSignature):
    """What the registered model takes and answers, as MLflow shows it."""

    @classmethod
    def of(cls, numeric: Sequence[str], text: Sequence[str]) -> Signature:
        """Signature of a graph with these features and one probability."""
        columns: list[ColSpec | TensorSpec] = [ColSpec("float", name, required=False) for name in numeric]
        columns += [ColSpec("string", name, required=False) for name in text]
        return cls(inputs=Schema(columns), outputs=Schema([ColSpec("float", "probability")]))


def init_store() -> None:
    """Creates MLflow's tables once. Safe to call from several processes at the same time, and before the MLflow server starts."""
    _initialised(settings().mlflow, str(settings().var))


def page(run_id: str | None, artifact: str = "") -> str:
    """Where a person sees a run, or an artifact of it, in MLflow's own pages; its first page without a run."""
    server = settings().mlflow_pages
    if run_id is None:
        return server
    experiment = _client().get_run(run_id).info.experiment_id
    return f"{server}/#/experiments/{experiment}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


def log_and_register(
    key: str,
    name: str,
    *,
    title: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Mapping[str, bytes],
    plots: Mapping[str, bytes],
    onnx: bytes,
    numeric: Sequence[str],
    text: Sequence[str],
    dataset: tuple[str, str],
    description: str,
) -> tuple[str, str]:
    """Logs one run and registers one model version per `key`, however often and by however many processes it is called.

    Args:
        key: idempotency key; run, model and version carry it as the tag ``evergreen.key``.
        name: registered model, and the experiment.
        title: the run's name, for people.
        params, metrics, tags: of the run; `tags` are the version's too.
        artifacts: file name → bytes, below the run's artifacts.
        plots: file name → PNG or HTML bytes, below ``plots/``.
        onnx: the graph.
        numeric, text: its feature names, for the signature.
        dataset: name and digest of the data that it learned from.
        description: of the version, in Markdown.

    Returns:
        (run id, version).
    """
    client = _client()
    experiment = _experiment(client, name)
    run_id = _claimed(
        key,
        "run",
        make=lambda: client.create_run(experiment, tags={KEY: key, "mlflow.runName": title}).info.run_id,
        found=lambda: [
            run.info.run_id for run in client.search_runs([experiment], f"tags.`{KEY}` = '{_quoted(key)}'", ViewType.ACTIVE_ONLY)
        ],
        discard=client.delete_run,
    )
    _log(client, run_id, params, metrics, tags, dataset)
    _upload(client, run_id, artifacts, plots)
    model_id = _claimed(
        key,
        "model",
        make=lambda: client.create_logged_model(experiment, name, run_id, tags={KEY: key}, model_type="onnx").model_id,
        found=lambda: [model.model_id for model in client.search_logged_models([experiment], f"tags.`{KEY}` = '{_quoted(key)}'")],
        discard=client.delete_logged_model,
    )
    source = _upload_model(client, model_id, run_id, onnx, Signature.of(numeric, text))
    outputs = client.get_run(run_id).outputs
    if outputs is None or not outputs.model_outputs:  # MLflow appends
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    _registered_model(client, name)
    version_tags = {**{k: str(v) for k, v in tags.items()}, KEY: key}
    version = _claimed(
        key,
        "version",
        make=lambda: str(
            client.create_model_version(name, source, run_id, version_tags, None, description, 0, model_id=model_id).version
        ),
        found=lambda: [str(v.version) for v in _versions_with(client, name, key)],
        discard=lambda stray: client.delete_model_version(name, stray),
    )
    client.set_terminated(run_id, "FINISHED")
    return run_id, version


def set_alias(name: str, alias: str, version: str) -> None:
    """Points `alias` of model `name` at `version`; doing it again changes nothing."""
    _client().set_registered_model_alias(name, alias, version)


def get_alias(name: str, alias: str) -> str | None:
    """The version that `alias` points at; None when there is no such alias or no such model."""
    try:
        version = _client().get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return None if version is None else str(version)


def versions(name: str) -> list[str]:
    """Versions of model `name`, oldest first."""
    return sorted((str(v.version) for v in _client().search_model_versions(f"name = '{_quoted(name)}'")), key=int)


def number(version: str) -> str:
    """The number in ``3`` or ``v3``.

    Raises:
        NotFoundError: it is no number.
    """
    found = version.removeprefix("v")
    if not (found.isascii() and found.isdigit()):
        raise NotFoundError(f"{version!r} is no version", f"give a number, one of: {_known(load_params().problem.name)}")
    return str(int(found))


def _known(name: str) -> str:
    return ", ".join(versions(name)) or "none, nothing is registered yet"


def tags(name: str, version: str) -> dict[str, str]:
    """Tags of a model version.

    Raises:
        NotFoundError: there is no such version.
    """
    try:
        return dict(_client().get_model_version(name, version).tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"model {name!r} has no version {version!r}", f"choose one of: {_known(name)}") from None
        raise


def run_id(name: str, version: str) -> str:
    """The run that made a model version, which must exist."""
    return str(_client().get_model_version(name, version).run_id)


def version_ref(version: str, name: str | None = None) -> VersionRef:
    """The reference of a registered version, from its tags.

    Args:
        name: registered model; that of params.yaml when omitted.

    Raises:
        NotFoundError: there is no such version, or it was not registered by `register`.
    """
    name = name or load_params().problem.name
    found = tags(name, version)
    if missing := {"bundle", "model", "verdict", "backfill"} - found.keys():
        what = f"version {version} of {name!r} has no tag {', '.join(sorted(missing))}"
        raise NotFoundError(what, "release a version that the train pipeline registered")
    return VersionRef(
        version=version,
        bundle=found["bundle"],
        model=found["model"],
        verdict=found["verdict"],
        backfill=found["backfill"] == "true",
        run_id=run_id(name, version),
    )


@cache
def _initialised(uri: str, var: str) -> MlflowClient:
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)  # resolves models:/ addresses; the client is told explicitly
    folder = Path(var) / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "init.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when this process dies
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def _client() -> MlflowClient:
    return _initialised(settings().mlflow, str(settings().var))


def _experiment(client: MlflowClient, name: str) -> str:
    local = settings().mlflow.startswith("sqlite")
    location = (settings().var / "mlflow" / "artifacts" / name).as_uri() if local else None
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return str(experiment.experiment_id)
    try:
        return client.create_experiment(name, location)
    except MlflowException:  # somebody else made it in between
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions_with(client: MlflowClient, name: str, key: str) -> list[mlflow.entities.model_registry.ModelVersion]:
    return list(client.search_model_versions(f"name = '{_quoted(name)}' AND tags.`{KEY}` = '{_quoted(key)}'"))


def _claimed(
    key: str, what: str, make: Callable[[], str], found: Callable[[], list[str]], discard: Callable[[str], object]
) -> str:
    """The one object of this kind for `key`: the claimed one, else the oldest found, else a new one; strays are discarded."""
    mine = None
    if (winner := _claim_of(key, what)) is None:
        mine = min(found(), key=lambda each: (len(each), each), default=None) or make()
        winner = _claim(key, what, mine)
    for stray in {*found(), *([mine] if mine else [])} - {winner}:
        try:
            discard(stray)
        except MlflowException:  # its maker has discarded it already
            logging.getLogger(__name__).info("stray %s %s of key %s is gone already", what, stray, key)
    return winner


def _claim_of(key: str, what: str) -> str | None:
    query = sa.select(_claims.c.value).where(_claims.c.key == key, _claims.c.what == what)
    with ledger.engine().connect() as connection:
        return connection.execute(query).scalar()


def _claim(key: str, what: str, value: str) -> str:
    """Claims `value`; returns what is claimed in the end, by whomever."""
    try:
        with ledger.engine().begin() as connection:
            connection.execute(sa.insert(_claims).values(key=key, what=what, value=value))
    except sa.exc.IntegrityError:
        return _claim_of(key, what) or value
    return value


def _log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    dataset: tuple[str, str],
) -> None:
    started = client.get_run(run_id).info.start_time  # one time for all calls, so that a repeated metric is the same point
    client.log_batch(
        run_id,
        [Metric(name, float(value), started, 0) for name, value in metrics.items()],
        [Param(name, str(value)) for name, value in params.items()],
        [RunTag(name, str(value)) for name, value in tags.items()],
    )
    name, digest = dataset
    source = json.dumps({"url": f"dvc://{digest}"})  # of MLflow's source types, the one that is just an address
    entity = Dataset(name, digest[:36], "http", source)  # 36 characters is what MLflow keeps
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def _upload(client: MlflowClient, run_id: str, artifacts: Mapping[str, bytes], plots: Mapping[str, bytes]) -> None:
    files = {**artifacts, **{f"plots/{name}": content for name, content in plots.items()}}
    with _folder(files) as folder:
        client.log_artifacts(run_id, str(folder))


def _upload_model(client: MlflowClient, model_id: str, run_id: str, onnx: bytes, signature: ModelSignature) -> str:
    """Uploads the graph and its ``MLmodel``; returns the address that a version is made from."""
    uri = str(client.get_logged_model(model_id).artifact_location)
    card = Model(artifact_path=uri, run_id=run_id, signature=signature, model_id=model_id)
    card.add_flavor("onnx", onnx_version=installed("onnx"), data="model.onnx", providers=["CPUExecutionProvider"], code=None)
    card.add_flavor("evergreen", digest=hashlib.sha256(onnx).hexdigest())
    with _folder({"model.onnx": onnx, "MLmodel": card.to_yaml().encode()}) as folder:
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    return uri


@contextmanager
def _folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            target = Path(name) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield Path(name)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
