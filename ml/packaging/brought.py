"""A model that was brought as a graph: what it answers, why, and whether its answers hold.

It has no recipe of ours, so it cannot be fitted again, and no margins that a library could share out. Explanations ask the graph
itself: Shapley values by sampled orders (Štrumbelj and Kononenko 2014, "Explaining prediction models and individual predictions
with feature contributions", Knowledge and Information Systems 41:647-665).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime as ort
import pandas as pd

from ml.config import FamilyName, Task
from ml.packaging.parity import CHANGED_ROWS, inputs, predict, session, with_changed
from ml.refs import Check, Decision, Ref
from ml.training.encoding import BASE
from ml.training.fit import Fitted

FAMILY: FamilyName = "onnx"
BACKGROUND = 8
"""Rows that explanations start from, each in an order of its own."""
SINGLE_ROWS = 64
"""Rows that are asked one at a time."""
CERTAIN = 1e-6
"""Probabilities nearer to 0 or 1 than this have the log-odds of this."""


class Origin(Ref):
    """Where a brought model comes from, as it was told and found."""

    name: str
    note: str
    file: str
    """SHA-256 of the file that was given."""
    producer: str
    opset: int
    asks: list[str]
    output: str
    expected_rows: int = 0
    expected_difference: float | None = None
    """Largest difference from the answers that came with it; None: none came."""


@dataclass(frozen=True)
class Brought(Fitted):
    """The graph in the place of members; climatology and the linear model beside it were fitted here, on the train window.

    `learned` is what was declared: first and last moment; its rows are the landed ones of that window.
    """

    graph: bytes
    background: pd.DataFrame
    """Rows of the declared window, shape (≤ BACKGROUND, features)."""
    origin: Origin

    @property
    def family(self) -> FamilyName:
        return FAMILY

    @property
    def task(self) -> Task:
        return "binary"

    @property
    def leaves(self) -> int:
        """Numbers that the graph weighs with: floats of its constants, leaves of its trees; look-up tables are not counted."""
        return _size(self.graph)

    @cached_property
    def unused(self) -> list[str]:
        return [name for name in self._names if name not in self.origin.asks]

    @cached_property
    def _names(self) -> list[str]:
        return [*self.encoding.numeric, *self.encoding.text]

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return session(self.graph)

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return predict(self._session, self.encoding.numeric, self.encoding.text, X)

    def answer(self, matrix: np.ndarray) -> np.ndarray:
        """Refused: whoever has features asks `predict`."""
        raise NotImplementedError("a brought graph takes features, not our encoded matrix")

    def contributions(self, X: pd.DataFrame) -> pd.DataFrame:
        """As `Fitted.contributions`, in log-odds; a row's shares and `BASE` add up to its margin.

        From each background row the features are changed into the row's one after the other, in a drawn order and, from the next,
        in its reverse; a feature's share is the mean of what its change did. The same X gives the same shares.
        """
        shares = pd.DataFrame(0.0, index=X.index, columns=[*self._names, BASE])
        encoding, wanted = self.encoding, inputs(self.encoding.numeric, self.encoding.text, X)
        starts = inputs(encoding.numeric, encoding.text, self.background)
        for i, order in enumerate(_orders(self.origin.asks, len(self.background))):
            feed = {name: np.repeat(values[i : i + 1], len(X), axis=0) for name, values in starts.items()}
            before = self._margin(feed)
            shares[BASE] += before
            for name in order:
                where, at = ("numeric", encoding.numeric) if name in encoding.numeric else ("text", encoding.text)
                feed[where][:, at.index(name)] = wanted[where][:, at.index(name)]
                after = self._margin(feed)
                shares[name] += after - before
                before = after
        return shares / len(self.background)

    def _margin(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        (answers,) = self._session.run(None, dict(feed))
        y_proba = np.clip(answers[:, 0].astype(np.float64), CERTAIN, 1 - CERTAIN)
        return np.asarray(np.log(y_proba) - np.log1p(-y_proba))

    def dump(self) -> dict[str, bytes]:
        """What `Fitted` does not have, but for the graph, which lies beside it everywhere."""
        rows = json.loads(self.background[self._names].to_json(orient="records", double_precision=15))
        return {"origin.json": self.origin.model_dump_json().encode(), "background.json": json.dumps(rows).encode()}

    @staticmethod
    def load(files: Mapping[str, bytes], fitted: Fitted) -> Brought:
        """The inverse of `dump`; `fitted` has no members, `files` has the graph."""
        numeric, text = fitted.encoding.numeric, fitted.encoding.text
        rows = pd.DataFrame(json.loads(files["background.json"]), columns=[*numeric, *text])
        return Brought(
            (), fitted.encoding, fitted.climatology, fitted.linear, fitted.learned,
            graph=files["model.onnx"],
            background=rows.astype(dict.fromkeys(numeric, float)),
            origin=Origin.model_validate_json(files["origin.json"]),
        )  # fmt: skip

    def holds(self, X: pd.DataFrame, tolerance: float) -> Decision:
        """Stands where `parity.check_parity` does: the graph is compared with itself, and with what came with it.

        Args:
            X: real rows, one column per feature, shape (n, features).
            tolerance: largest allowed difference between two answers to one row.

        Returns:
            Checks of kind ``parity``: answers must be finite probabilities on real rows, with missing values, and in categories
            that were never seen; the same when asked again, and one row at a time; and those that came with the file.
        """
        encoding, few = self.encoding, X.head(CHANGED_ROWS)
        missing = dict.fromkeys(encoding.numeric, np.nan) | dict.fromkeys(encoding.text, None)
        cases = {
            "real rows": X,
            "missing values": pd.concat([with_changed(encoding, few, np.nan, None), few.head(1).assign(**missing)]),
            "unseen categories": few.assign(**dict.fromkeys(encoding.text, "never seen")),
        }
        checks = [_possible(name, self._answers(rows)) for name, rows in cases.items()]
        first, again = self._answers(few), self._answers(few)
        single = X.iloc[:: max(len(X) // SINGLE_ROWS, 1)].head(SINGLE_ROWS)
        alone = np.concatenate([self._answers(single.iloc[i : i + 1]) for i in range(len(single))] or [np.empty(0)])
        checks.append(_apart("asked again", first, again, tolerance))
        checks.append(_apart("one row at a time", self._answers(single), alone, tolerance))
        if (worst := self.origin.expected_difference) is not None:
            checks.append(_within("expected answers", worst, tolerance, self.origin.expected_rows))
        failed = [check for check in checks if not check.passed]
        reason = (
            "; ".join(f"{c.name}: {c.detail}" for c in failed) or f"a graph as it came: {len(checks)} checks of its answers hold"
        )
        return Decision(kind="parity", verdict="different" if failed else "equal", reason=reason, checks=checks)

    def _answers(self, X: pd.DataFrame) -> np.ndarray:
        """NaN to all rows when the graph fails on them."""
        try:
            found = self.predict(X)
        except _FAILURES:
            return np.full(len(X), np.nan)
        return found if found.shape == (len(X),) else np.full(len(X), np.nan)


_STATE = ort.capi.onnxruntime_pybind11_state
_FAILURES = (_STATE.Fail, _STATE.InvalidArgument, _STATE.RuntimeException, _STATE.NotImplemented, _STATE.InvalidGraph)


def _possible(name: str, answers: np.ndarray) -> Check:
    bad = int((~((answers >= 0) & (answers <= 1))).sum())  # NaN is neither
    return Check(name=name, passed=len(answers) > 0 and bad == 0, value=float(bad), threshold=0.0, n=len(answers),
                 detail=f"{bad} of {len(answers)} answers are no probabilities")  # fmt: skip


def _apart(name: str, one: np.ndarray, other: np.ndarray, tolerance: float) -> Check:
    worst = float(np.abs(one - other).max()) if len(one) and one.shape == other.shape else np.nan
    return _within(name, worst, tolerance, len(one))


def _within(name: str, worst: float, tolerance: float, n: int) -> Check:
    return Check(name=name, passed=bool(worst <= tolerance), value=worst, threshold=tolerance, n=n,
                 detail=f"largest |Δ answer| {worst:.1e}, must be ≤ {tolerance:.0e}")  # fmt: skip  # NaN fails


def _orders(names: Sequence[str], count: int) -> Iterator[list[str]]:
    """Drawn orders, each followed by its reverse."""
    draw, last = np.random.default_rng(0), list[str]()
    for i in range(count):
        last = last[::-1] if i % 2 else [names[k] for k in draw.permutation(len(names))]
        yield last


def _size(graph: bytes) -> int:
    import onnx  # a service that explains has it not
    from onnx import TensorProto

    model = onnx.load_model_from_string(graph)
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    size = sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type in floats)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type in floats:
                size += int(np.prod(attribute.t.dims))
            if attribute.name in ("nodes_modes", "nodes_modes_as_string"):
                size += sum(mode == b"LEAF" for mode in attribute.strings)
            if attribute.name == "leaf_weights":
                size += int(np.prod(attribute.t.dims))
            if node.op_type in ("LinearClassifier", "LinearRegressor") and attribute.name in ("coefficients", "intercepts"):
                size += len(attribute.floats)
    return max(size, 1)
