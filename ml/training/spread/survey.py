"""What must be known of all rows of a window before they are shared out, read in a stream: memory does not grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ml.config import Params
from ml.features.batches import batches
from ml.features.definitions import Feature
from ml.refs import Window
from ml.training.baseline import climatology_of, keys_of
from ml.training.climatology import Climatology
from ml.training.encoding import Encoding, encoding_of, sums_by
from ml.training.fit import Learned, check_labels, enough, labelled, vary
from ml.training.spread.job import Share

SAMPLE = 250_000
"""At most so many rows, evenly spaced, are held at once: for the linear model and the reference profile."""
_BY = "(climatology)"


@dataclass(frozen=True)
class Survey:
    """Encoding and climatology of all labelled rows of the window."""

    encoding: Encoding
    climatology: Climatology
    learned: Learned


def survey(digest: str, window: Window, features: Sequence[Feature], params: Params) -> Survey:
    """Reads labels, times, texts and what climatology goes by.

    Raises:
        NotEnoughDataError: as `ml.training.fit.fit_model`.
    """
    by, classes = params.baseline.climatology, len(params.problem.classes)
    texts = [f.name for f in features if f.kind == "text"]
    sums: dict[str, pd.DataFrame] = {}
    seen: list[tuple[int, pd.Timestamp, pd.Timestamp, float, float]] = []
    totals = np.zeros(classes or 1)
    for _, table in batches(digest, list(dict.fromkeys([*texts, *by, "event_time", "label"]))):
        if not len(rows := labelled(table, window)):
            continue
        y_true, times = rows["label"].to_numpy(), rows["event_time"]
        check_labels(y_true, params)
        targets = [np.asarray(y_true == k, float) for k in range(classes)] if classes else [y_true]
        totals += [target.sum() for target in targets]
        for name in [*texts, _BY]:
            keys = np.array(keys_of(by, rows), object) if name == _BY else rows[name].to_numpy()
            found = sums_by(keys, targets)
            sums[name] = sums[name].add(found, fill_value=0.0) if name in sums else found
        seen.append((len(rows), times.min(), times.max(), y_true.min(), y_true.max()))
    n = sum(rows for rows, *_ in seen)
    enough(n, params.train.min_rows, f"train window {window}")
    vary(min(each[3] for each in seen), max(each[4] for each in seen), n, window)
    sums = {name: found.sort_index() for name, found in sums.items()}
    means = sums[_BY].drop(columns="rows").div(sums[_BY]["rows"], axis=0)
    return Survey(
        encoding=encoding_of(features, [float(np.float32(total / n)) for total in totals], sums),
        climatology=climatology_of(by, means, totals / n),
        learned=Learned(
            first=min(each[1] for each in seen).to_pydatetime(), last=max(each[2] for each in seen).to_pydatetime(), rows=n
        ),
    )


def shared_out(digest: str, window: Window, rows: int, workers: int) -> tuple[list[Share], pd.DataFrame]:
    """Cuts the window's labelled rows, `rows` of them, into shares that differ by one row at most; and a sample, in order.

    Where they are not more than `SAMPLE`, the sample is all of them.
    """
    cuts = [rows * k // workers for k in range(workers)]
    stride, seen, last = -(-rows // SAMPLE), 0, 0
    kept: list[pd.DataFrame] = []
    starts: list[int] = []
    for at, table in batches(digest):
        found = labelled(table, window)
        places = at + found.index.to_numpy()
        starts += [int(places[cut - seen]) for cut in cuts if seen <= cut < seen + len(found)]
        kept.append(found.iloc[(-seen) % stride :: stride])
        seen += len(found)
        last = int(places[-1]) + 1 if len(found) else last
    counts = np.diff([*cuts, rows]).tolist()
    shares = [Share(first=first, last=end, rows=n) for first, end, n in zip(starts, [*starts[1:], last], counts, strict=True)]
    return shares, pd.concat(kept, ignore_index=True)
