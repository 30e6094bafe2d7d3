"""DuckDB for the expressions of params.yaml and the joins of features: Arrow in, Arrow out, nothing kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

# No extension is ever fetched: what the wheel carries (Parquet) is enough.
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 2,
    "python_enable_replacements": False,  # a table is what was given by name, never a Python variable that happens to be near
}


def query(statement: str, **tables: pa.Table) -> pa.Table:
    """Runs one SQL statement over the given Arrow tables, by their names. Safe in threads and after a fork."""
    with _database(os.getpid()).cursor() as connection:  # a cursor is a connection of its own: names do not meet
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(statement).to_arrow_table()


@cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """One empty in-memory database per process: opening one costs 20 ms, a cursor 1 ms."""
    return duckdb.connect(":memory:", config=CONFIG)


def quoted(name: str) -> str:
    """A column or table name, safe inside SQL.

    >>> quoted('tail num')
    '"tail num"'
    """
    return '"' + name.replace('"', '""') + '"'


def literal(moment: datetime) -> str:
    """A timestamp literal.

    >>> literal(datetime(2013, 1, 2, 3))
    "TIMESTAMP '2013-01-02 03:00:00'"
    """
    return f"TIMESTAMP '{moment.isoformat(sep=' ')}'"


def parquet(paths: Iterable[Path]) -> str:
    """A FROM item that reads these Parquet files."""
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{names}])"
