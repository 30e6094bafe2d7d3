"""Taking a partition over: where to begin, and what of it was answered though its offset was not committed.

An answer and the offset of its record cannot be written at once without transactions. So the outputs are the truth: between
the last commit's bookmarks and the end stands every answer that a member which died had still given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

from ml import brokers
from ml.brokers import StreamError, Topics
from ml.streaming.progress import Progress, bookmarks_of
from ml.streaming.records import source_of

STALLED = 60.0
"""Seconds without a record after which reading the outputs is given up."""

logger = logging.getLogger(__name__)


class Outputs:
    """Looks into the topics; belongs to no group.

    Args:
        group: whose answers count: another group's are its own.
    """

    def __init__(self, names: Topics, group: str) -> None:
        self._names, self._group = names, group
        self._consumer = brokers.consumer(group, **{"enable.partition.eof": True})

    def close(self) -> None:
        self._consumer.close()

    def behind(self, partition: int, done: int) -> int:
        """Records of a partition of the requests from `done` on."""
        return max(brokers.ends(self._consumer, self._names.requests, partition)[1] - done, 0)

    def progress(self, committed: Iterable[TopicPartition]) -> tuple[dict[int, Progress], list[int]]:
        """By partition, where to go on; and the partitions whose commit says nothing of outputs: there, it begins anew.

        Raises:
            StreamError: the outputs cannot be read to their end.
        """
        found: dict[int, Progress] = {}
        fresh = []
        for each in committed:
            bookmarks = bookmarks_of(each.metadata, self._names.outputs)
            start = each.offset
            if start < 0:
                start, bookmarks = brokers.ends(self._consumer, self._names.requests, each.partition)[0], None
            if bookmarks is None:
                bookmarks = {topic: brokers.ends(self._consumer, topic, each.partition)[1] for topic in self._names.outputs}
                fresh.append(each.partition)
            found[each.partition] = Progress(start, bookmarks, set())
        old = [partition for partition in found if partition not in fresh]
        for partition, answered in self._answered(found, old).items():
            found[partition] = Progress(found[partition].done, found[partition].bookmarks, answered)
        return found, fresh

    def _answered(self, found: dict[int, Progress], partitions: Sequence[int]) -> dict[int, set[int]]:
        """Offsets, from where each partition goes on, that the outputs have answers to."""
        answered: dict[int, set[int]] = {partition: set() for partition in partitions}
        left = []
        for partition in partitions:
            for topic, bookmark in found[partition].bookmarks.items():
                low, high = brokers.ends(self._consumer, topic, partition)
                if max(bookmark, low) < high:
                    left.append(TopicPartition(topic, partition, bookmark if bookmark >= low else OFFSET_BEGINNING))
        self._consumer.assign(left)
        unread = {(each.topic, each.partition) for each in left}
        moved = time.monotonic()
        while unread:
            message = self._consumer.poll(1.0)
            if message is None:
                if time.monotonic() > moved + STALLED:
                    raise StreamError(
                        f"the ends of {sorted(unread)} cannot be reached", "look at the brokers' health, then start again"
                    )
                continue
            moved = time.monotonic()
            if (error := message.error()) is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise StreamError(f"{message.topic()}: {error.str()}", "look at the brokers' health, then start again")
                unread.discard((message.topic(), message.partition()))
                continue
            headers: Any = message.headers()  # as read always a list
            if (source := source_of(headers)) is not None:
                group, place = source
                if group == self._group and place.topic == self._names.requests and place.partition in answered:
                    answered[place.partition].add(place.offset)
        self._consumer.unassign()
        return {p: {offset for offset in offsets if offset >= found[p].done} for p, offsets in answered.items()}
