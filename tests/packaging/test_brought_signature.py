"""Graphs that cannot be taken: each names the first thing that does not hold, and the cure."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml.packaging.adopt import MAX_IR, SignatureError, adopt, read
from ml.packaging.parity import predict, session
from tests.brought_graphs import DOUBLE, FLOAT, model, simple, tensor

NODE = helper.make_node
NUMERIC, TEXT = ["distance", "hour", "seats"], ["origin", "carrier"]
X = pd.DataFrame({
    "distance": [1.0, np.nan, -2.0], "hour": [5.0, 6.0, 7.0], "seats": [0.5, 0.25, np.nan],
    "origin": ["EWR", None, "never seen"], "carrier": ["UA", "UA", "UA"],
})  # fmt: skip


def taken(graph: onnx.ModelProto) -> np.ndarray:
    return predict(session(adopt(graph.SerializeToString(), NUMERIC, TEXT).onnx), NUMERIC, TEXT, X)


def sigmoid(*margins: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array(margins)))


# ---- what is taken


def test_adopt__picks_its_features_by_name_whatever_their_order() -> None:
    graph = simple({"seats": 2.0, "distance": 1.0}, {"origin": {"EWR": 1.0}}, bias=0.5, default=-1.0)
    adopted = adopt(graph.SerializeToString(), NUMERIC, TEXT)
    assert adopted.asks == ["seats", "distance", "origin"]
    # 2 · 0.5 + 1 + 1 + 0.5; 2 · 0.25 + 0 − 1 + 0.5; 0 − 2 − 1 + 0.5
    np.testing.assert_allclose(taken(graph), sigmoid(3.5, 0.0, -2.5), atol=1e-6)


def test_adopt__same_graph__same_bytes() -> None:
    raw = simple({"distance": 1.0}).SerializeToString()
    assert adopt(raw, NUMERIC, TEXT) == adopt(raw, NUMERIC, TEXT)


def one_number(answer: list[onnx.NodeProto], shape: list[object], kind: int = FLOAT, into: object = ("n", 1)) -> onnx.ModelProto:
    """From ``hour`` (never missing) to an output."""
    constants = {"one": np.float32(1), "minus": np.array([-1], np.int64)}
    return model(answer, [tensor("hour", FLOAT, list(into))], [tensor("answer", kind, shape)], constants)  # type: ignore[call-overload]


HALF = 1 / (1 + np.exp(-X["hour"].to_numpy()))
RULES = {
    "n": one_number([NODE("Reshape", ["hour", "minus"], ["flat"]), NODE("Sigmoid", ["flat"], ["answer"])], ["n"]),
    "n-1": one_number([NODE("Sigmoid", ["hour"], ["answer"])], ["n", 1]),
    "n-2": one_number(
        [NODE("Sigmoid", ["hour"], ["p"]), NODE("Sub", ["one", "p"], ["q"]), NODE("Concat", ["q", "p"], ["answer"], axis=1)], ["n", 2]
    ),
    "double": one_number([NODE("Sigmoid", ["hour"], ["p"]), NODE("Cast", ["p"], ["answer"], to=DOUBLE)], ["n", 1], DOUBLE),
    "input-n": one_number([NODE("Sigmoid", ["hour"], ["answer"])], ["n"], into=("n",)),
    "unnamed-first-dimension": one_number([NODE("Sigmoid", ["hour"], ["answer"])], [None, 1], into=(None, 1)),
    "output-shape-inferred": one_number([NODE("Sigmoid", ["hour"], ["answer"])], [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("rule", list(RULES))
def test_adopt__output_rule(rule: str) -> None:
    np.testing.assert_allclose(taken(RULES[rule]), HALF, atol=1e-6)


def test_adopt__two_columns__can_be_added_up() -> None:
    both = adopt(RULES["n-2"].SerializeToString(), NUMERIC, TEXT).both
    assert both is not None
    (found,) = session(both).run(
        ["both"], {"numeric": X[NUMERIC].to_numpy(np.float32), "text": X[TEXT].fillna("").to_numpy(object)}
    )
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_adopt__label_output_beside__is_left_out() -> None:
    graph = RULES["n-1"]
    beside = onnx.ModelProto()
    beside.CopyFrom(graph)
    beside.graph.node.append(NODE("Cast", ["answer"], ["label"], to=TensorProto.INT64))
    beside.graph.output.insert(0, tensor("label", TensorProto.INT64))
    np.testing.assert_allclose(taken(beside), HALF, atol=1e-6)


def test_adopt__inner_functions__are_unrolled() -> None:
    graph = one_number([NODE("Squash", ["hour"], ["answer"], domain="theirs")], ["n", 1])
    graph.opset_import.append(helper.make_opsetid("theirs", 1))
    inner = helper.make_function("theirs", "Squash", ["a"], ["b"], [NODE("Sigmoid", ["a"], ["b"])], [helper.make_opsetid("", 18)])
    graph.functions.append(inner)
    np.testing.assert_allclose(taken(graph), HALF, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 18, 21, 26])
def test_adopt__opset__in_range(opset: int) -> None:
    np.testing.assert_allclose(taken(model([NODE("Sigmoid", ["hour"], ["answer"])], [tensor("hour", FLOAT)], [tensor("answer", FLOAT)], opset=opset, ir=MAX_IR)), HALF, atol=1e-6)  # fmt: skip


# ---- what is refused


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    graph = onnx.ModelProto()
    graph.CopyFrom(simple({"distance": 1.0, "seats": 1.0}, {"origin": {"EWR": 1.0}}))
    change(graph)
    return graph.SerializeToString()


def renamed(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    next(one for one in graph.graph.input if one.name == old).name = new


def typed(which: str, at: int, kind: int, shape: list[object] | None = None) -> bytes:
    def change(graph: onnx.ModelProto) -> None:
        values = getattr(graph.graph, which)
        values[at].CopyFrom(tensor(values[at].name, kind, ["n", 1] if shape is None else shape))

    return changed(change)


def external(graph: onnx.ModelProto) -> None:
    one = graph.graph.initializer[0]
    one.ClearField("raw_data")
    one.data_location = TensorProto.EXTERNAL
    entry = one.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def external_inside(graph: onnx.ModelProto) -> None:
    tensor_ = numpy_helper.from_array(np.zeros((1, 1), np.float32), "hidden")
    tensor_.ClearField("raw_data")
    tensor_.data_location = TensorProto.EXTERNAL
    entry = tensor_.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    graph.graph.node.insert(0, NODE("Constant", [], ["c"], value=tensor_))


def node(kind: str, domain: str = "") -> Callable[[onnx.ModelProto], object]:
    return lambda graph: graph.graph.node.insert(0, NODE(kind, ["distance"], ["made"], name="culprit", domain=domain))


def in_a_branch(graph: onnx.ModelProto) -> None:
    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), "branch", [], [tensor("r", FLOAT)])

    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    random = branch(NODE("RandomNormalLike", ["distance"], ["r"], name="culprit"))
    graph.graph.node.insert(
        0, NODE("If", ["yes"], ["made"], then_branch=random, else_branch=branch(NODE("Identity", ["distance"], ["r"])))
    )


def second_output(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(NODE("Identity", ["answer"], ["other"]))
    graph.graph.output.append(tensor("other", FLOAT))


def zipmap(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].CopyFrom(
        helper.make_value_info("maps", helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))))
    )  # fmt: skip


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "no ONNX graph: 0 bytes", "export the model to ONNX"),
    "a-pickle": (pickle.dumps({"weights": [1, 2]}), "no ONNX graph", "pickles and checkpoints are never read"),
    "a-torch-checkpoint": (b"PK\x03\x04" + bytes(200), "begin with b'PK", "pickles and checkpoints are never read"),
    "half-a-file": (simple({"distance": 1.0}).SerializeToString()[:-40], "no ONNX graph", "export the model to ONNX"),
    "no-nodes": (changed(lambda g: g.graph.ClearField("node")), "no node in them", "export the model"),
    "typo": (changed(lambda g: renamed(g, "distance", "distanc")), "input 'distanc' is no feature", "did you mean 'distance'?"),
    "another-feature": (changed(lambda g: renamed(g, "distance", "zzz")), "input 'zzz' is no feature", "distance, hour, seats"),
    "no-inputs": (model([NODE("Identity", ["c"], ["answer"])], [], [tensor("answer", FLOAT)], {"c": np.zeros((1, 1), np.float32)}).SerializeToString(), "the graph has no input", "one for each feature"),
    "double-input": (typed("input", 0, DOUBLE), "input 'distance' is float64, the feature is float32", "cast inside it"),
    "integer-input": (typed("input", 1, TensorProto.INT64), "input 'seats' is int64, the feature is float32", "cast inside it"),
    "text-as-number": (typed("input", 2, FLOAT), "input 'origin' is float32, the feature is string", "let the graph take string"),
    "fixed-batch": (typed("input", 0, FLOAT, [1, 1]), "input 'distance' has shape (1, 1)", "free first dimension"),
    "all-in-one-input": (typed("input", 0, FLOAT, ["n", 5]), "input 'distance' has shape (n, 5)", "one column"),
    "free-width": (typed("input", 0, FLOAT, ["n", None]), "input 'distance' has shape (n, n)", "one column"),
    "three-dimensions": (typed("input", 0, FLOAT, ["n", 1, 1]), "input 'distance' has shape (n, 1, 1)", "must be (n, 1) or (n,)"),
    "scalar-input": (typed("input", 0, FLOAT, []), "input 'distance' has shape ()", "must be (n, 1) or (n,)"),
    "label-alone": (typed("output", 0, TensorProto.INT64), "0 outputs of floating type (all outputs: answer)", "'probability'"),
    "two-answers": (changed(second_output), "2 outputs of floating type (all outputs: answer, other)", "name the one that counts 'probability'"),
    "zipmap": (changed(zipmap), "output 'maps' is no tensor", "'zipmap': False"),
    "three-classes": (typed("output", 0, FLOAT, ["n", 3]), "output 'answer' has shape (n, 3)", "the probability of label 1"),
    "fixed-output": (typed("output", 0, FLOAT, [1, 1]), "output 'answer' has shape (1, 1)", "with n free"),
    "new-ir": (changed(lambda g: setattr(g, "ir_version", MAX_IR + 1)), f"IR version {MAX_IR + 1}, at most {MAX_IR}", "lower ir_version"),
    "old-opset": (changed(lambda g: setattr(g.opset_import[0], "version", 12)), "opset 12 of domain 'ai.onnx', 13 to 26", "e.g. 18"),
    "new-opset": (changed(lambda g: setattr(g.opset_import[0], "version", 27)), "opset 27 of domain 'ai.onnx', 13 to 26", "e.g. 18"),
    "new-ml-opset": (changed(lambda g: setattr(g.opset_import[1], "version", 9)), "opset 9 of domain 'ai.onnx.ml', 1 to 5", "e.g. 5"),
    "vendor-operator": (changed(node("FusedMatMul", "com.microsoft")), "'culprit' is FusedMatMul of domain 'com.microsoft'", "without custom or vendor operators"),
    "custom-operator": (changed(node("Evil", "com.example")), "'culprit' is Evil of domain 'com.example'", "without custom or vendor operators"),
    "loop": (changed(node("Loop")), "'culprit' is Loop, which may run for ever", "unroll"),
    "random": (changed(node("RandomNormalLike")), "the same row would get another answer", "inference mode"),
    "random-in-a-branch": (changed(in_a_branch), "'culprit' is RandomNormalLike", "inference mode"),
    "external-data": (changed(external), "lies in another file", "save_as_external_data=False"),
    "external-data-in-a-node": (changed(external_inside), "tensor 'hidden' lies in another file", "save_as_external_data=False"),
    "does-not-load": (changed(lambda g: g.graph.node[0].input.__setitem__(0, "nobody")), "does not load the graph", "onnx.checker"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_adopt__refuses__names_culprit_and_cure(case: str) -> None:
    raw, what, cure = REFUSED[case]
    with pytest.raises(SignatureError) as caught:
        adopt(raw, NUMERIC, TEXT)
    assert what in str(caught.value) and cure in str(caught.value)


def test_read__limits(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(SignatureError, match="cannot be read: No such file"):
        read(file, 1.0)
    file.touch()
    with pytest.raises(SignatureError, match="is empty"):
        read(file, 1.0)
    file.write_bytes(bytes(1_000_001))
    with pytest.raises(SignatureError, match=r"has 1\.0 MB, at most 1 are served"):
        read(file, 1.0)
    file.write_bytes(bytes(1_000_000))
    assert len(read(file, 1.0)) == 1_000_000
    with pytest.raises(SignatureError, match="cannot be read"):
        read(tmp_path, 1.0)
