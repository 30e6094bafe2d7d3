"""Four real days, delivered as files that a test can damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ml.config import load_params
from ml.data.landed import raw_folder
from ml.data.landing import land
from ml.data.rows import live_rows
from ml.data.schema import arrow_schema
from ml.refs import LandingRef, Window
from tests.conftest import forget
from tests.data.kinds import TABLES

FIRST = date(2013, 1, 2)
DAYS = 4
ALL_KNOWN = datetime(2014, 1, 1)


@dataclass(frozen=True)
class Delivery:
    """The delivered files, one Parquet file per table and day (`planes`: one file)."""

    folder: Path

    def file(self, table: str, day: int = 0) -> Path:
        return self.folder / table / f"{FIRST + timedelta(days=day)}.parquet"

    def edit(self, table: str, day: int, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Rewrites one file; columns keep their declared types where they still can."""
        rows = change(pq.read_table(self.file(table, day)).to_pandas())
        declared = arrow_schema(load_params().tables[table])
        kept = [field for field in declared if field.name in rows.columns]
        try:
            written = pa.Table.from_pandas(rows[[f.name for f in kept]], schema=pa.schema(kept), preserve_index=False)
        except pa.ArrowException:
            written = pa.Table.from_pandas(rows, preserve_index=False)
        pq.write_table(written, self.file(table, day))


@pytest.fixture(scope="session")
def delivered(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Path:
    """The files, written once."""
    with pytest.MonkeyPatch.context() as patch:
        var = tmp_path_factory.mktemp("var")
        (var / "cache").symlink_to(parsed_sources)
        patch.setenv("EVERGREEN_VAR", str(var))
        forget()
        delivery = Delivery(tmp_path_factory.mktemp("delivered"))
        for table, spec in load_params().tables.items():
            for number in range(DAYS if spec.event_time else 1):
                start = datetime.combine(FIRST, datetime.min.time()) + timedelta(days=number)
                delivery.file(table, number).parent.mkdir(exist_ok=True)
                rows = live_rows(table, start, start + timedelta(days=1), ALL_KNOWN)
                pq.write_table(rows.select(list(spec.columns)), delivery.file(table, number))
    forget()
    return delivery.folder


@pytest.fixture
def delivery(workspace: Path, delivered: Path, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    """A workspace whose sources are this test's own copy of the files."""
    folder = workspace / "delivered"
    shutil.copytree(delivered, folder)
    params = yaml.safe_load(Path("params.yaml").read_text())
    for table, section in params["tables"].items():
        section["source"] = {
            "kind": "parquet",
            "path": f"{folder}/{table}/" + ("{day}.parquet" if section["event_time"] else "*.parquet"),
        }
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    monkeypatch.setenv("EVERGREEN_PARAMS", str(workspace / "params.yaml"))
    forget()
    return Delivery(folder)


@pytest.fixture
def tables(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose parameters declare `TABLES`."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["tables"] = {name: {"source": {"kind": "parquet", "path": "none"}, **table} for name, table in TABLES.items()}
    params["problem"] |= {"table": "bookings", "id": ["id"], "label": "late % 2"}
    params["features"] |= {"module": None, "allow_sensitive": {}}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    monkeypatch.setenv("EVERGREEN_PARAMS", str(workspace / "params.yaml"))
    forget()
    return workspace


def days(first: int, count: int = 1) -> Window:
    """`count` days from the delivery's day number `first`."""
    return Window(start=FIRST + timedelta(days=first), end=FIRST + timedelta(days=first + count))


def night_after(window: Window) -> datetime:
    """When `ingest` lands the interval: 02:00 on the day after it."""
    return datetime.combine(window.end, datetime.min.time()) + timedelta(hours=2)


def land_days(first: int, count: int = 1, as_of: datetime | None = None) -> LandingRef:
    window = days(first, count)
    return land(window, as_of or night_after(window))


def contents(folder: Path | None = None) -> dict[str, bytes]:
    """Name → bytes of all landed files."""
    folder = folder or raw_folder()
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
