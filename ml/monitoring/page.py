"""What a day of watching found, for people: a page for the day, an overview over time, a note of one line.

They render the day's monitoring document (`Day`) as it is; a part that the document lacks is left out, and said. Pages are
self-contained: no script, no network, no other file; they look like the candidate's page (`ml.evaluation.page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from markupsafe import Markup

from ml.evaluation.page import label, measured, plain, templates
from ml.monitoring import charts
from ml.monitoring.charts import Mark, Series

SHOWN = 15
"""Features in the first table; the rest is folded. Those that moved are always in the first."""
NOTE = 280
"""Characters of a note at most."""
SCORES = ("auc", "accuracy", "r2", "log_loss", "rmse")
"""The figure of the headline: the first of these that was measured."""
SHORT = {"auc": "AUC", "log_loss": "log-loss"}

VERDICTS = {"retrain": "Retrain asked for", "wait": "Waiting", "keep": "Kept", "reported": "Reported only"}
HARM = {"harmed": "harm is shown", "unproven": "no harm shown", "few_labels": "too few labels to judge harm"}
MOVED = ("moderate", "large")
TONES = {
    "healthy": "good", "suspect": "warn", "confirmed": "bad", "retraining": "warn", "cooling": "none", "frozen": "bad",
    "none": "none", "small": "none", "moderate": "warn", "large": "bad", "harmed": "bad", "unproven": "good",
}  # fmt: skip

MISSING = {
    "decision": "The document holds no decision.",
    "health": "Not checked: the document holds no data checks.",
    "drifts": "Not measured: the document holds no drift. It is measured when a day has answers and their model a profile.",
    "realised": "No labels have matured: what the answers were worth is not known yet.",
    "estimate": "Not estimated: the document holds no estimate. Estimates are made for binary tasks.",
    "harm": "Not tested: the document holds no test of harm.",
    "slices": "Not measured. Slices are judged when params.yaml names them under evaluation.slices.",
    "cost_curve": "Not measured. Costs belong to binary tasks with matured labels.",
    "lines": "No day has been watched yet.",
}


class Figure(TypedDict, total=False):
    value: float
    low: float
    high: float


class Day(TypedDict, total=False):
    """A day's monitoring document, JSON. Every key may be absent or null; NaN counts as absent. Times and days are ISO 8601."""

    day: str
    """The last one that was watched."""
    as_of: str
    champion: str
    """Its version; or a mapping with ``version``."""
    title: str
    """Heading of the page, e.g. the problem's name."""
    phase: str
    """Of `ml.monitoring.policy`: healthy, suspect, confirmed, retraining, cooling, frozen."""
    decision: dict[str, Any]
    """Dump of a `Decision`: verdict ``retrain``, ``wait`` or ``keep``."""
    next_allowed: str | None
    """`ml.monitoring.policy.next_allowed`: from when on time forbids no retrain; null: a freeze or a retrain in flight does."""
    health: list[dict[str, Any]]
    """Dumps of `Check`."""
    broken: list[str]
    """Names of the checks that freeze; without this key all that failed."""
    drifts: list[dict[str, Any]]
    """By feature: name, verdict (none, small, moderate, large), psi, and where known js, wasserstein, ks, q, missing, unseen,
    importance; for the picture ``reference`` and ``window``, counts or shares of the same bins.
    """
    recent: list[dict[str, Any]]
    """The same against the same weekdays of recent weeks."""
    prediction: dict[str, Any]
    """Like one of `drifts`: the model's answers; `label`: the outcomes. Both may be among `drifts` instead."""
    label: dict[str, Any]
    moved: float
    """Share of importance that drifted, 0-1."""
    two_sample: dict[str, Any]
    """Dump of `ml.monitoring.multivariate.Apart`, of the window against the same weekdays of recent weeks."""
    realised: list[dict[str, Any]]
    """By matured day, oldest first: day, n, log_loss, auc; where known low, high (of the loss), positives, mean_probability."""
    answers: dict[str, int]
    """all, champion, flagged: answers of the days that were looked at."""
    overall: dict[str, Figure]
    """Realised metrics over these days together."""
    metric: str
    """Which key of `realised` is the loss; default log_loss."""
    expected: float
    """The champion's loss on its own holdout."""
    estimate: dict[str, Any]
    """Dump of `ml.monitoring.estimate.Estimate`: metrics (by name value, low, high), valid, reasons, n; its days are from
    ``start`` to before ``end``.
    """
    settled: dict[str, dict[str, Any]]
    """By metric: estimated, realised, error, inside, of the newest estimate whose labels have come."""
    settled_days: dict[str, Any]
    """Its days: start, end."""
    harm: dict[str, Any]
    """Dump of `ml.monitoring.harm.Harm`."""
    slices: list[dict[str, Any]]
    """Dumps of `SliceQuality`."""
    cost_curve: dict[str, Any]
    """Dump of `CostCurve`."""


class Headline(NamedTuple):
    """The day in plain words, and its tone: good, warn, bad, none."""

    text: str
    tone: str


# ---- the day


def render(day: Day) -> bytes:
    """The day's page: UTF-8 HTML, below 1 MB for some hundred features; all strings of the document are escaped."""
    known = measured(day)
    first, rest = _features(known)
    return fill(
        "day.html.j2",
        day=known,
        title=known.get("title", "Monitoring"),
        headline=headline(day),
        broken=broken(known),
        version=version(known),
        features=first,
        further=rest,
        outputs=_outputs(known),
        estimated=_estimated(known),
        quality=_quality_chart(known),
        costs=_cost_chart(known),
        allowed=_allowed(day),
    )


def headline(day: Day) -> Headline:
    """The verdict in one sentence: what was decided, how good the answers are, whether it hurt, what moved.

    >>> headline({"decision": {"verdict": "keep"}, "overall": {"auc": {"value": 0.71, "low": 0.69, "high": 0.73}}})
    Headline(text='Kept: AUC 0.710 ± 0.020', tone='good')
    """
    known = measured(day)
    verdict = known.get("decision", {}).get("verdict")
    verb, failed = VERDICTS.get(verdict, f"Verdict {verdict}" if verdict else "No verdict"), broken(known)
    if failed:
        verb = f"Frozen, data broke ({', '.join(failed)})"
    elif known.get("phase") == "frozen":
        verb = "Frozen"
    hurt = known.get("harm", {}).get("verdict")
    worth = [part for part in (_worth(known), HARM.get(hurt, "")) if part]
    parts = [part for part in (", ".join(worth), _strongest(known)) if part]
    tone = {"retrain": "warn", "keep": "good"}.get(verdict, "none")
    if failed or known.get("phase") == "frozen" or hurt == "harmed":
        tone = "bad"
    return Headline(f"{verb}: {'; '.join(parts)}" if parts else verb, tone)


def note(day: Day) -> str:
    """The day in one line of Markdown, for a run's note: at most `NOTE` characters before escaping; the document's are text."""
    told = f"{day.get('day') or 'a day'}, champion {version(day) or 'none'}: {headline(day).text}"
    reason = (day.get("decision") or {}).get("reason")
    return plain(f"{told}. {reason}" if reason else told, NOTE)


def fill(template: str, **context: Any) -> bytes:
    """A page of this folder, as UTF-8 HTML."""
    environment = templates(Path(__file__).parent)
    environment.filters.update(
        share=_share, tone=lambda word: TONES.get(word, "none"), moment=_moment, hurt=lambda word: HARM.get(word, word)
    )
    return environment.get_template(template).render(missing=MISSING, **context).encode()


def version(day: Mapping[str, Any]) -> str | None:
    """The champion's."""
    champion = day.get("champion")
    version = champion.get("version") if isinstance(champion, Mapping) else champion
    return None if version is None else str(version)


def broken(day: Mapping[str, Any]) -> list[str]:
    """Names of the data checks that froze the day."""
    if "broken" in day:
        return list(day["broken"])
    return [check["name"] for check in day.get("health", []) if not check.get("passed")]


def _worth(day: Mapping[str, Any]) -> str:
    """How good the answers were; or are said to be, while there are no labels."""
    overall, estimate = day.get("overall", {}), _metrics(day)
    for metric in SCORES:
        if "value" in overall.get(metric, {}):
            return f"{_short(metric)} {_pm(overall[metric])}"
    for metric in SCORES:
        days = [one for one in day.get("realised", []) if metric in one and one.get("n")]
        if days:
            mean = np.average([one[metric] for one in days], weights=[one["n"] for one in days])
            return f"{_short(metric)} {mean:.3f} in {len(days)} day{'s' if len(days) > 1 else ''}"
    for metric in SCORES:
        if "value" in estimate.get(metric, {}):
            doubt = "" if day["estimate"].get("valid") else ", not to be relied on"
            return f"{_short(metric)} {_pm(estimate[metric])} estimated{doubt}, no labels yet"
    return "no labels yet" if "realised" in day else ""


def _strongest(day: Mapping[str, Any]) -> str:
    features = inputs(day)
    # a feature that the model hardly looks at may move far; one that it lives on is told first
    moved = [one for one in features if one.get("verdict") in MOVED]
    moved.sort(key=lambda one: (-one.get("importance", 0.0), -one.get("psi", np.inf)))
    if not moved:
        return "nothing drifted" if features else ""
    more = f", and {len(moved) - 1} more of {len(features)} features" if len(moved) > 1 else ""
    return f"{moved[0]['name']} drifted, PSI {two(moved[0].get('psi'))}{more}"


def _pm(figure: Mapping[str, float]) -> str:
    half = f" ± {(figure['high'] - figure['low']) / 2:.3f}" if "low" in figure and "high" in figure else ""
    return f"{figure['value']:.3f}{half}"


def _short(metric: str) -> str:
    return SHORT.get(metric, label(metric))


def two(value: float | None) -> str:
    """Two decimals: as much as a PSI means.

    >>> two(0.3149), two(None)
    ('0.31', '–')
    """
    return "–" if value is None else f"{value:.2f}"


# ---- what moved


OUTPUTS = {"prediction": "the model's answers", "label": "the outcomes"}
"""Names in `drifts` that are no features, too."""


def inputs(day: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The drifts of features."""
    return [one for one in day.get("drifts", []) if one["name"] not in OUTPUTS]


def _outputs(day: Mapping[str, Any]) -> list[dict[str, Any]]:
    recent = {one["name"]: one for one in day.get("recent", [])}
    found = {one["name"]: one for one in day.get("drifts", []) if one["name"] in OUTPUTS}
    found |= {key: day[key] for key in OUTPUTS if key in day}
    return [_drift_row(found[key] | {"name": OUTPUTS[key]}, recent.get(key, {})) for key in OUTPUTS if key in found]


def _features(day: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows by importance, then PSI: those to show and those to fold."""
    recent = {one["name"]: one for one in day.get("recent", [])}
    ordered = sorted(inputs(day), key=lambda one: (-one.get("importance", -1.0), -one.get("psi", np.inf)))
    kept = {one["name"] for one in ordered[:SHOWN]} | {one["name"] for one in ordered if one.get("verdict") in MOVED}
    rows = [(_drift_row(one, recent.get(one["name"], {})), one["name"] in kept) for one in ordered]
    return [row for row, first in rows if first], [row for row, first in rows if not first]


def _drift_row(one: Mapping[str, Any], recent: Mapping[str, Any]) -> dict[str, Any]:
    reference, window = ([value or 0.0 for value in one.get(side, [])] for side in ("reference", "window"))
    title = f"{one['name']}: shares by bin, reference as bars, window as a line"
    return {**one, "picture": charts.histogram(reference, window, title), "recent": recent}


# ---- did it hurt


def _metrics(day: Mapping[str, Any]) -> dict[str, Any]:
    return day.get("estimate", {}).get("metrics", {})


def _estimated(day: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per metric: estimated, realised."""
    overall, settled, metrics = day.get("overall", {}), day.get("settled", {}), _metrics(day)
    return [
        {"metric": name, "estimated": metrics[name], "realised": overall.get(name, {}), "settled": settled.get(name, {})}
        for name in metrics
    ]


def _quality_chart(day: Mapping[str, Any]) -> Markup:
    """The loss of each matured day with its bounds, harmed days apart; what is expected; the estimate where labels lack."""
    metric, days = day.get("metric", "log_loss"), day.get("realised", [])
    harmed, estimate = day.get("harm", {}).get("by_day", {}), _metrics(day).get(metric, {})
    if not days:
        return Markup("")
    x = [date.fromisoformat(one["day"]) for one in days]
    series = [
        Series(name, [one.get(metric) if bool(harmed.get(one["day"])) == hurt else None for one in days], tone, True,
               [one.get("low") for one in days], [one.get("high") for one in days])
        for name, tone, hurt in (("realised", "own", False), ("harmed", "bad", True))
    ]  # fmt: skip
    end = date.fromisoformat(day["day"]) if "day" in day else x[-1]
    if "value" in estimate and end > x[-1]:
        x.append(end)
        series = [Series(one.name, [*one.y, None], one.tone, True, [*one.low, None], [*one.high, None]) for one in series]
        ahead = [None] * len(days)
        series.append(Series("estimated", [*ahead, estimate["value"]], "other", True,
                             [*ahead, estimate.get("low")], [*ahead, estimate.get("high")]))  # fmt: skip
    title = f"{label(metric)} by day: realised, and estimated where labels have not matured"
    return charts.chart([one.toordinal() for one in x], series, title, charts.day_ticks(x), level=day.get("expected"))


def _cost_chart(day: Mapping[str, Any]) -> Markup:
    curve = day.get("cost_curve", {})
    if not curve.get("thresholds"):
        return Markup("")
    marks = [Mark(curve[key], words) for key, words in (("threshold", "in use"), ("best", "cheapest")) if key in curve]
    ticks = [(i / 10, f"{i / 10:g}") for i in range(11)]
    return charts.chart(
        curve["thresholds"], [Series("cost per row", curve["costs"])], "Business cost per row by threshold", ticks, marks
    )


def _allowed(day: Day) -> str:
    """When a retrain may be asked for again, in words; empty when the document does not say."""
    if "next_allowed" not in day:
        return ""
    moment = day["next_allowed"]
    if moment is None:
        return "A freeze or a retrain in flight forbids a retrain now."
    if moment <= (day.get("as_of") or ""):
        return "Time forbids no retrain now: it takes a cause."
    return f"A retrain may be asked for again from {_moment(moment)} on."


def _share(value: object) -> str:
    """In per cent; a dash for what is not there."""
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "–"


def _moment(text: object) -> str:
    """``2013-07-08T05:00:00`` as ``2013-07-08 05:00``."""
    return str(text).replace("T", " ")[:16]
