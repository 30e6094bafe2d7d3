"""What a replay shows: a table for people, a CSV for programs, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from ml.evaluation.plots import BLUE, GREEN, INK, LINE, ORANGE, RED  # first: it chooses matplotlib's backend
from ml.monitoring.replay import Score, Walk
from ml.monitoring.replay_matrix import Matrix

from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip

NEVER, DEFAULT = "never", "default"
GREY = "#8a93a0"
CURVES = ("oracle", "by chance")
"""Beginnings of the names of what is drawn as a curve."""
NEAR, LINE_HEIGHT = 0.45, 0.035
"""Names whose points lie so near in log10 of retrains stand at least so far apart, in shares of the height."""
COLOURS = (ORANGE, BLUE, GREEN, RED, INK, GREY)


@dataclass(frozen=True)
class Chance:
    """Retraining on so many mornings drawn by chance: mean gain over `seeds` and its 5 and 95 % quantiles, shape (counts,)."""

    counts: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Replayed:
    """One period: each policy's score and walk; chance and oracle by number of retrains; `beaten`: share of seeds with the
    default's count that the default beats.
    """

    name: str
    first: int
    end: int
    scores: list[Score]
    walks: dict[str, Walk]
    chance: Chance
    oracle: np.ndarray
    beaten: float
    seeds: int


def table(replayed: Replayed) -> str:
    """Markdown, best gain first."""
    heads = ["policy", "log-loss", "AUC", "cost a row", "retrains", "taken", "went back", "CPU s", "share of nightly's gain"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for s in sorted(replayed.scores, key=lambda score: -score.gain):
        figures = [f"{figure:.4f}" for figure in (s.log_loss, s.auc, s.cost)]
        cells = [s.name, *figures, s.retrains, s.taken, s.returns, f"{s.cpu_seconds:.0f}", f"{s.gain:.1%}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def to_csv(periods: Sequence[Replayed]) -> str:
    """One line for each period and policy, in the order of the table's figures."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["period", *(f.name for f in fields(Score))], lineterminator="\n")
    writer.writeheader()
    for replayed in periods:
        for score in replayed.scores:
            rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(score).items()}
            writer.writerow({"period": replayed.name, **rounded})
    return buffer.getvalue()


def picture(replayed: Replayed, matrix: Matrix, shown: Sequence[str]) -> bytes:
    """PNG: gain against retrains for every policy, chance and oracle; and what was gained over *never*, day by day.

    Args:
        shown: policies whose days are drawn, at most six.
    """
    figure = Figure(figsize=(13, 5.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _by_retrains(left, replayed)
    _by_day(right, replayed, matrix, shown)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eceef1", linewidth=0.8)
        axes.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _by_retrains(axes: Axes, replayed: Replayed) -> None:
    chance = replayed.chance
    axes.fill_between(chance.counts, chance.low, chance.high, color=GREY, alpha=0.25, linewidth=0)
    axes.plot(chance.counts, chance.mean, color=GREY, label=f"by chance: mean, 5–95 % of {chance.seeds:,} seeds")
    axes.plot(np.arange(1, len(replayed.oracle)), replayed.oracle[1:], color=INK, linestyle="--", label="oracle")
    shown = [s for s in replayed.scores if s.retrains and not s.name.startswith(CURVES)]
    for s in shown:
        own = s.name == DEFAULT
        axes.scatter(s.retrains, s.gain, s=70 if own else 32, color=ORANGE if own else BLUE, zorder=3)
    _named(axes, shown)
    axes.axhline(1, color=LINE, linewidth=1)
    axes.set(xscale="log", xlabel="retrains", ylabel="share of nightly's gain in log-loss over never", title=replayed.name)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _named(axes: Axes, scores: Sequence[Score]) -> None:
    """Names beside the points, moved up where they would cover one another."""
    low, high = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for s in sorted(scores, key=lambda score: score.gain):
        x, y = np.log10(s.retrains), s.gain
        for near, taken in placed:
            if abs(near - x) < NEAR and y < taken + (high - low) * LINE_HEIGHT:
                y = taken + (high - low) * LINE_HEIGHT
        placed.append((x, y))
        axes.annotate(s.name, (s.retrains, s.gain), (s.retrains * 0.93, y), fontsize=8.5, color=INK, ha="right", va="center")


def _by_day(axes: Axes, replayed: Replayed, matrix: Matrix, shown: Sequence[str]) -> None:
    still = replayed.walks[NEVER]
    days = still.first + np.arange(len(still.serving))
    dates, rows = np.array([matrix.days[d] for d in days], "datetime64[D]"), matrix.n[days].sum()
    for colour, name in zip(COLOURS, shown, strict=False):
        walked = replayed.walks[name]
        gained = np.cumsum(matrix.loss[still.serving, days] - matrix.loss[walked.serving, days])
        width = 2 if name == DEFAULT else 1.3
        axes.plot(dates, gained / rows, color=colour, label=name, linewidth=width)
    axes.set(ylabel="log-loss gained over never so far, a row of the whole period", title="When it was gained")
    axes.legend(frameon=False, fontsize=9)
    axes.tick_params(axis="x", rotation=30)
