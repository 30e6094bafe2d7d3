"""A real bundle for tests, small and quick to make: the shipped problem's features, a hand-made ONNX graph.

Its answers depend on the row, as explanations and gates need it. `ops.fault_models` has graphs that depend on little but their
version, and that break; they are for any problem, and `ops` does not import tests.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ml import store
from ml.config import load_params
from ml.features.assembly import Assembler
from ml.features.definitions import load_module
from ml.features.online import OnlineStore
from ml.packaging.bundle import Bundle, Example, build
from ml.serving.answering import NO_STORE, Serving, _params
from ml.serving.manifest import Deployed
from ml.serving.predictor import Predictor
from ml.serving.schema import RequestSchema
from ml.training.climatology import Climatology

REQUEST: dict[str, Any] = {
    "carrier": "UA",
    "flight": 1545,
    "origin": "EWR",
    "dest": "IAH",
    "tailnum": "N14228",
    "distance": 1400.0,
    "time_hour": "2013-04-18T10:00:00",
    "hour": 6,
    "minute": 15,
    "sched_dep_time": 615,
    "sched_arr_time": 829,
}
EVENT_TIME = datetime(2013, 4, 18, 10, 15)
ENTITY_ID = "UA-1545-EWR-20130418T1015"
RATE_EWR_6 = 0.21


def graph(bias: float, numeric: int, text: int, unknown: float = 0.0) -> bytes:
    """sigmoid(bias + 0.001 · Σ numeric + Σ code(text)); NaN counts as zero. Same inputs and output as the shipped graph.

    Code is 0.1 for EWR, 0 for what else REQUEST holds, `unknown` for the rest: NaN there makes a model that fails on some rows.
    """
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["nan"]),
        helper.make_node("Where", ["nan", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["score"]),
        helper.make_node("LabelEncoder", ["text"], ["codes"], domain="ai.onnx.ml", keys_strings=["EWR", "UA", "IAH"],
                         values_floats=[0.1, 0.0, 0.0], default_float=unknown),
        helper.make_node("ReduceSum", ["codes", "axis"], ["coded"], keepdims=1),
        helper.make_node("Add", ["score", "coded"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]  # fmt: skip
    constants = {
        "zero": np.float32(0),
        "weights": np.full((numeric, 1), 0.001, np.float32),
        "axis": np.array([1], np.int64),
        "bias": np.array([bias], np.float32),
    }
    made = helper.make_graph(
        nodes,
        "sample",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, numeric]),
            helper.make_tensor_value_info("text", TensorProto.STRING, [None, text]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString())


def sample_parts(bias: float = 0.0, **changes: Any) -> dict[str, Any]:
    """Arguments of `build`; the model answers differently for each `bias`."""
    params = load_params()
    module = load_module(params)
    table = params.tables[params.problem.table]
    parts: dict[str, Any] = {
        "name": params.problem.name,
        "model": graph(bias, len(module.numeric), len(module.text)),
        "task": "binary",
        "numeric": module.numeric,
        "text": module.text,
        "threshold": params.serving.threshold,
        "request": {c: t for c, t in table.columns.items() if c not in table.outcomes},
        "params": params.model_dump(mode="json", include={"problem", "tables", "features", "serving"}),
        "climatology": Climatology(by=["origin", "hour"], rates={"EWR|6": RATE_EWR_6}, overall=0.22),
        "lineage": {"made": "by a test"},
        "examples": [],
        "profile": b"{}",
    }
    return parts | changes


def sample_bundle(bias: float = 0.0, **changes: Any) -> bytes:
    """An archive with one recorded answer, made by the graph itself."""
    bare = Bundle.from_bytes(build(**sample_parts(bias, **changes)))
    serving = Serving("", 0, EVENT_TIME, bare, Predictor(bare), *_schema_and_assembler(bare))
    (row,), _ = serving.schema.parse(json.dumps(REQUEST).encode())
    features = serving.assembler.assemble(NO_STORE, [row]).features[0]
    probability = float(serving.predictor.predict([features])[0])
    parts = sample_parts(bias, examples=[Example(request=REQUEST, features=features, probability=probability)])
    return build(**(parts | changes))


def stored(archive: bytes, version: str) -> Deployed:
    """Puts an archive into the store and names it for the manifest."""
    return Deployed(version=version, bundle=store.put(archive), model=Bundle.from_bytes(archive).card.model_digest)


def fresh_features(online: OnlineStore, tick: datetime = datetime(2013, 4, 18, 8)) -> None:
    """Writes a tick of online features: enough for REQUEST to be answered without a flag."""
    online.write(tick, {"plane": {"N14228": {"plane_year": 1999.0, "plane_seats": 149.0}}})


def _schema_and_assembler(bundle: Bundle) -> tuple[Any, Any]:
    return RequestSchema(bundle), Assembler(_params(bundle))
