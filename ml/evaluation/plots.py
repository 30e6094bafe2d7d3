"""Pictures of a holdout: calibration and log-loss by day."""

from __future__ import annotations

import io

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure


def calibration(y_true: np.ndarray, answers: dict[str, np.ndarray], bins: int = 10) -> bytes:
    """PNG: observed share against mean probability, in bins of equal count, one line per model."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name, y_proba in answers.items():
        parts = np.array_split(np.argsort(y_proba, kind="stable"), bins)
        axes.plot([y_proba[p].mean() for p in parts], [y_true[p].mean() for p in parts], marker="o", label=name)
    axes.set(xlabel="mean predicted probability", ylabel="observed share", title=f"Calibration, {len(y_true):,} rows")
    axes.legend()
    return _png(figure)


def by_day(days: list[str], losses: dict[str, list[float]]) -> bytes:
    """PNG: mean log-loss of each day, one line per model."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(days, values, marker="o", label=name)
    axes.set(ylabel="log-loss (nats)", title="Holdout by day")
    axes.tick_params(axis="x", rotation=45)
    axes.legend()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
