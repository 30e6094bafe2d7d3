"""Other ways to serve the same model, written as people write them: what ``make bench-serving`` compares the service with.

Each factory here is an ASGI app for ``uvicorn --factory``. It reads the folder that `HOME` names: ``model.onnx``, and
``columns.json`` with the names of the columns and the threshold. On one core, every session gets one thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, create_model

HOME = "EVERGREEN_BENCH"


class Given(BaseModel):
    """The answer of a peer."""

    probability: float
    decision: int


class Model:
    """The graph, and how its inputs are called."""

    def __init__(self) -> None:
        folder = Path(os.environ[HOME])
        columns = json.loads((folder / "columns.json").read_text())
        self.numeric: list[str] = columns["numeric"]
        self.text: list[str] = columns["text"]
        self.threshold: float = columns["threshold"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        fields: dict[str, Any] = dict.fromkeys(self.numeric, (float | None, ...)) | dict.fromkeys(self.text, (str, ...))
        self.row = create_model("Row", **fields)

    def answer(self, features: Mapping[str, Any]) -> Given:
        """One row: missing numbers are None, missing texts empty."""
        numeric = np.array([[features[name] for name in self.numeric]], dtype=np.float32)  # None becomes NaN
        text = np.array([[features[name] or "" for name in self.text]], dtype=object)
        (found,) = self.session.run(["probability"], {"numeric": numeric, "text": text})
        probability = float(found[0, 0])
        return Given(probability=probability, decision=int(probability >= self.threshold))


def plain() -> Any:
    """FastAPI and ONNX Runtime; the caller sends the features."""
    from fastapi import FastAPI

    model, app = Model(), FastAPI()

    async def predict(row: Any) -> Given:  # async: a plain `def` would hop to a thread, and be slower
        return model.answer(row.__dict__)

    predict.__annotations__["row"] = model.row
    app.post("/predict", response_model=Given)(predict)
    return app


def plain_raw() -> Any:
    """FastAPI and ONNX Runtime; the caller sends the raw row, features come from this repository's assembler and store."""
    from fastapi import FastAPI

    from ml.config import load_params
    from ml.features.assembly import Assembler
    from ml.features.online import open_store
    from ml.settings import settings

    params = load_params()
    spec = params.tables[params.problem.table]
    kinds: dict[str, Any] = {"string": str, "int": int, "float": float, "bool": bool, "timestamp": datetime}
    fields: dict[str, Any] = {c: (kinds[kind] | None, ...) for c, kind in spec.columns.items() if c not in spec.outcomes}
    model, assembler, store, app = Model(), Assembler(params), open_store(settings().online), FastAPI()

    async def predict(row: Any) -> Given:
        return model.answer(assembler.assemble(store, [row.__dict__]).features[0])

    predict.__annotations__["row"] = create_model("Raw", **fields)
    app.post("/predict", response_model=Given)(predict)
    return app


def echo() -> Any:
    """The floor: reads the body and answers a fixed text, without any framework."""
    answer = b'{"probability":0.5,"decision":1}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def save_for_mlflow(model: bytes, folder: Path, numeric: list[str], text: list[str]) -> None:
    """Writes the graph as MLflow models: ``tensors``, ONNX with a signature of two tensors, and ``columns``, a data frame."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    tensors = [
        TensorSpec(np.dtype("float32"), (-1, len(numeric)), "numeric"), TensorSpec(np.dtype("str"), (-1, len(text)), "text"),
    ]  # fmt: skip
    answer = Schema([TensorSpec(np.dtype("float32"), (-1, 1), "probability")])
    mlflow.onnx.save_model(
        onnx.load_model_from_string(model), str(folder / "tensors"), signature=ModelSignature(Schema(tensors), answer),
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1}, pip_requirements=["onnxruntime"],
    )  # fmt: skip
    columns = [ColSpec("double", name) for name in numeric] + [ColSpec("string", name) for name in text]
    mlflow.pyfunc.save_model(
        str(folder / "columns"), python_model=str(Path(__file__).with_name("serving_mlflow.py")),
        artifacts={"model": str(folder / "model.onnx")}, model_config={"numeric": numeric, "text": text},
        signature=ModelSignature(Schema(columns), Schema([ColSpec("float")])), pip_requirements=["onnxruntime"],
    )  # fmt: skip
