"""What a piece of work costs this process: wall time, CPU time, memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

KIBI = 1024


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time; seconds of CPU of this process and of children that it waited for; the most memory it held, bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def to_json(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3), "peak_bytes": self.peak_bytes}


class Meter:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), _cpu_seconds()

    def read(self) -> Cost:
        """What was used since. The peak is of the process's whole life, children apart: what a worker must have room for."""
        return Cost(time.perf_counter() - self._began, _cpu_seconds() - self._cpu, peak_bytes())


def peak_bytes() -> int:
    """The most memory this process held, resident.

    `VmHWM` where the kernel tells it: `ru_maxrss` of a child counts what its parent held before ``exec``.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI
    return next(int(line.split()[1]) * KIBI for line in lines if line.startswith("VmHWM:"))


def together(costs: list[dict[str, float]]) -> dict[str, float]:
    """The sum of several costs as JSON, the largest peak."""
    kept = {name: round(sum(cost[name] for cost in costs), 3) for name in ("seconds", "cpu_seconds")}
    return kept | {"peak_bytes": max(cost["peak_bytes"] for cost in costs)}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
