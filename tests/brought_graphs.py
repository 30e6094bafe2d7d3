"""Graphs as other people make them, by hand: one input for each feature, sigmoid of something simple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = list[Any] | None
FLOAT, DOUBLE, STRING = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.STRING


def tensor(name: str, kind: int, shape: Shape = ("n", 1)) -> onnx.ValueInfoProto:  # type: ignore[assignment]
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
    ir: int = 10,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "theirs", list(inputs), list(outputs), [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    opsets += [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="by hand")


def simple(
    weights: Mapping[str, float], codes: Mapping[str, Mapping[str, float]] | None = None, bias: float = 0.0, default: float = 0.0
) -> onnx.ModelProto:
    """sigmoid(bias + Σ weight · number + Σ code of text); missing numbers count as 0, other texts as `default`."""
    nodes, terms = [], []
    constants = {"zero": np.float32(0), "bias": np.array([[bias]], np.float32)}
    for name, weight in weights.items():
        constants[f"{name}_weight"] = np.array([[weight]], np.float32)
        nodes += [
            helper.make_node("IsNaN", [name], [f"{name}_missing"]),
            helper.make_node("Where", [f"{name}_missing", "zero", name], [f"{name}_filled"]),
            helper.make_node("Mul", [f"{name}_filled", f"{name}_weight"], [f"{name}_term"]),
        ]
        terms.append(f"{name}_term")
    for name, values in (codes or {}).items():
        nodes.append(
            helper.make_node("LabelEncoder", [name], [f"{name}_term"], domain="ai.onnx.ml", keys_strings=list(values),
                             values_floats=list(values.values()), default_float=default)
        )  # fmt: skip
        terms.append(f"{name}_term")
    nodes += [
        helper.make_node("Sum", [*terms, "bias"], ["numeric"]),  # a name of ours, which must not matter
        helper.make_node("Sigmoid", ["numeric"], ["answer"]),
    ]
    inputs = [tensor(name, FLOAT) for name in weights] + [tensor(name, STRING) for name in codes or {}]
    return model(nodes, inputs, [tensor("answer", FLOAT)], constants)
