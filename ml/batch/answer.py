"""The pure function that every engine runs: a record batch of feature rows in, a record batch of the prediction log out.

An answer depends on its own row alone: one thread inside the graph, blocks of a fixed size, no state between calls. So it is the
same to the last bit whatever the engine, the worker and the size of the batch. No Python object is made for a number; a text
costs one for each distinct value of a batch.
"""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.errors import IntegrityError
from ml.packaging.bundle import Bundle
from ml.serving.predictor import PredictionError, Predictor
from ml.serving.segments import ROWS, SCHEMA

BLOCK = ROWS
"""Rows that the graph sees at once, and a row group of a partition."""
PASSED_ON = ("entity_id", "event_time", "prediction_time", "tick")
"""Columns of the input that stand unchanged in the answer."""


class Scorer:
    """Answers of one bundle, in the shape of the online prediction log. Thread-safe.

    Args:
        bundle: verified.
        version: written as ``model_version``.
        name: under which the model is served.
        as_of: written as ``logged_at``, so that scoring the same again gives the same rows.
        log_features: writes the feature values as served, as monitoring needs them; else ``features`` is null.

    Raises:
        IntegrityError: the graph is not the one that the bundle's card describes.
    """

    def __init__(self, bundle: Bundle, version: str, name: str, as_of: datetime, log_features: bool = True) -> None:
        self.predictor = Predictor(bundle)
        self.numeric, self.text = self.predictor.numeric, self.predictor.text
        self._version, self._name, self._as_of, self._log_features = version, name, as_of, log_features

    @property
    def columns(self) -> list[str]:
        """What is read of an input."""
        return list(dict.fromkeys([*PASSED_ON, *self.numeric, *self.text]))

    def answer(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Answers to n ≥ 0 rows of `columns`, in their order, with `SCHEMA`. A null or NaN number, and a null text, is missing.

        Raises:
            IntegrityError: a column is absent or has a type that cannot be read, or the graph gives no probability.
        """
        if absent := [name for name in self.columns if name not in batch.schema.names]:
            raise lacking(absent, "the rows to score")
        blocks = [self._block(batch.slice(start, BLOCK)) for start in range(0, len(batch), BLOCK)]
        return pa.concat_batches(blocks) if blocks else pa.RecordBatch.from_pylist([], SCHEMA)

    def _block(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        n = len(rows)
        numbers = [_plain(rows[name], pa.float64(), name) for name in self.numeric]
        texts = [_plain(rows[name], pa.string(), name) for name in self.text]
        try:
            y_proba = self.predictor.run(_feed(numbers, texts, n), n)
        except PredictionError as error:
            first = rows["entity_id"][0]
            raise IntegrityError(
                f"bundle {self.predictor.bundle.digest[:12]}, {n} rows from {first} on: {error}",
                "score them by another version, and look at these rows' features",
            ) from error
        names = [*self.numeric, *self.text]
        values = {
            **{name: _plain(rows[name], SCHEMA.field(name).type, name) for name in PASSED_ON},
            "logged_at": pa.repeat(pa.scalar(self._as_of, pa.timestamp("us")), n),
            "model_version": pa.repeat(self._version, n),
            "probability": pa.array(y_proba),
            "flags": pa.repeat(pa.scalar([], pa.list_(pa.string())), n),
            "request_id": pc.binary_join_element_wise("score", self._version, _plain(rows["entity_id"], pa.string(), ""), "-"),
            "features": _objects(names, numbers, texts, n) if self._log_features else pa.nulls(n, pa.string()),
            "cohort": pa.repeat("batch", n),
            "manifest": pa.repeat(pa.scalar(0, pa.int64()), n),
            "seconds": pa.repeat(pa.scalar(0.0, pa.float64()), n),
            "model": pa.repeat(self._name, n),
        }
        return pa.RecordBatch.from_arrays([values[name] for name in SCHEMA.names], schema=SCHEMA)


def lacking(absent: list[str], where: str) -> IntegrityError:
    """The error of rows without columns that the bundle needs."""
    return IntegrityError(
        f"{where}: the model needs features {absent} that are not computed",
        "restore them in the feature module, or retire the model",
    )


def _plain(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return column if column.type == kind else pc.cast(column, kind, safe=False)
    except pa.ArrowException as error:
        raise IntegrityError(f"column {name!r} has type {column.type}, not {kind}: {error}", "mend the rows") from None


def _feed(numbers: list[pa.Array], texts: list[pa.Array], n: int) -> dict[str, np.ndarray]:
    """The graph's inputs, column by column."""
    feed: dict[str, np.ndarray] = {}
    if numbers:
        feed["numeric"] = np.empty((n, len(numbers)), np.float32)
        for i, column in enumerate(numbers):
            feed["numeric"][:, i] = column.to_numpy(zero_copy_only=False)
    if texts:
        feed["text"] = np.empty((n, len(texts)), object)
        for i, column in enumerate(texts):
            coded = pc.dictionary_encode(pc.fill_null(column, ""))
            feed["text"][:, i] = np.array(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy()]
    return feed


def _objects(names: list[str], numbers: list[pa.Array], texts: list[pa.Array], n: int) -> pa.Array:
    """A JSON object per row; ``json.loads`` gives back the same values to the last bit."""
    values = [*(_number_words(column) for column in numbers), *(_text_words(column) for column in texts)]
    pieces: list[object] = []
    for i, (name, words) in enumerate(zip(names, values, strict=True)):
        pieces += [("{" if i == 0 else ", ") + json.dumps(name) + ": ", words]
    return pc.binary_join_element_wise(*pieces, "}", "")


def _number_words(column: pa.Array) -> pa.Array:
    words = pc.cast(column, pa.string())  # the shortest text that reads back as the same number
    if pc.all(pc.is_finite(column), min_count=0).as_py() is not True:
        for value, word in (("inf", "Infinity"), ("-inf", "-Infinity"), ("nan", "null"), ("-nan", "null")):
            words = pc.if_else(pc.equal(words, value), word, words)
    return pc.fill_null(words, "null")


def _text_words(column: pa.Array) -> pa.Array:
    coded = pc.dictionary_encode(column)
    known = pa.array([json.dumps(word) for word in coded.dictionary.to_pylist()], pa.string())
    return pc.fill_null(known.take(coded.indices), "null")
