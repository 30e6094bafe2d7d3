"""Drift by feature and day, and one feature's distributions on one day: from the monitoring's documents in the store.

A document is named by its digest and never changes, so what was read of it is kept in memory.
"""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import orjson

from ml import ledger, store
from ml.errors import NotFoundError
from ml.monitoring import charts
from ml.monitoring.charts import Series
from ml.pages import lines, pictures, spans
from ml.serving import manifest

RANGES = (30, 60, 120)
"""Days that a heat map may have."""
FEATURES = 30
"""Features shown unless all are asked for: those that drifted most."""
ANSWERS = ("prediction", "label")
"""Profiled beside the features."""
STEPS = {"none": 0, "small": 1, "moderate": 2, "large": 3}
DOCUMENTS = 800
"""Documents whose drift is kept in memory: two years, some kilobytes each."""


class Cell(NamedTuple):
    """How far a feature was from the reference that day."""

    verdict: str
    psi: float
    importance: float | None

    @property
    def step(self) -> int:
        return STEPS.get(self.verdict, 0)


def _labelled(columns: list[str]) -> set[str]:
    """The days whose date is written above them: the first, and where a week of the month begins; a date needs three squares.

    >>> sorted(_labelled(["2013-04-13", "2013-04-14", "2013-04-15", "2013-04-16"]))
    ['2013-04-15']
    >>> sorted(_labelled(["2013-04-10", "2013-04-11", "2013-04-12", "2013-04-15"]))
    ['2013-04-10', '2013-04-15']
    """
    begins = {day for day in columns if day[8:] in {"01", "08", "15", "22"}}
    return begins if begins & set(columns[1:3]) else begins | set(columns[:1])


def heat_map(days: int, until: date | None, whole: bool) -> dict[str, Any]:
    """days, rows (name, importance, cells), labelled, newer and older (until dates), hidden: see the template. Two queries.

    Args:
        days: how many.
        until: the last one; None: the newest that was watched.
        whole: all features, not only `FEATURES`.
    """
    now = ledger.data_now()
    end = until or now.date()
    looks = lines.watched(since=datetime.combine(end - timedelta(days=days + 1), datetime.min.time()))
    looks = [look for look in looks if look["day"] <= end.isoformat() and look["day"] > (end - timedelta(days=days)).isoformat()]
    columns = {look["day"]: movement(look["report"]) for look in looks if look["report"]}
    names = {name for cells in columns.values() for name in cells}
    rows = [
        {
            "name": name,
            "importance": next((c[name].importance for c in reversed(columns.values()) if name in c), None),
            "cells": [cells.get(name) for cells in columns.values()],
        }
        for name in names
    ]
    rows.sort(key=_weight, reverse=True)
    shown = rows if whole else rows[:FEATURES]
    return {
        "now": now,
        "days": days,
        "ranges": RANGES,
        "until": end,
        "newer": min(end + timedelta(days=days), now.date()) if end < now.date() else None,
        "older": end - timedelta(days=days),
        "whole": whole,
        "columns": list(columns),
        "labelled": _labelled(list(columns)),
        "rows": shown,
        "hidden": len(rows) - len(shown),
    }


def feature(name: str, day: str | None, days: int = 60) -> dict[str, Any]:
    """One feature: its figures and distributions on a day (default: the newest that has it), and its drift over the days before.

    Three queries.

    Raises:
        NotFoundError: no document has it.
    """
    looks = [look for look in lines.watched(limit=400) if look["report"]]
    fitting = (look for look in reversed(looks) if day is None or look["day"] == day)
    that = next((look for look in fitting if name in movement(look["report"])), None)
    if that is None:
        raise NotFoundError(f"no drift of {name!r} was measured{f' on {day}' if day else ''}", "choose a feature on the heat map")
    place = looks.index(that)
    document = orjson.loads(store.get(that["report"]))
    found = next(one for one in _all(document) if one["name"] == name)
    labels = _bins(name, str(document.get("champion", "")), len(found.get("reference", [])))
    recent = next((one for one in document.get("recent", []) if one["name"] == name), None)
    return {
        "now": ledger.data_now(),
        "name": name,
        "day": that["day"],
        "champion": document.get("champion"),
        "found": found,
        "recent": recent,
        "entry": that["entry"],
        "picture": pictures.distribution(found.get("reference", []), found.get("window", []), labels, f"{name} on {that['day']}"),
        "bins": pictures.shares(found.get("reference", []), found.get("window", []), labels),
        "course": _course(name, looks[max(0, place - days + 1) : place + 1]),
        "before": looks[place - 1]["day"] if place else None,
        "after": looks[place + 1]["day"] if place + 1 < len(looks) else None,
    }


@lru_cache(maxsize=DOCUMENTS)
def _movement(report: str) -> dict[str, Cell]:
    document = orjson.loads(store.get(report))
    return {
        one["name"]: Cell(one.get("verdict", "none"), one["psi"], one.get("importance"))
        for one in _all(document)
        if one.get("psi") is not None
    }


def movement(report: str) -> dict[str, Cell]:
    """Drift by feature in the document with this digest; empty where it is not in the store any more."""
    try:
        return _movement(report)
    except NotFoundError:
        return {}


def _all(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [*document.get("drifts", []), *(document[name] for name in ANSWERS if document.get(name))]


def _weight(row: dict[str, Any]) -> tuple[bool, int, float]:
    """What the model says and what came true first, then by the number of days that matter, then by the sum of PSI."""
    known = [cell for cell in row["cells"] if cell is not None]
    return row["name"] in ANSWERS, sum(cell.step >= STEPS["moderate"] for cell in known), sum(cell.psi for cell in known)


def _course(name: str, looks: list[dict[str, Any]]) -> Any:
    """PSI over the days."""
    days = [date.fromisoformat(look["day"]) for look in looks]
    psi = [cell.psi if (cell := movement(look["report"]).get(name)) else None for look in looks]
    series = [Series("PSI", psi)]
    return charts.chart([day.toordinal() for day in days], series, f"PSI of {name}", charts.day_ticks(days), zero=True)


def _bins(name: str, version: str, n: int) -> list[str]:
    """Labels of a feature's bins, from the profile in the bundle of the version; numbers where that is not there any more."""
    digest = spans.bundles(manifest.history()).get(version)
    try:
        profile = _profile(digest) if digest else {}
    except NotFoundError:
        profile = {}
    labels = profile.get(name, [])
    return labels if len(labels) == n else [f"bin {i + 1}" for i in range(n)]


@lru_cache(maxsize=64)
def _profile(bundle: str) -> dict[str, list[str]]:
    """By feature, a label for each bin: ranges of a number, categories of a text."""
    profile = json.loads(store.unpack(store.get(bundle)).get("profile.json", b"{}"))
    labels = {name: _ranges(part["edges"]) for name, part in profile.get("numeric", {}).items()}
    return labels | {name: list(part["counts"]) for name, part in profile.get("text", {}).items()}


def _ranges(edges: list[float]) -> list[str]:
    """Bin i holds ``edges[i-1] < x <= edges[i]``."""
    told = [f"{edge:.4g}" for edge in edges]
    if not told:
        return ["all"]
    return [f"≤ {told[0]}", *(f"{a} – {b}" for a, b in pairwise(told)), f"> {told[-1]}"]
