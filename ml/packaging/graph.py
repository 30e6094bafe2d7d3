"""One ONNX graph from typed features to the answer, assembled by hand: encodings as maps and look-up tables, then the members.

Converters of whole pipelines were found to be wrong without an error (sparse one-hot, scaled inputs, sine against numpy); maps
and tables are exact. Only the trees themselves are converted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from ml.config import Task
from ml.training.encoding import Encoding, cycle
from ml.training.fit import Fitted
from ml.training.models import CLIP, LightGBM, Linear, Model, XGBoost

OPSET, ML_OPSET, IR_VERSION = 18, 3, 10
CONVERTER_OPSET = 15
"""The highest that the converters of trees know."""
OUTPUT: dict[Task, str] = {"binary": "probability", "multiclass": "probabilities", "regression": "value"}


@dataclass
class _Parts:
    """Nodes and constants of the graph in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def export(fitted: Fitted) -> bytes:
    """Serialises encoder and members as one graph.

    Inputs: ``numeric`` float32 (n, numeric features), ``text`` string (n, text features; absent when there are none).
    Output: float32; ``probability`` (n, 1), ``probabilities`` (n, classes) or ``value`` (n, 1), by task. The same input gives the
    same bytes.
    """
    encoding, task = fitted.encoding, fitted.task
    parts = _Parts()
    parts.node("Concat", _columns(parts, encoding), "matrix", axis=1)
    answers = [_member(parts, member, i, len(encoding.columns)) for i, member in enumerate(fitted.members)]
    parts.node("Mean", answers, OUTPUT[task])
    inputs = [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", len(encoding.numeric)])]
    if encoding.text:
        inputs.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["n", len(encoding.text)]))
    width = len(encoding.priors) if task == "multiclass" else 1
    output = helper.make_tensor_value_info(OUTPUT[task], TensorProto.FLOAT, ["n", width])
    graph = helper.make_graph(parts.nodes, "evergreen", inputs, [output], parts.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="evergreen")
    onnx.checker.check_model(model, full_check=False)
    return model.SerializeToString(deterministic=True)


def _columns(parts: _Parts, encoding: Encoding) -> list[str]:
    """The encoded columns, in the encoding's order."""
    columns = []
    for i, name in enumerate(encoding.numeric):
        picked = parts.node("Gather", ["numeric", parts.constant(f"at_{i}", np.array([i]))], f"numeric_{i}", axis=1)
        if name in encoding.periods:
            table = parts.constant(f"cycle_{i}", cycle(encoding.periods[name]))
            step = parts.node("Cast", [picked], f"step_{i}", to=TensorProto.INT64)
            flat = parts.node("Squeeze", [step, parts.constant(f"axis_{i}", np.array([1]))], f"flat_{i}")
            columns.append(parts.node("Gather", [table, flat], f"cyclic_{i}", axis=0))
        else:
            columns.append(picked)
    for i, name in enumerate(encoding.text):
        picked = parts.node("Gather", ["text", parts.constant(f"text_at_{i}", np.array([i]))], f"text_{i}", axis=1)
        for k, (column, prior) in enumerate(zip(encoding.text_columns(name), encoding.priors, strict=True)):
            attributes = {
                "keys_strings": list(encoding.rates[column]),
                "values_floats": list(encoding.rates[column].values()),
                "default_float": prior,
            }
            columns.append(parts.node("LabelEncoder", [picked], f"rate_{i}_{k}", domain="ai.onnx.ml", **attributes))
    return columns


def _member(parts: _Parts, member: Model, i: int, n_columns: int) -> str:
    """One member's nodes, reading ``matrix``; the name of its answer."""
    if isinstance(member, Linear):
        return _linear(parts, member, i)
    assert isinstance(member, XGBoost | LightGBM)
    convert = convert_xgboost if isinstance(member, XGBoost) else convert_lightgbm
    types = [("matrix", FloatTensorType([None, n_columns]))]
    converted = convert(member.booster, initial_types=types, target_opset=CONVERTER_OPSET)
    (trees,) = (node for node in converted.graph.node if node.op_type.startswith("TreeEnsemble"))
    made = f"member_{i}"
    trees.name, trees.input[0] = made, "matrix"
    if member.task == "regression":
        trees.output[0] = made
    else:
        trees.output[0], trees.output[1] = f"label_{i}", made
    parts.nodes.append(trees)
    if member.task != "binary":
        return made
    return parts.node("Gather", [made, parts.constant(f"positive_{i}", np.array([1]))], f"positive_of_{i}", axis=1)


def _linear(parts: _Parts, member: Linear, i: int) -> str:
    """The linear model in double precision: missing → median, standardised, clipped, weighted."""

    def constant(name: str, value: np.ndarray) -> str:
        return parts.constant(f"{name}_{i}", np.asarray(value, dtype=np.float64))

    made = parts.node("Cast", ["matrix"], f"double_{i}", to=TensorProto.DOUBLE)
    missing = parts.node("IsNaN", [made], f"missing_{i}")
    made = parts.node("Where", [missing, constant("medians", member.medians), made], f"filled_{i}")
    made = parts.node("Sub", [made, constant("means", member.means)], f"centred_{i}")
    made = parts.node("Div", [made, constant("scales", member.scales)], f"scaled_{i}")
    bounds = [constant("low", np.array(-CLIP)), constant("high", np.array(CLIP))]
    made = parts.node("Clip", [made, *bounds], f"clipped_{i}")
    made = parts.node("MatMul", [made, constant("weights", member.weights.T)], f"weighted_{i}")
    made = parts.node("Add", [made, constant("intercepts", member.intercepts)], f"margin_{i}")
    if member.task == "binary":
        made = parts.node("Sigmoid", [made], f"sigmoid_{i}")
    if member.task == "multiclass":
        made = parts.node("Softmax", [made], f"softmax_{i}", axis=1)
    return parts.node("Cast", [made], f"member_{i}", to=TensorProto.FLOAT)
