"""Who answers whom: cohorts, the ladder's rungs, the time budget, shadows and several names, over real sockets."""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.features.online import SQLiteStore
from ml.packaging.bundle import Bundle
from ml.packaging.graph import export
from ml.serving import log, manifest
from ml.serving.manifest import Deployed, Experiment
from ml.serving.predictor import Predictor
from ml.serving.router import cohort_of
from ml.settings import settings
from tests.sample_bundle import RATE_EWR_6, REQUEST, fresh_features, graph, sample_bundle, sample_parts, stored
from tests.sample_models import served
from tests.serving.conftest import Serve, eventually, serves

AS_OF = datetime(2013, 4, 1, 3)
UNKNOWN = REQUEST | {"dest": "???"}
"""A row on which `failing` models answer NaN."""


def failing(bias: float = 0.0) -> bytes:
    parts = sample_parts()
    return sample_bundle(bias, model=graph(bias, len(parts["numeric"]), len(parts["text"]), unknown=float("nan")))


@functools.cache
def hanging(turns: int = 2**40) -> bytes:
    """A model that does not end, as good as, on rows from JFK: a loop whose count depends on the text."""
    parts = sample_parts()
    model = onnx.load_from_string(graph(0.0, len(parts["numeric"]), len(parts["text"])))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Add", ["held", "nought"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 1]),
        ],
        [numpy_helper.from_array(np.zeros(1, np.float32), "nought")],
    )
    (last,) = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    last.output[0] = "told"
    model.graph.node.extend(
        [
            helper.make_node("LabelEncoder", ["text"], ["turns"], domain="ai.onnx.ml", keys_strings=["JFK"],
                             values_int64s=[turns], default_int64=0),
            helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
            helper.make_node("Loop", ["most", "", "told"], ["probability"], body=body),
        ]
    )  # fmt: skip
    return sample_bundle(model=model.SerializeToString())


HANGS = REQUEST | {"origin": "JFK"}


def publish(**changes: Any) -> manifest.Manifest:
    return manifest.change(f"k{manifest.current_version()}", AS_OF, "test", "", **changes)


def flights(n: int, row: dict[str, Any] = REQUEST) -> list[dict[str, Any]]:
    return [row | {"flight": number} for number in range(n)]


def in_cohort(cohort: str, row: dict[str, Any] = REQUEST) -> dict[str, Any]:
    """A row whose entity is in a cohort of the current manifest."""
    document = manifest.current()
    assert document is not None
    name = lambda each: f"UA-{each['flight']}-{each['origin']}-20130418T1015"
    return next(each for each in flights(500, row) if cohort_of(document, name(each)) == cohort)


def loaded(client: httpx.Client, *versions: str) -> bool:
    return client.get("/metadata").json()["models"].get("flight_delay", {}).get("loaded") == sorted(versions)


def ask(client: httpx.Client, row: dict[str, Any]) -> dict[str, Any]:
    reply = client.post("/predict", json=row)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def rungs(answer: dict[str, Any]) -> list[str]:
    return [flag for flag in answer["flags"] if not flag.startswith("features_")]


def logged() -> list[dict[str, Any]]:
    return list(log.since_manifest(0).to_pylist())


def test_canary__share_of_entities__the_same_every_time_and_kept_as_it_grows(serve: Serve) -> None:
    one, two = stored(sample_bundle(), "1"), stored(sample_bundle(0.5), "2")
    publish(champion=one, canary=two, canary_share=0.1)
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        first = client.post("/predict", json=flights(600)).json()
        publish(canary_share=0.3)
        eventually(lambda: client.get("/metadata").json()["manifest_version"] == 2)
        second = client.post("/predict", json=flights(600)).json()
    few = {a["entity_id"] for a in first if a["cohort"] == "canary"}
    more = {a["entity_id"] for a in second if a["cohort"] == "canary"}
    base = {a["entity_id"] for a in second if a["cohort"] == "baseline"}
    assert few < more
    assert 30 < len(few) < 95
    assert 140 < len(more) < 220
    assert 140 < len(base) < 220
    assert all(a["model_version"] == ("2" if a["cohort"] == "canary" else "1") for a in first + second)


def test_experiment__arms__each_its_model(serve: Serve) -> None:
    one, two = stored(sample_bundle(), "1"), stored(sample_bundle(0.5), "2")
    trial = Experiment(name="colour", share=0.5, arms={"control": one, "treatment": two}, started_at=AS_OF)
    publish(champion=one, experiment=trial)
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        answers = client.post("/predict", json=flights(400)).json()
    found = {(a["cohort"], a["model_version"]) for a in answers}
    assert found == {("champion", "1"), ("experiment:control", "1"), ("experiment:treatment", "2")}


def test_ladder__canary_fails__champion_answers_and_its_neighbour_is_not_hurt(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"), canary=stored(failing(0.5), "2"), canary_share=0.5)
    row = in_cohort("canary", UNKNOWN)
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        bad, good = client.post("/predict", json=[row, row | {"dest": "IAH"}]).json()
        told = client.get("/metrics").text
    assert (bad["cohort"], bad["model_version"], rungs(bad)) == ("canary", "1", ["fallback_champion"])
    assert (good["cohort"], good["model_version"], rungs(good)) == ("canary", "2", [])
    assert 'evergreen_flags_total{flag="fallback_champion"} 1.0' in told
    assert 'evergreen_model_failures_total{model_version="2",reason="failed"} 1.0' in told


def test_ladder__champion_fails__previous_answers_then_baseline(serve: Serve) -> None:
    publish(champion=stored(failing(), "2"), previous=stored(sample_bundle(0.5), "1"))
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        answer = ask(client, UNKNOWN)
        assert (answer["model_version"], rungs(answer)) == ("1", ["fallback_previous"])
        publish(previous=stored(failing(0.7), "3"))
        eventually(lambda: loaded(client, "2", "3"))
        answer = ask(client, UNKNOWN)
    assert (answer["probability"], rungs(answer)) == (RATE_EWR_6, ["fallback_baseline"])


def test_ladder__canary_cannot_be_loaded__champion_answers_flagged_and_it_is_reported(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"))
    gone = Deployed(version="9", bundle="0" * 64, model="0" * 64)
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        publish(canary=gone, canary_share=0.5)
        eventually(lambda: client.get("/metadata").json()["manifest_version"] == 2)
        answer = ask(client, in_cohort("canary"))
        assert "version 9" in eventually(lambda: client.get("/metadata").json()["problem"])
    assert (answer["cohort"], answer["model_version"], rungs(answer)) == ("canary", "1", ["fallback_champion"])


def test_deadline__canary_hangs__baseline_in_time_and_the_canary_is_not_felt(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(0.5), "1"), canary=stored(hanging(), "2"), canary_share=0.5)
    hangs, fine = in_cohort("canary", HANGS), in_cohort("baseline", HANGS)
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        first, again, third = (ask(client, hangs) for _ in range(3))
        other = ask(client, fine)
        alive = client.get("/livez").status_code
        told = client.get("/metrics").text
        later = eventually(lambda: (a := ask(client, in_cohort("canary")))["model_version"] == "2" and a)
    for late in (first, again):  # once may be the machine's fault
        assert (late["cohort"], rungs(late), late["probability"]) == ("canary", ["deadline", "fallback_baseline"], 0.22)
    assert (third["model_version"], rungs(third)) == ("1", ["fallback_champion"])  # it is left alone for a second
    assert (other["model_version"], rungs(other), alive) == ("1", [], 200)
    assert rungs(later) == []
    assert 'evergreen_model_failures_total{model_version="2",reason="deadline"} 2.0' in told


def test_shadow__answers_are_logged_and_never_given(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"), shadow=stored(sample_bundle(0.5), "2"))
    fresh_features(SQLiteStore(Path(settings().online)))
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        answers = client.post("/predict", json=flights(20)).json()
        eventually(lambda: 'evergreen_shadow_rows_total{outcome="answered"} 20.0' in client.get("/metrics").text)
    entries = logged()
    seen = [e for e in entries if e["cohort"] == "shadow"]
    given = {e["entity_id"]: e for e in entries if e["cohort"] != "shadow"}
    assert {a["model_version"] for a in answers} == {"1"}
    assert (len(seen), {e["model_version"] for e in seen}) == (20, {"2"})
    for entry in seen:
        pair = given[entry["entity_id"]]
        assert (entry["request_id"], entry["features"], entry["manifest"]) == (pair["request_id"], pair["features"], 1)
        assert entry["probability"] != pair["probability"]
    assert all(0 < e["seconds"] < 5 for e in given.values())


def test_shadow__hangs__answers_go_on_and_copies_are_dropped(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"), shadow=stored(hanging(10**7), "2"))
    with serve() as client:
        eventually(lambda: loaded(client, "1", "2"))
        for _ in range(5):
            answers = client.post("/predict", json=flights(900, HANGS)).json()
            assert len(answers) == 900
            assert {tuple(rungs(a)) for a in answers} == {()}
        assert 'evergreen_shadow_rows_total{outcome="dropped"}' in client.get("/metrics").text


def test_names__several_models_in_one_service__each_by_its_name(serve: Serve) -> None:
    publish(champion=stored(sample_bundle(), "1"))
    other = manifest.change("k", AS_OF, "test", "", name="other", champion=stored(sample_bundle(0.5), "8"), previous=None)
    with serve() as client:
        eventually(lambda: {"flight_delay", "other"} == set(client.get("/metadata").json()["models"]))
        assert client.post(f"/models/{other.name}/predict", json=REQUEST).json()["model_version"] == "8"
        assert ask(client, REQUEST)["model_version"] == "1"
        assert client.post("/models/flight_delay/predict", json=REQUEST).json()["model_version"] == "1"
        assert client.post("/models/nobody/predict", json=REQUEST).status_code == 404
    assert [row["model_version"] for row in log.since_manifest(0, name="other").to_pylist()] == ["8"]
    assert [(row["model"], row["model_version"]) for row in logged()] == [("flight_delay", "1")] * 2


def test_swap__models_that_no_manifest_names__are_dropped(serve: Serve) -> None:
    one, two, three = (stored(sample_bundle(bias), str(n)) for n, bias in enumerate((0.0, 0.5, 0.7), 1))
    for deployed in (one, two, three):
        manifest.promote(deployed, AS_OF, "test", "", f"p{deployed.version}")
    with serve() as client:
        eventually(lambda: loaded(client, "2", "3"))
        assert client.get("/v2/models/flight_delay/versions/1").status_code == 404


def test_bounded__graphs_that_may_run_for_ever_are_told_from_those_that_cannot() -> None:
    """A graph that is wrongly called bounded would stop the event loop; one that is wrongly not would only be slower."""
    models = [export(served(family)) for family in ("xgboost", "lightgbm", "linear")]
    assert all(Predictor(Bundle.from_bytes(sample_bundle(model=model))).bounded for model in models)
    assert not Predictor(Bundle.from_bytes(hanging())).bounded
