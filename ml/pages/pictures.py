"""A distribution beside its reference, as inline SVG and as figures. All text is escaped; colours are the page's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from markupsafe import Markup

WIDTH, HEIGHT = 1040, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
TICKS = 5
LETTER = 6.2
"""Width of a letter of a label, in units of the picture."""

_OPEN = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
_BAR = Markup('<rect class="reference" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
_STEPS = Markup('<polyline class="own" points="{}"/>')
_GRID = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')


class Bin(TypedDict):
    """Shares of all rows with a value, 0–1; None where there are none."""

    label: str
    reference: float | None
    window: float | None


def shares(reference: Sequence[float], window: Sequence[float], labels: Sequence[str]) -> list[Bin]:
    """One line for each bin; counts of the two sides are brought to sum 1 each."""
    sides = [[value / sum(side) if sum(side) > 0 else None for value in side] for side in (reference, window)]
    return [{"label": label, "reference": r, "window": w} for label, r, w in zip(labels, *sides, strict=False)]


def distribution(reference: Sequence[float], window: Sequence[float], labels: Sequence[str], title: str) -> Markup:
    """The reference as bars and the window as a line of steps, both as shares; empty where a side has no rows."""
    if not labels or len(reference) != len(window) or sum(reference) <= 0 or sum(window) <= 0:
        return Markup("")
    bins = shares(reference, window, labels)
    peak = max(max(one["reference"] or 0, one["window"] or 0) for one in bins)
    floor, step = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / len(bins)

    def down(share: float | None) -> float:
        return floor - (floor - TOP) * (share or 0.0) / peak

    parts = [_OPEN.format(WIDTH, HEIGHT, title)]
    for i in range(TICKS + 1):
        share = peak * i / TICKS
        parts += [
            _GRID.format(LEFT, down(share), WIDTH - RIGHT, down(share)),
            _TEXT.format(LEFT - 7, down(share) + 4, "end", f"{share:.0%}" if peak >= 0.2 else f"{share:.1%}"),
        ]
    outline = []
    for i, one in enumerate(bins):
        x = LEFT + i * step
        told = f"{one['label']}: reference {one['reference']:.1%}, window {one['window']:.1%}"
        parts.append(_BAR.format(x + 1, down(one["reference"]), max(step - 2, 1), floor - down(one["reference"]), told))
        outline += [f"{x:.1f},{down(one['window']):.1f}", f"{x + step:.1f},{down(one['window']):.1f}"]
    parts.append(_STEPS.format(" ".join(outline)))
    free = 0.0
    for i, one in enumerate(bins):
        middle, half = LEFT + (i + 0.5) * step, LETTER * len(one["label"]) / 2
        if middle - half > free and middle + half < WIDTH:
            free = middle + half + 6
            parts.append(_TEXT.format(middle, floor + 16, "middle", one["label"]))
    return Markup("\n").join([*parts, Markup("</svg>")])
