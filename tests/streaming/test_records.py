"""Names and places of records."""

from __future__ import annotations

import pytest

from ml.streaming.records import BadRecordError, Headers, Place, Record, source_of


def record(headers: Headers) -> Record:
    return Record(Place("requests", 2, 7), b"k", b"v", headers, 0)


def test_message_id__none__is_the_place() -> None:
    assert record([]).message_id() == "requests-2-7"


def test_message_id__several__is_the_last() -> None:
    assert record([("message-id", b"a"), ("message-id", b"b")]).message_id() == "b"


@pytest.mark.parametrize("name", [b"", b"x" * 65, b"a\nb", b"\xff"], ids=["empty", "long", "line-break", "not-utf-8"])
def test_message_id__cannot_be_used__says_so(name: bytes) -> None:
    with pytest.raises(BadRecordError, match="64 printable"):
        record([("message-id", name)]).message_id()


def test_marked__forged_marks__are_not_taken_over() -> None:
    marked = record([("trace", b"t"), ("evergreen-offset", b"999"), ("evergreen-replay", b"r")]).marked("group")
    assert source_of(marked) == ("group", Place("requests", 2, 7))
    assert ("trace", b"t") in marked
    assert ("evergreen-replay", b"r") in marked


@pytest.mark.parametrize("headers", [None, [], [("evergreen-offset", b"x")]], ids=["none", "empty", "broken"])
def test_source_of__somebody_elses__none(headers: Headers | None) -> None:
    assert source_of(headers) is None
