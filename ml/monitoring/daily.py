"""One day of watching: is the data sound, have inputs moved, what were answers worth, do they harm; and what follows from it.

`measure` makes the day's document (see `ml.monitoring.page.Day`); `decide` adds what the policy makes of it, and writes pages.
All judgement is in pure modules; what a day's data gives is remembered, so that a day pays for itself alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from datetime import date, datetime
from pathlib import Path
from typing import Any, cast

from ml import ledger, shared, store
from ml.config import load_params
from ml.monitoring import health, overview, page, requests, soundness, worth
from ml.monitoring.harm import Harm
from ml.monitoring.looks import KIND, REPORTED
from ml.monitoring.policy import Evidence, next_allowed
from ml.monitoring.scene import DAY, Scene
from ml.refs import MonitorRef, SnapshotRef, WatchRef
from ml.serving.manifest import Deployed
from ml.settings import settings


def measure(champion: Deployed, root: Path, version: SnapshotRef, window_end: date, as_of: datetime) -> MonitorRef:
    """Watches the days up to `window_end`, which is not included; the document goes to the store.

    Args:
        champion: whose answers are judged, and whose reference the inputs of all answers are held against.
        root: the restored snapshot `version`.
        as_of: a day is matured when it ended `train.embargo_hours` before; labels that became known later are not used.
    """
    params = load_params()
    scene = Scene(params, champion, version, root, window_end - DAY, as_of)
    lines = _lines(as_of)
    broken_before = {
        (name.partition(".")[0], date.fromisoformat(line["day"])) for line in lines for name in line.get("broken", [])
    }
    checks = soundness.checks(scene, broken_before)
    moved = soundness.movement(scene)
    found = worth.measure(scene, moved.get("outside"))
    labels, age = worth.new_labels(scene)
    document: dict[str, Any] = {
        "day": str(scene.last),
        "as_of": as_of.isoformat(),
        "champion": champion.version,
        "title": params.problem.name,
        "health": [check.to_xcom() for check in checks],
        "broken": health.broken(checks, params.monitoring.health.advisory),
        "answers": {
            "all": len(scene.answers),
            "champion": len(scene.mine),
            "flagged": int((scene.mine["flags"].str.len() > 0).sum()),
        },
        "new_labels": labels,
        "age_days": age,
        **moved,
        **found,
    }
    figures = {name: figure["value"] for name, figure in found.get("overall", {}).items()}
    strongest = {f"psi_{one['name']}": one["psi"] for one in moved.get("drifts", [])[:10]}
    return MonitorRef(
        day=window_end,
        as_of=as_of,
        version=champion.version,
        predictions=len(scene.mine),
        matured=int(scene.mine["label"].notna().sum()),
        report=store.put(json.dumps(document, sort_keys=True).encode()),
        metrics=figures | strongest,
    )


def decide(monitor: MonitorRef, trigger: str) -> WatchRef:
    """Applies the retrain policy to a day's document, and writes its page and the overview.

    Args:
        trigger: why the run exists; a ``backfill`` only reports.
    """
    document = json.loads(store.get(monitor.report))
    harm = Harm.model_validate(document["harm"])
    seen = Evidence(
        as_of=monitor.as_of,
        version=monitor.version,
        harmed=harm.by_day,
        proven=harm.verdict == "harmed",
        new_labels=document["new_labels"],
        age_days=document["age_days"],
        broken=document["broken"],
        outcomes=[],
        orders=[],
    )
    step = requests.advance(seen)
    allowed = next_allowed(step.after, monitor.as_of, load_params().policy)
    document |= {
        "phase": step.after.phase,
        "decision": requests.shown(step.decision, trigger).to_xcom(),
        "next_allowed": allowed and allowed.isoformat(),
    }
    day = cast(page.Day, document)
    written = store.put(page.render(day))
    told = {"monitor": monitor.to_xcom(), "report": monitor.report, "page": written, "line": overview.line(day)}
    request = requests.record(step, monitor.day, trigger, told)
    _publish(document, written, trigger)
    return WatchRef(
        day=monitor.day,
        as_of=monitor.as_of,
        version=monitor.version,
        decision=requests.shown(step.decision, trigger),
        phase=step.after.phase,
        request=request,
        next_allowed=allowed,
        note=page.note(day),
        page=written,
    )


def _lines(as_of: datetime) -> list[overview.Line]:
    """Of the days that were watched by then, in the order in which they were."""
    return [entry.evidence["line"] for entry in ledger.entries(KIND, until=as_of) if "line" in entry.evidence]


def _publish(document: dict[str, Any], written: str, trigger: str) -> None:
    """Puts the day's page and the overview where people look: ``<var>/monitoring/<day>.html`` and ``index.html``.

    A backfill leaves the page of a day that the policy did decide about, and the overview always shows every day that was
    watched: the last writer has read the ledger last, since one waits for the other.
    """
    folder = settings().var / "monitoring"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with shared.lock("monitoring"):
            _write_pages(folder, document, written, trigger)


def _write_pages(folder: Path, document: dict[str, Any], written: str, trigger: str) -> None:
    watched = [(e.verdict, e.evidence["line"]) for e in ledger.entries(KIND) if "line" in e.evidence]
    reported = [line for verdict, line in watched if verdict == REPORTED]
    decided = [line for verdict, line in watched if verdict != REPORTED]
    # of a day that is there twice the last line counts
    pages = {"index": overview.render([*reported, *decided], document["title"])}
    if trigger != "backfill" or all(line["day"] != document["day"] for line in decided):
        pages[document["day"]] = store.get(written)
    for name, content in pages.items():
        aside = folder / f".{name}-{os.getpid()}"
        aside.write_bytes(content)
        aside.replace(folder / f"{name}.html")
    shared.share({folder / f"{name}.html": content for name, content in pages.items()})
