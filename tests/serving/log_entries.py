"""What the tests of the prediction log share: entries, processes that write them, and readers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from ml.serving import log, segments
from ml.serving.log import Entry, read_online

START = datetime(2013, 4, 18)
END = START + timedelta(days=1)
WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from ml.serving import log, segment_files
from tests.serving.log_entries import entry
log.FLUSH_SECONDS = 0.02
"""
"""How a process begins that writes a log; the folder is its argument."""


def entry(minute: int = 0) -> Entry:
    at = START + timedelta(minutes=minute)
    return Entry(
        f"row-{minute}", at, at - timedelta(hours=2), at, "3", 0.1 + 0.2, ["features_stale"], "r", None, {"x": None, "y": 1 / 3}
    )


def names(folder: Path) -> list[str]:
    found: list[str] = read_online(START, END, folder)["entity_id"].to_pylist()
    return found


def keys(folder: Path) -> list[tuple[str, str]]:
    found = read_online(START, END, folder)
    return list(zip(found["entity_id"].to_pylist(), found["request_id"].to_pylist(), strict=True))


def abandoned(folder: Path, entries: list[Entry]) -> Path:
    """A segment that its process left behind."""
    segment, path = segments.begin(folder)
    with segment:
        segment.write(b"".join(log._lines(entries)))
    return path


@contextlib.contextmanager
def writer(folder: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that writes a log."""
    command = [sys.executable, "-c", WRITER + program, str(folder), *arguments]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
