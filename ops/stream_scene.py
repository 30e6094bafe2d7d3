"""What plays on a stream: members as processes, a steady flow of records, and a reader that misses no answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from confluent_kafka import TopicPartition

from ml import brokers
from ml.errors import EvergreenError
from ml.settings import ROOT
from ml.streaming.records import MESSAGE_ID

DUE = "due"
"""Header of a record that says when it was to be sent, by `time.monotonic`."""
PATIENCE = 120.0


def eventually(check: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Waits until `check` gives something true, and returns it.

    Raises:
        EvergreenError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise EvergreenError(f"{what}: not within {seconds:.0f} s", "read the members' log, above")
        time.sleep(0.02)
    return found


class MemberProcess:
    """``evergreen stream``, or another program, as a process, its log in `folder`."""

    program = "from ml.cli import main; main()"
    words: tuple[str, ...] = ("stream",)

    def __init__(self, folder: Path, name: str, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / f"{name}.log"
        ports = {f"EVERGREEN_{name}_PORT": str(self.port) for name in ("STREAM", "COLLECT")}
        ours = {"EVERGREEN_HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)} | ports
        self._env = os.environ | ours | settings
        self.start()

    def start(self) -> None:
        """Starts it, after a kill again."""
        command = [sys.executable, "-c", self.program, *self.words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def metric(self, name: str) -> float:
        """A metric, summed over its labels; 0 when it is not there, or nobody answers."""
        try:
            lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5).text.splitlines()
        except httpx.TransportError:
            return 0.0
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()

    def terminate(self, number: int = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        """Asks it to stop; gives its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


class Seen(NamedTuple):
    """An output record as it was read."""

    topic: str
    message_id: str
    at: float
    """By `time.monotonic`."""
    due: float
    """When its request was to be sent; NaN where nobody said."""
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    partition: int


class Reader:
    """Reads topics from their beginning, as a thread, while the ``with`` block lasts."""

    def __init__(self, *topics: str) -> None:
        self.seen: list[Seen] = []
        self._client = brokers.consumer("reader")
        self._client.assign(
            [
                TopicPartition(topic, partition, 0)
                for topic in topics
                for partition in range(brokers.partitions(self._client, topic))
            ]
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def by_id(self, *topics: str) -> dict[str, list[Seen]]:
        """Of these topics, what was read for each message id."""
        found: dict[str, list[Seen]] = defaultdict(list)
        for each in list(self.seen):
            if each.topic in topics:
                found[each.message_id].append(each)
        return found

    def _run(self) -> None:
        while not self._stopping.is_set():
            message: Any = self._client.poll(0.1)
            if message is None or message.error() is not None:
                continue
            at, headers = time.monotonic(), dict(message.headers() or [])
            named, due = headers.get(MESSAGE_ID, message.key() or b""), float(headers.get(DUE, b"nan"))
            self.seen.append(
                Seen(
                    message.topic(),
                    named.decode("latin-1"),
                    at,
                    due,
                    message.key(),
                    message.value(),
                    headers,
                    message.partition(),
                )
            )


class Flow:
    """Sends records at a steady rate, as a thread, while the ``with`` block lasts, whatever becomes of them.

    Args:
        bodies: sent in turn.
        rate: records a second.
        prefix: of their message ids.
    """

    def __init__(self, topic: str, bodies: Sequence[bytes], rate: float, prefix: str = "m") -> None:
        self.sent: dict[str, float] = {}
        """Message id, and when it was due; complete after the block: the brokers have them all."""
        self.failed: list[str] = []
        self._topic, self._bodies, self._rate, self._prefix = topic, bodies, rate, prefix
        self._producer = brokers.producer()
        self._partitions = brokers.partitions(self._producer, topic)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow")

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._producer.flush(30) or self.failed:
            raise EvergreenError(f"the brokers took not all that was sent: {self.failed[:3]}", "look at the mock cluster")

    def _run(self) -> None:
        began, number = time.monotonic(), 0
        while not self._stopping.is_set():
            due = began + number / self._rate
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            name = f"{self._prefix}{number}"
            headers: Any = {MESSAGE_ID: name.encode(), DUE: repr(due).encode()}
            body, partition = self._bodies[number % len(self._bodies)], number % self._partitions
            self._producer.produce(self._topic, body, name, partition, self._delivered, headers=headers)
            self._producer.poll(0)
            self.sent[name] = due
            number += 1

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self.failed.append(error.str())
