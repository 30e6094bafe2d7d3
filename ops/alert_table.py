"""``make alert-table``: real Prometheus and Alertmanager watch a real service and exporter, while ten things go wrong in turn.

Each must raise its own alert at whom it is for, no other page, and be told as resolved after its cure. Rules, routes and
inhibitions are those of ``monitoring/``; only addresses differ, and durations are shortened, so that it takes minutes: a ``for``
to at most 20 s, as a window. The time to fire is from the fault to the message, beside the ``for`` that it really has.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ops.alert_faults import FAULTS, Exporter, Stage
from ops.alert_watch import LONGEST, MONITORING, Listener, Told, watchers
from ops.bench_features import say, show
from ops.fault_scene import scene
from ops.open_loop import Load

FIRES_SECONDS, RESOLVES_SECONDS = 90.0, 120.0
RATE = 30.0


@dataclass
class Row:
    fault: str
    alert: str
    severity: str
    pending: str
    """The real ``for``."""
    receiver: str = "nobody was told"
    fires: float = float("nan")
    resolved: float = float("nan")
    pages: list[str] = field(default_factory=list)
    """Other alerts that paged meanwhile."""

    @property
    def well(self) -> bool:
        return self.receiver == f"{self.severity}s" and self.resolved == self.resolved and not self.pages


def play(name: str, stage: Stage, listener: Listener) -> Row:
    """Causes a fault, waits until its alert is told, cures it, waits until that is told."""
    alert, fault = FAULTS[name]
    rules = [
        rule for group in yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    rule = next(each for each in rules if each["alert"] == alert)
    row, heard = Row(name, alert, rule["labels"]["severity"], rule.get("for", "0s")), len(listener.told)

    def told(status: str) -> Told | None:
        return next((each for each in listener.told[heard:] if (each.alert, each.status) == (alert, status)), None)

    began = time.monotonic()
    with fault(stage):
        fired = _waited(lambda: told("firing"), FIRES_SECONDS)
        if fired is not None:
            row.receiver, row.fires = fired.receiver, fired.at - began
        cured = time.monotonic()
    ended = _waited(lambda: told("resolved"), RESOLVES_SECONDS) if fired else None
    if ended is not None:
        row.resolved = ended.at - cured
    row.pages = sorted({each.alert for each in listener.told[heard:] if each.receiver == "pages" and each.alert != alert})
    return row


def _waited(check: Callable[[], Told | None], seconds: float) -> Told | None:
    deadline = time.monotonic() + seconds
    while (found := check()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def watched() -> Iterator[tuple[Stage, Listener]]:
    """A service under load and an exporter, watched, in good order for long enough that windows are full."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-alerts-")))
        at = stack.enter_context(scene())
        exporter = Exporter(folder)
        stack.callback(exporter.close)
        exporter.read("well")
        listener = stack.enter_context(watchers(folder / "watchers", {"serving": at.service.port, "loop": exporter.port}))
        stack.enter_context(Load(at.service.port, at.rows, RATE))
        time.sleep(LONGEST)
        yield Stage(at, exporter, folder, map(str, itertools.count(2))), listener


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.alert_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help=f"of: {', '.join(FAULTS)}; default all", default=[])
    asked = parser.parse_args(arguments)
    if unknown := set(asked.faults) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rows = []
    with watched() as (stage, listener):
        for name in asked.faults or FAULTS:
            say(f"{name} …")
            rows.append(play(name, stage, listener))
            say(f"  {rows[-1].alert}: {rows[-1].receiver} after {rows[-1].fires:.0f} s")
    heads = ["fault", "alert", "told to", "fires after, s", "its real for", "resolved after, s", "other pages"]
    shown = [
        [r.fault, r.alert, r.receiver, f"{r.fires:.0f}", r.pending, f"{r.resolved:.0f}", ", ".join(r.pages) or "none"]
        for r in rows
    ]
    show(heads, shown)
    wrong = [row.fault for row in rows if not row.well]
    say(f"WRONG: {', '.join(wrong)}" if wrong else "Each raised its alert and no other page, and was resolved after its cure.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
