"""``evergreen stream`` and ``evergreen stream collect``: one member of a group, as a process."""

from __future__ import annotations

import signal

from ml import logs
from ml.serving.service import Service
from ml.streaming.collect import Collector
from ml.streaming.member import Member


def answer() -> None:
    """Answers until SIGTERM or SIGINT: what was read is answered and committed, then it returns.

    Raises:
        StreamError: it cannot go on.
    """
    logs.configure()
    _run(Member(Service()))


def collect() -> None:
    """Collects until SIGTERM or SIGINT: what was read is written and committed, then it returns.

    Raises:
        StreamError: it cannot go on.
    """
    logs.configure()
    _run(Collector())


def _run(member: Member | Collector) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: member.stop())
    member.run()
