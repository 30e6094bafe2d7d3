"""Versions of the landed data with DVC: add and push, find, restore, pin.

The DVC repository of the landed folder has no git in it and lives in ``<data>/.dvc``. A restore works in a throw-away repository of its own,
so that it meets nobody on a lock and needs nothing but the remote.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path

import yaml

from ml import ledger
from ml.config import ROOT, settings
from ml.data.landed import locked, newest_as_of, notes, raw_folder
from ml.errors import NotFoundError, SnapshotError
from ml.refs import SnapshotRef

os.environ.setdefault("DVC_NO_ANALYTICS", "1")

from dvc.exceptions import DvcException  # noqa: E402 - after the variable that it reads
from dvc.repo import Repo  # noqa: E402
from dvc_objects.errors import ObjectFormatError  # noqa: E402

KIND = "snapshot"
REMOTE = "evergreen"


def snapshot(as_of: datetime) -> SnapshotRef:
    """Makes a version of all landed files, pushes it to the remote and notes it in the ledger. The same content is the same version.

    Args:
        as_of: naive UTC. Where the landed files hold newer knowledge (an older interval was landed late), the version says so.

    Raises:
        SnapshotError: nothing is landed, or the remote does not take it.
    """
    with _dvc("write the snapshot"), locked():
        days = sorted(path.stem for path in raw_folder().glob("*/*.parquet"))
        if not days:
            raise SnapshotError(f"nothing is landed in {raw_folder()}", "land and validate an interval first")
        with _landed_repo() as repo:
            out = repo.add(str(raw_folder()))[0].outs[0]
            repo.push()
        newest = max(as_of, newest_as_of() or as_of)
    ref = SnapshotRef(
        digest=str(out.hash_info.value),
        files=int(out.meta.nfiles or 0),
        size=int(out.meta.size or 0),
        as_of=newest,
        first_day=_first_day(),
        last_day=date.fromisoformat(days[-1]),
    )
    return _recorded(ref)
