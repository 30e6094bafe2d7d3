"""The git revision of the running code."""

from __future__ import annotations

import subprocess
from functools import cache

from ml.settings import ROOT, settings


@cache
def revision() -> str:
    """Commit id, with ``+changes`` when tracked files differ from it.

    Outside a git checkout: what EVERGREEN_REVISION says, else ``unknown``.
    """
    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return settings().revision or "unknown"
    return f"{commit}+changes" if changed else commit


def git(*arguments: str) -> str:
    """What a git command prints, run in the repository of the running code; raises OSError or CalledProcessError."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()
