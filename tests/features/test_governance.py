"""Features that people can trust: the dictionary is current, nothing sensitive slips in, names may change and models go on."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml import cli
from ml.config import Params, load_params
from ml.errors import ConfigError, IntegrityError, NotFoundError
from ml.features import catalogue, flights
from ml.features.definitions import FeatureModule, Recent, load_module, request_columns
from ml.features.online import open_store
from ml.packaging.bundle import Bundle
from ml.serving.answering import NO_STORE, Serving
from ml.settings import ROOT, settings
from tests.sample_bundle import sample_bundle

REQUEST = {
    "carrier": "UA", "flight": 1, "origin": "EWR", "dest": "BOS", "tailnum": "N1", "distance": 200.0, "hour": 9, "minute": 15,
    "time_hour": datetime(2013, 4, 18, 13), "sched_dep_time": 915, "sched_arr_time": 1030,
}  # fmt: skip


def declared(monkeypatch: pytest.MonkeyPatch, **changes: object) -> FeatureModule:
    """The shipped module, changed as a developer would."""
    changed = dataclasses.replace(flights.MODULE, **changes)
    monkeypatch.setattr(flights, "MODULE", changed)
    return changed


def test_data_dictionary__is_what_is_declared() -> None:
    written = (ROOT / "docs" / "data-dictionary.md").read_text()
    assert written == catalogue.dictionary(load_params()), "run `evergreen features dictionary`"


def test_every_feature__has_owner_description_source_and_view_a_limit() -> None:
    for entry in catalogue.entries(load_params()):
        assert entry.owner and entry.description and entry.source, entry.name
        assert entry.view == catalogue.REQUEST or "behind" in entry.fresh, entry.name
    numbers = [e for e in catalogue.entries(load_params()) if e.kind == "numeric"]
    assert [e.name for e in numbers if not e.unit] == []


def test_list__names_every_feature_with_its_users() -> None:
    shown = catalogue.table(load_params(), {"origin_rate_24h": ["1", "2", "7"], "hour": ["7"]})
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert set(lines) == {"FEATURE", *(f.name for f in flights.FEATURES)}
    assert "v1…v7" in lines["origin_rate_24h"]
    assert "  v7  " in lines["hour"]


def test_show__of_something_unknown_names_what_is_near() -> None:
    with pytest.raises(NotFoundError, match="origin_rate_24h"):
        catalogue.details(load_params(), "rate_24h", {})
    assert "minutes" not in catalogue.details(load_params(), "weather", {})
    assert "weather_temp" in catalogue.details(load_params(), "weather", {})
    both = catalogue.details(load_params(), "origin", {})  # a feature and a view
    assert "airport of departure" in both and "origin_rate_24h" in both


def test_cli__lists_and_shows(workspace: Path) -> None:
    environment = os.environ | {"COLUMNS": "300"}
    listed = CliRunner().invoke(cli.app, ["features", "list"], env=environment)
    assert listed.exit_code == 0, listed.output
    assert f"{len(flights.FEATURES)} features; the online store was never written" in listed.output
    open_store(settings().online).write(datetime(2013, 4, 18, 9), {})
    shown = CliRunner().invoke(cli.app, ["features", "show", "origin_rate_24h"], env=environment)
    assert "2013-04-18 09:00:00" in shown.output


# ---- sensitive columns


def sensitive(table: str, column: str, allowed: bool) -> Params:
    params = load_params()
    spec = params.tables[table].model_copy(update={"sensitive": {column: "a test says so"}})
    named = f"{table}.{column}"
    others = {name: why for name, why in params.features.allow_sensitive.items() if name != named}
    features = params.features.model_copy(update={"allow_sensitive": others | ({named: "a test"} if allowed else {})})
    return params.model_copy(update={"tables": params.tables | {table: spec}, "features": features})


@pytest.mark.parametrize("column", ["tailnum", "arr_delay"], ids=["key", "value"])
def test_sensitive_column__that_a_view_reads_is_refused_and_named(column: str) -> None:
    with pytest.raises(ConfigError, match=rf"reads flights\.{column}.*sensitive \(a test says so\)") as refused:
        load_module(sensitive("flights", column, allowed=False))
    assert f"features.allow_sensitive: flights.{column}" in str(refused.value)


def test_sensitive_column__is_not_handed_to_the_request_function() -> None:
    assert "distance" not in request_columns(sensitive("flights", "distance", allowed=False))
    assert "distance" in request_columns(sensitive("flights", "distance", allowed=True))
    raw = sensitive("flights", "distance", allowed=False)
    raw = raw.model_copy(update={"features": raw.features.model_copy(update={"module": None})})
    assert "distance" not in {f.name for f in load_module(raw).features}


def test_shipped_problem__reads_no_sensitive_column_without_a_reason() -> None:
    params = load_params()
    load_module(params)
    assert {name for name, spec in params.tables.items() if spec.sensitive} == {"flights", "planes"}
    assert all(params.features.allow_sensitive.values())
    learned = {f.name for f in load_module(params).features}
    assert not learned & {column for spec in params.tables.values() for column in spec.sensitive}


def test_params__that_allow_what_is_not_sensitive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("flights.tailnum:", "flights.carrier:"))
    with pytest.raises(ConfigError, match=r"flights\.carrier"):
        load_params(path)


# ---- evolution


def served(bundle: bytes) -> dict:
    serving = Serving.of(Bundle.from_bytes(bundle), "1")
    return serving.assembler.assemble(NO_STORE, [REQUEST]).features[0]


def test_feature__that_was_added_leaves_older_models_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sample_bundle()
    more = Recent("airline_week", flights.CARRIER, "arr_delay", (168,), "a week of the carrier", "a test")
    feature = dataclasses.replace(flights.FEATURES[-1], name="airline_week_rate_168h")
    declared(monkeypatch, views=(*flights.VIEWS, more), features=(*flights.FEATURES, feature))
    assert "airline_week_rate_168h" in served(old)


def test_feature__that_was_renamed_is_served_under_both_names(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sample_bundle()
    renamed = [
        dataclasses.replace(f, name="miles", formerly=("distance",)) if f.name == "distance" else f for f in flights.FEATURES
    ]

    def request(row: dict, known: dict) -> dict:
        made = dict(flights.request_features(row, known))
        return {"miles": made.pop("distance"), **made}

    module = declared(monkeypatch, features=tuple(renamed), request=request)
    assert "miles" in module.numeric and "distance" not in module.numeric
    answered = served(old)
    assert (answered["distance"], answered["miles"]) == (200.0, 200.0)


def test_feature__that_is_retired_is_still_served_and_learned_no_more(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sample_bundle()
    retired = [dataclasses.replace(f, retired=True) if f.name == "distance" else f for f in flights.FEATURES]
    module = declared(monkeypatch, features=tuple(retired))
    assert "distance" not in module.numeric
    assert served(old)["distance"] == 200.0


def test_feature__that_is_removed_while_a_model_needs_it_is_refused_and_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sample_bundle()
    fewer = tuple(f for f in flights.FEATURES if f.name != "weather_temp")
    declared(monkeypatch, features=fewer)
    with pytest.raises(IntegrityError, match="weather_temp"):
        served(old)
