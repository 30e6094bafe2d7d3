"""``evergreen stream``: one member of the group, as a process."""

from __future__ import annotations

import signal

from ml import logs
from ml.serving.service import Service
from ml.streaming.member import Member


def run() -> None:
    """Answers until SIGTERM or SIGINT: what was read is answered and committed, then it returns.

    Raises:
        StreamError: it cannot go on.
    """
    logs.configure()
    member = Member(Service())
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: member.stop())
    member.run()
