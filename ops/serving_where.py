"""Where the microseconds of one request go: its stages, each called by itself in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pydantic_core

from ml.config import load_params
from ml.features.assembly import Assembler
from ml.features.online import Key, OnlineStore, Payload, open_store
from ml.packaging.bundle import Bundle
from ml.serving.log import Entry, PredictionLog
from ml.serving.predictor import Predictor
from ml.serving.schema import Answer, RequestSchema
from ml.settings import settings
from ops.bench_features import say, show
from ops.serving_case import Case

TOGETHER = 16
TURNS = 200
LOGGED = 4000


def where(made: Case, cpu: Mapping[str, float]) -> None:
    """Prints the stages of `POST /predict`, beside what the server used in all.

    Args:
        cpu: by contender, CPU microseconds a request at half of its highest rate.
    """
    stages = measured(made)
    say(f"\n## Where the microseconds go: `POST /predict`, stages called by themselves; medians of {TURNS} turns\n")
    show(["stage", "one row, µs", f"{TOGETHER} rows together, µs a row"],
         [[name, f"{alone:,.0f}", f"{together:,.0f}"] for name, (alone, together) in stages.items()])  # fmt: skip
    alone = sum(one for one, _ in stages.values())
    say(f"\nstages of one row: {alone:,.0f} µs")
    if "echo" in cpu:
        say(f"HTTP alone (bare echo, event loop and kernel included): {cpu['echo']:,.0f} µs of CPU a request")
    if "predict" in cpu:
        say(f"the server in all: {cpu['predict']:,.0f} µs of CPU a request at half of its highest rate")
    if {"echo", "predict"} <= cpu.keys():
        rest = cpu["predict"] - cpu["echo"] - alone
        say(f"the rest (routing, metrics, threads; below 0: stages shared by rows that were answered together): {rest:,.0f} µs")


@dataclass
class Kept:
    """What has been read of a store, in memory; `asked` are the keys of the last read."""

    tick: datetime | None = None
    values: dict[Key, Payload] = field(default_factory=dict)
    asked: list[Key] = field(default_factory=list)

    def read(self, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, Payload]]:
        self.asked = list(keys)
        return self.tick, self.values


def measured(made: Case) -> dict[str, tuple[float, float]]:
    """Microseconds a row by stage: for a request of one row, and for `TOGETHER` rows that are worked on at a time."""
    bundle = Bundle.from_bytes(made.bundle)
    schema, predictor, assembler = RequestSchema(bundle), Predictor(bundle), Assembler(load_params())
    online = open_store(settings().online)
    bodies = [json.dumps(row).encode() for row in made.raw]
    rows = [schema.parse(body)[0][0] for body in bodies]
    assembled = assembler.assemble(online, rows)
    kept, keys = Kept(), []
    for row in rows:
        assembler.assemble(cast(OnlineStore, kept), [row])
        keys.append(kept.asked)
    kept.tick, kept.values = online.read(sorted({key for some in keys for key in some}))
    answers = [
        Answer.model_construct(probability=float(p), decision=0, entity_id=e, model_version="1", cohort="champion",
                               request_id="0" * 32, flags=[])
        for p, e in zip(made.of_raw, assembled.entity_ids, strict=True)
    ]  # fmt: skip
    stages: dict[str, Callable[[slice], Any]] = {
        "parse and check the request": lambda s: [schema.parse(body) for body in bodies[s]],
        "read the online store (SQLite)": lambda s: online.read(sorted({key for some in keys[s] for key in some})),
        "make the features": lambda s: assembler.assemble(cast(OnlineStore, kept), rows[s]),
        "graph (input arrays, trees)": lambda s: predictor.predict(assembled.features[s]),
        "answer as JSON": lambda s: [pydantic_core.to_json(answer) for answer in answers[s]],
    }
    found = {name: (median(stage, 1), median(stage, TOGETHER)) for name, stage in stages.items()}
    logged = log_microseconds(made, [
        Entry(entity_id=e, event_time=at, prediction_time=before, logged_at=datetime.now(UTC).replace(tzinfo=None),
              model_version="1", probability=float(p), flags=[], request_id="0" * 32, tick=assembled.tick, features=f)
        for e, at, before, p, f in zip(assembled.entity_ids, assembled.event_times, assembled.prediction_times, made.of_raw,
                                       assembled.features, strict=True)
    ])  # fmt: skip
    return found | {"log (queue and the writer's thread)": (logged, logged)}


def median(stage: Callable[[slice], Any], rows: int) -> float:
    """Median microseconds a row when `rows` rows are worked on at a time."""
    taken = []
    for turn in range(TURNS):
        start = (turn * rows) % 400
        began = time.perf_counter()
        stage(slice(start, start + rows))
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) / rows * 1e6


def log_microseconds(made: Case, entries: list[Entry]) -> float:
    """CPU microseconds of this process for each entry, from the queue to the file."""
    log = PredictionLog(made.folder / "log")
    began = time.process_time()
    for i in range(LOGGED):
        log.append([entries[i % len(entries)]])
    log.close()
    return (time.process_time() - began) / LOGGED * 1e6
