"""The service over HTTP: typed requests, flagged fallbacks, the manifest followed, bad bundles refused."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ml import store
from ml.config import load_params
from ml.features.definitions import load_module
from ml.features.online import SQLiteStore
from ml.packaging.bundle import Bundle
from ml.serving import manifest
from ml.serving.log import read_online
from ml.serving.manifest import Deployed
from ml.settings import settings
from tests.sample_bundle import (
    ENTITY_ID,
    EVENT_TIME,
    RATE_EWR_6,
    REQUEST,
    fresh_features,
    graph,
    sample_bundle,
    sample_parts,
    stored,
)
from tests.serving.conftest import Serve, eventually, serves

AS_OF = datetime(2013, 4, 1, 3)


def deploy(deployed: Deployed) -> None:
    manifest.promote(deployed, AS_OF, "test", "", f"promote-{deployed.version}-{manifest.current_version()}")


def recorded(archive: bytes) -> float:
    return Bundle.from_bytes(archive).examples[0].probability


def test_readyz__nothing_deployed__503_with_the_reason_then_within_a_second_ready(serve: Serve) -> None:
    with serve() as client:
        assert client.get("/livez").status_code == 200
        refused = eventually(lambda: (r := client.get("/readyz")).status_code == 503 and "deployed" in r.text and r)
        assert "nothing was deployed yet" in refused.json()["detail"]
        assert client.post("/predict", json=REQUEST).status_code == 503
        deploy(stored(sample_bundle(), "1"))
        eventually(lambda: client.get("/readyz").status_code == 200, seconds=1)


def test_predict__one_row__whole_answer(serve: Serve) -> None:
    archive = sample_bundle()
    deploy(stored(archive, "7"))
    with serve() as client:
        eventually(lambda: serves(client, "7"))
        answer = client.post("/predict", json=REQUEST, headers={"x-request-id": "mine"}).json()
    assert answer == {
        "probability": recorded(archive),
        "decision": 1,
        "entity_id": ENTITY_ID,
        "model_version": "7",
        "cohort": "champion",
        "request_id": "mine",
        "flags": ["features_missing"],  # the online store was never written
    }


def test_predict__a_list__answers_in_order(serve: Serve) -> None:
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        answers = client.post("/predict", json=[REQUEST | {"flight": number} for number in range(5)]).json()
        assert [answer["entity_id"].split("-")[1] for answer in answers] == ["0", "1", "2", "3", "4"]
        assert len({answer["request_id"] for answer in answers}) == 1
        assert client.post("/predict", json=[]).json() == []


@pytest.mark.parametrize(
    ("tick", "flags"),
    [(datetime(2013, 4, 18, 8), []), (datetime(2013, 4, 18, 7), ["features_stale"])],
    ids=["tick_before_prediction_time", "tick_too_old"],  # prediction time is 08:15, the last tick before it 08:00
)
def test_predict__online_features__flagged_when_stale(serve: Serve, tick: datetime, flags: list[str]) -> None:
    deploy(stored(sample_bundle(), "1"))
    fresh_features(SQLiteStore(Path(settings().online)), tick)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        assert client.post("/predict", json=REQUEST).json()["flags"] == flags
        assert client.get("/metadata").json()["feature_tick"] == tick.isoformat()


def test_predict__store_holds_garbage__answered_from_defaults_and_flagged(serve: Serve) -> None:
    archive = sample_bundle()
    deploy(stored(archive, "1"))
    fresh_features(SQLiteStore(Path(settings().online)))
    with sqlite3.connect(settings().online) as connection:
        connection.execute("UPDATE features SET payload = '{'")
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        answer = client.post("/predict", json=REQUEST).json()
    assert (answer["probability"], answer["flags"]) == (recorded(archive), ["features_missing"])


def test_predict__model_fails_on_a_row__that_row_alone_gets_its_baseline_rate(serve: Serve) -> None:
    parts = sample_parts()
    model = graph(0.0, len(parts["numeric"]), len(parts["text"]), unknown=float("nan"))
    archive = sample_bundle(model=model)
    deploy(stored(archive, "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        answers = client.post("/predict", json=[REQUEST, REQUEST | {"dest": "???"}]).json()
        told = client.get("/metrics").text
    assert answers[0]["probability"] == recorded(archive)
    assert "fallback_baseline" not in answers[0]["flags"]
    assert (answers[1]["probability"], answers[1]["decision"]) == (RATE_EWR_6, 0)
    assert "fallback_baseline" in answers[1]["flags"]
    assert 'evergreen_flags_total{flag="fallback_baseline"} 1.0' in told
    by = 'cohort="champion",model_version="1"'
    assert f"evergreen_probability_count{{{by}}} 2.0" in told
    total = sum(answer["probability"] for answer in answers)
    assert float(told.split(f"evergreen_probability_sum{{{by}}} ")[1].split()[0]) == pytest.approx(total)
    assert f"evergreen_answer_seconds_count{{{by}}} 1.0" in told


def test_predict__wrong_requests__status_and_field(serve: Serve) -> None:
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        wrong = client.post("/predict", json=REQUEST | {"colour": "green"})
        assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "colour"])
        many = client.post("/predict", json=[REQUEST] * 1001)
        assert (many.status_code, many.json()["detail"]) == (413, "1001 rows in one request, at most 1000 are allowed")
        assert client.post("/predict", content=b"[" + b" " * (9 << 20) + b"]").status_code == 413
        assert (
            client.post("/predict", json=REQUEST | {"time_hour": "0001-01-01T00:00:00"}).status_code == 422
        )  # no prediction time
        assert client.post("/predict", json=REQUEST).status_code == 200
        told = client.get("/metrics").text
    assert 'evergreen_requests_total{status="422"} 2.0' in told
    assert 'evergreen_requests_total{status="200"} 1.0' in told


def test_predict__answered__is_in_the_log_as_served(serve: Serve) -> None:
    deploy(stored(sample_bundle(), "1"))
    fresh_features(SQLiteStore(Path(settings().online)))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        answer = client.post("/predict", json=REQUEST).json()
    (row,) = read_online(EVENT_TIME, EVENT_TIME.replace(minute=16)).to_pylist()  # the service has stopped: all is written
    assert {name: row[name] for name in ("entity_id", "probability", "model_version", "request_id", "flags")} == {
        name: answer[name] for name in ("entity_id", "probability", "model_version", "request_id", "flags")
    }
    assert (row["event_time"], row["prediction_time"], row["tick"]) == (
        EVENT_TIME,
        datetime(2013, 4, 18, 8, 15),
        datetime(2013, 4, 18, 8),
    )
    features = json.loads(row["features"])
    assert (features["seats"], features["distance"], features["origin"]) == (149.0, 1400.0, "EWR")


def test_openapi__names_the_fields_of_the_served_model(serve: Serve) -> None:
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        document = client.get("/openapi.json").json()
    assert set(document["components"]["schemas"]["Row"]["properties"]) == set(REQUEST)
    assert document["components"]["schemas"]["Row"]["example"]["origin"] == "EWR"


def test_docs__need_nothing_from_outside(serve: Serve) -> None:
    with serve() as client:
        page = client.get("/docs").text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(assets) >= 3
        for asset in assets:
            assert asset.startswith("/"), asset
            assert client.get(asset).status_code == 200


def _wrong_model(good: Deployed) -> Deployed:
    return good.model_copy(update={"model": "0" * 64})


def _damaged(good: Deployed) -> Deployed:
    path = Path(settings().store, good.bundle[:2], good.bundle)
    path.write_bytes(path.read_bytes()[:-1000])
    return good


def _gone(good: Deployed) -> Deployed:
    Path(settings().store, good.bundle[:2], good.bundle).unlink()
    return good


def _fails_probe(_: Deployed) -> Deployed:
    example = Bundle.from_bytes(sample_bundle()).examples[0]
    return stored(sample_bundle(bias=0.7, examples=[example]), "2")


def _needs_a_retired_feature(_: Deployed) -> Deployed:
    names = load_module(load_params()).numeric
    return stored(sample_bundle(bias=0.7, numeric=["retired", *names[1:]]), "2")


@pytest.mark.parametrize("spoil", [_wrong_model, _damaged, _gone, _fails_probe, _needs_a_retired_feature])
def test_follower__bad_bundle__is_refused_and_the_old_one_serves_on(serve: Serve, spoil: Any) -> None:
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        deploy(spoil(stored(sample_bundle(bias=0.5), "2")))
        about = eventually(lambda: (found := client.get("/metadata").json())["problem"] and found)
        assert "version 2" in about["problem"]
        assert (about["model_version"], about["manifest_version"]) == ("1", 1)
        assert client.post("/predict", json=REQUEST).json()["model_version"] == "1"
        assert "evergreen_bundles_refused_total 1.0" in client.get("/metrics").text


def test_follower__refused_bundle_is_mended__then_serves(serve: Serve) -> None:
    archive = sample_bundle(bias=0.5)
    deploy(stored(sample_bundle(), "1"))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        deploy(_gone(stored(archive, "2")))
        eventually(lambda: client.get("/metadata").json()["problem"])
        store.put(archive)
        eventually(lambda: serves(client, "2"))
        assert client.get("/metadata").json()["problem"] is None


def test_follower__starts_while_the_champion_is_broken__previous_serves(serve: Serve) -> None:
    deploy(stored(sample_bundle(), "1"))
    deploy(_gone(stored(sample_bundle(bias=0.5), "2")))
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        assert "version 2" in eventually(lambda: client.get("/metadata").json()["problem"])


def test_swap__under_load__no_failed_request_and_no_mixed_answer(serve: Serve) -> None:
    archives = {"1": sample_bundle(bias=0.0), "2": sample_bundle(bias=0.5)}
    models = {version: stored(archive, version) for version, archive in archives.items()}
    said = {version: recorded(archive) for version, archive in archives.items()}
    deploy(models["1"])
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()
    with serve() as client:
        eventually(lambda: serves(client, "1"))

        def ask() -> None:
            while not stop.is_set():
                reply = client.post("/predict", json=REQUEST)
                answers.append((reply.status_code, reply.json()))

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for turn in range(8):
            version = "2" if turn % 2 == 0 else "1"
            deploy(models[version])
            eventually(lambda version=version: serves(client, version), seconds=2)
        time.sleep(0.1)
        stop.set()
        for asker in askers:
            asker.join()
    assert {status for status, _ in answers} == {200}
    assert {answer["model_version"] for _, answer in answers} == {"1", "2"}
    assert all(answer["probability"] == said[answer["model_version"]] for _, answer in answers)
