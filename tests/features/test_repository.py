"""Feast over our stores: its join is our join, its online answer is the store's, its registry says who uses what."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pandas as pd
import prometheus_client
import pyarrow as pa
import pytest

from ml.config import load_params
from ml.features import history, offline, repository
from ml.features.definitions import load_module, source_table
from ml.features.online import open_store
from ml.settings import settings
from tests.conftest import forget
from tests.features.rows import ONE, flights, join, planes, weather

BEGIN, END = datetime(2013, 3, 1), datetime(2013, 5, 1)
TICK = datetime(2013, 4, 2)
ROWS = [
    ONE | {"event": e, "tailnum": t, "arr_delay": d} for e, t, d in [(0, "N1", 20), (4, "N2", -3), (9, None, 40), (60, "N1", 0)]
]


@pytest.fixture
def histories(workspace: Path) -> dict[str, pa.Table]:
    tables = {"flights": flights(ROWS), "weather": weather([{"origin": "EWR", "event": 8, "temp": 50.0}]), "planes": planes()}
    params = load_params()
    return {v.name: history.changes(params, v, tables[source_table(v, "flights")], BEGIN, END) for v in load_module(params).views}


def test_lookup__by_feast_equals_the_join_and_keeps_equal_rows(histories: dict[str, pa.Table], tmp_path: Path) -> None:
    params, rows = load_params(), flights([*ROWS, *ROWS, ONE | {"event": 80}])
    repository.write_histories(params, histories, tmp_path)
    by_feast = offline.compute(params, rows, repository.lookup(params, tmp_path), END)
    assert len(by_feast) == 9
    assert by_feast.equals(offline.compute(params, rows, join(params, histories), END))
    assert by_feast["origin_count_24h"].to_pylist()[-1] == 4.0  # all four arrived in the day before


def test_feast__answers_a_pandas_table_of_entities(histories: dict[str, pa.Table], tmp_path: Path) -> None:
    params = load_params()
    repository.write_histories(params, histories, tmp_path)
    entities = pd.DataFrame({"origin": ["EWR", "XXX"], "event_timestamp": pd.to_datetime([TICK, TICK], utc=True)})
    found = repository.repository(params, tmp_path).get_historical_features(entities, ["origin:origin_count_24h"]).to_df()
    assert found["origin_count_24h"].tolist()[0] == 4.0
    assert found["origin_count_24h"].isna().tolist() == [False, True]


def test_feast__reads_online_what_the_service_reads(histories: dict[str, pa.Table]) -> None:
    params = load_params()
    values = {v.name: history.last_values(v, histories[v.name], TICK) for v in load_module(params).views}
    open_store(settings().online).write(TICK, values)
    asked = {
        "entity_rows": [{"origin": "EWR"}, {"origin": "XXX"}],
        "features": ["origin:origin_count_24h", "origin:origin_rate_24h"],
    }
    answer = repository.repository(params).get_online_features(**asked).to_dict()
    assert answer["origin_count_24h"] == [values["origin"]["EWR"]["origin_count_24h"], None]
    assert answer["origin_rate_24h"] == [2 / 4, None]


def test_registry__holds_what_is_declared(workspace: Path) -> None:
    params = load_params()
    store, module = repository.repository(params), load_module(params)
    assert {v.name for v in store.list_feature_views()} == {v.name for v in module.views}
    assert {e.name for e in store.list_entities()} >= {e.name for e in module.entities}
    for view in module.views:
        held = store.get_feature_view(view.name)
        assert {f.name for f in held.features} == set(view.stored)
        assert (held.owner, held.description, held.tags["source"]) == (
            view.owner,
            view.description,
            source_table(view, params.problem.table),
        )


def test_registry__is_made_where_there_is_no_folder_yet(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_VAR", str(workspace / "fresh" / "var"))
    forget()
    assert {view.name for view in repository.repository(load_params()).list_feature_views()} == {
        view.name for view in load_module(load_params()).views
    }
    assert (workspace / "fresh" / "var" / "feast.db").exists()


def test_registry__forgets_a_view_that_is_no_longer_declared(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from ml.features import flights as declared

    params = load_params()
    repository.repository(params)
    fewer = dataclasses.replace(declared.MODULE, views=declared.VIEWS[1:])
    monkeypatch.setattr(declared, "MODULE", fewer)
    monkeypatch.setattr(repository, "code_digest", lambda params: "another")
    assert declared.VIEWS[0].name not in {v.name for v in repository.repository(params).list_feature_views()}


def test_service__of_a_version_names_what_it_uses(workspace: Path) -> None:
    params = load_params()
    for version, features in [
        ("1", ["origin_rate_24h", "hour"]),
        ("2", ["seats", "weather_age"]),
        ("2", ["seats", "weather_age"]),
    ]:
        repository.register_service(params, version, features)
    users = repository.users(params)
    assert users["origin_rate_24h"] == ["1"]
    assert (users["hour"], users["seats"]) == (["1"], ["2"])
    assert users["plane_seats"] == ["1", "2"]  # request features read it
    assert users["weather_since"] == ["2"]  # from which the age comes
    assert "weather_temp" not in users


def test_feast__leaves_the_counters_of_this_process_alone(histories: dict[str, pa.Table], tmp_path: Path) -> None:
    repository.write_histories(load_params(), histories, tmp_path)
    offline.compute(load_params(), flights(ROWS), repository.lookup(load_params(), tmp_path), END)
    assert not [name for name in os.environ if name.startswith("PROMETHEUS")]
    registries = [prometheus_client.CollectorRegistry() for _ in range(2)]
    counters = [prometheus_client.Counter("some", "x", registry=registry) for registry in registries]
    counters[0].inc()
    assert b"some_total 0.0" in prometheus_client.generate_latest(registries[1])
