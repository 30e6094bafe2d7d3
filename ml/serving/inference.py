"""The Open Inference Protocol, version 2 (KServe, Triton): tensors in, tensors out; JSON, and its extension for binary data.

https://github.com/kserve/open-inference-protocol and, for binary data, Triton's extension_binary_data.md: tensors may follow the
JSON document as raw bytes, little endian, a text as its length (uint32) and its UTF-8.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pydantic_core

from ml.serving.lane import Feed
from ml.serving.predictor import Predictor
from ml.serving.schema import RequestError

NUMERIC, TEXT, OUTPUT = "numeric", "text", "probability"
DATATYPES = {NUMERIC: "FP32", TEXT: "BYTES"}
HEADER_LENGTH = b"inference-header-content-length"
_NUMBERS = {int, float, type(None)}
_TEXTS = {str, type(None)}


class Question:
    """A parsed request: the graph's inputs for n rows, and what the answer has to look like."""

    __slots__ = ("binary", "feed", "n", "request_id")

    def __init__(self, feed: Feed, n: int, request_id: str | None, binary: bool) -> None:
        self.feed, self.n, self.request_id, self.binary = feed, n, request_id, binary


def parse(body: bytes, header_length: int | None, predictor: Predictor, max_rows: int) -> Question:
    """Reads a request.

    Args:
        header_length: bytes of the JSON document, when tensors follow it.

    Raises:
        RequestError: 400 naming the input that is wrong; 413 for too many rows.
    """
    try:
        document = pydantic_core.from_json(body if header_length is None else body[:header_length], allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise RequestError(400, "the body must be an object with a list of inputs")
    raw = memoryview(body)[header_length:] if header_length is not None else memoryview(b"")
    feed, used = _feed(document["inputs"], raw, predictor)
    if used != len(raw):
        raise RequestError(400, f"{len(raw)} bytes follow the JSON document, the inputs name {used}")
    sizes = {len(values) for values in feed.values()}
    if len(sizes) != 1 or (n := sizes.pop()) < 1:
        raise RequestError(400, "all inputs must have the same number of rows, at least one")
    if n > max_rows:
        raise RequestError(413, f"{n} rows in one request, at most {max_rows} are allowed")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError(400, "id must be a text")
    return Question(feed, n, request_id, _wants_binary(document))


def render(question: Question, y_proba: np.ndarray, name: str, version: str) -> tuple[bytes, int | None]:
    """The answer's body; and, when the tensor follows it as bytes, the length of its JSON document."""
    values = y_proba.astype("<f4")
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [question.n, 1]}
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": [output]}
    if question.request_id is not None:
        answer["id"] = question.request_id
    if not question.binary:
        output["data"] = values.tolist()
        return pydantic_core.to_json(answer), None
    raw = values.tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    head = pydantic_core.to_json(answer)
    return head + raw, len(head)


def about_model(name: str, versions: list[str], predictor: Predictor) -> dict[str, Any]:
    """The model's metadata; -1: any number of rows."""
    sizes = {NUMERIC: len(predictor.numeric), TEXT: len(predictor.text)}
    inputs = [{"name": each, "datatype": DATATYPES[each], "shape": [-1, size]} for each, size in sizes.items() if size]
    outputs = [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, 1]}]
    return {"name": name, "versions": versions, "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}


def _feed(inputs: list[Any], raw: memoryview, predictor: Predictor) -> tuple[Feed, int]:
    widths = {name: n for name, n in ((NUMERIC, len(predictor.numeric)), (TEXT, len(predictor.text))) if n}
    feed: Feed = {}
    used = 0
    for tensor in inputs:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or name not in widths or name in feed:
            raise RequestError(400, f"inputs must be {' and '.join(widths)}, each once, but one is {name!r}")
        shape = tensor.get("shape")
        if tensor.get("datatype") != DATATYPES[name]:
            raise RequestError(400, f"input {name!r} is {tensor.get('datatype')!r}, but must be {DATATYPES[name]}")
        if not _is_shape(shape, widths[name]):
            raise RequestError(400, f"input {name!r} has shape {shape}, but must have [n, {widths[name]}]")
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            feed[name] = _from_json(name, tensor.get("data"), shape)
        elif not isinstance(size, int) or not 0 <= size <= len(raw) - used:
            raise RequestError(400, f"input {name!r} has {size} bytes, but {len(raw) - used} are left in the body")
        else:
            feed[name] = _from_bytes(name, raw[used : used + size], shape)
            used += size
    if absent := [name for name in widths if name not in feed]:
        raise RequestError(400, f"input {absent[0]!r} is missing")
    return feed, used


def _is_shape(shape: Any, width: int) -> bool:
    return isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and shape[0] >= 0 and shape[1] == width


def _from_json(name: str, values: Any, shape: list[int]) -> np.ndarray:
    """A tensor given as a list, flat or a list for each row. null: missing."""
    if isinstance(values, list) and values and isinstance(values[0], list):
        values = [value for row in values if isinstance(row, list) for value in row]
    if not isinstance(values, list) or len(values) != shape[0] * shape[1]:
        raise RequestError(400, f"input {name!r} must have {shape[0] * shape[1]} values as data")
    allowed = _NUMBERS if name == NUMERIC else _TEXTS
    if odd := set(map(type, values)) - allowed:
        raise RequestError(400, f"input {name!r} holds a value of type {sorted(each.__name__ for each in odd)[0]}")
    if name == NUMERIC:
        return np.array(values, np.float32).reshape(shape)  # None becomes NaN
    return np.array(["" if value is None else value for value in values], object).reshape(shape)


def _from_bytes(name: str, raw: memoryview, shape: list[int]) -> np.ndarray:
    count = shape[0] * shape[1]
    if name == NUMERIC:
        if len(raw) != 4 * count:
            raise RequestError(400, f"input {name!r} has {len(raw)} bytes, but {count} values have {4 * count}")
        return np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape)
    texts: list[str] = []
    at = 0
    try:
        while at < len(raw):
            (length,) = struct.unpack_from("<I", raw, at)
            text = bytes(raw[at + 4 : at + 4 + length])
            if len(text) != length:
                raise ValueError("a text is cut off")
            texts.append(text.decode())
            at += 4 + length
    except (struct.error, ValueError) as error:
        raise RequestError(400, f"input {name!r} is malformed: {error}") from None
    if len(texts) != count:
        raise RequestError(400, f"input {name!r} holds {len(texts)} texts, its shape {count}")
    return np.array(texts, object).reshape(shape)


def _wants_binary(document: dict[str, Any]) -> bool:
    """Whether the answer's tensor is to follow its document as bytes."""
    outputs = document.get("outputs")
    default = (document.get("parameters") or {}).get("binary_data_output", False)
    if not outputs:
        return bool(default)
    if not isinstance(outputs, list) or any(not isinstance(each, dict) or each.get("name") != OUTPUT for each in outputs):
        raise RequestError(400, f"the only output is {OUTPUT!r}")
    return bool((outputs[0].get("parameters") or {}).get("binary_data", default))
