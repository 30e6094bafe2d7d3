"""Engine `local`: a process of this machine for each worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ml import engines
from ml.errors import EvergreenError
from ml.settings import ROOT
from ml.training.spread.job import Job

POLL_SECONDS = 0.05


def carry(job: Job, address: str) -> list[str]:
    """Starts a worker for each share and waits; the first that fails ends all. `address` has no meaning here."""
    with tempfile.TemporaryDirectory(prefix="evergreen-train-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(job.model_dump_json())
        workers = [_start(folder, rank) for rank in range(len(job.shares))]
        try:
            while (codes := [worker.poll() for worker in workers]) != [0] * len(workers):
                if any(codes):
                    raise _failure(folder, codes)
                time.sleep(POLL_SECONDS)
            return [(folder / f"{rank}.outcome").read_text() for rank in range(len(workers))]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                if worker.stdin:
                    worker.stdin.close()


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ml.training.spread.process", str(folder), str(rank)]
    with (folder / f"{rank}.log").open("wb") as log:  # its end of the pipe closes when this process ends, however that is
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | engines.environment(), stdin=subprocess.PIPE, stdout=log, stderr=log
        )


def _failure(folder: Path, codes: list[int | None]) -> EvergreenError:
    """Who failed, and why: one that was killed has pulled the others down with it, and so is the culprit."""
    rank = min((i for i, code in enumerate(codes) if code), key=lambda i: (codes[i] or 0, i))
    code, said = codes[rank] or 0, (folder / f"{rank}.log").read_text(errors="replace").strip()
    who = f"worker {rank + 1} of {len(codes)}"
    if code < 0:
        name, last = signal.Signals(-code).name, said.rpartition("\n")[2]
        return EvergreenError(
            f"{who} was killed by {name}, the others were stopped{': ' + last if last else ''}",
            "run the step again; if it was for want of memory, with more workers (EVERGREEN_TRAIN_WORKERS)",
        )
    why = engines.said(RuntimeError(said))
    return EvergreenError(f"{who} failed, the others were stopped: {why}", "mend that and run the step again")
