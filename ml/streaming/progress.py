"""How far the reading of a partition is: an offset is committed when every record before it has its answer on the brokers.

With the offset, a commit carries *bookmarks*: where in the two output topics the answers to later records can begin. Whoever
takes the partition over reads the outputs from there, and so knows which records were answered after the last commit.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping


class Taken:
    """A record that was read and is on its way."""

    __slots__ = ("acknowledged", "offset", "output")

    def __init__(self, offset: int) -> None:
        self.offset, self.acknowledged = offset, False
        self.output: tuple[str, int] | None = None
        """Topic and offset of its answer or dead letter; None: it had one before."""


class Progress:
    """Of one partition, while this member has it.

    Args:
        start: offset of the first record that has to be looked at.
        bookmarks: by output topic, the offset from which answers to records at `start` or later can stand.
        answered: offsets, of `start` or later, that were answered before.
    """

    def __init__(self, start: int, bookmarks: Mapping[str, int], answered: set[int]) -> None:
        self.done = self.committed = start
        """All records before it are answered, and the brokers have the answers."""
        self.bookmarks, self._answered = dict(bookmarks), answered
        self._taken: deque[Taken] = deque()

    def take(self, offset: int) -> Taken | None:
        """Notes that a record was read; None: it was answered before."""
        taken = Taken(offset)
        self._taken.append(taken)
        if offset in self._answered:
            self._answered.discard(offset)
            self.acknowledge(taken)
            return None
        return taken

    def acknowledge(self, taken: Taken, output: tuple[str, int] | None = None) -> None:
        """The brokers have the answer, in this topic at this offset."""
        taken.acknowledged, taken.output = True, output
        while self._taken and self._taken[0].acknowledged:
            first = self._taken.popleft()
            self.done = first.offset + 1
            if first.output is not None:  # outputs stand in the order of their records: later ones come after it
                topic, at = first.output
                self.bookmarks[topic] = at + 1

    @property
    def waiting(self) -> int:
        """Records that were read and are not done."""
        return len(self._taken)

    def metadata(self) -> str:
        """What a commit says besides the offset."""
        return json.dumps(self.bookmarks)


def bookmarks_of(metadata: str | None, outputs: tuple[str, ...]) -> dict[str, int] | None:
    """Reads what a commit said; None: somebody else committed, or other topics are meant."""
    try:
        found = json.loads(metadata or "")
    except ValueError:
        return None
    if not isinstance(found, dict) or any(type(found.get(topic)) is not int for topic in outputs):
        return None
    return {topic: found[topic] for topic in outputs}
