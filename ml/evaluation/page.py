"""A candidate's evidence for people: one self-contained HTML page, and a short Markdown card for the model registry.

Both render the report as it is: they compute no metric, and a part that the report lacks says so, with the reason that the report
gives under ``missing`` (section → sentence), or else with the condition under which it is measured.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

METRICS = {
    "auc": ("ROC-AUC", "higher"),
    "average_precision": ("average precision", "higher"),
    "log_loss": ("log-loss", "lower"),
    "brier": ("Brier score", "lower"),
    "f1": ("F1", "higher"),
    "macro_f1": ("macro F1", "higher"),
    "accuracy": ("accuracy", "higher"),
    "balanced_accuracy": ("balanced accuracy", "higher"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "calibration_error": ("calibration error", "lower"),
    "cost": ("cost per row", "lower"),
    "rmse": ("RMSE", "lower"),
    "mae": ("MAE", "lower"),
    "pinball": ("pinball loss", "lower"),
    "r2": ("R²", "higher"),
    "positives": ("share of positives", ""),
}
"""Label of a metric and the direction that is better; an unknown metric is shown under its own name, without direction."""

HEADLINES = {
    "binary": ("log_loss", "auc", "calibration_error"),
    "regression": ("rmse", "mae", "r2"),
    "multiclass": ("log_loss", "accuracy", "macro_f1"),
}
"""The three metrics on the card; where the report lacks one, the next with a known direction takes its place."""

PICTURES = {
    "calibration.png": ("quality", "Calibration: observed share against mean predicted probability, one line per contender"),
    "residuals.png": ("quality", "Residuals along the answer, and their distribution, one line per contender"),
    "curves.png": ("quality", "ROC curve and precision-recall curve, one line per contender"),
    "forest.png": ("slices", "Difference of loss to the champion in each slice, with its interval; right of zero is worse"),
    "by_day.png": ("by_day", "Mean loss on each day of the holdout, one line per contender; the figures are in the table below"),
    "importance.png": ("explanations", "Mean absolute contribution of each feature; the figures are in the table below"),
    "convergence.png": ("tuning", "Validation loss of each trial and the best so far; the figures are in the table below"),
}
"""Section and alternative text of each picture, in the order of the page."""

MISSING = {
    "decision": "The report holds no decision of a gate.",
    "overall": "Not measured: the report holds no metrics.",
    "champion": "There is no champion in this report, so the candidate stands beside the baselines only.",
    "comparisons": "Not measured. The candidate is compared when another model answered the same rows.",
    "holdout": "The report does not record how the holdout was chosen and used.",
    "quality": "No picture of the answers was drawn for this report.",
    "slices": "Not measured. Slices are compared when params.yaml names them under evaluation.slices.",
    "by_day": "Not measured: the report holds no figures by day.",
    "classes": "Not measured. Figures by class belong to classification.",
    "fairness": "Not measured. Groups are compared when params.yaml names an attribute under gates.fairness.",
    "explanations": "Not measured: the report holds no contributions.",
    "tuning": "The report holds no search for parameters.",
    "lineage": "The report does not record where this model comes from.",
    "card": "The report holds no intended use and no limits.",
}

LINEAGE = {
    "family": "model family",
    "rounds": "rounds",
    "tuned": "parameters",
    "train": "learned from",
    "refit": "refitted on",
    "holdout": "judged on",
    "as_of": "as of",
    "trigger": "triggered by",
    "reason": "trained because",
    "champion": "champion then",
    "snapshot": "data version",
    "feature_code": "feature code",
    "params": "params.yaml",
    "revision": "code revision",
    "model": "model (SHA-256)",
}
"""Labels in the order of the page; other keys of the lineage follow under their own names."""

CARD_LIMIT = 3500
"""Characters; a registry shows the description in a narrow column."""


def render(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """The page: verdict, gates and headline numbers first; no script, no network, no other file.

    Args:
        report: as JSON; every section may be absent or null, and NaN counts as absent.
        pictures: PNG by file name. Those of `PICTURES` have their place; others come last, with their name as alternative text.

    Returns:
        UTF-8 HTML. All strings of the report are escaped.
    """
    known = measured(report)
    decision = known.get("decision", {})
    checks = sorted(decision.get("checks", []), key=lambda check: check["passed"])  # failed ones first
    slices = sorted(known.get("slices", []), key=lambda row: row.get("verdict") != "worse")
    html = (
        templates()
        .get_template("page.html.j2")
        .render(
            report=known,
            verdict=_verdict(known),
            checks=checks,
            failed=sum(not check["passed"] for check in checks),
            contenders=_contenders(known),
            scores=_scores(known),
            notable=[row for row in slices if row.get("verdict") == "worse" or row.get("found")],
            ordinary=[row for row in slices if row.get("verdict") != "worse" and not row.get("found")],
            lineage=_lineage(known.get("lineage", {})),
            pictures=_by_section(pictures),
            missing=MISSING | dict(known.get("missing", {})),
        )
    )
    return html.encode()


def card(report: Mapping[str, Any]) -> str:
    """The registry's description: Markdown of fewer than `CARD_LIMIT` characters; free text is escaped, and cut if too long."""
    known = measured(report)
    for longest in (500, 300, 150, 60):
        text = _card(known, longest)
        if len(text) < CARD_LIMIT:
            return text
    return _card(known, 20)


def number(value: float | None, signed: bool = False) -> str:
    """A figure with four digits or so; – for None.

    >>> [number(v) for v in (0.71234, 12795, 14.0, 1234.5, 0.00001, None)]
    ['0.7123', '12,795', '14', '1,234', '1.0e-05', '–']
    >>> number(-0.00412, signed=True)
    '−0.0041'
    """
    if value is None:
        return "–"
    return _fixed(value, _decimals([value]), signed)


def label(metric: str) -> str:
    """The metric's name in words."""
    return METRICS.get(metric, (metric, ""))[0]


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    # four decimals of a tolerance like 1e-5 would read as zero
    shown = f"{value:.1e}" if 0 < abs(value) < 0.5 * 10**-decimals else f"{value:{'+' if signed else ''},.{decimals}f}"
    return shown.replace("-", "−") if shown.startswith("-") else shown


def _decimals(values: Iterable[float]) -> int:
    values = list(values)
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1000 or all(float(value).is_integer() for value in values):
        return 0
    return 1 if largest >= 100 else 2 if largest >= 10 else 4


def measured(value: Any) -> Any:
    """Without nulls and NaN in mappings; within a list a missing number becomes None, so that places stay aligned."""
    if isinstance(value, Mapping):
        return {key: kept for key, part in value.items() if (kept := measured(part)) is not None}
    if isinstance(value, list | tuple):
        return [measured(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _verdict(report: Mapping[str, Any]) -> tuple[str, str]:
    """Words and tone (good, bad, none)."""
    verdict = report.get("decision", {}).get("verdict")
    if verdict is None:
        return "No verdict", "none"
    if verdict == "promote":
        return "Promote the candidate", "good"
    if verdict == "keep":
        return ("Keep the champion" if "champion" in report.get("overall", {}) else "Do not promote"), "bad"
    return f"Verdict: {verdict}", "none"


def _contenders(report: Mapping[str, Any]) -> list[str]:
    """Candidate and champion first, then the others in the report's order."""
    overall = report.get("overall", {})
    return sorted(overall, key=lambda name: ("candidate", "champion").index(name) if name in ("candidate", "champion") else 2)


def _scores(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per metric: label, direction, and a cell (text, interval, best) per contender."""
    overall, intervals, contenders = report.get("overall", {}), report.get("intervals", {}), _contenders(report)
    rows = []
    for metric in dict.fromkeys(metric for name in contenders for metric in overall[name]):
        values = {name: overall[name][metric] for name in contenders if metric in overall[name]}
        title, better = METRICS.get(metric, (metric, ""))
        decimals = _decimals(values.values())
        best = {"higher": max, "lower": min}[better](values.values()) if better and len(values) > 1 else None
        cells = []
        for name in contenders:
            bounds = intervals.get(name, {}).get(metric)
            whole = bounds is not None and None not in bounds
            cells.append(
                {
                    "text": _fixed(values[name], decimals) if name in values else "–",
                    "interval": ("–" if whole and min(bounds) >= 0 else " to ").join(_fixed(b, decimals or 1) for b in bounds)
                    if whole
                    else "",
                    "best": best is not None and values.get(name) == best,
                }
            )
        rows.append({"metric": metric, "label": title, "better": better, "cells": cells})
    return rows


def _lineage(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    ordered = [key for key in LINEAGE if key in lineage] + [key for key in lineage if key not in LINEAGE]
    return [(LINEAGE.get(key, key), _parameters(lineage[key]) if key == "tuned" else str(lineage[key])) for key in ordered]


def _parameters(tuned: str) -> str:
    """``{"max_depth": 5}`` as ``max_depth 5``; what is not a JSON object stays as it is."""
    try:
        values = json.loads(tuned)
    except (TypeError, ValueError):
        return str(tuned)
    if not isinstance(values, dict):
        return str(tuned)
    pairs = (f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}" for name, value in values.items())
    return ", ".join(pairs) or "defaults"


def _by_section(pictures: Mapping[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """Data URIs and alternative texts by section; unknown pictures are ``further``."""
    sections: dict[str, list[dict[str, str]]] = {}
    for name in [*(n for n in PICTURES if n in pictures), *(n for n in pictures if n not in PICTURES)]:
        section, alt = PICTURES.get(name, ("further", Path(name).stem.replace("_", " ")))
        uri = "data:image/png;base64," + base64.b64encode(pictures[name]).decode()
        sections.setdefault(section, []).append({"uri": uri, "alt": alt})
    return sections


def templates(*more: Path) -> Environment:
    """Templates of this folder, and of `more` folders, whose pages look like this one. All that they fill in is escaped."""
    # absent keys are a normal case of the report, hence the chainable undefined
    folders = FileSystemLoader([Path(__file__).parent, *more])
    environment = Environment(loader=folders, autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, label=label)
    return environment


def _card(report: Mapping[str, Any], longest: int) -> str:
    def text(value: object) -> str:
        return plain(value, longest)

    decision, lineage, about = report.get("decision", {}), report.get("lineage", {}), report.get("card", {})
    lines = [f"## {text(report.get('title', 'Candidate'))}", ""]
    lines += [f"**{text(_verdict(report)[0])}.** {text(decision.get('reason', MISSING['decision']))}", ""]
    lines += [*_headlines(report), ""]
    learned = {
        key: text(lineage[key]) for key in ("train", "refit", "holdout", "snapshot", "trigger", "reason") if key in lineage
    }
    if learned:
        words = {"train": "Learned from", "refit": "Refitted on", "holdout": "Judged on", "snapshot": "Data version"}
        lines += [f"- {word}: {learned[key]}" for key, word in words.items() if key in learned]
        because = [
            *([learned["reason"]] if "reason" in learned else []),
            *([f"by {learned['trigger']}"] if "trigger" in learned else []),
        ]
        lines += [f"- Trained because: {' · '.join(because)}"] if because else []
    else:
        lines.append(MISSING["lineage"])
    lines += ["", f"**Intended use.** {text(about.get('intended_use', MISSING['card']))}", ""]
    limits = about.get("limits", [])
    lines += (
        ["**Limits**", "", *(f"- {text(limit)}" for limit in limits[:5])] if limits else ["**Limits.** None are written down."]
    )
    lines += [f"- and {len(limits) - 5} more, see the report"] if len(limits) > 5 else []
    lines += ["", f"Owner: {text(about['owner'])}"] if "owner" in about else []
    return "\n".join(lines) + "\n"


def _headlines(report: Mapping[str, Any]) -> list[str]:
    """A Markdown table: three metrics, candidate beside champion."""
    scores = {row["metric"]: row for row in _scores(report)}
    wanted = [*HEADLINES.get(report.get("task", ""), ()), *(metric for metric, row in scores.items() if row["better"])]
    shown = [scores[metric] for metric in dict.fromkeys(wanted) if metric in scores][:3]
    if not shown:
        return [MISSING["overall"]]
    names = [name for name in ("candidate", "champion") if name in report.get("overall", {})]
    places = [_contenders(report).index(name) for name in names]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row in shown:
        direction = f" ({row['better']} is better)" if row["better"] else ""
        cells = (row["cells"][i] for i in places)
        figures = (cell["text"] + (f" ({cell['interval']})" if cell["interval"] else "") for cell in cells)
        lines.append(f"| {plain(row['label'], 40)}{direction} | " + " | ".join(figures) + " |")
    rows = [f"{report['rows']:,} rows"] if "rows" in report else []
    return [*lines, *(["", f"On {rows[0]} of the holdout."] if rows else [])]


def plain(value: object, longest: int) -> str:
    """One line that Markdown shows as it is: no markup, no HTML, no table cell; cut at `longest` characters."""
    line = " ".join(str(value).split())
    line = line if len(line) <= longest else line[: longest - 1].rstrip() + "…"
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w)|^[#+-])", r"\\\1", escaped)
