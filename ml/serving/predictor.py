"""From typed features to a calibrated probability: one ONNX Runtime session, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from ml.errors import IntegrityError
from ml.features.definitions import Value
from ml.packaging.bundle import Bundle

_REPEATS = (b'"\x04Loop', b'"\x04Scan')
"""Operators that may run for ever, as a serialised node names them: field 4 (op_type) of NodeProto, its length, its text."""
PROBE_TOLERANCE = 1e-6
"""Largest allowed difference between a recorded answer and this machine's: float32 rounding of another CPU, no more."""


class PredictionError(Exception):
    """The model did not give a probability; the caller falls back and says so."""


class Predictor:
    """Answers for one bundle. Thread-safe: ONNX Runtime sessions are.

    Args:
        bundle: a verified bundle.

    Raises:
        IntegrityError: the graph cannot be loaded, or its inputs and outputs are not those that the card names.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.numeric, self.text = tuple(bundle.card.numeric), tuple(bundle.card.text)
        self._session = _session(bundle)
        self.bounded = not any(operator in bundle.model for operator in _REPEATS)
        """Whether the time of a run is bounded by its rows: no operator of the graph repeats others."""

    def predict(self, features: Sequence[Mapping[str, Value]], options: ort.RunOptions | None = None) -> np.ndarray:
        """Probability of label 1 for each row.

        Args:
            features: one mapping per row, feature name → value. None, or a name that is absent, means "not known": NaN for a
                numeric feature, the empty string for a text feature. Names that the model does not know are ignored.
            options: as in `run`.

        Returns:
            Shape (n,), float64, each in [0, 1].

        Raises:
            PredictionError: a value has the wrong type, the graph failed, or an answer is not a number in [0, 1].
        """
        return self.run(self._inputs(features), len(features), options) if features else np.empty(0)

    def run(self, feed: Mapping[str, np.ndarray], n: int, options: ort.RunOptions | None = None) -> np.ndarray:
        """Probability of label 1 for each of `n` ≥ 1 rows of a feed; float64 of shape (n,), each in [0, 1].

        Args:
            feed: ``numeric`` float32 [n, F] and ``text`` object [n, C], as `feed` makes them.
            options: lets another thread end the run: ``options.terminate = True``.

        Raises:
            PredictionError: the graph failed or was ended, or an answer is not a number in [0, 1].
        """
        try:
            (column,) = self._session.run(["probability"], feed, options)
        except Exception as error:
            raise PredictionError(f"the model failed on {n} rows: {error}") from error
        y_proba = np.asarray(column, dtype=np.float64).reshape(-1)
        if y_proba.shape != (n,) or not np.all((y_proba >= 0) & (y_proba <= 1)):  # NaN fails both comparisons
            raise PredictionError(f"the model answered {y_proba[:3].tolist()}… for {n} rows: not probabilities")
        return y_proba

    @staticmethod
    def feed(numbers: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's inputs.

        Args:
            numbers: float64 [F, n], a row for each of `numeric`; NaN: missing.
            texts: object [C, n], a row for each of `text`; None: missing.
        """
        made: dict[str, np.ndarray] = {}
        if len(numbers):
            made["numeric"] = np.ascontiguousarray(numbers.T, dtype=np.float32)
        if len(texts):
            words = texts.T.copy()
            words[words == None] = ""  # noqa: E711  # elementwise, which `is` is not
            made["text"] = words
        return made

    def probe(self) -> float:
        """Compares this session with the answers recorded when the bundle was made.

        Returns:
            The largest absolute difference in probability.

        Raises:
            IntegrityError: there is nothing to compare with, or a difference exceeds `PROBE_TOLERANCE`.
        """
        examples = self.bundle.examples
        if not examples:
            raise IntegrityError(f"bundle {self.bundle.digest[:12]} has no recorded answers", "package the model again")
        try:
            y_proba = self.predict([example.features for example in examples])
        except PredictionError as error:
            raise IntegrityError(
                f"bundle {self.bundle.digest[:12]} fails its probe: {error}", "package the model again"
            ) from error
        differences = np.abs(y_proba - [example.probability for example in examples])
        worst = int(differences.argmax())
        if differences[worst] > PROBE_TOLERANCE:
            raise IntegrityError(
                f"bundle {self.bundle.digest[:12]} answers {y_proba[worst]:.9f} to example {worst}, recorded "
                f"{examples[worst].probability:.9f} (allowed difference {PROBE_TOLERANCE:g})",
                "package the model again on this platform, or serve it where it was made",
            )
        return float(differences[worst])

    def _inputs(self, features: Sequence[Mapping[str, Value]]) -> dict[str, np.ndarray]:
        feed: dict[str, np.ndarray] = {}
        if self.numeric:
            feed["numeric"] = np.array([[_number(row.get(n), n) for n in self.numeric] for row in features], dtype=np.float32)
        if self.text:
            feed["text"] = np.array([[_category(row.get(n), n) for n in self.text] for row in features], dtype=object)
        return feed


def _number(value: Value, name: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        raise PredictionError(f"feature {name!r} is numeric, got {value!r}")
    return float(value)


def _category(value: Value, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PredictionError(f"feature {name!r} is text, got {value!r}")
    return value


def _session(bundle: Bundle) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a spinning thread steals the server's core
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise IntegrityError(
            f"model {bundle.card.model_digest[:12]} cannot be loaded: {error}", "package the model again"
        ) from error
    expected = {"numeric": ("tensor(float)", len(bundle.card.numeric)), "text": ("tensor(string)", len(bundle.card.text))}
    wanted = {name: shape for name, shape in expected.items() if shape[1]}
    found = {node.name: (node.type, node.shape[-1]) for node in session.get_inputs()}
    if found != wanted or "probability" not in {node.name for node in session.get_outputs()}:
        raise IntegrityError(
            f"model {bundle.card.model_digest[:12]} takes {found}, the card says {wanted}", "package the model again"
        )
    return session
