"""The week in one page, for whoever owns the budget: quality, decisions, money, data trouble, what it cost.

`summarise` is pure: it is given what the ledger says and the newest day's document. A figure that is not known is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, TypedDict

from ml.config import Costs
from ml.evaluation.page import measured
from ml.ledger import Entry
from ml.monitoring import overview, page
from ml.monitoring.looks import KIND, REPORTED
from ml.monitoring.tally import Tally
from ml.refs import Window

DECIDED = ("gate", "canary", "promotion", "rollback", "experiment", "order")
TREND = timedelta(weeks=8)
DAY = timedelta(days=1)


class Money(TypedDict):
    """What decisions of `rows` rows cost, by the business costs, beside deciding the same for each row whatever it is."""

    rows: int
    cost: float
    without: float
    saved: float


class Summary(TypedDict):
    """A week. Times are data time; `quality`: newest realised metrics with intervals; `trend`: lines of the last eight weeks."""

    start: str
    end: str
    title: str
    currency: str
    headline: str
    champion: str | None
    quality: dict[str, dict[str, float]]
    expected: float | None
    trend: list[overview.Line]
    decisions: list[dict[str, str]]
    requests: int
    money: Money | None
    gains: list[dict[str, Any]]
    landed: dict[str, int]
    quarantined: dict[str, int]
    broken: list[dict[str, str]]
    failed: list[dict[str, str]]
    runs: int
    cpu_hours: dict[str, float]
    compute: float


def summarise(
    entries: Sequence[Entry], document: Mapping[str, Any], week: Window, title: str, threshold_metric: str, costs: Costs
) -> Summary:
    """The summary of a week.

    Args:
        entries: all of the ledger up to the week's end, oldest first.
        document: of the newest day that was watched, see `ml.monitoring.page.Day`; empty: none was.
        title: the problem's name.
        threshold_metric: name of the metric in a gate's figures that is the business cost a row.
        costs: what work and errors are worth.
    """
    start, end = (datetime.combine(day, time()) for day in (week.start, week.end))
    noon = DAY / 2  # the runs of a day's night are after its midnight
    mine = [entry for entry in entries if start + noon < entry.as_of <= end + noon]
    tally, known = Tally(), measured(document)
    tally.fold(mine, "")
    looks = [entry for entry in entries if entry.kind == KIND and entry.verdict != REPORTED and "line" in entry.evidence]
    lines = [entry.evidence["line"] for entry in looks if entry.as_of > end - TREND]
    watched = [entry for entry in looks if entry in mine]
    money = _money(known, costs)
    cpu = {dag: round(sum(s for (d, _), s in tally.cpu_seconds.items() if d == dag) / 3600, 3) for dag in _dags(tally)}
    found = Summary(
        start=str(week.start),
        end=str(week.end - DAY),
        title=title,
        currency=costs.currency,
        headline="",
        champion=page.version(known),
        quality=known.get("overall", {}),
        expected=known.get("expected"),
        trend=lines,
        decisions=[_decision(entry) for entry in mine if entry.kind in DECIDED],
        requests=sum(entry.verdict == "retrain" for entry in watched),
        money=money,
        gains=_gains(mine, money, threshold_metric, costs),
        landed={table: rows for (table,), rows in sorted(tally.landed.items())},
        quarantined={table: rows for (table,), rows in sorted(tally.quarantined.items()) if rows},
        broken=[
            {"day": line["day"], "checks": ", ".join(line["broken"])}
            for line in (entry.evidence["line"] for entry in watched)
            if line.get("broken")
        ],
        failed=[
            {"dag": entry.subject, "at": f"{entry.as_of:%Y-%m-%d %H:%M}", "why": entry.reason}
            for entry in mine
            if entry.kind == "run" and entry.verdict == "failed"
        ],
        runs=sum(tally.runs.values()),
        cpu_hours=cpu,
        compute=sum(cpu.values()) * costs.cpu_hour,
    )
    found["headline"] = headline(found)
    return found


def headline(week: Summary) -> str:
    """The week in two or three short sentences."""
    parts = []
    metric, figure = next(((name, week["quality"][name]) for name in ("auc", "log_loss") if name in week["quality"]), ("", {}))
    served = f"v{week['champion']} serves" if week["champion"] else "Nothing serves"
    parts.append(f"{served}; {page.two(figure['value'])} {metric}" if "value" in figure else served)
    kinds = Counter(decision["kind"] for decision in week["decisions"])
    told = [f"{kinds[kind]} {word}" for kind, word in (("promotion", "promoted"), ("rollback", "rolled back")) if kinds[kind]]
    asked = f"{week['requests']} retrain{'s' * (week['requests'] != 1)} asked for"
    parts.append(", ".join([asked, *told]))
    trouble = len(week["failed"]) + len(week["broken"])
    parts.append(f"{trouble} thing{'s' * (trouble != 1)} went wrong" if trouble else "nothing went wrong")
    if (money := week["money"]) is not None:
        word = "saved" if money["saved"] >= 0 else "lost"
        parts.append(f"{abs(money['saved']):,.0f} {week['currency']} {word} beside deciding without a model")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def render(week: Summary) -> bytes:
    """The page: UTF-8 HTML that needs nothing else, so that it can be mailed; all strings are escaped."""
    return page.fill("summary.html.j2", week=week, quality=overview.quality_chart(week["trend"]))


def _money(known: Mapping[str, Any], costs: Costs) -> Money | None:
    curve = known.get("cost_curve")
    if not curve:
        return None
    n, unit = int(curve["n"]), costs.business_unit
    # deciding 1 from threshold 0 on is always 1; from the largest on, 1, it is 0 but for rows that are certain
    without = min(curve["costs"][0], curve["costs"][-1])
    return Money(rows=n, cost=curve["cost"] * n * unit, without=without * n * unit, saved=(without - curve["cost"]) * n * unit)


def _gains(mine: Sequence[Entry], money: Money | None, metric: str, costs: Costs) -> list[dict[str, Any]]:
    """Of each candidate that passed: how much cheaper a row of its holdout was than by the champion, and by that a week."""
    gains = []
    for entry in mine:
        figures = entry.evidence.get("metrics", {}) if entry.kind == "gate" and entry.verdict == "promote" else {}
        before, after = figures.get(f"champion_{metric}"), figures.get(f"candidate_{metric}")
        if before is not None and after is not None:
            row = (before - after) * costs.business_unit
            gains.append({"version": entry.subject, "row": row, "week": row * money["rows"] if money else None})
    return gains


def _decision(entry: Entry) -> dict[str, str]:
    at = f"{entry.as_of:%Y-%m-%d %H:%M}"
    return {
        "at": at,
        "kind": entry.kind,
        "subject": entry.subject,
        "verdict": entry.verdict,
        "reason": entry.reason,
        "by": entry.actor,
    }


def _dags(tally: Tally) -> list[str]:
    return sorted({dag for dag, _ in tally.cpu_seconds})


def week_before(end: date) -> Window:
    """The seven days before a day, which is not included."""
    return Window(start=end - 7 * DAY, end=end)
