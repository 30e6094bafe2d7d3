"""Land: sources → staging, one typed Parquet file per table and data day, masked to what was known at `as_of`.

Nothing outside ``<data>/staging`` and ``<data>/quarantine`` is written here; `ml.data.validation` publishes what is good.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from ml import shared, store
from ml.config import Table, load_params
from ml.data.asof import known_sql, order, run
from ml.data.landed import current_static, landed_days, refresh, same_rows, write_rows
from ml.data.schema import arrow_schema
from ml.data.sources import BadFileError, open_source
from ml.errors import SourceError
from ml.refs import LandingRef, Window
from ml.settings import settings

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEP_STAGING = timedelta(days=2)  # wall clock; long enough for every retry of a night
REPORT_EVERY = 3.0  # seconds between two lines of progress


def land(window: Window, as_of: datetime, beside_others: bool = False) -> LandingRef:
    """Stages the interval, and again the `landing.lookback_days` days before it that were landed earlier: outcomes arrive late.

    Args:
        window: data days; a row belongs to the UTC day of its event time.
        as_of: naive UTC. Outcomes with a later `known_at` are staged as NULL.
        beside_others: landings of the days around may be under way (a backfill). Then the days before are staged whether they
            were landed or not: else what is known of them in the end would depend on who was first.

    Returns:
        A reference whose key holds window, `as_of` and a digest of the content: the same landing twice is one staging folder.

    Raises:
        SourceError: a source cannot be read, has another shape, or the problem's table has no rows in the interval. A bad file
            is copied to quarantine. Nothing that was landed is touched.
    """
    params, staging = load_params(), settings().data / "staging"
    _sweep(staging)
    refresh()
    name = f"{window.start}_{window.end}_{as_of:%Y%m%dT%H%M%S}"
    aside = staging / f".{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        where = {table: (aside / table, name) for table in params.tables}
        rows = {t: _stage(t, spec, window, as_of, *where[t], beside_others) for t, spec in params.tables.items()}
        if rows[params.problem.table] == 0:
            raise SourceError(
                f"table '{params.problem.table}' has no rows with event time in {window}",
                f"check the interval, and that tables.{params.problem.table}.source delivers it",
            )
        key = f"{name}_{_digest(aside)}"
        if not (staging / key).exists():
            try:
                aside.rename(staging / key)
            except OSError:  # the same landing, run twice at once: the other's content is the same
                if not (staging / key).exists():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if shared.wanted():
        files = {path.relative_to(staging / key).as_posix(): path for path in (staging / key).rglob("*.parquet")}
        store.remember(f"staging-{key}", store.put(store.pack({name: path.read_bytes() for name, path in files.items()})))
    return LandingRef(window=window, as_of=as_of, key=key, rows=rows)


def staged(landing: LandingRef) -> dict[str, dict[str, Path]]:
    """The staged files: table → day → path. Tables without a change have none.

    Raises:
        SourceError: the staging folder was swept.
    """
    folder = settings().data / "staging" / landing.key
    if not folder.is_dir() and not (shared.wanted() and _brought(landing.key, folder)):
        raise SourceError(f"nothing is staged under {folder}", "land the interval again")
    found = {table: {path.stem: path for path in sorted((folder / table).glob("*.parquet"))} for table in load_params().tables}
    return {table: files for table, files in found.items() if files}


def _brought(key: str, folder: Path) -> bool:
    """Brings what another machine staged; whether it did stage it."""
    if (digest := store.recall(f"staging-{key}")) is None:
        return False
    aside = folder.with_name(f".{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    for name, content in store.unpack(store.get(digest)).items():
        (aside / name).parent.mkdir(exist_ok=True)
        (aside / name).write_bytes(content)
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another task of this machine was first, with the same content
            raise
        shutil.rmtree(aside)
    return True


def quarantine_folder(table: str, key: str) -> Path:
    return settings().data / "quarantine" / table / key


def quarantine_reasons(table: str, key: str, reasons: list[dict[str, object]]) -> None:
    """Writes why something is in quarantine, beside it."""
    folder = quarantine_folder(table, key)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{uuid.uuid4().hex}"
    aside.write_text(json.dumps(reasons, indent=2, default=str) + "\n")
    aside.rename(folder / "reasons.json")
    shared.share({path: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")})


def progress(things: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Passes `things` through, and logs how far it is whenever some seconds have gone by."""
    last = time.monotonic()
    for count, thing in enumerate(things):
        if time.monotonic() - last > REPORT_EVERY:
            last = time.monotonic()
            log.info("%s: %d of %d", what, count, total)
        yield thing


def _stage(table: str, spec: Table, window: Window, as_of: datetime, folder: Path, name: str, before_too: bool) -> int:
    """Stages one table; returns how many rows of the window itself were read."""
    began = time.monotonic()
    start, end = _midnight(window.start), _midnight(window.end)
    lookback = timedelta(days=load_params().landing.lookback_days if spec.event_time else 0)
    try:
        delivered = open_source(spec).read(table, spec, start - lookback, end)
    except BadFileError as error:
        where = _keep(table, name, error)
        raise BadFileError(error.what, f"{error.cure} (a copy is in {where})", error.path) from None
    rows = run(table, spec, _in_days(spec, as_of), {"rows": delivered})
    plain = rows.select(list(spec.columns)).cast(arrow_schema(spec))
    if spec.event_time is None:
        _stage_static(table, plain, folder, max(window.end, as_of.date()) - timedelta(days=1))
        return plain.num_rows
    earlier, inside, days = set(landed_days(table)), 0, list(_slices(rows.column("__day")))
    for day, offset, count in progress(days, len(days), f"landing {table}, days"):
        if day < window.start and not before_too and day.isoformat() not in earlier:
            continue
        write_rows(plain.slice(offset, count), folder / f"{day}.parquet")
        inside += count if day >= window.start else 0
    log.info("staged %s: %d rows of %s in %.1f s", table, inside, window, time.monotonic() - began)
    return inside


def _in_days(spec: Table, as_of: datetime) -> str:
    known = known_sql(spec, as_of, None, None, "rows")
    return f"SELECT *, CAST(event_time AS DATE) AS __day FROM ({known}) ORDER BY __day, {order(spec)}"


def _slices(days: pa.ChunkedArray) -> Iterator[tuple[date, int, int]]:
    """Day, first row and number of rows, for a sorted column of days."""
    offset = 0
    for counted in pc.value_counts(days):
        yield counted["values"].as_py(), offset, counted["counts"].as_py()
        offset += counted["counts"].as_py()


def _stage_static(table: str, rows: pa.Table, folder: Path, day: date) -> None:
    """A table without event time is staged when it differs from what a reader would get at the end of the day.

    Args:
        day: the last of the interval, or the last before the landing: readers see the file from the midnight after it, and what
            was learned at an interval's end, or long after it, may not be seen in its middle.
    """
    path = folder / f"{day}.parquet"
    write_rows(rows, path)
    current = current_static(table, day)
    if current is not None and same_rows(current, path):
        path.unlink()


def _keep(table: str, name: str, error: BadFileError) -> Path:
    """Copies a bad file into quarantine, with the reason."""
    folder = quarantine_folder(table, name)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / error.path.rsplit("/", 1)[-1]
    try:
        with fsspec.open(error.path, "rb") as source, open(kept, "wb") as target:
            shutil.copyfileobj(source, target)
    except OSError as problem:
        log.warning("cannot copy %s into quarantine: %s", error.path, problem)
    quarantine_reasons(table, name, [{"file": error.path, "reason": error.what}])
    return folder


def _digest(folder: Path) -> str:
    """Over the names and bytes of all staged files."""
    files = sorted(folder.rglob("*.parquet"))
    return store.sha256("".join(f"{p.relative_to(folder)}:{store.sha256(p.read_bytes())}\n" for p in files).encode())[:12]


def _sweep(staging: Path) -> None:
    """Removes what landings left behind long ago, half-made ones of killed runs too."""
    limit = (datetime.now(UTC) - KEEP_STAGING).timestamp()
    for folder in staging.glob("*") if staging.is_dir() else []:
        if folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)
