"""A worker of engine `local` as a process: ``python -m ml.training.spread.process <folder> <rank>``; started by `on_local`."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from ml.training.spread import job


def main(folder: Path, rank: int) -> None:
    """Does its part of ``job.json`` and leaves ``<rank>.outcome``; ends when the process that started it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said = folder / "tracker.json"

    def meet(mine: str) -> str:
        if mine:
            _write(said, mine)
        while not said.exists():
            time.sleep(0.02)
        return said.read_text()

    _write(folder / f"{rank}.outcome", job.work((folder / "job.json").read_text(), rank, "127.0.0.1", meet))


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".unfinished")
    aside.write_text(text)
    aside.rename(path)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the other end closes
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
