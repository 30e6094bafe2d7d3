"""What `make bench-stream` compares with: reads a topic and writes each record to another, with the stream's own clients."""

from __future__ import annotations

import signal
import sys
import time

from confluent_kafka import Consumer, Producer

from ml import brokers


def main(source: str, target: str) -> None:
    """Echoes until SIGTERM."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    reader, writer = brokers.consumer("echo"), brokers.producer()
    reader.subscribe([source])
    while not stopping:
        _echo(reader, writer, target)
    writer.flush(5)
    reader.close()


def _echo(reader: Consumer, writer: Producer, target: str) -> None:
    until = time.monotonic() + 1
    while time.monotonic() < until:
        writer.poll(0)
        message = reader.poll(0.05)
        if message is not None and message.error() is None:
            place = message.partition()
            assert place is not None  # it was read from one
            writer.produce(target, message.value(), message.key(), place, headers=message.headers())
            reader.store_offsets(message)
    if any(each.offset >= 0 for each in reader.position(reader.assignment())):
        reader.commit(asynchronous=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
