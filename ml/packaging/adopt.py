"""Takes a graph that somebody else made: checks that it has the declared signature and nothing that could harm, and gives it the
inputs and the output that all graphs of ours have.

The signature: one input for each feature that the model asks for, with the feature's name; float32 for a number (NaN: missing),
string for a text ('': missing); shape (n, 1) or (n,), with n free. One output of floating type: the probability of label 1 as
(n,) or (n, 1), or those of 0 and 1 as (n, 2), of which the second counts. Outputs of other types (a label) are left out.

Nothing is executed here but protobuf's parser and, at the end, ONNX Runtime's loader; no file but the given one is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, compose, helper, inliner, numpy_helper, shape_inference

from ml.errors import EvergreenError

MAX_IR = 13
OPSETS = {"": (13, 26), "ai.onnx.ml": (1, 5)}
"""By domain, the lowest and the highest opset that are read. The empty name is ONNX's own domain; higher ones are not in the ONNX
Runtime that serves."""
ENDLESS = ("Loop", "Scan")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
PREFIX = "brought/"
NAMES = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.STRING: "string"}
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
BOTH = "both"


class SignatureError(EvergreenError):
    """A brought graph cannot be taken: what is wrong with it first, and what to do."""


class Adopted(NamedTuple):
    """A graph with inputs ``numeric`` and ``text`` and output ``probability``, as `ml.packaging.bundle.build` wants it."""

    onnx: bytes
    asks: list[str]
    """The features that the graph has an input for, in its order."""
    output: str
    """The output that was taken, and how, in words."""
    both: bytes | None
    """For an output (n, 2): the same graph with both columns as output ``both``, so that their sum can be checked."""
    opset: int
    producer: str


def read(path: Path, max_mb: float) -> bytes:
    """The bytes of the file.

    Raises:
        SignatureError: there is no such file, or it is larger than `max_mb` (10⁶ bytes) or empty.
    """
    try:
        size = path.stat().st_size
        if size and size <= max_mb * 1e6:
            return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}", "give the path of an .onnx file") from None
    if size == 0:
        raise SignatureError(f"{path} is empty", "export the model again")
    raise SignatureError(
        f"{path} has {size / 1e6:.1f} MB, at most {max_mb:g} are served", "make the model smaller, or raise gates.max_size_mb"
    )


def adopt(raw: bytes, numeric: Sequence[str], text: Sequence[str]) -> Adopted:
    """Checks a graph and makes it one of ours.

    Args:
        raw: a serialised ONNX model.
        numeric, text: the declared features in order: the columns of the new graph's inputs. The graph may ask for fewer.

    Raises:
        SignatureError: names the first thing that does not hold, and its cure.
    """
    model = _parsed(raw)
    _known_versions(model)
    _harmless(model.graph)
    given = {i.name for i in model.graph.initializer}  # before IR 4 constants were listed as inputs, too
    inputs = [value for value in model.graph.input if value.name not in given]
    squeezed = {value.name: _input(value, numeric, text) for value in inputs}
    if not squeezed:
        raise SignatureError("the graph has no input", f"give it one for each feature that it asks for: {_some(numeric, text)}")
    output, width = _output(model)
    made = _renamed(model)
    graph = made.graph
    del graph.input[:], graph.output[:]
    for name, values, kind in (("numeric", numeric, TensorProto.FLOAT), ("text", text, TensorProto.STRING)):
        if values:
            graph.input.append(helper.make_tensor_value_info(name, kind, ["n", len(values)]))
    nodes = _picks(graph, squeezed, numeric, text) + list(graph.node) + _answer(graph, PREFIX + output.name, width)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1]))
    both = None
    if width == 2:
        twice = onnx.ModelProto()
        twice.CopyFrom(made)
        twice.graph.node.append(helper.make_node("Cast", [PREFIX + output.name], [BOTH], to=TensorProto.FLOAT))
        twice.graph.output.append(helper.make_tensor_value_info(BOTH, TensorProto.FLOAT, ["n", 2]))
        both = twice.SerializeToString(deterministic=True)
    onnx_bytes = made.SerializeToString(deterministic=True)
    _loads(onnx_bytes)
    words = {0: "(n,)", 1: "(n, 1)", 2: "column 1 of (n, 2)"}[width]
    opset = next(one.version for one in made.opset_import if one.domain in ("", "ai.onnx"))
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Adopted(onnx_bytes, list(squeezed), f"{output.name}: {words}", both, opset, producer)


# ---- what is refused


def _parsed(raw: bytes) -> onnx.ModelProto:
    cure = "export the model to ONNX (torch.onnx.export, tf2onnx, skl2onnx); pickles and checkpoints are never read"
    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError:
        raise SignatureError(f"this is no ONNX graph: {len(raw):,} bytes that begin with {raw[:4]!r}", cure) from None
    if not model.graph.node or not model.ir_version:
        raise SignatureError(f"this is no ONNX graph: {len(raw):,} bytes, and no node in them", cure)
    if any(_external(model.graph)):
        raise SignatureError(
            f"tensor {next(_external(model.graph))!r} lies in another file",
            "save the model as one file: onnx.save_model(model, path, save_as_external_data=False)",
        )
    return inliner.inline_local_functions(model) if model.functions else model


def _external(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the tensors that are not in the graph itself."""
    tensors = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in _nodes(graph):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors, attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
            for sparse in attribute.sparse_tensors:
                tensors += [sparse.values, sparse.indices]
            for inner in (attribute.g, *attribute.graphs):
                tensors += inner.initializer
    yield from (tensor.name for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _known_versions(model: onnx.ModelProto) -> None:
    if model.ir_version > MAX_IR:
        raise SignatureError(
            f"the graph has IR version {model.ir_version}, at most {MAX_IR} is read",
            "export it with a lower ir_version",
        )
    used = {node.domain for node in _nodes(model.graph)}
    for opset in model.opset_import:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        if domain in OPSETS and not OPSETS[domain][0] <= opset.version <= OPSETS[domain][1]:
            low, high = OPSETS[domain]
            raise SignatureError(
                f"the graph has opset {opset.version} of domain {domain or 'ai.onnx'!r}, {low} to {high} are read",
                f"export it with an opset in this range, e.g. {min(18, high)}",
            )
    if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):  # trees alone, for instance
        if "" in used:
            raise SignatureError("the graph does not say which opset it is of", "export it with an opset, e.g. 18")
        model.opset_import.append(helper.make_opsetid("", 18))


def _harmless(graph: onnx.GraphProto) -> None:
    for node in _nodes(graph):
        what = f"node {node.name or node.output[0]!r} is {node.op_type}"
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
            raise SignatureError(
                f"{what} of domain {node.domain!r}: only ONNX's own operators are read",
                "export without custom or vendor operators (no optimised or quantised export)",
            )
        if node.op_type in ENDLESS:
            raise SignatureError(f"{what}, which may run for ever", "export without loops: unroll it")
        if node.op_type in RANDOM:
            raise SignatureError(f"{what}: the same row would get another answer each time", "export the model in inference mode")


# ---- inputs


def _input(value: onnx.ValueInfoProto, numeric: Sequence[str], text: Sequence[str]) -> bool:
    """Checks one input; whether it wants (n,) rather than (n, 1)."""
    name, tensor = value.name, value.type.tensor_type
    if name not in (*numeric, *text):
        near = difflib.get_close_matches(name, [*numeric, *text], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"features are {_some(numeric, text)}"
        raise SignatureError(f"input {name!r} is no feature", f"name each input as the feature that it takes; {hint}")
    wanted = TensorProto.FLOAT if name in numeric else TensorProto.STRING
    if tensor.elem_type != wanted:
        found = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "no tensor"
        raise SignatureError(
            f"input {name!r} is {NAMES.get(tensor.elem_type, found)}, the feature is {NAMES[wanted]}",
            f"let the graph take {NAMES[wanted]}, and cast inside it",
        )
    shape = _shape(value)
    if shape is None or len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] is not None:
        raise SignatureError(
            f"input {name!r} has shape {_shown(shape)}, must be (n, 1) or (n,) with n free",
            "export with a free first dimension (dynamic_axes, dynamic_shapes, or a TensorSpec of None), and one column",
        )
    return len(shape) == 1


def _shape(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Sizes, None where one is free; None when nothing is said."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def _shown(shape: list[int | None] | None) -> str:
    return "unknown" if shape is None else "(" + ", ".join("n" if size is None else str(size) for size in shape) + ")"


def _some(numeric: Sequence[str], text: Sequence[str]) -> str:
    names = [*numeric, *text]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more (evergreen features list)" if len(names) > 6 else "")


# ---- output


def _output(model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, int]:
    """The output that is the answer, and its columns; 0: it has one dimension."""
    outputs = list(model.graph.output)
    if any(not one.type.HasField("tensor_type") for one in outputs):
        odd = next(one for one in outputs if not one.type.HasField("tensor_type"))
        raise SignatureError(
            f"output {odd.name!r} is no tensor (a sequence or a map)",
            "export plain probabilities; with skl2onnx: options={'zipmap': False}",
        )
    floats = [one for one in outputs if one.type.tensor_type.elem_type in FLOATS]
    named = [one for one in floats if one.name in ("probability", "probabilities")]
    if len(floats) != 1 and len(named) != 1:
        found = ", ".join(one.name for one in outputs) or "none"
        raise SignatureError(
            f"the graph has {len(floats)} outputs of floating type (all outputs: {found})",
            "leave one, or name the one that counts 'probability'",
        )
    output = floats[0] if len(floats) == 1 else named[0]
    shape = _shape(output)
    if shape is None or None in shape[1:]:
        inferred = shape_inference.infer_shapes(model).graph.output
        shape = _shape(next(one for one in inferred if one.name == output.name))
    if shape is None or len(shape) not in (1, 2) or shape[1:] not in ([], [1], [2]) or shape[0] is not None:
        raise SignatureError(
            f"output {output.name!r} has shape {_shown(shape)}, must be (n,), (n, 1) or (n, 2) with n free",
            "answer the probability of label 1, or those of labels 0 and 1, and declare the output's shape",
        )
    return output, shape[1] or 0 if len(shape) == 2 else 0


# ---- the new graph


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with other names for all values, so that none is one of ours."""
    return compose.add_prefix(model, PREFIX)


def _picks(
    graph: onnx.GraphProto, squeezed: dict[str, bool], numeric: Sequence[str], text: Sequence[str]
) -> list[onnx.NodeProto]:
    """Nodes that pick each input's column."""
    made = []
    for name, flat in squeezed.items():
        source, columns = ("numeric", list(numeric)) if name in numeric else ("text", list(text))
        at = np.array(columns.index(name) if flat else [columns.index(name)], dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(at, f"at/{name}"))
        made.append(helper.make_node("Gather", [source, f"at/{name}"], [PREFIX + name], name=f"pick/{name}", axis=1))
    return made


def _answer(graph: onnx.GraphProto, output: str, width: int) -> list[onnx.NodeProto]:
    """Nodes that make ``probability``, float32 (n, 1), of the output."""
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "answer/shape"))
    made = []
    if width == 2:
        graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "answer/second"))
        made.append(helper.make_node("Gather", [output, "answer/second"], ["answer/column"], name="answer/gather", axis=1))
        output = "answer/column"
    made.append(helper.make_node("Cast", [output], ["answer/float"], name="answer/cast", to=TensorProto.FLOAT))
    return [*made, helper.make_node("Reshape", ["answer/float", "answer/shape"], ["probability"], name="answer/reshape")]


def _loads(graph: bytes) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common class of its own
        said = " ".join(str(error).split())[:300]
        what = f"ONNX Runtime {ort.__version__} does not load the graph: {said}"
        raise SignatureError(what, "export it again, with onnx.checker clean") from None
