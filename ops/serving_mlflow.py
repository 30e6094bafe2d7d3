"""The same model as an MLflow model that takes named columns (see `ops.serving_peers`); MLflow runs this file."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import onnxruntime as ort
import pandas as pd


class Columns(mlflow.pyfunc.PythonModel):
    """ONNX Runtime behind a data frame with a column for each feature, as a tabular model is usually logged."""

    def load_context(self, context: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(context.artifacts["model"], options, providers=["CPUExecutionProvider"])
        self._numeric, self._text = (context.model_config[kind] for kind in ("numeric", "text"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        numeric = model_input[self._numeric].to_numpy(np.float32)
        text = model_input[self._text].to_numpy(object)
        (found,) = self._session.run(["probability"], {"numeric": numeric, "text": text})
        return np.asarray(found).ravel()


mlflow.models.set_model(Columns())
