"""The picture of `ops.bench_harm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml.config import Harm
from ml.monitoring import harm
from ops.bench_gates import save
from ops.harm_worlds import Life

COLOURS = ("tab:green", "tab:orange", "tab:red", "tab:blue", "tab:purple", "tab:brown")


def picture(
    lives: Sequence[Life],
    alarms: Mapping[str, np.ndarray],
    seen: Mapping[tuple[int, float], np.ndarray],
    limits: Harm,
    path: Path,
) -> None:
    """A real life, years in which nothing happens, and harm of known size; what was not measured is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 11), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1)
    one_life(max(lives, key=lambda each: max(d.behind for d in each.live)), limits, top)
    alarms_by_day(alarms, limits, middle)
    detection(seen, bottom)
    save(figure, path)


def one_life(life: Life, limits: Harm, axes: Any) -> None:
    """The champion that fell behind most: its loss, what the yardstick leaves of it, and what is shown for certain."""
    usual, days = np.mean([d.loss for d in life.holdout]), [d.day for d in life.live]
    found = [harm.judge(life.live[: i + 1], life.holdout, limits) for i in range(len(days))]
    axes.plot(days, [d.loss - usual for d in life.live], color="tab:orange", label="loss, less the holdout's")
    axes.plot(
        days, [d.behind - life.expected for d in life.live], color="tab:blue", label="the same beside the yardstick: excess"
    )
    low = [np.nan if f.low is None else f.low for f in found]
    axes.plot(days, low, color="tab:green", linestyle="--", label="mean excess, lower bound")
    harmed = [(day, f.low) for day, f in zip(days, found, strict=True) if f.verdict == "harmed"]
    if harmed:
        axes.plot(*zip(*harmed, strict=True), "o", color="tab:red", markersize=4, label="harmed")
    axes.axhline(limits.margin, color="grey", linewidth=1, linestyle=":", label=f"margin {limits.margin:g}")
    axes.set(ylabel="log-loss a row", title=f"a real life: champion of {life.first}", ylim=(-0.3, None))
    axes.legend(fontsize=8)


def alarms_by_day(alarms: Mapping[str, np.ndarray], limits: Harm, axes: Any) -> None:
    """Share of years with an alarm so far in which nothing happened."""
    for colour, (name, first) in zip(COLOURS, alarms.items(), strict=False):
        days = np.arange(365)
        axes.plot(days, [(first <= day).mean() for day in days], color=colour, label=name)
    axes.axhline(1 - limits.confidence, color="grey", linewidth=1, linestyle="--")
    axes.set(xlabel="day of the champion's life", ylabel="years with an alarm so far", title="nothing happens", ylim=(0, 1))
    axes.legend(fontsize=8)


def detection(seen: Mapping[tuple[int, float], np.ndarray], axes: Any) -> None:
    """Share of years in which harm is seen, by days since it began."""
    sizes = sorted({size for _, size in seen})
    for (begins, size), first in seen.items():
        waited, days = first[first >= begins] - begins + 1, np.arange(1, 61)
        axes.plot(days, [(waited <= day).mean() for day in days], color=COLOURS[sizes.index(size)],
                  linestyle="--" if begins else "-", label=f"{size:g} from day {begins} on")  # fmt: skip
    axes.set(xlabel="days since harm began", ylabel="years in which it was seen", title="harm of known size", ylim=(0, 1.02))
    axes.legend(fontsize=8)
