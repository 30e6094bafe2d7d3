"""Pictures of a holdout, as PNG bytes: one function per picture, one look for all.

A contender keeps its colour from picture to picture; baselines are grey. Every function leaves its arguments as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from sklearn import metrics as sk

from ml.errors import NotEnoughDataError

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, RED, GREEN, INK, LINE = "#2458a6", "#c2621b", "#b3261e", "#2e7d4f", "#30343b", "#c9cdd3"
OWN_COLOURS = {"candidate": BLUE, "champion": ORANGE}
OTHERS = (("#7a828e", "--"), ("#7a828e", ":"), ("#a4abb5", "-."), ("#a4abb5", "-"))
FAMILIES = (BLUE, ORANGE, GREEN, "#7b4fa3")
MOST_ROWS = 40
"""Bars or slices in one picture; beyond this the labels cannot be read."""


def calibration(y_true: np.ndarray, answers: Mapping[str, np.ndarray], bins: int = 10) -> bytes:
    """PNG: observed share against mean probability, in bins of equal count, one line per model.

    Args:
        y_true: labels 0/1, shape (n,); answers: probabilities by contender, each shape (n,), without NaN.
        bins: bins of equal count; fewer when there are fewer rows.
    """
    figure, (axes,) = _figure(5.2, 5.2)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, zorder=1)
    for name, y_proba, style in _styled(answers):
        parts = np.array_split(np.argsort(y_proba, kind="stable"), min(bins, len(y_true)))
        axes.plot(
            [y_proba[p].mean() for p in parts], [y_true[p].mean() for p in parts], marker="o", markersize=4, label=name, **style
        )
    axes.set(xlabel="mean predicted probability", ylabel="observed share", title=f"Calibration, {len(y_true):,} rows")
    axes.legend()
    return _png(figure)


def by_day(days: Sequence[str], losses: Mapping[str, Sequence[float]], ylabel: str = "mean loss") -> bytes:
    """PNG: mean loss of each day, one line per model.

    Args:
        days: ISO dates, oldest first; losses: by contender, one value per day (NaN leaves a gap).
        ylabel: what the loss is, with its unit.
    """
    figure, (axes,) = _figure(8, 3.8)
    for name, values, style in _styled(losses):
        axes.plot(range(len(days)), values, marker="o", markersize=3.5, label=name, **style)
    step = max(1, -(-len(days) // 16))  # at most 16 dates, or they run into one another
    axes.set_xticks(range(0, len(days), step), list(days)[::step], rotation=40, ha="right")
    axes.set(ylabel=ylabel, title="Holdout by day")
    axes.legend()
    return _png(figure)


def forest(rows: Sequence[Mapping[str, Any]], margin: float | None = None) -> bytes:
    """PNG: each slice's difference of loss to the champion with its interval, worst on top; right of zero is worse.

    Args:
        rows: the report's slices (slice, n, difference {mean, low, high}, verdict); those without a finite interval are left out,
            very wide intervals cut off.
        margin: the difference that is still allowed, drawn as a dashed line.

    Raises:
        NotEnoughDataError: no slice has an interval.
    """
    known = [row for row in rows if _finite(row.get("difference"))]
    if not known:
        raise NotEnoughDataError(f"none of {len(rows)} slices has a difference with an interval", "leave this picture out")
    shown = sorted(known, key=lambda row: -row["difference"]["mean"])[:MOST_ROWS]
    figure, (axes,) = _figure(8, 1.5 + 0.27 * len(shown))
    for place, row in enumerate(shown):
        d = row["difference"]
        colour = RED if row.get("verdict") == "worse" else INK
        axes.plot([d["low"], d["high"]], [place, place], color=colour, linewidth=1.6)
        axes.plot([d["mean"]], [place], "o", color=colour, markersize=4.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    if margin is not None:
        axes.axvline(margin, color=RED, linewidth=1, linestyle="--", label=f"margin {margin:+g}")
        axes.legend(loc="lower right")
    axes.set_xlim(*_most([row["difference"] for row in shown], margin or 0.0))
    axes.set_yticks(range(len(shown)), [_short(f"{row['slice']}  ({row['n']:,})") for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="loss minus the champion's (right: worse)", title=f"Slices: {len(shown)} of {len(rows)}, worst on top")
    return _png(figure)


def _most(differences: Sequence[Mapping[str, float]], margin: float) -> tuple[float, float]:
    """Limits that show all means and most intervals whole: those of very few days are so wide that all else would be a dot."""
    usual = 3 * np.median([d["high"] - d["low"] for d in differences])
    shown = [end for d in differences for end in (d["low"], d["high"]) if d["high"] - d["low"] <= usual]
    shown += [d["mean"] for d in differences] + [0.0, margin]
    room = 0.05 * (max(shown) - min(shown)) or 0.01
    return min(shown) - room, max(shown) + room


def importance(names: Sequence[str], values: Sequence[float], champion_values: Sequence[float] | None = None) -> bytes:
    """PNG: mean |contribution| of each feature, largest on top; the champion's as a thin bar below.

    Args:
        names: features; values: ≥ 0, one per feature, in the model's own output unit.
        champion_values: the same of the champion, in the same order; NaN where it has no such feature.
    """
    order = np.argsort(-np.asarray(values, dtype=float), kind="stable")[:MOST_ROWS]
    places = np.arange(len(order))
    figure, (axes,) = _figure(8, 1.5 + 0.3 * len(order))
    axes.barh(
        places - (0.12 if champion_values is not None else 0), np.asarray(values)[order], 0.5, color=BLUE, label="candidate"
    )
    if champion_values is not None:
        axes.barh(places + 0.26, np.asarray(champion_values, dtype=float)[order], 0.2, color=ORANGE, label="champion")
        axes.legend(loc="lower right")
    axes.set_yticks(places, [_short(names[i]) for i in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="mean |contribution|", title="Importance")
    return _png(figure)


def convergence(points: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: loss of each trial in the order of the slots, and the best so far.

    Args:
        points: {slot, loss, best, cpu_seconds, state, family}; loss is None where a trial failed (it has no dot). Trials that
            were not completed (e.g. pruned) are hollow.
    """
    figure, (axes,) = _figure(8, 3.8)
    ordered = sorted(points, key=lambda point: point["slot"])
    families = list(dict.fromkeys(str(point.get("family") or "model") for point in ordered))
    for family, colour in zip(families, _cycle(FAMILIES, len(families)), strict=True):
        for complete in (True, False):
            some = [
                p
                for p in ordered
                if p.get("loss") is not None
                and str(p.get("family") or "model") == family
                and (str(p.get("state") or "complete").lower() == "complete") == complete
            ]
            if some:
                face, label = (colour, family) if complete else ("white", f"{family}, not completed")
                axes.scatter(
                    [p["slot"] for p in some], [p["loss"] for p in some], s=28, c=face, edgecolors=colour, label=label, zorder=3
                )
    best = [p for p in ordered if p.get("best") is not None]
    axes.step([p["slot"] for p in best], [p["best"] for p in best], where="post", color=INK, linewidth=1.2, label="best so far")
    seconds = sum(p.get("cpu_seconds") or 0.0 for p in ordered)
    axes.set(xlabel="trial", ylabel="validation loss", title=f"Search: {len(ordered)} trials, {seconds:,.0f} CPU seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return _png(figure)


def curves(y_true: np.ndarray, answers: Mapping[str, np.ndarray]) -> bytes:
    """PNG: ROC curve and precision-recall curve side by side, one line per model.

    Args:
        y_true: labels 0/1, shape (n,); answers: probabilities by contender, each shape (n,), without NaN.

    Raises:
        NotEnoughDataError: only one class is present; neither curve is defined then.
    """
    if len(np.unique(y_true)) != 2:
        raise NotEnoughDataError(f"{len(y_true):,} rows of one class only have no ROC curve", "leave this picture out")
    figure, (left, right) = _figure(9.6, 5.4, columns=2)  # beside a square picture of the same height
    left.plot([0, 1], [0, 1], color=LINE, linewidth=1, zorder=1)
    right.axhline(float(np.mean(y_true)), color=LINE, linewidth=1, zorder=1)
    for name, y_proba, style in _styled(answers):
        false_positives, true_positives, _ = sk.roc_curve(y_true, y_proba)
        left.plot(false_positives, true_positives, label=name, **style)
        precision, recall, _ = sk.precision_recall_curve(y_true, y_proba)
        # the last point (recall 0, precision 1) is a convention, and the few before it are noise of single rows
        kept = recall >= 0.01
        right.plot(recall[kept], precision[kept], label=name, **style)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="Precision and recall", ylim=(0, 1.02), xlim=(0, 1))
    left.legend(loc="lower right")
    return _png(figure)


def residuals(y_true: np.ndarray, answers: Mapping[str, np.ndarray], bins: int = 20) -> bytes:
    """PNG for regression: residual (truth minus answer) along the answer with the candidate's 10–90 % band, and its distribution.

    Args:
        y_true: shape (n,), in the label's unit; answers: predictions by contender (the first gets the band), each shape (n,).
        bins: bins of equal count along the answer; fewer when there are fewer rows.
    """
    figure, (left, right) = _figure(9.6, 4.4, columns=2)
    spread = np.concatenate([y_true - answer for answer in answers.values()])
    low, high = np.quantile(spread, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, 61).tolist()
    for place, (name, answer, style) in enumerate(_styled(answers)):
        error = y_true - answer
        parts = np.array_split(np.argsort(answer, kind="stable"), min(bins, len(y_true)))
        middle = [answer[p].mean() for p in parts]
        left.plot(middle, [np.median(error[p]) for p in parts], label=name, **style)
        if place == 0:
            band = np.array([np.quantile(error[p], [0.1, 0.9]) for p in parts])
            left.fill_between(middle, band[:, 0], band[:, 1], color=style["color"], alpha=0.12, linewidth=0)
        right.hist(error, edges, histtype="step", density=True, label=name, **style)
    left.axhline(0, color=INK, linewidth=0.8, zorder=1)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    left.set(xlabel="answer", ylabel="residual (truth minus answer)", title="Median residual, and 10–90 % of the first")
    right.set(xlabel="residual (middle 99 %)", ylabel="density", title=f"Residuals, {len(y_true):,} rows")
    left.legend()
    return _png(figure)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    every = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(colors=INK, length=3, labelsize=9)
        axes.grid(color="#eceef1", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, every


def _styled(by_contender: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, values and line style of each contender."""
    others = iter(_cycle(OTHERS, len(by_contender)))
    for name, values in by_contender.items():
        if name in OWN_COLOURS:
            yield name, values, {"color": OWN_COLOURS[name], "linewidth": 1.8, "zorder": 3}
        else:
            colour, dash = next(others)
            yield name, values, {"color": colour, "linestyle": dash, "linewidth": 1.3, "zorder": 2}


def _cycle(choices: Sequence[Any], count: int) -> list[Any]:
    return [choices[i % len(choices)] for i in range(count)]


def _finite(difference: Mapping[str, float | None] | None) -> bool:
    bounds = [(difference or {}).get(key) for key in ("mean", "low", "high")]
    return all(bound is not None and np.isfinite(bound) for bound in bounds)


def _short(label: str, most: int = 44) -> str:
    # a dollar sign would start mathematical notation
    return (label if len(label) <= most else label[: most - 1] + "…").replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.title.set(fontsize=11, color=INK)
        axes.xaxis.label.set(fontsize=9.5, color=INK)
        axes.yaxis.label.set(fontsize=9.5, color=INK)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_fontsize(9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
