"""A small Keras network (TensorFlow) on a training set, as one ONNX graph that takes the raw features.

``python examples/keras/train.py TRAINING-SET.parquet OUT`` writes OUT.onnx and OUT.parquet (expected answers).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import typed as t  # beside this folder

EPOCHS, BATCH, SEED = 20, 256, 0


def fit(matrix: np.ndarray, y_true: np.ndarray) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    network = keras.Sequential(
        [
            keras.Input((matrix.shape[1],), name="matrix"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(1e-3), loss="binary_crossentropy")
    network.fit(matrix, y_true, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    return network


def exported(network: keras.Model, width: int) -> onnx.ModelProto:
    @tf.function(input_signature=[tf.TensorSpec([None, width], tf.float32, name="matrix")])
    def answer(matrix: tf.Tensor) -> tf.Tensor:
        return tf.identity(network(matrix, training=False), name="probability")

    model, _ = tf2onnx.convert.from_function(answer, answer.input_signature, opset=t.OPSET)
    return model


def main(source: Path, out: Path) -> None:
    X, y_true = t.rows(source)
    typed = t.Typed.learn(X, y_true)
    network = fit(typed.matrix(X), y_true)
    few = X.iloc[:: max(len(X) // t.ROWS_EXPECTED, 1)]
    y_proba = network.predict(typed.matrix(few), batch_size=4096, verbose=0)[:, 0]
    t.write(out, t.whole(typed, exported(network, typed.width)), few, y_proba, typed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
