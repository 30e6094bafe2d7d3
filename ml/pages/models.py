"""All versions, and one version's evidence beside that of the champion it was judged against: from the gate's entries."""

from __future__ import annotations

from typing import Any

from ml import ledger, store
from ml.errors import NotFoundError
from ml.pages import lines, spans
from ml.serving import manifest
from ml.settings import settings

MOST = 200
"""Versions that the list shows, newest first."""
CONTENDERS = ("candidate", "champion", "linear", "climatology")
"""In the order of the table; metrics of the gate's entry are named ``<contender>_<metric>``."""


def collect() -> dict[str, Any]:
    """now, rows (newest first), more: that there are older ones than `MOST`. Three queries."""
    served: dict[str, list[spans.Span]] = {}
    for span in spans.spans(manifest.history()):
        served.setdefault(span.version, []).append(span)
    gates = ledger.query(["gate"], limit=MOST + 1)
    rows = [
        {
            "version": lines.version_of(entry.subject),
            "line": lines.line(entry),
            "plan": entry.evidence.get("plan", {}),
            "metrics": entry.evidence.get("metrics", {}),
            "served": served.get(lines.version_of(entry.subject), []),
        }
        for entry in gates[:MOST]
    ]
    return {"now": ledger.data_now(), "rows": rows, "more": len(gates) > MOST}


def candidate(version: str) -> dict[str, Any]:
    """The gate's table beside the champion's own, metrics, refit, lineage, releases, rebuilds: see the template. Five queries.

    Raises:
        NotFoundError: no gate has judged this version.
    """
    told = ledger.query(subject=f"v{version}", limit=None)
    gate = next((entry for entry in told if entry.kind == "gate"), None)
    if gate is None:
        raise NotFoundError(f"no gate has judged version {version!r}", "see the list of versions")
    plan = gate.evidence.get("plan", {})
    rival = plan.get("champion_version")
    before = next(iter(ledger.query(["gate"], subject=f"v{rival}", limit=1)), None) if rival else None
    documents = manifest.history()
    looks = [entry for entry in told if entry.kind == "retrain"]
    return {
        "now": ledger.data_now(),
        "version": version,
        "gate": lines.line(gate),
        "plan": plan,
        "recipe": gate.evidence.get("recipe", {}),
        "rival": rival,
        "table": table(gate.evidence.get("decision", {}), before.evidence.get("decision", {}) if before else {}),
        "refit": gate.evidence.get("refit", {}),
        "contenders": _contenders(gate.evidence.get("metrics", {})),
        "scores": scores(gate.evidence.get("metrics", {})),
        "served": [span for span in spans.spans(documents) if span.version == version],
        "deployed": _deployed(version, told),
        "told": lines.lines(entry for entry in told if entry.kind != "retrain"),
        "looks": len(looks),
        "run": mlflow_run(gate.evidence.get("run_id")),
    }


def table(decision: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each check of `decision`, failed ones first, with the same check of `other` beside it where it has it."""
    beside = {check["name"]: check for check in other.get("checks", [])}
    return [{**check, "beside": beside.get(check["name"])} for check in lines.checks(decision)]


def scores(metrics: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each metric, its value by contender."""
    names = _contenders(metrics)
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name = next((name for name in names if key.startswith(f"{name}_")), None)
        if name is not None:
            rows.setdefault(key.removeprefix(f"{name}_"), {})[name] = value
    return [{"metric": metric, "values": values} for metric, values in sorted(rows.items())]


def mlflow_run(run_id: str | None) -> str:
    """Where a person sees the run in MLflow; without asking MLflow, which is slow and may be down. Empty without a run."""
    if not run_id:
        return ""
    return f"{settings().mlflow_pages}/#/runs/{run_id}"


def _contenders(metrics: dict[str, float]) -> list[str]:
    found = {key.partition("_")[0] for key in metrics}
    return [name for name in CONTENDERS if name in found] + sorted(found - set(CONTENDERS))


def _deployed(version: str, told: list[ledger.Entry]) -> dict[str, Any] | None:
    """Digests of what was deployed, from the entry of its promotion."""
    for entry in told:
        champion = entry.evidence.get("champion")
        if isinstance(champion, dict) and champion.get("version") == version:
            there = store.exists(champion["bundle"])
            return {"bundle": champion["bundle"], "model": champion["model"], "there": there}
    return None
