"""How Kafka is reached: its address, the topics, and what every client of ours asks of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from ml.errors import ConfigError, EvergreenError
from ml.settings import settings

SECONDS = 10.0
"""How long a question to the brokers may take."""
QUEUE = 20_000
"""Records that a producer holds at most."""
LARGEST = 16 << 20
"""Bytes; what a broker accepts is its own limit."""

logger = logging.getLogger("kafka")


class StreamError(EvergreenError):
    """The stream cannot go on; what was not committed is read again by whoever comes next."""


@dataclass(frozen=True)
class Topics:
    """Names of the three topics. A record's answer, or its dead letter, is in the partition of the same number as the record."""

    requests: str
    predictions: str
    dead_letters: str

    @property
    def outputs(self) -> tuple[str, str]:
        return self.predictions, self.dead_letters


def topics() -> Topics:
    """As the settings name them.

    Raises:
        ConfigError: two of them are the same.
    """
    here = settings()
    found = Topics(here.kafka_requests, here.kafka_predictions, here.kafka_dead_letters)
    if len({found.requests, *found.outputs}) != 3:
        raise ConfigError(
            f"{found} are not three topics", "give each of EVERGREEN_KAFKA_REQUESTS, _PREDICTIONS, _DEAD_LETTERS its own"
        )
    return found


def consumer(group: str, **more: Any) -> Consumer:
    """A consumer that commits only what it is told to; what is given goes over what EVERGREEN_KAFKA_PROPERTIES says."""
    ours = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
    }
    bounded = {"queued.max.messages.kbytes": 16 << 10}  # of each partition, read ahead
    return Consumer(bounded | _common() | ours | more)


def producer(**more: Any) -> Producer:
    """A producer that neither loses, repeats nor reorders what it has taken, and tries for as long as it lives."""
    tuned = {
        "linger.ms": 1,
        "queue.buffering.max.messages": QUEUE,
        "queue.buffering.max.kbytes": 64 << 10,
        "message.max.bytes": LARGEST,
    }
    return Producer(tuned | _common() | {"enable.idempotence": True, "message.timeout.ms": 0} | more)


def partitions(client: Consumer | Producer, topic: str) -> int:
    """How many partitions a topic has; a broker that makes topics by itself makes this one.

    Raises:
        StreamError: it does not exist, or no broker answers.
    """
    try:
        found = client.list_topics(topic, timeout=SECONDS).topics[topic]
    except KafkaException as error:
        raise StreamError(
            f"Kafka at {settings().kafka} does not answer: {error.args[0].str()}", "check EVERGREEN_KAFKA"
        ) from None
    if found.error is not None:
        raise StreamError(f"topic {topic!r}: {found.error.str()}", "make it, or correct EVERGREEN_KAFKA_* (evergreen config)")
    return len(found.partitions)


def ends(client: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset that a partition holds, and the one after the last."""
    low, high = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=SECONDS)
    return low, high


def checked(client: Consumer | Producer, names: Topics) -> int:
    """The number of partitions of the requests.

    Raises:
        StreamError: a topic does not exist, or an output has fewer partitions than the requests.
    """
    wanted = partitions(client, names.requests)
    for output in names.outputs:
        if (found := partitions(client, output)) < wanted:
            raise StreamError(
                f"topic {output!r} has {found} partitions, {names.requests!r} has {wanted}",
                f"add partitions to {output!r}: an answer has the partition of its request",
            )
    return wanted


def complain(error: KafkaError) -> None:
    """What a read brings instead of a record: the client goes on by itself, unless it says that it cannot.

    Raises:
        StreamError: it cannot.
    """
    if error.fatal():
        raise StreamError(
            f"Kafka: {error.str()}", "start again; if it was fenced, two members have the same EVERGREEN_KAFKA_MEMBER"
        )
    logger.warning("Kafka: %s", error.str())


def _common() -> dict[str, Any]:
    here = settings()
    if not here.kafka:
        raise ConfigError("EVERGREEN_KAFKA is not set", "set it to Kafka's bootstrap servers: host:port,…")
    told = _properties(Path(here.kafka_properties)) if here.kafka_properties else {}
    return {"client.id": "evergreen"} | told | {"bootstrap.servers": here.kafka, "logger": logger}


def _properties(path: Path) -> dict[str, str]:
    """Reads ``name=value`` lines; those that are empty or begin with # say nothing."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"EVERGREEN_KAFKA_PROPERTIES={path}: {error.strerror}", "name a file of librdkafka properties"
        ) from None
    return dict(_pairs(path, (line.strip() for line in lines)))


def _pairs(path: Path, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            name, sign, value = line.partition("=")
            if not sign:
                raise ConfigError(
                    f"{path}, line {number} is not name=value", "see librdkafka's CONFIGURATION.md for names and values"
                )
            yield name.strip(), value.strip()
