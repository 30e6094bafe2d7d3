"""Feast under the feature layer: the registry, the point-in-time join, and its online interface. The only importer of Feast.

Feast holds the definitions (entities, views, services) and is asked for training sets. Below its interfaces stand our own stores:
an as-of join on DuckDB over the views' histories, and the online store that serving reads (ADR 6 has the measurements).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import prometheus_client  # noqa: F401 - before Feast, see below
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity as FeastEntity
from feast import FeatureService, FeatureStore, FeatureView, Field, FileSource, metrics
from feast.errors import FeatureServiceNotFoundException, ProjectObjectNotFoundException
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.online_stores.online_store import OnlineStore as FeastOnlineStore
from feast.infra.registry.sql import SqlRegistryConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.types import Float64, String
from feast.value_type import ValueType
from sqlalchemy.engine import make_url

from ml.config import Params, load_params
from ml.data.query import parquet, quoted
from ml.errors import NotFoundError
from ml.features.definitions import Entity, Latest, Recent, View, code_digest, load_module, source_table
from ml.features.history import values_at
from ml.features.offline import Lookup
from ml.features.online import open_store
from ml.settings import settings

# Importing Feast puts a folder into the environment, so that prometheus_client, here and in child processes, keeps its counters
# in files which processes share. Imported before Feast it has chosen not to; and the children shall not hear of it.
if metrics._owns_mp_dir:
    for _name in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"):
        os.environ.pop(_name, None)
logging.getLogger("feast").setLevel(logging.WARNING)  # it reports each look into the registry

TICK = "event_timestamp"
"""Feast's name for the moment that an entity row asks about."""


def repository(params: Params, folder: Path | None = None) -> FeatureStore:
    """The feature store of the problem; its registry holds the present definitions.

    Args:
        folder: holds the histories, ``<view>.parquet``; not needed to look at definitions or to read online.
    """
    registry = make_url(settings().feast)
    if registry.get_backend_name() == "sqlite" and registry.database:
        Path(registry.database).parent.mkdir(parents=True, exist_ok=True)  # a fresh clone has no <var>
    config = RepoConfig(
        project=params.problem.name,
        provider="local",
        registry=SqlRegistryConfig(registry_type="sql", path=settings().feast, cache_ttl_seconds=0),
        offline_store={"type": f"{__name__}.AsOfOfflineStore"},
        online_store={"type": f"{__name__}.TickOnlineStore"},
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    store = FeatureStore(config=config)
    _apply(params, store)
    return store


def lookup(params: Params, folder: Path) -> Lookup:
    """Looks up by Feast's point-in-time join: the registered service of the present definitions over the folder's histories."""

    def ask(points: pa.Table) -> pa.Table:
        store = repository(params, folder)
        entities = points.rename_columns([TICK if c == "tick" else c for c in points.column_names])
        # Feast hands tables of its own kind (pandas) or unknown ones to the offline store as they are
        job = store.get_historical_features(entities, store.get_feature_service(params.problem.name))
        return job.to_arrow()

    return ask


def write_histories(params: Params, histories: Mapping[str, pa.Table], folder: Path) -> None:
    """Writes each view's history as the Parquet file that its Feast source names."""
    for view in load_module(params).views:
        named = histories[view.name].rename_columns(
            [view.entity.name if c == "entity" else c for c in histories[view.name].column_names]
        )
        pq.write_table(named, folder / _file(view), compression="none")


def register_service(params: Params, version: str, features: Sequence[str]) -> None:
    """Notes which view columns a model version uses: a FeatureService named ``<problem>_v<version>``; again changes nothing."""
    module, store = load_module(params), repository(params)
    views = {view.name: feast_view(params, view) for view in module.views}
    used, known = set(features) | (set(module.reads) if set(features) & {f.name for f in module.requested} else set()), []
    for view in module.views:
        if columns := [c for c in view.stored if c in used or (c.endswith("_since") and used & set(view.columns))]:
            known.append(views[view.name][columns])
    requested = ",".join(sorted(set(features) & {f.name for f in module.requested}))
    service = FeatureService(
        name=service_name(params, version),
        features=known,
        tags={"version": version, "request_features": requested, "code": code_digest(params)},
        description=f"what version {version} of {params.problem.name} reads",
        owner=module.owner,
    )
    store.apply([service])


def users(params: Params) -> dict[str, list[str]]:
    """By feature or stored column, the model versions whose service names it."""
    store, found = repository(params), dict[str, list[str]]()
    services = [s for s in store.list_feature_services() if s.tags.get("version")]
    for service in sorted(services, key=lambda s: int(s.tags["version"])):
        names = [f.name for p in service.feature_view_projections for f in p.features]
        for name in [*names, *filter(None, service.tags["request_features"].split(","))]:
            found.setdefault(name, []).append(service.tags["version"])
    return found


def service_name(params: Params, version: str) -> str:
    return f"{params.problem.name}_v{version}"


def feast_entity(entity: Entity) -> FeastEntity:
    return FeastEntity(
        name=entity.name,
        join_keys=[entity.name],
        value_type=ValueType.STRING,
        description=entity.description,
        tags={"columns": ",".join(entity.columns)},
    )


def feast_view(params: Params, view: View) -> FeatureView:
    """The view as Feast knows it: its columns, the file that its history is in, who owns it, and how fresh it must be."""
    module = load_module(params)
    described = {f.name: f for f in module.features}
    fields = [Field(name=view.entity.name, dtype=String)]
    for column in view.stored:
        feature = described.get(column)
        text = feature.description if feature else f"column of view {view.name}"
        fields.append(Field(name=column, dtype=Float64, description=text, tags={"unit": feature.unit} if feature else {}))
    age = timedelta(hours=view.max_age_hours or 0) if isinstance(view, Latest) else timedelta(0)
    return FeatureView(
        name=view.name,
        entities=[feast_entity(view.entity)],
        schema=fields,
        ttl=age,  # 0: no limit; an outcome that leaves its window is a change of its own
        source=FileSource(name=f"{view.name}_history", path=_file(view), timestamp_field="moment"),
        description=view.description,
        owner=view.owner,
        tags={
            "source": source_table(view, params.problem.table),
            "kind": "recent outcomes" if isinstance(view, Recent) else "latest row",
            "lag_hours": str(view.lag_hours),
        },
    )


def _apply(params: Params, store: FeatureStore) -> None:
    """Brings the registry to the present definitions, unless it has them; what is no longer declared is removed."""
    digest = code_digest(params)
    try:
        if store.get_feature_service(params.problem.name).tags.get("code") == digest:
            return
    except (FeatureServiceNotFoundException, ProjectObjectNotFoundException):
        pass
    module = load_module(params)
    views: list[Any] = [feast_view(params, view) for view in module.views]
    service = FeatureService(
        name=params.problem.name,
        features=views,
        tags={"code": digest},
        description="all views, as declared now",
        owner=module.owner,
    )
    gone: list[Any] = [v for v in store.list_feature_views() if v.name not in {view.name for view in views}]
    store.apply([*map(feast_entity, module.entities), *views, service], objects_to_delete=gone, partial=not gone)


def _file(view: View) -> str:
    return f"{view.name}.parquet"


class AsOfOfflineStoreConfig(FeastConfigBaseModel):
    """Nothing to configure: histories are where the repository's path is."""

    type: str = f"{__name__}.AsOfOfflineStore"


class AsOfOfflineStore(OfflineStore):
    """Feast's offline interface over histories in Parquet, joined by DuckDB. Every entity row gives one row, equal ones too."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **unused: Any,
    ) -> RetrievalJob:
        """Columns of `feature_refs` at each row's ``event_timestamp``; entity rows as pandas or Arrow, with a key per entity."""
        if not isinstance(entity_df, pd.DataFrame | pa.Table):
            raise NotFoundError(f"entity rows are a {type(entity_df).__name__}", "give a pandas or an Arrow table")
        points = entity_df if isinstance(entity_df, pa.Table) else pa.Table.from_pandas(entity_df, preserve_index=False)
        wanted = {ref.replace(":", "__") if full_feature_names else ref.split(":")[1]: ref.split(":") for ref in feature_refs}
        definitions = {view.name: view for view in load_module(load_params()).views}

        def run() -> pa.Table:
            tick = points[TICK].cast(pa.timestamp("us", "UTC") if points[TICK].type.tz else pa.timestamp("us"))
            asked = points.append_column("tick", tick.cast(pa.timestamp("us")))
            columns = {name: points[name] for name in points.column_names}
            for feature_view in feature_views:
                view = definitions[feature_view.name]
                values = values_at(view, asked, _history(config, view))
                named = {
                    name: column for name, (owner, column) in wanted.items() if owner == feature_view.projection.name_to_use()
                }
                columns |= {name: values[column] for name, column in named.items()}
            return pa.table(columns)

        return AsOfJob(run, RetrievalMetadata(feature_refs, [c for c in points.column_names if c != TICK]), full_feature_names)

    @staticmethod
    def pull_latest_from_table_or_query(*unused: Any, **named: Any) -> RetrievalJob:
        raise NotImplementedError("the online store is written whole ticks at a time: run `evergreen materialise`")

    @staticmethod
    def pull_all_from_table_or_query(*unused: Any, **named: Any) -> RetrievalJob:
        raise NotImplementedError("histories are files: read <view>.parquet")


class AsOfJob(RetrievalJob):
    """A join that runs when its rows are asked for."""

    def __init__(self, run: Callable[[], pa.Table], metadata: RetrievalMetadata, full_feature_names: bool) -> None:
        self._run, self._metadata, self._full = run, metadata, full_feature_names

    @property
    def full_feature_names(self) -> bool:
        return self._full

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._run()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._run().to_pandas()


class TickOnlineStoreConfig(FeastConfigBaseModel):
    """Nothing to configure here: EVERGREEN_ONLINE says where the store is."""

    type: str = f"{__name__}.TickOnlineStore"


class TickOnlineStore(FeastOnlineStore):
    """Feast's online interface, to read: `FeatureStore.get_online_features` sees what the service sees."""

    def online_read(
        self, config: RepoConfig, table: FeatureView, entity_keys: list[EntityKey], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, ValueProto] | None]]:
        keys = [(table.name, key.entity_values[0].string_val) for key in entity_keys]
        tick, found = open_store(settings().online).read(keys)
        rows: list[tuple[datetime | None, dict[str, ValueProto] | None]] = []
        for key in keys:
            values = found.get(key)
            if tick is None or values is None:
                rows.append((None, None))
                continue
            named = {c: ValueProto() if v is None else ValueProto(double_val=v) for c, v in values.items()}
            rows.append((tick.replace(tzinfo=UTC), named))
        return rows

    def online_write_batch(self, *unused: Any, **named: Any) -> None:
        raise NotImplementedError("the online store is written whole ticks at a time: run `evergreen materialise`")

    def update(self, *unused: Any, **named: Any) -> None:
        """Nothing to prepare: any view can be written."""

    def teardown(self, *unused: Any, **named: Any) -> None:
        """Nothing to take down."""


def _history(config: RepoConfig, view: View) -> str:
    if config.repo_path is None:
        raise NotFoundError("this repository was opened without histories", "open it by ml.features.repository.lookup")
    path = Path(config.repo_path) / _file(view)
    return f"(SELECT {quoted(view.entity.name)} AS entity, * FROM {parquet([path])})"
