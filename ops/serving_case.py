"""What ``make bench-serving`` measures: one model, deployed and as files, and the rows to ask."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ml.config import load_params
from ml.refs import Recipe, Window
from ml.settings import settings
from ops import serving_peers
from ops.bench_features import landed, say

ROUNDS, DEPTH = 150, 7
FLIGHTS = 600
Row = dict[str, Any]


class ContenderError(Exception):
    """It does not start, answers wrongly, or breaks off."""


@dataclass(frozen=True)
class Case:
    """One model in `folder` and as a deployed bundle; rows as they come, and the same rows as features."""

    folder: Path
    bundle: bytes
    raw: list[Row]
    given: list[Row]
    """Features with 0 for a missing number, which not every protocol can say."""
    of_raw: np.ndarray
    """The right probabilities, shape (n,)."""
    of_given: np.ndarray
    numeric: list[str]
    text: list[str]
    name: str


def make(first: date, end: date) -> Case:
    """Learns a model from the landed days, deploys it, and writes a tick of the online store."""
    from ml import store
    from ml.features import days, history, inputs, stored
    from ml.features.assembly import Assembler
    from ml.features.definitions import load_module
    from ml.features.online import open_store
    from ml.packaging.bundle import Bundle, Example, build
    from ml.packaging.graph import export
    from ml.serving import manifest
    from ml.training.fit import fit_model

    began, params = time.monotonic(), load_params()
    module = load_module(params)
    root, version = landed(end)
    window = Window(start=first + timedelta(days=3), end=end - timedelta(days=3))
    known = datetime.combine(end, datetime.min.time()) + timedelta(days=3)
    rows = stored.read(stored.build(root, version, window, known))
    recipe = Recipe(family="xgboost", params={"max_depth": DEPTH, "learning_rate": 0.05, "min_child_weight": 5})
    fitted = fit_model(rows, window, module.learned, params, recipe, ROUNDS)
    model = export(fitted)
    tick = datetime.combine(end - timedelta(days=2), datetime.min.time()) + timedelta(hours=12)
    found = days.histories(params, inputs.landed(root, version.last_day), tick, tick)
    online = open_store(settings().online)
    online.write(tick, {view.name: history.last_values(view, found[view.name], tick) for view in module.views})
    raw = flights(root, tick, known)
    folder = settings().var / "bench"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    threshold, numeric, text = params.serving.threshold, fitted.encoding.numeric, fitted.encoding.text
    (folder / "columns.json").write_text(json.dumps({"numeric": numeric, "text": text, "threshold": threshold}))
    serving_peers.save_for_mlflow(model, folder, list(numeric), list(text))
    os.environ[serving_peers.HOME] = str(folder)
    assembled = Assembler(params).assemble(online, raw)
    if flagged := sum(map(bool, assembled.flags)):
        raise ContenderError(f"{flagged} of {len(raw)} rows have flags, {assembled.flags[0]}: the store does not suit the rows")
    peer = serving_peers.Model()
    features = [{name: row[name] for name in numeric + text} for row in assembled.features]
    given = [{n: (0.0 if v is None else v) for n, v in row.items()} for row in features]
    of_raw, of_given = (np.array([peer.answer(row).probability for row in some]) for some in (features, given))
    spec = params.tables[params.problem.table]
    raw = [plain(row) for row in raw]
    bundle = build(
        name=params.problem.name, model=model, task=params.problem.task, numeric=numeric, text=text, threshold=threshold,
        request={c: t for c, t in spec.columns.items() if c not in spec.outcomes},
        params=params.model_dump(mode="json", include={"problem", "tables", "features", "serving"}),
        climatology=fitted.climatology, lineage={"made": "by make bench-serving"}, profile=b"{}",
        examples=[Example(request=raw[0], features=features[0], probability=float(of_raw[0]))],
    )  # fmt: skip
    deployed = manifest.Deployed(version="1", bundle=store.put(bundle), model=Bundle.from_bytes(bundle).card.model_digest)
    manifest.promote(deployed, tick, "bench-serving", "to be measured", "bench-serving")
    say(f"model: {ROUNDS} trees of depth {DEPTH} on {fitted.learned.rows:,} rows, {len(numeric) + len(text)} features, graph of "
        f"{len(model) / 1e6:.1f} MB; {len(raw)} rows to ask; {time.monotonic() - began:.0f} s")  # fmt: skip
    return Case(folder, bundle, raw, given, of_raw, of_given, list(numeric), list(text), params.problem.name)


def flights(root: Path, tick: datetime, known: datetime) -> list[Row]:
    """Real rows of the days around the tick, moved to the hour that the tick is made for, so that no answer is flagged."""
    from ml.data import rows

    params = load_params()
    spec = params.tables[params.problem.table]
    hour = tick + timedelta(hours=params.problem.lead_hours)
    near = rows.problem_rows(root, tick - timedelta(hours=36), tick + timedelta(hours=36), known)
    columns = [c for c in spec.columns if c not in spec.outcomes]
    distinct = {tuple(row[c] for c in params.problem.id): row for row in near.select(columns).to_pylist()}
    drawn = np.random.default_rng(0).permutation(len(distinct))[:FLIGHTS]
    every = list(distinct.values())
    return [every[i] | {"time_hour": hour} for i in drawn]


def plain(row: Row) -> Row:
    """The row as JSON can say it."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
