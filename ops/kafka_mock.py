"""Kafka's stand-in where Kafka cannot be had: the mock cluster that is built into librdkafka, as a process of its own.

It speaks Kafka's protocol on real sockets: groups, rebalances, commits with metadata, produce and fetch. It keeps all in memory
and lacks: transactions (offsets are never written, readers see what is open), fencing, checks of the idempotent producer's
sequence, an index of times, compaction, limits of record sizes, making topics on request (they are made when asked about, with
four partitions), the wake-up of a waiting fetch (hence ``fetch.wait.max.ms``), and more than 5 MB a partition.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Producer

from ml.settings import ROOT

PROPERTIES = {"fetch.wait.max.ms": "10", "session.timeout.ms": "4000", "heartbeat.interval.ms": "300", "log_level": "3"}
"""For clients of it."""


def main() -> None:
    """Prints the bootstrap servers, and stands until standard input is closed."""
    cluster = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 3})
    found = cluster.list_topics(timeout=10).brokers.values()
    print(",".join(f"{each.host}:{each.port}" for each in found), flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """A mock cluster while the block lasts; gives the EVERGREEN_* variables of whoever is to use it."""
    properties = folder / "kafka.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in PROPERTIES.items()))
    command = [sys.executable, "-m", "ops.kafka_mock"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the mock cluster did not start: exit code {process.wait(10)}")
        yield {"EVERGREEN_KAFKA": address, "EVERGREEN_KAFKA_PROPERTIES": str(properties)}
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
