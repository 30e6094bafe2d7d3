"""Requests: what is wrong is refused and named; nothing is guessed."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from ml.packaging.bundle import Bundle
from ml.serving.schema import RequestError, RequestSchema
from tests.sample_bundle import REQUEST, sample_bundle


@pytest.fixture(scope="module")
def schema() -> RequestSchema:
    return RequestSchema(Bundle.from_bytes(sample_bundle()))


def body(**changes: Any) -> bytes:
    return json.dumps(REQUEST | changes).encode()


def test_parse__one_row_and_a_list__typed(schema: RequestSchema) -> None:
    (row,), many = schema.parse(body())
    assert not many
    assert row["time_hour"] == datetime(2013, 4, 18, 10)
    rows, many = schema.parse(b"[" + body() + b"," + body(flight=7) + b"]")
    assert many and [row["flight"] for row in rows] == [1545, 7]


def test_parse__timestamp_with_zone__utc_without_zone(schema: RequestSchema) -> None:
    for said in ("2013-04-18T10:00:00Z", "2013-04-18T06:00:00-04:00"):
        (row,), _ = schema.parse(body(time_hour=said))
        assert row["time_hour"] == datetime(2013, 4, 18, 10)


@pytest.mark.parametrize("column", ["tailnum", "distance", "sched_arr_time"])
def test_parse__null_where_the_row_is_not_named_by_it__allowed(schema: RequestSchema, column: str) -> None:
    (row,), _ = schema.parse(body(**{column: None}))
    assert row[column] is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("carrier", None),
        ("minute", None),
        ("flight", "1545"),
        ("flight", 15.5),
        ("flight", 2**63),
        ("flight", True),
        ("distance", "far"),
        ("carrier", 7),
        ("carrier", "x" * 257),
        ("time_hour", "yesterday"),
        ("arr_delay", 3.0),
    ],
    ids=["id_null", "key_null", "int_as_text", "int_as_fraction", "int_too_big", "int_as_bool", "float_as_text", "text_as_number",
         "text_too_long", "no_timestamp", "outcome_given"],
)  # fmt: skip
def test_parse__wrong_value__field_is_named(schema: RequestSchema, column: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        schema.parse(body(**{column: value}))
    assert caught.value.status == 422
    assert caught.value.detail[0]["loc"] == ["body", column]


def test_parse__field_missing__is_named(schema: RequestSchema) -> None:
    partial = {name: value for name, value in REQUEST.items() if name != "dest"}
    with pytest.raises(RequestError) as caught:
        schema.parse(json.dumps([REQUEST, partial]).encode())
    assert (caught.value.detail[0]["loc"], caught.value.detail[0]["type"]) == (["body", 1, "dest"], "missing")


@pytest.mark.parametrize("raw", [b"", b"{", b"3", b'"x"', b"[3]", b"null", b"\xff", body(distance=float("nan"))])
def test_parse__not_rows__422(schema: RequestSchema, raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        schema.parse(raw)
    assert caught.value.status == 422


def test_parse__more_rows_than_the_limit__413_with_the_limit(schema: RequestSchema) -> None:
    rows = b"[" + b",".join([body()] * 1001) + b"]"
    with pytest.raises(RequestError, match="1001 rows in one request, at most 1000 are allowed") as caught:
        schema.parse(rows)
    assert caught.value.status == 413
