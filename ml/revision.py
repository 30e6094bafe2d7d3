"""The git revision of the running code."""

from __future__ import annotations

import subprocess
from functools import cache

from ml.config import ROOT


@cache
def revision() -> str:
    """Commit id, with ``+changes`` when tracked files differ from it; ``unknown`` outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()
