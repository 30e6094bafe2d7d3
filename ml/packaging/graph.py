"""One ONNX graph from typed features to probability, assembled by hand: encodings as maps and look-up tables, then the booster.

Converters of whole pipelines were found to be wrong without an error (sparse one-hot, scaled inputs, sine against numpy); maps
and tables are exact. Only the booster itself is converted.
"""

from __future__ import annotations

import numpy as np
import onnx
import xgboost as xgb
from onnx import TensorProto, helper, numpy_helper
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from ml.training.encoding import Encoding, cycle

OPSET, ML_OPSET, IR_VERSION = 18, 3, 10


def export(encoding: Encoding, booster: xgb.Booster, metadata: dict[str, str] | None = None) -> bytes:
    """Serialises encoder and booster as one graph.

    Inputs: ``numeric`` float32 (n, numeric features), ``text`` string (n, text features; absent when there are none).
    Output: ``probability`` float32 (n, 1). The same input gives the same bytes.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    columns = []
    for i, name in enumerate(encoding.numeric):
        picked = f"numeric_{i}"
        nodes.append(helper.make_node("Gather", ["numeric", constant(f"at_{i}", np.array([i]))], [picked], axis=1))
        if name in encoding.periods:
            table = constant(f"cycle_{i}", cycle(encoding.periods[name]))
            nodes.append(helper.make_node("Cast", [picked], [f"step_{i}"], to=TensorProto.INT64))
            nodes.append(helper.make_node("Squeeze", [f"step_{i}", constant(f"axis_{i}", np.array([1]))], [f"flat_{i}"]))
            nodes.append(helper.make_node("Gather", [table, f"flat_{i}"], [f"cyclic_{i}"], axis=0))
            columns.append(f"cyclic_{i}")
        else:
            columns.append(picked)
    for i, name in enumerate(encoding.text):
        nodes.append(helper.make_node("Gather", ["text", constant(f"text_at_{i}", np.array([i]))], [f"text_{i}"], axis=1))
        rates = encoding.rates[name]
        nodes.append(
            helper.make_node("LabelEncoder", [f"text_{i}"], [f"rate_{i}"], domain="ai.onnx.ml", keys_strings=list(rates),
                             values_floats=list(rates.values()), default_float=encoding.prior)
        )  # fmt: skip
        columns.append(f"rate_{i}")
    nodes.append(helper.make_node("Concat", columns, ["matrix"], axis=1))
    nodes += _booster_nodes(booster, len(encoding.columns))
    nodes.append(helper.make_node("Gather", ["probabilities", constant("positive", np.array([1]))], ["probability"], axis=1))
    inputs = [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", len(encoding.numeric)])]
    if encoding.text:
        inputs.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["n", len(encoding.text)]))
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes, "evergreen", inputs, [output], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="evergreen")
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=False)
    return model.SerializeToString(deterministic=True)


def _booster_nodes(booster: xgb.Booster, n_columns: int) -> list[onnx.NodeProto]:
    """The booster's own nodes, reading ``matrix`` and writing ``probabilities`` (n, 2)."""
    converted = convert_xgboost(
        booster, initial_types=[("matrix", FloatTensorType([None, n_columns]))], target_opset=15
    )  # its highest
    nodes = list(converted.graph.node)
    if converted.graph.initializer:
        raise ValueError(f"expected a booster without constants, but got {[c.name for c in converted.graph.initializer]}")
    renamed = {o.name: "probabilities" for o in converted.graph.output if "prob" in o.name}
    for node in nodes:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = renamed.get(name, name)
    return nodes
