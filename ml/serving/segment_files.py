"""Where a prediction log goes by default: segment files below `var`, which become Parquet (`ml.serving.segments`)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from ml import shared
from ml.serving import segments
from ml.settings import settings

SEGMENT_BYTES = 64 << 20
SEGMENT_SECONDS = 300.0
SHARED_SEGMENT_SECONDS = 15.0
"""Where others can only read what is closed."""

_ROTATE = (
    "import os, sys; os.nice(19); hasattr(os, 'SCHED_IDLE') and os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); "
    "from pathlib import Path; from ml.serving import segments; segments.rotate(Path(sys.argv[1]))"
)

logger = logging.getLogger(__name__)


def folder() -> Path:
    """Where the segments of online predictions are."""
    return settings().var / "predictions" / "online"


class SegmentFiles:
    """Appends lines to segment files of this process, and turns closed ones into Parquet, killed processes' too.

    Args:
        target: folder of the segments; created when missing.
    """

    def __init__(self, target: Path) -> None:
        self._target, self._closing = target, False
        self._segment: IO[bytes] | None = None
        self._path, self._size, self._began = Path(), 0, 0.0
        self._written = 0
        self._rotation = threading.Thread(target=self._rotate)
        self._more = threading.Event()

    def start(self) -> None:
        """Rotates what others left."""
        self._rotate_aside()

    def write(self, lines: list[bytes]) -> None:
        """Appends all of them, or none.

        Raises:
            OSError: a new segment cannot take them.
        """
        fresh = self._segment is None
        try:
            self._append(b"".join(lines))
        except OSError:
            if fresh:
                raise
            self._append(b"".join(lines))  # the old one may have reached what one file may hold
        self._written += len(lines)
        if self._size > SEGMENT_BYTES:
            self._end_segment()

    def settled(self) -> tuple[int, int]:
        written, self._written = self._written, 0
        return written, 0

    def flushed(self) -> None:
        """Ends a segment of some age."""
        longest = SHARED_SEGMENT_SECONDS if settings().shared else SEGMENT_SECONDS
        if self._segment is not None and time.monotonic() - self._began > longest:
            self._end_segment()

    def close(self) -> None:
        """Syncs the segment to the disk and rotates it."""
        self._closing = True
        self._end_segment()
        if self._rotation.ident is not None:
            self._rotation.join()
        self._rotate()  # what was closed while that ran

    def _append(self, lines: bytes) -> None:
        if self._segment is None:
            self._segment, self._path = segments.begin(self._target)
            self._size, self._began = 0, time.monotonic()
        rest = memoryview(lines)
        try:
            while rest:  # a disk that is almost full takes a part
                rest = rest[os.write(self._segment.fileno(), rest) :]
        except OSError:
            os.ftruncate(self._segment.fileno(), self._size)
            if not self._size:
                self._path.unlink(missing_ok=True)
            self._end_segment()
            raise
        self._size += len(lines)

    def _end_segment(self) -> None:
        if self._segment is None:
            return
        try:
            os.fsync(self._segment.fileno())
        except OSError:
            logger.exception("prediction log: %s may not be on the disk", self._path.name)
        self._segment.close()  # and lets the lock go
        self._segment = None
        if self._size:
            self._rotate_aside()

    def _rotate_aside(self) -> None:
        """Rotates in a process of its own, of the lowest priority: on a busy core it must take nothing from the answers."""
        if self._closing or not any(self._target.glob("*.jsonl")):
            return
        self._more.set()
        if not self._rotation.is_alive():
            self._rotation = threading.Thread(target=self._rotate_in_a_child, name="prediction-log-rotation", daemon=True)
            self._rotation.start()

    def _rotate_in_a_child(self) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", _ROTATE, str(self._target)]
        while self._more.is_set():
            self._more.clear()
            done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=False)
            if done.stderr:
                logger.warning("prediction log: %s", done.stderr.strip()[-1000:])
            self._offer()

    def _rotate(self) -> None:
        segments.rotate(self._target)
        self._offer()

    def _offer(self) -> None:
        """Shares closed segments with other machines, if there are any."""
        if self._target == folder():
            shared.offer(self._target, "*.parquet")
