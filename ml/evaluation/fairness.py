"""Do groups bear the errors alike? Error rates by group of the declared attributes, by fairlearn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fairlearn.metrics import MetricFrame, count, false_positive_rate, selection_rate, true_positive_rate

RATES = {
    "n": count,
    "selection_rate": selection_rate,
    "true_positive_rate": true_positive_rate,
    "false_positive_rate": false_positive_rate,
}


@dataclass(frozen=True)
class Fairness:
    """`value`: equalised-odds difference, 0–1, lower is fairer; NaN when fewer than two groups are large enough."""

    attribute: str
    value: float
    groups: list[dict[str, float | str]]


def fairness(attribute: str, y_true: np.ndarray, decided: np.ndarray, group_of: np.ndarray, min_rows: int) -> Fairness:
    """Equalised-odds difference: the larger of the spreads of true and false positive rates between groups.

    Source: Hardt, Price and Srebro 2016, NeurIPS. A rate that a group cannot have (no row of the label) does not count.

    Args:
        y_true, decided: labels and decisions 0/1, shape (n,).
        group_of: shape (n,).
        min_rows: smaller groups are shown and do not count.
    """
    frame = MetricFrame(metrics=RATES, y_true=y_true, y_pred=decided, sensitive_features=group_of)
    table = frame.by_group
    large = table[table["n"] >= min_rows].copy()
    for rate, label in (("true_positive_rate", 1), ("false_positive_rate", 0)):
        seen = {group: bool((y_true[group_of == group] == label).any()) for group in large.index}
        large[rate] = large[rate].where([seen[group] for group in large.index])
    spreads = [float(large[rate].max() - large[rate].min()) for rate in ("true_positive_rate", "false_positive_rate")]
    groups: list[dict[str, float | str]] = [
        {"group": str(group), **{str(k): float(v) for k, v in row.items()}} for group, row in table.iterrows()
    ]
    return Fairness(attribute, float(np.nanmax(spreads)) if len(large) > 1 else float("nan"), groups)
