"""Small pictures as inline SVG: they take the page's colours, light and dark, and weigh little. All text is escaped.

Tones are classes of ``monitoring.css``: own (the champion), other (the estimate), soft (the reference), bad (harm).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 1040, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 20, 26
LETTER = 6.5
"""Width of a letter of a label, in units of the picture: labels that would run into one another are left out."""

# Markup.format escapes what it fills in
_OPEN = Markup('<svg viewBox="{}" role="img" aria-label="{}">')
_CLOSE = Markup("</svg>")
_TEXT = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_LINE = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
_POLYLINE = Markup('<polyline class="{}" points="{}"/>')
_POLYGON = Markup('<polygon class="band {}" points="{}"/>')
_CIRCLE = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
_BAR = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
_STROKE = Markup('<path class="mark {}" d="{}"><title>{}</title></path>')

Place = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line, or points, along x; None leaves a gap. `low` and `high`: a band around a line, bars at points."""

    name: str
    y: Sequence[float | None]
    tone: str = "own"
    points: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line at x with a label on top; `foot`: a triangle at the foot instead, without a label."""

    x: float
    label: str
    tone: str = "soft"
    foot: bool = False


def chart(
    x: Sequence[float],
    series: Sequence[Series],
    title: str,
    ticks: Sequence[tuple[float, str]],
    marks: Sequence[Mark] = (),
    level: float | None = None,
    top: float | None = None,
    zero: bool = False,
) -> Markup:
    """A picture with axes.

    Args:
        x: ascending; each series has as many values.
        title: alternative text.
        ticks: places and labels of the x axis.
        level: a horizontal dashed line.
        top: values above it are drawn on it; `zero`: the y axis begins there, whatever the values.
    """
    shown = [value for one in series for part in (one.y, one.low, one.high) for value in part if value is not None]
    shown += [level] if level is not None else []
    if not x or not shown:
        return Markup("")
    low, high = min(shown), max(shown) if top is None else min(max(shown), top)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    steps = MaxNLocator(5, min_n_ticks=3).tick_values(0.0 if zero or 0 <= low <= room else low - room, high + room)
    frame = _Frame(min(x), max(x), float(steps[0]), float(steps[-1]))
    parts = [_OPEN.format(f"0 0 {WIDTH} {HEIGHT}", title), *_axes(frame, steps, ticks)]
    if level is not None:
        parts.append(_LINE.format("level", LEFT, frame.down(level), WIDTH - RIGHT, frame.down(level)))
    parts += _marks(frame, [mark for mark in marks if min(x) <= mark.x <= max(x)])
    for one in series:
        parts += _points(frame, x, one) if one.points else _path(frame, x, one)
    return Markup("\n").join([*parts, _CLOSE])


def day_ticks(days: Sequence[date], most: int = 12) -> list[tuple[float, str]]:
    """Ticks for days as ordinals: each of few days, the firsts of the months of many."""
    first, last = min(days), max(days)
    every = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    if len(every) > 62:
        chosen = [day for day in every if day.day == 1]
        return [(day.toordinal(), f"{day:%b %Y}" if day.month == 1 or day == chosen[0] else f"{day:%b}") for day in chosen]
    return [(day.toordinal(), f"{day.day} {day:%b}") for day in every[:: -(-len(every) // most)]]


def histogram(reference: Sequence[float], window: Sequence[float], title: str) -> Markup:
    """Shares by bin: the reference as bars, the window as a line of steps. Both are brought to sum 1; empty: no picture."""
    if not reference or len(reference) != len(window) or sum(reference) <= 0 or sum(window) <= 0:
        return Markup("")
    width, height = 150, 30
    shares = [[max(value, 0.0) / sum(side) for value in side] for side in (reference, window)]
    peak, step = max(map(max, shares)), width / len(reference)
    tops = [[height * (1 - share / peak) for share in side] for side in shares]
    bars = [_BAR.format(i * step, top, step, height - top) for i, top in enumerate(tops[0])]
    steps = [point for i, top in enumerate(tops[1]) for point in ((i * step, top), ((i + 1) * step, top))]
    return Markup("").join([
        Markup('<svg class="bins" viewBox="-1 -2 {} {}" role="img" aria-label="{}">').format(width + 2, height + 3, title),
        *bars,
        _POLYLINE.format("own", _places(steps)),
        _CLOSE,
    ])  # fmt: skip


@dataclass(frozen=True)
class _Frame:
    """Where the values of the data lie in the picture."""

    first: float
    last: float
    low: float
    high: float

    def across(self, x: float) -> float:
        span = self.last - self.first
        # a single day stands in the middle
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - self.first) / span if span else 0.5)

    def place(self, x: float, y: float | None) -> Place:
        assert y is not None
        return self.across(x), self.down(y)

    def down(self, y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(max(y, self.low), self.high) - self.low) / (self.high - self.low)


def _axes(frame: _Frame, steps: Sequence[float], ticks: Sequence[tuple[float, str]]) -> Iterator[Markup]:
    for value in steps:
        y = frame.down(value)
        yield _LINE.format("grid", LEFT, y, WIDTH - RIGHT, y)
        yield _TEXT.format("", LEFT - 7, y + 4, "end", f"{value:.4g}")
    free = -1.0
    for place, label in ticks:
        at, half = frame.across(place), LETTER * len(label) / 2
        if frame.first <= place <= frame.last and at - half > free:
            free = at + half + 4
            yield _TEXT.format("", min(at, WIDTH - half), HEIGHT - 8, "middle", label)


def _marks(frame: _Frame, marks: Sequence[Mark]) -> Iterator[Markup]:
    free, foot = 0.0, HEIGHT - BOTTOM
    for mark in sorted(marks, key=lambda one: one.x):
        at, half = frame.across(mark.x), LETTER * len(mark.label) / 2
        if mark.foot:
            yield _STROKE.format(mark.tone, f"M{at - 4:.1f},{foot} h8 l-4,-8 z", mark.label)
            continue
        yield _STROKE.format(mark.tone, f"M{at:.1f},{TOP - 2} V{foot}", mark.label)
        if at - half > free and at + half < WIDTH:
            free = at + half + 3
            yield _TEXT.format("small", at, TOP - 7, "middle", mark.label)


def _path(frame: _Frame, x: Sequence[float], one: Series) -> Iterator[Markup]:
    for run in _runs([None if None in ends else ends for ends in zip(one.low, one.high, strict=True)]):
        there, back = ([frame.place(x[i], ends[i]) for i in places] for ends, places in ((one.low, run), (one.high, run[::-1])))
        yield _POLYGON.format(one.tone, _places(there + back))
    for run in _runs(one.y):
        points = [frame.place(x[i], one.y[i]) for i in run]
        # a line of one point would not be seen
        yield _CIRCLE.format(one.tone, *points[0], 2) if len(run) == 1 else _POLYLINE.format(one.tone, _places(points))


def _points(frame: _Frame, x: Sequence[float], one: Series) -> Iterator[Markup]:
    for i in (i for run in _runs(one.y) for i in run):
        if one.low and one.high and one.low[i] is not None and one.high[i] is not None:
            yield _LINE.format(one.tone, *frame.place(x[i], one.low[i]), *frame.place(x[i], one.high[i]))
        yield _CIRCLE.format(one.tone, *frame.place(x[i], one.y[i]), 3.5)


def _runs(values: Sequence[object]) -> Iterator[list[int]]:
    """Stretches without None, as places."""
    run: list[int] = []
    for i, value in enumerate([*values, None]):
        if value is not None:
            run.append(i)
        elif run:
            yield run
            run = []


def _places(points: Sequence[Place]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
