"""The overview over time: one line a day, and pictures of quality and drift with what was decided marked in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
from markupsafe import Markup

from ml.evaluation.page import label, measured
from ml.monitoring import charts, page
from ml.monitoring.charts import Mark, Series

REASON = 140
"""Characters of a reason that a line shows at most."""


class Line(TypedDict, total=False):
    """What the overview needs of a day, so that a year need not read a year's documents. JSON; made by `line`."""

    day: str
    champion: str | None
    phase: str | None
    verdict: str | None
    reason: str
    text: str
    broken: list[str]
    metric: str
    realised: dict[str, Any]
    """The newest matured day: day, n, log_loss, auc."""
    estimate: dict[str, Any]
    """value, low, high of the loss; valid."""
    drift: dict[str, Any]
    """The feature with the largest PSI: name, psi, verdict."""
    moved: float | None


def line(day: page.Day) -> Line:
    """A day's line."""
    known = measured(day)
    decision, metric = known.get("decision", {}), known.get("metric", "log_loss")
    strongest = max(page.inputs(known), key=lambda one: one.get("psi", -1.0), default={})
    estimate = known.get("estimate", {})
    return {
        "day": known.get("day", ""),
        "champion": page.version(known),
        "phase": known.get("phase"),
        "verdict": decision.get("verdict"),
        "reason": str(decision.get("reason", "")),
        "text": page.headline(day).text,
        "broken": page.broken(known),
        "metric": metric,
        "realised": {
            key: value for key, value in (known.get("realised") or [{}])[-1].items() if key in ("day", "n", "auc", metric)
        },
        "estimate": estimate.get("metrics", {}).get(metric, {}) | _only(("valid",), estimate),
        "drift": _only(("name", "psi", "verdict"), strongest),
        "moved": known.get("moved"),
    }


def render(lines: Sequence[Line], title: str = "Monitoring", link: str = "{day}.html") -> bytes:
    """The overview's page: UTF-8 HTML, newest day first; all strings are escaped.

    Args:
        lines: in any order; of a day that is there twice the last counts.
        link: where a day's page is, with ``{day}`` for its date; empty: no links.
    """
    ordered = [_dated(one) for one in sorted({one["day"]: one for one in lines}.values(), key=lambda one: one["day"])]
    changes, requests = _changes(ordered), [one for one in ordered if one.get("verdict") == "retrain"]
    return page.fill(
        "overview.html.j2",
        title=title,
        lines=[{**one, "href": link.format(day=one["day"]) if link else "", "reason": _cut(one.get("reason", ""))}
               for one in reversed(ordered)],
        changes=changes,
        requests=requests,
        frozen=[one for one in ordered if one.get("phase") == "frozen" or one.get("broken")],
        metric=_metric(ordered),
        quality=quality_chart(ordered, _marks(changes, requests)),
        drift=_drift_chart(ordered, _marks(changes, requests)),
    )  # fmt: skip


def _dated(one: Line) -> Line:
    """The line, without nulls; a day that is no date is refused, since it becomes part of a link."""
    date.fromisoformat(one["day"])
    return measured(one)


def _changes(lines: Sequence[Line]) -> list[Line]:
    """Lines of days on which another champion served than the day before."""
    return [now for before, now in pairwise(lines) if now.get("champion") != before.get("champion")]


def _marks(changes: Sequence[Line], requests: Sequence[Line]) -> list[Mark]:
    champions = [Mark(_place(one), f"v{one.get('champion', '?')}") for one in changes]
    return champions + [Mark(_place(one), f"{one['day']}: retrain asked for", "bad", foot=True) for one in requests]


def quality_chart(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> Markup:
    """Realised loss at the day that the labels belong to; the estimate at the day it was made for."""
    metric = _metric(lines)
    realised = {one["realised"]["day"]: one["realised"].get(metric) for one in lines if "day" in one.get("realised", {})}
    estimated = {one["day"]: one["estimate"] for one in lines if "value" in one.get("estimate", {})}
    days = sorted({*realised, *estimated})
    if not days:
        return Markup("")
    value, low, high = ([estimated.get(day, {}).get(key) for day in days] for key in ("value", "low", "high"))
    series = [Series("estimated", value, "other", low=low, high=high), Series("realised", [realised.get(day) for day in days])]
    x = [date.fromisoformat(day) for day in days]
    return charts.chart([one.toordinal() for one in x], series, f"{label(metric)} over time", charts.day_ticks(x), marks)


def _drift_chart(lines: Sequence[Line], marks: Sequence[Mark]) -> Markup:
    psi = [one.get("drift", {}).get("psi") for one in lines]
    known = [value for value in psi if value is not None]
    if not known:
        return Markup("")
    days = [date.fromisoformat(one["day"]) for one in lines]
    # one broken day has a PSI of ten, and would press all others to the ground
    top = float(max(1.5 * np.quantile(known, 0.95), 0.25))
    series = [Series("largest PSI", psi), Series("importance that drifted", [one.get("moved") for one in lines], "other")]
    x = [one.toordinal() for one in days]
    return charts.chart(x, series, "Drift over time", charts.day_ticks(days), marks, top=top, zero=True)


def _metric(lines: Sequence[Line]) -> str:
    return next((one["metric"] for one in reversed(lines) if "metric" in one), "log_loss")


def _place(one: Line) -> int:
    return date.fromisoformat(one["day"]).toordinal()


def _only(keys: Sequence[str], of: Mapping[str, Any]) -> dict[str, Any]:
    return {key: of[key] for key in keys if key in of}


def _cut(text: str) -> str:
    return text if len(text) <= REASON else text[: REASON - 1].rstrip() + "…"
