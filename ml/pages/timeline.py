"""Versions, decisions, drift and realised performance over time: pictures, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
from markupsafe import Markup

from ml import ledger
from ml.monitoring import charts
from ml.monitoring.charts import Mark, Series
from ml.pages import lines, spans
from ml.pages.spans import Span
from ml.serving import manifest

RANGES = (30, 90, 365)
"""Days of data time that a person can choose; 0: all."""


def collect(days: int) -> dict[str, Any]:
    """pictures (losses, scores, drift), spans, rows (newest first): see the template. Four queries.

    Args:
        days: of data time up to now; 0 for all.
    """
    now = ledger.data_now()
    since = now - timedelta(days=days) if days else None
    served = [span for span in spans.spans(manifest.history()) if since is None or span.until is None or span.until >= since]
    looks = lines.watched(since)
    rejected = [
        entry for entry in ledger.query(["gate"], since=since, limit=None) if entry.verdict != "promote"
    ]  # a promoted one shows as the span that it began
    marks = _marks(served, looks, since)
    metric = next((look["metric"] for look in reversed(looks) if "metric" in look), "log_loss")
    # one range for all pictures, so that what happened on a day lies below itself
    together = _every({*_realised(looks, metric), *(date.fromisoformat(look["day"]) for look in looks)})
    return {
        "now": now,
        "days": days,
        "ranges": RANGES,
        "metric": metric,
        "losses": _quality(looks, together, metric, f"{_words(metric)} per day", marks, estimate=True),
        "scores": _quality(looks, together, "auc", "AUC per day", marks),
        "drift": _drift(looks, together, marks),
        "spans": served[::-1],
        "rejected": lines.lines(rejected),
        "rows": _rows(looks, served, metric),
    }


def small(found: Sequence[Mapping[str, Any]]) -> Markup:
    """The realised loss of some days, without marks; nothing where fewer than two are known."""
    metric = next((one["metric"] for one in reversed(found) if "metric" in one), "log_loss")
    known = _realised(found, metric)
    if len(known) < 2:
        return Markup("")
    days = sorted(known)
    ticks = charts.day_ticks(days, 8)
    series = [Series(f"realised {_words(metric)}", [known[day] for day in days])]
    return charts.chart([day.toordinal() for day in days], series, f"Realised {_words(metric)} of the last days", ticks)


def _quality(
    looks: Sequence[Mapping[str, Any]],
    days: Sequence[date],
    metric: str,
    title: str,
    marks: Sequence[Mark],
    estimate: bool = False,
) -> Markup:
    """Realised values at the day that the labels belong to; the estimate, until labels come, at the day it was made for."""
    realised = _realised(looks, metric)
    known = [one for one in looks if estimate and "value" in one.get("estimate", {})]
    estimated = {date.fromisoformat(one["day"]): one["estimate"] for one in known}
    if not realised and not estimated:
        return Markup("")
    value, low, high = ([estimated.get(day, {}).get(key) for day in days] for key in ("value", "low", "high"))
    series = [Series("estimated", value, "other", low=low, high=high)] if estimated else []
    series.append(Series("realised", [realised.get(day) for day in days]))
    return charts.chart([day.toordinal() for day in days], series, title, charts.day_ticks(days), marks)


def _drift(looks: Sequence[Mapping[str, Any]], days: Sequence[date], marks: Sequence[Mark]) -> Markup:
    by_day = {date.fromisoformat(one["day"]): one for one in looks if "psi" in one.get("drift", {})}
    if not by_day:
        return Markup("")
    psi = [by_day[day]["drift"]["psi"] if day in by_day else None for day in days]
    moved = [by_day[day].get("moved") if day in by_day else None for day in days]
    # one broken day has a PSI of ten, and would press all others to the ground
    top = float(max(1.5 * np.quantile([value for value in psi if value is not None], 0.95), 0.25))
    series = [Series("largest PSI", psi), Series("importance that drifted", moved, "other")]
    x, ticks = [day.toordinal() for day in days], charts.day_ticks(days)
    return charts.chart(x, series, "Drift per day", ticks, marks, top=top, zero=True)


def _marks(served: Sequence[Span], looks: Sequence[Mapping[str, Any]], since: datetime | None) -> list[Mark]:
    """Versions where they began to serve (a rollback in red), and requests for a retrain as triangles at the foot."""
    begun = [span for span in served if since is None or span.since >= since]
    found = [
        Mark(span.since.date().toordinal(), f"v{span.version}{' again' if span.again else ''}", "bad" if span.again else "soft")
        for span in begun
    ]
    asked = [one for one in looks if one.get("verdict") == "retrain"]
    return found + [
        Mark(
            date.fromisoformat(one["day"]).toordinal(),
            f"{one['day']}: retrain asked for: {one.get('reason', '')}",
            "bad",
            foot=True,
        )
        for one in asked
    ]


def _rows(looks: Sequence[dict[str, Any]], served: Sequence[Span], metric: str) -> list[dict[str, Any]]:
    """The pictures' figures, newest day first; realised figures stand at the day that the labels belong to."""
    realised = {one["realised"]["day"]: one["realised"] for one in looks if "day" in one.get("realised", {})}
    begun: dict[str, list[Span]] = {}
    for span in served:
        begun.setdefault(f"{span.since:%Y-%m-%d}", []).append(span)
    by_day = {one["day"]: one for one in looks}
    found = []
    for day in sorted({*by_day, *realised, *begun}, reverse=True):
        one = by_day.get(day, {})
        found.append({
            "day": day,
            "entry": one.get("entry"),
            "champion": one.get("champion"),
            "phase": one.get("phase"),
            "verdict": one.get("verdict"),
            "tone": lines.tone_of(one.get("verdict") or ""),
            "reason": one.get("reason", ""),
            "loss": realised.get(day, {}).get(metric),
            "auc": realised.get(day, {}).get("auc"),
            "n": realised.get(day, {}).get("n"),
            "drift": one.get("drift", {}),
            "begun": begun.get(day, []),
        })  # fmt: skip
    return found


def _realised(looks: Sequence[Mapping[str, Any]], metric: str) -> dict[date, float]:
    return {
        date.fromisoformat(one["realised"]["day"]): one["realised"][metric]
        for one in looks
        if "day" in one.get("realised", {}) and one["realised"].get(metric) is not None
    }


def _every(known: set[date]) -> list[date]:
    """Every day from the first to the last, so that a gap is seen as one."""
    if not known:
        return []
    first, last = min(known), max(known)
    return [first + timedelta(days=i) for i in range((last - first).days + 1)]


def _words(metric: str) -> str:
    return {"log_loss": "log-loss"}.get(metric, metric.replace("_", " "))
