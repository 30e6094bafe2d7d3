"""A small open-loop client: requests leave at planned times, whether or not earlier ones were answered.

It reads every answer and runs beside whoever breaks things meanwhile, until told to stop; `ops.load` reads none and takes a core
for itself, to measure microseconds. Neither can do the other's work: parsing answers would be seen in latencies.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

GIVE_UP = 2.0
"""Seconds after its planned time at which a request counts as not answered."""


HEAD = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@dataclass(frozen=True)
class Reply:
    """What became of one request. Times are `time.monotonic`; `at` is when it was due, and `seconds` counts from then."""

    at: float
    seconds: float
    entity_id: str
    status: int
    """0: no answer."""
    answer: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def ended(self) -> float:
        """When it was answered."""
        return self.at + self.seconds


class Load:
    """Posts rows to ``/predict`` at a steady rate, from a thread of its own, while the ``with`` block lasts.

    Args:
        port: of the service on 127.0.0.1.
        rows: (entity id, JSON body), asked for in turn.
        rate: requests a second.
    """

    def __init__(self, port: int, rows: Sequence[tuple[str, bytes]], rate: float) -> None:
        self.replies: list[Reply] = []
        """In the order they ended; complete after the block."""
        self._port, self._rows, self._rate = port, rows, rate
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        began, sent, asked = time.monotonic(), 0, set()
        while not self._stopping.is_set():
            due = began + sent / self._rate
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(self._ask(due, *self._rows[sent % len(self._rows)]))
            asked.add(task)
            task.add_done_callback(asked.discard)
            sent += 1
        await asyncio.gather(*asked)
        for _, writer in self._idle:
            writer.close()

    async def _ask(self, due: float, entity_id: str, body: bytes) -> None:
        try:
            async with asyncio.timeout(GIVE_UP):
                status, answer = await self._exchange(body)
            self.replies.append(Reply(due, time.monotonic() - due, entity_id, status, answer))
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.replies.append(Reply(due, time.monotonic() - due, entity_id, 0, problem=repr(error)))

    async def _exchange(self, body: bytes) -> tuple[int, dict[str, Any]]:
        reader, writer = await self._connection()
        try:
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            answer = json.loads(await reader.readexactly(length))
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(lines[0].split()[1]), answer if isinstance(answer, dict) else {}

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.popleft()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)
