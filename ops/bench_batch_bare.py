"""What ``make bench-batch`` compares with: ONNX Runtime by itself, in a loop over a Parquet file, writing names and answers.

Usage: python -m ops.bench_batch_bare MODEL ROWS OUT loop|two. Prints seconds. ``loop`` is what one would write first, on ONNX
Runtime's own threads; ``two`` is the same on two Python threads of a block each, the graph on one thread, as engine `local` does.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 10_000


def main(model: str, rows: str, out: str, how: str) -> None:
    began, options = time.monotonic(), ort.SessionOptions()
    if how == "two":
        options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    file = pq.ParquetFile(rows)
    kinds = {f.name: f.type for f in file.schema_arrow}
    features = [name for name in kinds if name not in ("entity_id", "event_time", "prediction_time", "tick")]
    texts = [name for name in features if kinds[name] == pa.string()]
    numbers = [name for name in features if name not in texts]

    def answer(batch: pa.RecordBatch) -> pa.RecordBatch:
        X = batch.to_pandas()
        feed = {"numeric": X[numbers].to_numpy(np.float32), "text": X[texts].fillna("").to_numpy(object)}
        (y_proba,) = session.run(None, feed)
        return pa.record_batch({"entity_id": batch["entity_id"], "probability": pa.array(y_proba[:, 0])})

    schema = pa.schema([("entity_id", pa.string()), ("probability", pa.float32())])
    with pq.ParquetWriter(out, schema) as writer, ThreadPoolExecutor(2) as pool:
        under_way: deque = deque()
        for batch in file.iter_batches(BLOCK, columns=["entity_id", *features]):
            if how == "loop":
                writer.write_batch(answer(batch))
                continue
            under_way.append(pool.submit(answer, batch))
            if len(under_way) > 4:
                writer.write_batch(under_way.popleft().result())
        while under_way:
            writer.write_batch(under_way.popleft().result())
    print(f"{time.monotonic() - began:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
