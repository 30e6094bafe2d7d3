"""Versions of the landed data with DVC: add and push, find, restore, pin.

The DVC repository of the landed folder has no git in it and lives in ``<data>/.dvc``. A restore works in a throw-away repository
of its own, so that it meets nobody on a lock and needs nothing but the remote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ml import ledger
from ml.config import load_params
from ml.data.landed import landed_days, locked, newest_as_of, raw_folder
from ml.errors import NotFoundError, SnapshotError
from ml.refs import SnapshotRef
from ml.settings import ROOT, settings

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

# DVC is imported where it works: most steps only ask which version to use, and find it restored already (0.4 s for each of them).

log = logging.getLogger(__name__)

KIND = "snapshot"
REMOTE = "evergreen"
KEEP_WORKSPACES = timedelta(days=7)  # wall clock, since a run last asked for it


def snapshot(as_of: datetime) -> SnapshotRef:
    """Makes a version of all landed files, pushes it, and notes it in the ledger. The same content is the same version.

    Args:
        as_of: naive UTC. Where the landed files hold newer knowledge (an older interval was landed late), the version says so.

    Raises:
        SnapshotError: nothing is landed, or the remote does not take it.
    """
    from dvc.repo import Repo

    with _speaking(f"cannot snapshot {raw_folder()}, or push it to {settings().dvc_remote}"), locked():
        days = sorted({day for table, spec in load_params().tables.items() if spec.event_time for day in landed_days(table)})
        if not days:
            raise SnapshotError(f"nothing is landed in {raw_folder()}", "land and validate an interval first")
        _initialise()
        with Repo(str(settings().data), config=_config(settings().data / ".dvc" / "site")) as repo:
            before = _tracked(settings().data / "raw.dvc")
            added = repo.add(str(raw_folder()), relink=False)[0].outs[0]
            _push(repo, added.obj, before)
        newest = max(as_of, newest_as_of() or as_of)
    return _recorded(
        SnapshotRef(
            digest=str(added.hash_info.value),
            files=int(added.meta.nfiles),
            size=int(added.meta.size),
            as_of=newest,
            first_day=date.fromisoformat(days[0]),
            last_day=date.fromisoformat(days[-1]),
        )
    )


def restore(ref: SnapshotRef, folder: Path | None = None) -> Path:
    """Brings exactly this version into a folder of its own, from the cache or else from the remote.

    A folder appears whole, by one rename, or not at all; one that is there already is used as it is. Any number of runs may do it
    at once.

    Args:
        folder: where to; default ``<var>/workspaces/<digest>``.

    Returns:
        The folder: ``<folder>/<table>/<day>.parquet``.

    Raises:
        SnapshotError: a file of the version is neither in the cache nor in the remote.
    """
    folder = folder or settings().var / "workspaces" / ref.digest.removesuffix(".dir")
    if not folder.is_dir():
        _sweep(folder.parent)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.parent / f".{uuid.uuid4().hex}"
        log.info("restoring %d files of snapshot %s", ref.files, ref.digest)
        try:
            _pull(ref, aside)
            (aside / "raw").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was first, with the same content
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    os.utime(folder)
    return folder


def find(as_of: datetime) -> SnapshotRef:
    """The version to use for work as of a moment: the newest one that was made by then.

    If there is none, or it lacks the day before while a version of a later day has it (days were landed long after, as a backfill
    does, or out of order), then the oldest that covers the moment, if possible without a hole, and of equally old ones the last
    that was made: a backfill goes on adding days to the same knowledge. Code that reads it hides what was not known yet.

    Raises:
        NotFoundError: no version covers it.
    """
    refs = [SnapshotRef.model_validate(entry.evidence) for entry in ledger.entries(KIND)]
    covering = [ref for ref in refs if ref.first_day < as_of.date() <= ref.last_day + timedelta(days=1)]
    later = [ref for ref in covering if ref.as_of.date() > as_of.date()]  # of the same day: the next landing, not yet due
    before = [ref for ref in refs if ref.as_of <= as_of]
    newest = [ref for ref in before if ref.as_of == max(other.as_of for other in before)][-1:]
    if newest and (newest[0] in covering or not later):
        return newest[0]
    covering = later if newest else covering
    if not covering:
        spans = (
            f"{len(refs)} versions, {min(r.first_day for r in refs)} to {max(r.last_day for r in refs)}"
            if refs
            else "none at all"
        )
        raise NotFoundError(
            f"no snapshot covers {as_of:%Y-%m-%d %H:%M} (there are: {spans})", "run `ingest` for the days before it"
        )
    covering = [ref for ref in covering if _has_every_day(ref)] or covering
    return [ref for ref in covering if ref.as_of == min(other.as_of for other in covering)][-1]


def _has_every_day(ref: SnapshotRef) -> bool:
    """Whether it has as many files as its span has days, for each table with time. (A source may have days without rows.)"""
    timed = sum(spec.event_time is not None for spec in load_params().tables.values())
    return ref.files >= timed * ((ref.last_day - ref.first_day).days + 1)


def by_digest(digest: str) -> SnapshotRef:
    """The version with this digest.

    Raises:
        NotFoundError: the ledger knows none.
    """
    refs = [SnapshotRef.model_validate(entry.evidence) for entry in ledger.entries(KIND)]
    for ref in refs:
        if ref.digest == digest:
            return ref
    raise NotFoundError(
        f"the ledger knows no snapshot {digest} (it knows {len(refs)})", "set EVERGREEN_LEDGER to the ledger that noted it"
    )


def verify(ref: SnapshotRef, folder: Path) -> None:
    """Reads every restored file, and proves that together they have the version's digest (the MD5 of DVC's sorted listing).

    Raises:
        SnapshotError: they are not what was versioned.
    """
    listing = [
        {"md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    listing.sort(key=lambda entry: entry["relpath"])
    found = hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    if found != ref.digest:
        raise SnapshotError(
            f"the {len(listing)} files in {folder} have digest {found}, not {ref.digest} ({ref.files} files)",
            f"remove what is damaged from the cache ({_cache()}), so that it is pulled from {settings().dvc_remote} again",
        )


def pin(ref: SnapshotRef, root: Path = ROOT) -> Path:
    """Writes the version into ``<root>/pinned/raw.dvc``, a file to be tracked by git; ``dvc pull`` there brings ``pinned/raw``.

    Makes `root` a DVC repository, and our remote its default one, where that is not so yet.

    Returns:
        The path of the ``.dvc`` file.
    """
    from dvc.repo import Repo

    with _speaking(f"cannot pin {ref.digest} in {root}"):
        if not (root / ".dvc").is_dir():
            Repo.init(str(root), no_scm=not (root / ".git").exists()).close()
        with Repo(str(root)) as repo:
            if not repo.config["core"].get("remote"):
                with repo.config.edit() as edited:
                    edited["core"]["remote"] = REMOTE
                    edited["remote"][REMOTE] = {"url": _portable(settings().dvc_remote, root)}
    pinned = _pointer(ref, root / "pinned")
    (pinned.parent / ".gitignore").write_text("/raw\n")
    return pinned


def _initialise() -> None:
    """Makes the landed folder a DVC repository without git; a restore on this machine may have put its cache there before.

    DVC's own ``init`` refuses a ``.dvc`` that exists, or empties it.
    """
    config = settings().data / ".dvc" / "config"
    if not config.exists():
        config.parent.mkdir(exist_ok=True)
        (settings().data / ".dvcignore").write_text("/staging\n/quarantine\n")  # else DVC looks through them each time
        aside = config.with_name(f".{uuid.uuid4().hex}")
        aside.write_text("[core]\n    no_scm = True\n")
        aside.rename(config)


def _push(repo: Repo, tree: Tree, before: HashInfo | None) -> None:
    """Sends what is new since the version before, and the listing last, so that a listing in the remote means all of it is.

    DVC's own ``push`` compares each file of the directory with the remote, a cost per day that grows with history; and it trusts
    a local index of the remote, which is wrong when the remote was emptied.
    """
    from dvc_data.hashfile.tree import Tree

    remote = repo.cloud.get_remote_odb(command="push")
    if remote.exists(tree.hash_info.value):
        return
    known: set[HashInfo] = set()
    if before is not None and remote.exists(before.value) and repo.cache.local.exists(before.value):
        known = {entry for _, _, entry in Tree.load(repo.cache.local, before)}
    files = {entry for _, _, entry in tree} - known
    log.info("pushing %d new of %d files to %s", len(files), len(tree), settings().dvc_remote)
    failed = repo.cloud.transfer(repo.cache.local, remote, files).failed
    failed = failed or repo.cloud.transfer(repo.cache.local, remote, {tree.hash_info}).failed
    if failed:
        raise SnapshotError(
            f"{len(failed)} of {len(tree)} files were not taken by the remote {settings().dvc_remote}",
            "check that EVERGREEN_DVC_REMOTE answers, and the space there",
        )


def _tracked(pointer: Path) -> HashInfo | None:
    """The version that a ``.dvc`` file names."""
    from dvc_data.hashfile.hash_info import HashInfo

    return HashInfo("md5", yaml.safe_load(pointer.read_text())["outs"][0]["md5"]) if pointer.exists() else None


def _portable(url: str, root: Path) -> str:
    """A remote below `root` as a relative path (which DVC takes from the working directory, and writes as seen from ``.dvc``)."""
    return os.path.relpath(url) if Path(url).is_relative_to(root.resolve()) else url


def _pull(ref: SnapshotRef, workspace: Path) -> None:
    """Makes `workspace` a DVC repository that shares our cache, and checks the version out below it as ``raw``."""
    from dvc.repo import Repo

    with _speaking(
        f"snapshot {ref.digest}: some of its {ref.files} files are neither in the cache ({_cache()}) nor in the remote "
        f"({settings().dvc_remote})",
        "set EVERGREEN_DVC_REMOTE to the remote that it was pushed to, or land the days again",
    ):
        workspace.mkdir()
        Repo.init(str(workspace), no_scm=True).close()
        pointer = _pointer(ref, workspace)
        with Repo(str(workspace), config=_config(workspace / ".dvc" / "site")) as repo:
            repo.pull([str(pointer)])


def _pointer(ref: SnapshotRef, folder: Path) -> Path:
    """A ``.dvc`` file that names the version."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {"md5": ref.digest, "size": ref.size, "nfiles": ref.files, "hash": "md5", "path": "raw"}
    aside = folder / f".{uuid.uuid4().hex}"
    aside.write_text(yaml.safe_dump({"outs": [out]}, sort_keys=False))
    return aside.rename(folder / "raw.dvc")


def _recorded(ref: SnapshotRef) -> SnapshotRef:
    """Notes the version in the ledger once; returns what is noted, so that the same content gives the same reference."""
    noted = [SnapshotRef.model_validate(entry.evidence) for entry in ledger.entries(KIND)]
    if noted and noted[-1].digest == ref.digest:
        return noted[-1]
    again = any(old.digest == ref.digest for old in noted)  # content went back to an earlier version
    key = f"snapshot-{ref.digest}" + (f"-{ref.as_of:%Y%m%dT%H%M%S}" if again else "")
    reason = f"{ref.files} files, {ref.first_day} to {ref.last_day}"
    if ledger.record(KIND, key, ref.as_of, ref.digest, "made", reason, ref.model_dump(mode="json")):
        return ref
    return next(
        SnapshotRef.model_validate(entry.evidence) for entry in ledger.entries(KIND) if entry.key == key
    )  # another was first


def _cache() -> Path:
    return settings().data / ".dvc" / "cache"


def _config(site: Path) -> dict[str, Any]:
    """DVC's configuration, from ours; given at each opening, so that no file of it can be out of date."""
    return {
        "core": {"analytics": False, "check_update": False, "autostage": False, "remote": REMOTE, "site_cache_dir": str(site)},
        "cache": {"dir": str(_cache())},
        "remote": {REMOTE: {"url": settings().dvc_remote}},
    }


@contextmanager
def _speaking(what: str, cure: str = "check that EVERGREEN_DVC_REMOTE answers, and the space on disk") -> Iterator[None]:
    """Silences DVC's own output, and turns its exceptions into ours."""
    from dvc.exceptions import DvcException

    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)  # DVC's progress bars follow this level
    try:
        yield
    except (DvcException, OSError) as error:
        raise SnapshotError(f"{what}: {' '.join(str(error).split())}", cure) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _sweep(workspaces: Path) -> None:
    """Removes workspaces that nobody asked for in a long time, and what killed restores left."""
    limit = (datetime.now(UTC) - KEEP_WORKSPACES).timestamp()
    for folder in workspaces.glob("*") if workspaces.is_dir() else []:
        if folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)
