"""``make fault-table``: the real service under steady load, while one thing after the other is broken, 500 hot swaps and
ten rollbacks.

Every fault is a real one: a killed process, a slow socket, a file taken away, a full disk, a model that fails on what it was not
tried on. An answer is valid when it came within two seconds and is complete: status 200, a probability in [0, 1] that is of the
version it names (each version answers in a band of its own; baseline rates carry their flag), its decision, the asked entity.
Recovery is from the end of the fault (of a kill: from the kill) to the last answer that was not valid or carried a flag, and
until a new manifest serves again where the fault was about that. A rollback is the command that a person types, a process of its
own: its seconds are from the start of the command to the last answer of the version that it takes back.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ml.errors import EvergreenError
from ops import environment
from ops.bench_features import say, show
from ops.fault_kinds import FAULTS, Versions, prepared
from ops.fault_models import BANDS, band, register
from ops.fault_scene import Scene, eventually, scene
from ops.open_loop import Load, Reply

SETTLE = 10.0
"""Seconds after a fault in which the service may recover."""
AT_ONCE = ("worker-killed", "service-killed")
"""Faults that are over as soon as they have happened."""
BASELINE = "fallback_baseline"
PARTS = (*FAULTS, "swaps", "rollbacks")


@dataclass
class Row:
    """What one fault did. Counts and shares are of the requests that were due while it lasted."""

    fault: str
    requests: int = 0
    valid: float = math.nan
    mixed: int = 0
    """Of all answers, before and after too: those whose probability is not of the version they name."""
    p99: float = math.nan
    """Seconds, of all requests that were answered."""
    calm_p99: float = math.nan
    flags: dict[str, float] = field(default_factory=dict)
    """Share of the answers that carry the flag."""
    recovery: float = math.nan
    note: str = ""
    problems: list[str] = field(default_factory=list)
    """A few of what was not valid, for reading."""


def run(at: Scene, name: str, rate: float, seconds: float, version: Versions) -> Row:
    """Plays one fault under load: calm as long as the fault, the fault, and then until answers are whole again."""
    title, fault = FAULTS[name]
    row = Row(title)
    with prepared(at, name) as able:
        if able:
            return Row(title, note=f"left out: {able}")
        with Load(at.service.port, at.rows, rate) as load:
            time.sleep(max(seconds, 1))
            began = time.monotonic()
            with fault(at, version) as notes:
                time.sleep(seconds)
                ended = began if name in AT_ONCE else time.monotonic()
            mended = time.monotonic()
            if name in AT_ONCE:
                eventually(at.service.ready, "it is back")
            _settle(load)
            until = time.monotonic() if name in AT_ONCE else ended
    row.note = notes[0]
    _fill(row, load.replies, began, until, ended)
    if "then a new champion" in notes:
        row.recovery = max(row.recovery, mended - ended)
    return row


def swaps(at: Scene, count: int, rate: float, version: Versions) -> Row:
    """Promotes one good model after the other, each as soon as the one before answers."""
    row = Row(f"{count} hot swaps")
    before = at.counted("evergreen_swaps_total")
    made = [at.make(version()) for _ in range(min(count, BANDS - 1))]
    with Load(at.service.port, at.rows, rate) as load:
        time.sleep(3)
        began = time.monotonic()
        for i in range(count):
            champion = made[i % len(made)]
            at.publish("swap", champion=champion)
            _serves(load, champion.version)
            if (i + 1) % 50 == 0:
                say(f"  {i + 1} swaps, {time.monotonic() - began:.0f} s")
        ended = time.monotonic()
        _settle(load)
    row.note = f"{at.counted('evergreen_swaps_total') - before:.0f} models taken into service"
    _fill(row, load.replies, began, ended, ended)
    return row


def rollbacks(at: Scene, count: int, rate: float, version: Versions) -> Row:
    """Releases the same new version again and again, and takes it back each time with ``evergreen rollback``."""
    row = Row(f"{count} rollbacks")
    kept, released = at.make("1"), at.make(version())
    register(kept)
    at.promote("1")
    commands, seconds = [], []
    with Load(at.service.port, at.rows, rate) as load:
        _serves(load, "1")
        time.sleep(3)
        began = time.monotonic()
        for i in range(count):
            at.publish("a release", champion=released, previous=kept)
            _serves(load, released.version)
            started = time.monotonic()
            _roll_back()
            commands.append(time.monotonic() - started)
            _serves(load, "1")
            time.sleep(0.5)  # whoever was asked before the swap has answered
            seconds.append(max(r.ended for r in load.replies if r.answer.get("model_version") == released.version) - started)
            say(f"  {i + 1}: {seconds[-1]:.2f} s, of which the command ran {commands[-1]:.2f} s")
        ended = time.monotonic()
        _settle(load)
    _fill(row, load.replies, began, ended, ended)
    failed = sum(bool(fault_of(r)) for r in load.replies if r.at >= began)
    row.note = (
        f"{failed} failed; old version gone {np.median(seconds):.2f} s after the command's start (worst {max(seconds):.2f}), "
        f"which itself runs {np.median(commands):.2f} s (worst {max(commands):.2f})"
    )
    return row


def _roll_back() -> None:
    command = [sys.executable, "-c", "from ml.cli import main; main()", "rollback", "--by", "fault table", "--reason", "a test"]
    done = subprocess.run(command, env=environment.common(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise EvergreenError(f"evergreen rollback ended with {done.returncode}: {done.stderr[-500:]}", "mend what it names")


def _fill(row: Row, replies: list[Reply], began: float, until: float, ended: float) -> None:
    during = [r for r in replies if began <= r.at < until]
    calm = [r.seconds for r in replies if r.at < began and not fault_of(r)]
    answered = [r for r in during if r.status == 200]
    wrong = {id(r): problem for r in replies if (problem := fault_of(r))}
    row.requests = len(during)
    row.valid = float(np.mean([id(r) not in wrong for r in during]))
    row.mixed = sum("is not of version" in problem for problem in wrong.values())
    row.p99 = float(np.percentile([r.seconds for r in answered], 99)) if answered else math.nan
    row.calm_p99 = float(np.percentile(calm, 99)) if calm else math.nan
    flags = Counter(flag for r in answered for flag in r.answer.get("flags", ()))
    row.flags = {flag: n / len(answered) for flag, n in flags.most_common()}
    late = [r.at for r in replies if r.at >= ended and (id(r) in wrong or r.answer.get("flags"))]
    row.recovery = max(late) - ended if late else 0.0
    row.problems = [problem for problem, _ in Counter(wrong.values()).most_common(3)]


def fault_of(reply: Reply) -> str:
    """What is wrong with a reply; empty when it is valid."""
    if reply.status != 200:
        return reply.problem or f"status {reply.status}: {reply.answer}"
    answer = reply.answer
    y_proba, flags, version = answer.get("probability"), answer.get("flags"), str(answer.get("model_version"))
    if answer.get("entity_id") != reply.entity_id:
        return f"entity {answer.get('entity_id')} instead of {reply.entity_id}"
    if not isinstance(y_proba, float) or not 0 <= y_proba <= 1 or answer.get("decision") not in (0, 1):
        return f"probability {y_proba}, decision {answer.get('decision')}"
    if not isinstance(flags, list) or not version.isdigit() or not answer.get("request_id"):
        return f"flags {flags}, version {version}, request id {answer.get('request_id')}"
    if BASELINE not in flags and not band(version) <= y_proba <= band(version) + 0.05:
        return f"probability {y_proba:.3f} is not of version {version}"
    return ""


def _serves(load: Load, version: str) -> None:
    eventually(lambda: load.replies and load.replies[-1].answer.get("model_version") == version, f"version {version} serves")


def _settle(load: Load) -> None:
    """Waits until a second of answers was whole, at most `SETTLE`."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = time.monotonic()
        last = [r for r in load.replies[-5000:] if r.at > now - 1.2]
        if last and min(r.at for r in last) < now - 1 and not any(fault_of(r) or r.answer["flags"] for r in last):
            return


def table(rows: Sequence[Row]) -> None:
    """Prints what was measured."""
    heads = ["fault", "requests", "valid", "mixed", "flags (share of answers)", "p99, ms (calm)", "recovery, s", "note"]
    shown = [
        [
            row.fault,
            f"{row.requests:,}",
            "–" if math.isnan(row.valid) else f"{100 * row.valid:.2f} %",
            str(row.mixed),
            ", ".join(f"{flag} {share:.0%}" for flag, share in row.flags.items()) or "none",
            f"{1e3 * row.p99:.1f} ({1e3 * row.calm_p99:.1f})",
            f"{row.recovery:.1f}",
            row.note,
        ]
        for row in rows
    ]
    show(heads, shown)
    for row in rows:
        for problem in row.problems:
            say(f"{row.fault}: {problem}")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="python -m ops.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--seconds", type=float, default=5.0, help="that each fault lasts (default 5)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (default 200)")
    parser.add_argument("--swaps", type=int, default=500, help="hot swaps (default 500)")
    parser.add_argument("--rollbacks", type=int, default=10, help="rollbacks (default 10)")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.faults) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    numbers = itertools.count(2)

    def version() -> str:
        return str(next(numbers))

    found = []
    with scene() as at:
        cores = len(os.sched_getaffinity(0))
        say(f"{asked.rate:.0f} requests a second, {len(at.rows)} different rows, each fault {asked.seconds:g} s, {cores} cores\n")
        for name in asked.faults or PARTS:
            say(f"{name} …")
            if name == "swaps":
                found.append(swaps(at, asked.swaps, asked.rate, version))
            elif name == "rollbacks":
                found.append(rollbacks(at, asked.rollbacks, asked.rate, version))
            else:
                found.append(run(at, name, asked.rate, asked.seconds, version))
    say("")
    table(found)
    return found


if __name__ == "__main__":
    main()
