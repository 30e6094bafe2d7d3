"""The declared types of params.yaml as Arrow types, and the one place where delivered columns are brought to them.

A missing value is NULL, in every type: NaN, an empty string and ``NA`` become NULL here. Columns that are not declared are
dropped.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ml.config import ColumnType, Table
from ml.data.query import query
from ml.errors import SourceError

ARROW: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}

ALLOWED: dict[ColumnType, str] = {
    "string": "text",
    "int": "whole numbers",
    "float": "numbers",
    "bool": "true/false or 0/1",
    "timestamp": "timestamps, dates or ISO 8601 text (UTC unless it has an offset)",
}

# Text to a value, or NULL where it does not parse. DuckDB's TIMESTAMP cast ignores an offset, so those go through TIMESTAMPTZ.
PARSE: dict[ColumnType, str] = {
    "int": r"CASE WHEN regexp_full_match(trim(v), '[+-]?\d+(\.0*)?') THEN TRY_CAST(v AS BIGINT) END",
    "float": "TRY_CAST(v AS DOUBLE)",
    "bool": "TRY_CAST(v AS BOOLEAN)",
    "timestamp": r"CASE WHEN regexp_matches(v, ':\d\d(\.\d+)?\s?[+-]\d\d(:?\d\d)?$') "
    "THEN make_timestamp(epoch_us(TRY_CAST(v AS TIMESTAMPTZ))) ELSE TRY_CAST(v AS TIMESTAMP) END",
}


def arrow_schema(spec: Table) -> pa.Schema:
    """The Arrow schema of a landed file: declared columns, in the declared order."""
    return pa.schema([(name, ARROW[declared]) for name, declared in spec.columns.items()])


def typed(table: str, spec: Table, raw: pa.Table, where: str, text: bool = False) -> pa.Table:
    """Brings delivered columns to their declared types; never rounds, truncates or guesses.

    Args:
        table: name of the table, for messages.
        raw: what the source delivered; may have more columns.
        where: file or query that it came from, for messages.
        text: the source knows text only (CSV), so that numbers are parsed from it. Otherwise text in a number column is an error.

    Raises:
        SourceError: a declared column is missing, or holds values of another type; names up to three of them.
    """
    missing = [column for column in spec.columns if column not in raw.column_names]
    if missing:
        raise SourceError(
            f"table '{table}' has no column '{missing[0]}'"
            + (f" (nor {', '.join(missing[1:])})" if missing[1:] else "")
            + f" in {where}; found: {', '.join(raw.column_names)}",
            f"deliver it, or change tables.{table}.columns in the parameter file",
        )
    arrays = [_convert(table, name, declared, raw.column(name), where, text) for name, declared in spec.columns.items()]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(spec))


def _convert(table: str, column: str, declared: ColumnType, values: pa.ChunkedArray, where: str, text: bool) -> pa.ChunkedArray:
    values, found = _plain(values), str(values.type)
    target = ARROW[declared]
    if pa.types.is_null(values.type):
        return values.cast(target)
    if pa.types.is_string(values.type) and (text or declared in ("string", "timestamp")):
        parsed = values if declared == "string" else _column(f"SELECT {PARSE[declared]} AS v FROM t", values).cast(target)
    elif _fits(values.type, declared):
        parsed = _numeric(values, declared) if declared in ("int", "bool") else values.cast(target, safe=False)
    else:
        parsed = pa.chunked_array([pa.nulls(len(values), target)])
    culprits = pc.and_(pc.is_valid(values), pc.is_null(parsed))
    if pc.any(culprits).as_py():
        rows = pc.indices_nonzero(culprits)
        shown = "; ".join(repr(values[row.as_py()].as_py()) for row in rows[:3])
        raise SourceError(
            f"table '{table}', column '{column}' in {where}: found {found} where {declared} is declared, "
            f"{len(rows):,} of {len(values):,} values do not fit, e.g. {shown}; allowed: {ALLOWED[declared]}",
            f"mend the source, or change tables.{table}.columns.{column} in the parameter file",
        )
    return pc.if_else(pc.is_nan(parsed), None, parsed) if declared == "float" else parsed


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionary, large and view strings as plain strings; empty strings and NA as NULL; decimals as doubles."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_large_string(kind) or pa.types.is_string(kind) or pa.types.is_string_view(kind):
        values = values.cast(pa.string())
        return pc.if_else(pc.is_in(values, pa.array(["", "NA"])), pa.scalar(None, pa.string()), values)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return values.cast(pa.float64())
    values = values.cast(kind)
    return pc.if_else(pc.is_nan(values), None, values) if pa.types.is_floating(kind) else values


def _fits(found: pa.DataType, declared: ColumnType) -> bool:
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    if declared == "timestamp":
        return pa.types.is_timestamp(found) or pa.types.is_date(found)
    if declared == "bool":
        return pa.types.is_boolean(found) or pa.types.is_integer(found)
    return declared in ("int", "float") and number


def _numeric(values: pa.ChunkedArray, declared: ColumnType) -> pa.ChunkedArray:
    """Whole numbers from floats without a fraction, booleans from 0/1; NULL where that would lose something."""
    if declared == "bool":
        return _column("SELECT CASE WHEN v::BIGINT IN (0, 1) THEN v::BOOLEAN END AS v FROM t", values)
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    return _column("SELECT CASE WHEN v = floor(v) AND abs(v) < 9007199254740992 THEN v::BIGINT END AS v FROM t", values)


def _column(statement: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return query(statement, t=pa.table({"v": values})).column("v")
