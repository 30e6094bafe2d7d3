"""A hash chain over rows: each digest covers its row and the digest before, so a change of the past breaks all that follows.

What a chain alone cannot show is that its end was cut off: for that, somebody must have noted an earlier head elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

GENESIS = "0" * 64
"""What stands for the digest before the first."""
NOT_COVERED = {"id", "digest"}
"""Columns outside the content: the place in the chain, which the digest before says, and the digest itself."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """The first row that does not continue the chain."""

    id: int
    key: str
    what: Literal["content edited", "entry removed", "order changed", "end cut off"]
    detail: str


@dataclass(frozen=True)
class Verified:
    """How far a chain holds.

    Attributes:
        count: rows that hold, from the first on without a gap.
        head: digest of the last of them; `GENESIS` when there is none.
        fault: the first that does not hold, or None.
    """

    count: int
    head: str
    fault: Fault | None


def digest(row: Row, previous: str) -> str:
    """SHA-256, in hex, of the canonical JSON of a row's content and the digest before it.

    Times must be naive UTC: they are written with six decimals, as SQLite and PostgreSQL both give them back.
    """
    content = {name: _plain(value) for name, value in row.items() if name not in NOT_COVERED} | {"previous": previous}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(value: object) -> object:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def verify(rows: Iterable[Row], head: str | None = None) -> Verified:
    """Follows a chain from its first row to the first fault.

    Args:
        rows: all rows in the order of their ids, with columns ``id``, ``key`` and ``digest`` beside the content.
        head: a digest that was noted earlier; it must be one of the chain's, or the end was cut off since.
    """
    rest = iter(rows)
    count, previous, last, seen = 0, GENESIS, 0, head in (None, GENESIS)
    for row in rest:
        if digest(row, previous) != row["digest"]:
            return Verified(count, previous, _fault(row, last, [row, *rest], previous))
        count, previous, last = count + 1, row["digest"], row["id"]
        seen = seen or previous == head
    cut = f"no entry has the digest {head}: entries after id {last} were removed, or the digest is another ledger's"
    return Verified(count, previous, None if seen else Fault(last + 1, "", "end cut off", cut))


def _fault(row: Row, last: int, rest: list[Row], previous: str) -> Fault:
    """Says what happened to a row, from what is left of the chain after it."""
    key = str(row["key"])
    # Where a row was only moved, it still continues one of the others.
    before = next((other for other in rest if digest(row, other["digest"]) == row["digest"]), None)
    if before is not None:
        return Fault(row["id"], key, "order changed", f"it was written after the entry that now has id {before['id']}")
    if row["id"] > last + 1:
        gone = f"id {last + 1}" if row["id"] == last + 2 else f"ids {last + 1} to {row['id'] - 1}"
        return Fault(row["id"], key, "entry removed", f"{gone} before it: it does not continue {previous[:12]}")
    follower = next((other for other in rest[1:] if digest(other, previous) == other["digest"]), None)
    if follower is not None:
        return Fault(row["id"], key, "order changed", f"the entry that now has id {follower['id']} was written in its place")
    return Fault(
        row["id"], key, "content edited", f"its content gives {digest(row, previous)[:12]}, noted was {row['digest'][:12]}"
    )
