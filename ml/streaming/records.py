"""What stands around a record's value: its name, where it came from, and why it was not answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

MESSAGE_ID = "message-id"
"""Header by which a producer names its message."""
OURS = "evergreen-"
"""Headers that begin so are written by the stream, and are not taken from what is read."""
GROUP, TOPIC, PARTITION, OFFSET = (OURS + name for name in ("group", "topic", "partition", "offset"))
"""Headers of an answer and of a dead letter: who made it, of which record."""
REASON, PROBLEM = OURS + "reason", OURS + "problem"
"""Headers of a dead letter: a word to count by, and what a person needs to know."""
REPLAY = OURS + "replay"
"""Header of a record that was asked again, and of its answer: which replay asked."""
MOST_ID = 64
"""Characters of a message id, as of the service's ``x-request-id``."""

Headers = list[tuple[str, bytes | None]]


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


class BadRecordError(Exception):
    """A record that cannot be asked about."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason, self.problem = reason, problem


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read."""

    at: Place
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    """Milliseconds since 1970; 0 where the record has none."""

    @classmethod
    def of(cls, message: Any) -> Record:
        at = Place(message.topic(), message.partition(), message.offset())
        kind, timestamp = message.timestamp()
        return cls(at, message.key(), message.value(), message.headers() or [], timestamp if kind else 0)

    def header(self, name: str) -> bytes | None:
        """The value of a header; of several, the last."""
        return next((value for key, value in reversed(self.headers) if key == name), None)

    def message_id(self) -> str:
        """What the producer named it, or where it stands.

        Raises:
            BadRecordError: the name cannot be used.
        """
        named = self.header(MESSAGE_ID)
        if named is None:
            return place_id(self.at)
        try:
            found = named.decode()
        except UnicodeDecodeError:
            found = ""
        if not found or len(found) > MOST_ID or not found.isprintable():
            raise BadRecordError(
                "message-id", f"header {MESSAGE_ID!r} is {named[:80]!r}: 1 to {MOST_ID} printable characters are allowed"
            )
        return found

    def passed_on(self) -> Headers:
        """The producer's own headers."""
        return [(name, value) for name, value in self.headers if not name.startswith(OURS)]

    def marked(self, group: str) -> Headers:
        """Headers of what is made of it: the producer's, and where it came from."""
        marks = {GROUP: group, TOPIC: self.at.topic, PARTITION: self.at.partition, OFFSET: self.at.offset}
        replayed = self.header(REPLAY)
        return [
            *self.passed_on(),
            *((name, str(value).encode()) for name, value in marks.items()),
            *([(REPLAY, replayed)] if replayed is not None else []),
        ]


def place_id(at: Place) -> str:
    """The name of a record that its producer did not name.

    >>> place_id(Place("requests", 3, 17))
    'requests-3-17'
    """
    return f"{at.topic}-{at.partition}-{at.offset}"


def source_of(headers: Headers | None) -> tuple[str, Place] | None:
    """The group that made an answer or a dead letter, and of which record; None: somebody else wrote it."""
    told = {name: value for name, value in headers or [] if value is not None}
    try:
        place = Place(told[TOPIC].decode(), int(told[PARTITION]), int(told[OFFSET]))
        return told[GROUP].decode(), place
    except (KeyError, ValueError):
        return None
