"""The last screen of the demo, from the ledger, the service and the clock."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from ml import ledger
from ml.config import load_params
from ml.errors import NotFoundError
from ops import services

if TYPE_CHECKING:
    from ops.demo import Story

CONTENDERS = ("candidate", "champion", "climatology", "linear")


def latest(kind: str, until: datetime | None = None) -> ledger.Entry:
    """The ledger's newest entry of a kind."""
    found = ledger.entries(kind, until)
    if not found:
        raise NotFoundError(f"the ledger has no entry of kind {kind!r}", "the step that writes it did not run")
    return found[-1]


def screen(story: Story) -> str:
    """All that a person wants to know at the end."""
    return "\n".join(
        [
            "",
            *_models(),
            "",
            *_requests(story),
            "",
            *_canaries(),
            "",
            *_serving(story),
            "",
            *_times(story),
            "",
            services.summary(),
        ]
    )


def _models() -> list[str]:
    """One block per trained model: why, and its scores on the holdout beside the others on the same rows."""
    lines = ["What was trained, and why (scores on the holdout, all on the same rows)"]
    for entry in ledger.entries("gate"):
        plan, metrics = entry.evidence["plan"], entry.evidence["metrics"]
        lines.append(f"  {entry.subject}  as of {entry.as_of:%-d %B %H:%M}, by {plan['trigger']}: {plan['reason']}")
        holdout = f"{plan['holdout']['start']} – before {plan['holdout']['end']}"
        lines.append(f"      holdout {holdout:32} " + " ".join(f"{name:>12}" for name in CONTENDERS))
        for metric in ("log_loss", "auc"):
            shown = (metrics.get(f"{name}_{metric}") for name in CONTENDERS)
            lines.append(f"      {metric:40} " + " ".join("           –" if v is None else f"{v:12.4f}" for v in shown))
        lines.append(f"      verdict: {entry.verdict}: {entry.reason}")
    return lines


def _requests(story: Story) -> list[str]:
    return ["Retrains asked for by drift", *(f"  {request}" for request in story.requests)]


def canary_lines(entries: list[ledger.Entry]) -> list[str]:
    """One line per verdict on a canary, as the ledger has it."""
    return [f"canary {e.subject} at {e.evidence['share']:.0%}: {e.verdict}: {e.reason}" for e in entries]


def _canaries() -> list[str]:
    steps = ", ".join(f"{share:.0%}" for share in load_params().release.steps)
    return [f"Canaries (steps {steps})", *(f"  {line}" for line in canary_lines(ledger.entries("canary")))]


def _serving(story: Story) -> list[str]:
    promoted = latest("promotion")
    since = f"champion since {promoted.as_of:%-d %B %Y %H:%M} (data time)"
    return [f"Serving now: {promoted.subject}, {since}; {story.answers:,} HTTP predictions"]


def _times(story: Story) -> list[str]:
    """Step, wall seconds, seconds within Airflow runs, and how much of these Airflow took for itself."""
    lines = [f"{'step':58} {'wall s':>7} {'runs s':>7} {'of which Airflow s':>19}"]
    rows = [
        (part.title, part.seconds, sum(run.seconds for run in part.runs), sum(run.seconds - run.busy for run in part.runs))
        for part in story.chapters
    ]
    rows.append(("in all", time.monotonic() - story.began, sum(row[2] for row in rows), sum(row[3] for row in rows)))
    for title, wall, runs, overhead in rows:
        share = f"{overhead:12.1f} ({overhead / runs:4.0%})" if runs else "–"
        lines.append(f"{title:58} {wall:7.1f} {runs:7.1f} {share:>19}")
    return lines
