"""A feature set in a stream, for those who must not hold the whole of it. Light: a worker imports little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import pyarrow.parquet as pq

from ml import store

BATCH = 20_000
"""Rows that are given at once."""
READ_AHEAD = 1 << 20
"""Bytes of a column that are read at once."""


def batches(
    digest: str, columns: Sequence[str] | None = None, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Rows `first` to `last` (not included; None: all) of a feature set, some thousands at a time: (number of the first, rows).

    No more of the table is held than a batch needs; the object's digest is not checked (`ml.store.verify`).
    """
    with store.opened(digest) as file:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD)
        groups: list[int] = []
        begin = at = 0
        for group in range(parquet.metadata.num_row_groups):
            end = begin + parquet.metadata.row_group(group).num_rows
            if end > first and (last is None or begin < last):
                at = at if groups else begin
                groups.append(group)
            begin = end
        for batch in parquet.iter_batches(BATCH, row_groups=groups, columns=columns, use_threads=False):
            if last is not None and at >= last:
                return
            start, stop = max(first - at, 0), len(batch) if last is None else min(last - at, len(batch))
            if start < stop:
                yield at + start, batch.slice(start, stop - start).to_pandas()
            at += len(batch)
