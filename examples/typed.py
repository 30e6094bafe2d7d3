"""What both examples share: rows in, and the part of the graph that stands before a network: lookups and imputing, by hand.

Needs numpy, pandas, pyarrow and onnx, and nothing of this repository: it could live anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, compose, helper, numpy_helper

IDENTITY = {"entity_id", "event_time", "prediction_time", "known_at", "recorded_at", "tick", "label"}
CLIP = 5.0
"""Standard deviations at which numbers are cut off."""
OPSET = 16
"""The highest that every release of PyTorch since 1.13 exports."""
ROWS_EXPECTED = 2000


@dataclass(frozen=True)
class Typed:
    """What was learned of the raw features: medians, scales and, for a text, a rate of the label by category."""

    numbers: list[str]
    texts: list[str]
    medians: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    rates: dict[str, dict[str, float]]
    prior: float

    @classmethod
    def learn(cls, X: pd.DataFrame, y_true: np.ndarray) -> Typed:
        """From feature rows, shape (n, features), and labels 0 or 1."""
        texts = [name for name in X if not pd.api.types.is_numeric_dtype(X[name])]
        numbers = [name for name in X if name not in texts]
        values = X[numbers].to_numpy(np.float32)
        medians = np.nan_to_num(np.nanmedian(np.where(np.isfinite(values), values, np.nan), axis=0)).astype(np.float32)
        filled = np.where(np.isnan(values), medians, values)
        prior, rates = float(y_true.mean()), {}
        for name in texts:
            grouped = pd.Series(y_true).groupby(X[name].to_numpy()).agg(["sum", "count"])
            rates[name] = {str(k): float((s + 50 * prior) / (c + 50)) for k, s, c in grouped.itertuples()}
        scales = filled.std(axis=0)
        scales[scales == 0] = 1
        return cls(numbers, texts, medians, filled.mean(axis=0), scales, rates, prior)

    @property
    def width(self) -> int:
        """Columns of the matrix: each number, whether it is missing, and the rate of each text."""
        return 2 * len(self.numbers) + len(self.texts)

    def matrix(self, X: pd.DataFrame) -> np.ndarray:
        """What the network sees, float32 (n, width). The same in numpy as `graph` does in ONNX."""
        values = X[self.numbers].to_numpy(np.float32)
        missing = np.isnan(values)
        scaled = np.clip((np.where(missing, self.medians, values) - self.means) / self.scales, -CLIP, CLIP)
        codes = [X[n].map(self.rates[n]).fillna(self.prior).to_numpy(np.float32)[:, None] for n in self.texts]
        return np.concatenate([scaled, missing.astype(np.float32), *codes], axis=1).astype(np.float32)

    def graph(self) -> onnx.ModelProto:
        """From one input for each feature to ``matrix``."""
        node, constants = helper.make_node, dict[str, np.ndarray]()
        nodes = [node("Concat", self.numbers, ["values"], axis=1), node("IsNaN", ["values"], ["missing"])]
        for name in ("medians", "means", "scales"):
            constants[name] = getattr(self, name).astype(np.float32)[None]
        constants |= {"low": np.float32(-CLIP), "high": np.float32(CLIP)}
        nodes += [
            node("Where", ["missing", "medians", "values"], ["filled"]),
            node("Sub", ["filled", "means"], ["centred"]),
            node("Div", ["centred", "scales"], ["divided"]),
            node("Clip", ["divided", "low", "high"], ["scaled"]),
            node("Cast", ["missing"], ["flags"], to=TensorProto.FLOAT),
        ]
        for name in self.texts:
            rates = self.rates[name]
            nodes.append(node("LabelEncoder", [name], [f"{name}_rate"], domain="ai.onnx.ml", keys_strings=list(rates),
                              values_floats=list(rates.values()), default_float=self.prior))  # fmt: skip
        nodes.append(node("Concat", ["scaled", "flags", *(f"{name}_rate" for name in self.texts)], ["matrix"], axis=1))
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in self.numbers]
        inputs += [helper.make_tensor_value_info(name, TensorProto.STRING, ["n", 1]) for name in self.texts]
        output = helper.make_tensor_value_info("matrix", TensorProto.FLOAT, ["n", self.width])
        made = helper.make_graph(nodes, "typed", inputs, [output], [numpy_helper.from_array(v, k) for k, v in constants.items()])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)])


def rows(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Labelled rows of a training set (``evergreen training-set``): features, and labels."""
    table = pd.read_parquet(path)
    table = table[table["label"].notna()].reset_index(drop=True)
    return table[[name for name in table if name not in IDENTITY]], table["label"].to_numpy(np.float32)


def whole(typed: Typed, network: onnx.ModelProto) -> onnx.ModelProto:
    """Raw features → matrix → network, in one graph. The network has one input and one output, and opset `OPSET`."""
    first = typed.graph()
    first.ir_version = network.ir_version = min(first.ir_version, network.ir_version, 10)
    assert {opset.version for opset in network.opset_import if opset.domain == ""} == {OPSET}
    assert {node.domain for node in network.graph.node} <= {""}
    del network.opset_import[:]  # exporters name domains that they do not use
    network.opset_import.extend(first.opset_import)
    second = compose.add_prefix(network, "network/")
    joined = compose.merge_models(first, second, io_map=[("matrix", second.graph.input[0].name)])
    onnx.checker.check_model(joined)
    return joined


def write(out: Path, model: onnx.ModelProto, X: pd.DataFrame, y_proba: np.ndarray, typed: Typed) -> None:
    """``<out>.onnx``, and beside it what the framework itself answers: ``<out>.parquet``."""
    onnx.save_model(model, out.with_suffix(".onnx"))
    asked = X[[*typed.numbers, *typed.texts]].astype(dict.fromkeys(typed.numbers, "float32"))
    asked.assign(probability=y_proba.astype(np.float64)).to_parquet(out.with_suffix(".parquet"), index=False)
