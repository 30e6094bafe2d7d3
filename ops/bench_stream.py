"""``make bench-stream``: how long a record takes through the stream, beside an echo, and what kills of its members do.

In a first part, records flow at a steady rate; one member answers them, and an echo (`ops.stream_echo`), of the same clients,
copies them. Times are from when a record was due to be sent until a reader has the output. In a second part two members answer,
and at random moments a random one is killed (-9) and started again at once. An effect is an answer or a dead letter; at the end
each message must have exactly one. Kafka is librdkafka's mock cluster: see `ops.kafka_mock` for what it lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from ml import brokers
from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ops import kafka_mock
from ops.bench_features import landed_days, say, show
from ops.stream_scene import Flow, MemberProcess, Reader, Seen, eventually

DAYS = (date(2013, 1, 1), date(2013, 2, 8))
ECHO = "echo"
WARM_SECONDS = 5.0
"""Of the first part; they are not measured."""


@dataclass(frozen=True)
class Effects:
    """What became of the messages of the second part."""

    kills: int
    sent: int
    lost: int
    """Messages without an effect."""
    duplicate: int
    """Messages with more than one."""
    flagged: int
    """Of the answers, those with a flag."""
    repeated: int
    """Records that a member found answered when it took over, after a kill between answer and commit."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_stream", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of the first part")
    parser.add_argument("--rate", type=float, default=200, help="records a second")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    with landed_days(*DAYS):
        from ops.serving_case import make

        bodies = [json.dumps(row).encode() for row in make(*DAYS).raw]
        with kafka_mock.running(settings().var) as variables:
            os.environ |= variables
            settings.cache_clear()
            if asked.minutes:
                latencies(settings().var, bodies, asked.rate, 60 * asked.minutes)
            chance = random.Random(asked.seed)  # noqa: S311 - a reproducible choice
            effects = kills(settings().var, bodies, asked.rate, asked.kills, chance) if asked.kills else None
    if effects is not None:
        tell(effects)
    say(f"\n{time.monotonic() - began:.0f} s")
    sys.exit(1 if effects is not None and effects.lost + effects.duplicate else 0)


def latencies(folder: Path, bodies: Sequence[bytes], rate: float, seconds: float) -> None:
    """The first part."""
    names = brokers.topics()
    for topic in (names.requests, *names.outputs, ECHO):
        brokers.partitions(brokers.producer(), topic)  # which makes it
    say(f"\n## {rate:g} records a second for {seconds:.0f} s, of {len(bodies)} real ones, four partitions\n")
    with member(folder, "steady") as one, echo(names.requests), Reader(names.predictions, ECHO, names.dead_letters) as reader:
        with Flow(names.requests, bodies, rate, "warm") as warm:
            for topic in (names.predictions, ECHO):
                eventually(partial(reader.by_id, topic), f"the first output is in {topic}", 300)
            time.sleep(WARM_SECONDS)
        _both(reader, names.predictions, warm)
        before = psutil.Process(one.process.pid).cpu_times()
        with Flow(names.requests, bodies, rate, "steady") as flow:
            time.sleep(seconds)
        _both(reader, names.predictions, flow)
        after = psutil.Process(one.process.pid).cpu_times()
        rows = [_row(name, [s for s in reader.seen if s.topic == topic and s.message_id in flow.sent], flow)
                for name, topic in (("evergreen stream", names.predictions), ("echo", ECHO))]  # fmt: skip
        dead = len(reader.by_id(names.dead_letters))
    show(("", "records", "p50, ms", "p99, ms", "p99.9, ms", "longest, ms", "lost", "twice"), rows)
    cpu = (after.user + after.system - before.user - before.system) / len(flow.sent)
    say(f"\n{dead} dead letters; the member used {1e6 * cpu:.0f} µs of CPU a record")


def _both(reader: Reader, predictions: str, flow: Flow) -> None:
    """Waits until both have dealt with what was sent."""
    for topic in (predictions, ECHO):
        eventually(partial(_has_all, reader, topic, flow), f"all sent is in {topic}", 300)


def _has_all(reader: Reader, topic: str, flow: Flow) -> bool:
    return bool(flow.sent) and set(flow.sent) <= reader.by_id(topic).keys()


def _has_more(reader: Reader, count: float) -> bool:
    return len(reader.seen) > count


def _row(name: str, seen: Sequence[Seen], flow: Flow) -> tuple[object, ...]:
    took = np.array([1000 * (each.at - each.due) for each in seen])
    p50, p99, p999 = np.percentile(took, [50, 99, 99.9])
    distinct = len({each.message_id for each in seen})
    return (
        name,
        len(seen),
        float(p50),
        float(p99),
        float(p999),
        float(took.max()),
        len(flow.sent) - distinct,
        len(seen) - distinct,
    )


def kills(folder: Path, bodies: Sequence[bytes], rate: float, count: int, chance: random.Random) -> Effects:
    """The second part: `count` kills of two members under load."""
    names = brokers.topics()
    brokers.checked(brokers.producer(), names)  # which makes them
    say(f"\n## {count} kills (-9) at random moments, two members, {rate:g} records a second\n")
    repeated = 0.0
    with member(folder, "first") as first, member(folder, "second") as second, Reader(*names.outputs) as reader:
        members = (first, second)
        with Flow(names.requests, bodies, rate, f"kill{time.time_ns()}-") as flow:
            eventually(lambda: sum(each.metric("evergreen_stream_partitions") for each in members) == 4, "two members")
            for number in range(count):
                eventually(partial(_has_more, reader, len(reader.seen) + rate / 2), "answers go on")
                time.sleep(chance.uniform(0, 4))
                victim = chance.choice(members)
                repeated += victim.metric("evergreen_stream_repeated_total")
                victim.kill()
                victim.start()
                if (number + 1) % 10 == 0:
                    say(f"{number + 1} kills, {len(flow.sent):,} sent, {len(reader.seen):,} effects")
        eventually(lambda: flow.sent.keys() <= reader.by_id(*names.outputs).keys(), "an effect of each message", 300)
        for each in members:
            if code := each.terminate():
                raise EvergreenError(f"a member ended with {code}", f"read {each.log}")
        found = {name: seen for name, seen in reader.by_id(*names.outputs).items() if name in flow.sent}
    flagged = sum(
        bool(json.loads(s.value or b"{}").get("flags")) for seen in found.values() for s in seen if s.topic == names.predictions
    )
    twice = sum(len(seen) > 1 for seen in found.values())
    return Effects(count, len(flow.sent), len(flow.sent) - len(found), twice, flagged, int(repeated))


def tell(effects: Effects) -> None:
    heads = ("kills", "messages", "lost", "more than one effect", "flagged", "found answered at a takeover")
    shown = (effects.kills, effects.sent, effects.lost, effects.duplicate, effects.flagged, effects.repeated)
    show(heads, [shown])


@contextlib.contextmanager
def member(folder: Path, name: str) -> Iterator[MemberProcess]:
    """A member while the block lasts; where the block fails, its last words are shown."""
    found = MemberProcess(folder, name)
    try:
        yield found
    except BaseException:
        print(found.log.read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        found.kill()


@contextlib.contextmanager
def echo(source: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "ops.stream_echo", source, ECHO], cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
