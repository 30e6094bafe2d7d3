"""Small models that tell on themselves: each version answers in a band of its own, and some break on the rows they do not know.

A model is broken by its graph alone, as a bad export would be: it answers its recorded example, and so passes every check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ml import store, tracking
from ml.config import Params
from ml.errors import EvergreenError
from ml.features.definitions import FeatureModule, Value
from ml.packaging.bundle import Bundle, Example, build
from ml.packaging.parity import predict, session
from ml.serving.manifest import Deployed
from ml.training.climatology import Climatology

BANDS = 10
Kind = Literal["good", "nan", "raises", "slow"]


def band(version: str) -> float:
    """The lowest probability of a version: it answers in [band, band + 0.05]."""
    return int(version) % BANDS / BANDS


def deployed(
    params: Params,
    module: FeatureModule,
    row: Mapping[str, Any],
    features: Mapping[str, Value],
    version: str,
    kind: Kind = "good",
    turns: int = 0,
) -> Deployed:
    """Builds a bundle, puts it into the store and names it for the manifest.

    Args:
        row: the recorded example's request; rows whose text features differ from its own are those that the model breaks on.
        features: the example's features.
        kind: what becomes of such rows: an answer, NaN, an error of the runtime, or a wait.
        turns: of a loop, some microseconds each, that a slow model makes for such rows.
    """
    if not module.text:
        raise EvergreenError("the problem has no text feature, by which a broken model knows its rows", "declare one")
    known = sorted({str(features[name]) for name in module.text})
    model = graph(len(module.numeric), len(module.text), known, band(version), kind, turns).SerializeToString()
    table = params.tables[params.problem.table]
    X = pa.Table.from_pylist([dict(features)]).to_pandas()
    probability = float(predict(session(model), module.numeric, module.text, X)[0])
    archive = build(
        name=params.problem.name,
        model=model,
        task="binary",
        numeric=module.numeric,
        text=module.text,
        threshold=params.serving.threshold,
        request={name: kind for name, kind in table.columns.items() if name not in table.outcomes},
        params=params.model_dump(mode="json", include={"problem", "tables", "features", "serving"}),
        climatology=Climatology(by=params.baseline.climatology, rates={}, overall=0.5),
        lineage={"made": f"for a load test, version {version}"},  # so that each version is a file of its own
        examples=[Example(request=dict(row), features=dict(features), probability=probability)],
        profile=b"{}",
    )
    return Deployed(version=version, bundle=store.put(archive), model=Bundle.from_bytes(archive).card.model_digest)


def register(model: Deployed) -> None:
    """Enters the model as the first version of an empty registry, as far as a rollback to it asks the registry.

    Raises:
        EvergreenError: the registry gave it another number.
    """
    tracking.init_store()
    bundle = Bundle.load(model.bundle)
    tags = {"bundle": model.bundle, "model": model.model, "verdict": "promote", "backfill": "false"}
    _, number = tracking.log_and_register(
        "fault-first", bundle.card.name, title="first", params={}, metrics={}, tags=tags, artifacts={}, plots={},
        onnx=bundle.model, numeric=bundle.card.numeric, text=bundle.card.text, dataset=("none", "0" * 32), description="",
    )  # fmt: skip
    if number != model.version:
        raise EvergreenError(f"the registry calls version {model.version} {number}", "start with an empty EVERGREEN_VAR")


def graph(numeric: int, text: int, known: list[str], low: float, kind: Kind, turns: int) -> ModelProto:
    """low + 0.05 · sigmoid(0.001 · Σ numeric), where NaN counts as zero; of unknown text, what `kind` says."""
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["squeezed"]),
        helper.make_node("Mul", ["squeezed", "width"], ["scaled"]),
        helper.make_node("Add", ["scaled", "low"], ["plain"]),
        helper.make_node("LabelEncoder", ["text"], ["codes"], domain="ai.onnx.ml", keys_strings=known,
                         values_floats=[0.0] * len(known), default_float=1.0),
        helper.make_node("ReduceMax", ["codes", "columns"], ["strange"], keepdims=1),
        *_ending(kind),
    ]  # fmt: skip
    constants = {
        "zero": np.float32(0),
        "weights": np.full((numeric, 1), 0.001, np.float32),
        "width": np.float32(0.05),
        "low": np.float32(low),
        "columns": np.array([1], np.int64),
        "half": np.float32(0.5),
        "nan": np.float32("nan"),
        "one": np.ones(1, np.float32),
        "turns": np.float32(turns),
        "go": np.array(True),
    }
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "fault",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, numeric]),
            helper.make_tensor_value_info("text", TensorProto.STRING, [None, text]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _ending(kind: Kind) -> list[Any]:
    if kind == "good":
        return [helper.make_node("Identity", ["plain"], ["probability"])]
    if kind == "nan":
        return [
            helper.make_node("Greater", ["strange", "half"], ["bad"]),
            helper.make_node("Where", ["bad", "nan", "plain"], ["probability"]),
        ]
    if kind == "raises":  # the second element of one
        return [
            helper.make_node("Cast", ["strange"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one", "place"], ["factor"]),
            helper.make_node("Mul", ["plain", "factor"], ["probability"]),
        ]
    return [
        helper.make_node("ReduceMax", ["strange"], ["any"], keepdims=0),
        helper.make_node("Mul", ["any", "turns"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "go", "half"], ["waited"], body=_turn()),
        helper.make_node("Mul", ["waited", "zero"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["probability"]),
    ]


def _turn() -> Any:
    """The body of a loop that does nothing, as a loop of its own would be removed if it did not pass on its state."""
    scalar = [("state", TensorProto.FLOAT), ("again", TensorProto.BOOL)]
    return helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["again_out"]),
            helper.make_node("Identity", ["state"], ["state_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", scalar[1][1], []),
            helper.make_tensor_value_info("state", scalar[0][1], []),
        ],
        [
            helper.make_tensor_value_info("again_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, []),
        ],
    )
