"""A small PyTorch network on a training set, as one ONNX graph that takes the raw features.

``python examples/torch/train.py TRAINING-SET.parquet OUT`` writes OUT.onnx and OUT.parquet (expected answers).
"""

from __future__ import annotations

import inspect
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import typed as t  # beside this folder

EPOCHS, BATCH, SEED = 20, 256, 0


def fit(matrix: np.ndarray, y_true: np.ndarray) -> nn.Module:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Linear(matrix.shape[1], 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    optimiser, loss = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4), nn.BCEWithLogitsLoss()
    X, y = torch.from_numpy(matrix), torch.from_numpy(y_true)[:, None]
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(X)).split(BATCH):
            optimiser.zero_grad()
            value = loss(network(X[batch]), y[batch])
            value.backward()
            optimiser.step()
            total += float(value) * len(batch)
        print(f"epoch {epoch + 1}: log-loss {total / len(X):.4f}")
    return nn.Sequential(network, nn.Sigmoid()).eval()


def exported(network: nn.Module, width: int) -> onnx.ModelProto:
    buffer, free = io.BytesIO(), {"matrix": {0: "n"}, "probability": {0: "n"}}
    # newer releases export by tracing with torch.export unless told otherwise; for layers such as these both are the same
    old = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        network, (torch.zeros(1, width),), buffer, input_names=["matrix"], output_names=["probability"], dynamic_axes=free,
        opset_version=t.OPSET, **old,
    )  # fmt: skip
    return onnx.load_model_from_string(buffer.getvalue())


def main(source: Path, out: Path) -> None:
    X, y_true = t.rows(source)
    typed = t.Typed.learn(X, y_true)
    network = fit(typed.matrix(X), y_true)
    few = X.iloc[:: max(len(X) // t.ROWS_EXPECTED, 1)]
    with torch.no_grad():
        y_proba = network(torch.from_numpy(typed.matrix(few))).numpy()[:, 0]
    t.write(out, t.whole(typed, exported(network, typed.width)), few, y_proba, typed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
