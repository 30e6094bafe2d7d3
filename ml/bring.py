"""A model that somebody else trained goes through the same steps as ours: the gate on the holdout, the package, the registry.

What it learned from is declared by whoever brings it, and required: no model is judged on rows that it may have learned from.
Its reference profile, which days are held against, is made of the landed rows of the declared window.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml import steps, store
from ml.config import Params, load_params
from ml.data import snapshots
from ml.errors import ConfigError, EvergreenError, NotEnoughDataError
from ml.features import stored
from ml.features.definitions import load_module
from ml.features.inputs import midnight
from ml.packaging import adopt
from ml.packaging.adopt import Adopted, SignatureError
from ml.packaging.artifacts import Artifacts
from ml.packaging.brought import BACKGROUND, FAMILY, Brought, Origin
from ml.packaging.parity import inputs, predict, session
from ml.refs import FeatureSetRef, Recipe, Ref, TrainPlan, VersionRef, Window, run_key
from ml.training.fit import Learned, fit_model, labelled
from ml.training.tuning import Winner

DAY = timedelta(days=1)
ANSWER = "probability"
"""The column of expected answers."""
MAX_EXPECTED = 1_000_000
SUMMED = 1000
"""Rows whose two probabilities are added up."""
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_null)
NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)
WHOLE = 1e-3
"""How far the probabilities of 0 and 1 may be from adding up to 1: float16 arithmetic, no more."""


class Given(NamedTuple):
    """What somebody brings."""

    onnx: Path
    trained_until: date
    """The last day that the model learned from, whole."""
    trained_from: date | None = None
    """The first; None: as long before as `train.window_days` says."""
    expected: Path | None = None
    """Parquet with a column for each feature that the graph asks for, and ``probability``, made where it was trained."""
    name: str = ""
    note: str = ""


def register(given: Given, as_of: datetime) -> dict[str, Ref]:
    """Checks a graph, judges it by all gates on the holdout as of `as_of`, packs it and registers a version.

    The same file with the same declaration and `as_of` is one version, however often it is given.

    Returns:
        The references of all steps, by the names that the commands give their files; ``version`` among them.

    Raises:
        SignatureError: the graph does not have the declared signature.
        EvergreenError: it learned from days of the holdout; its answers are no probabilities, or not those that came with it.
        NotEnoughDataError: too little of its declared window is landed to know what it learned from.
    """
    params, module = load_params(), load_module(load_params())
    if params.problem.task != "binary":
        raise ConfigError(f"problem.task is {params.problem.task}: graphs are brought for binary problems", "let `train` make it")
    raw = adopt.read(given.onnx, params.gates.max_size_mb)
    adopted = adopt.adopt(raw, module.numeric, module.text)
    learned = _declared(given, params)
    name = given.name or given.onnx.stem
    file = store.sha256(raw)
    reason = f"brought as {name}, file {file[:12]}" + (f": {given.note}" if given.note else "")
    plan = steps.plan(as_of, reason, "manual", run_key(f"onnx/{file}/{learned}/{as_of.isoformat()}"))
    if learned.end > plan.holdout.start:
        raise EvergreenError(
            f"{name} learned from days until {given.trained_until}, and would be judged on {plan.holdout}",
            f"train it on days until {plan.holdout.start - DAY} at the latest, or give an --as-of at which "
            f"{params.train.holdout_days} later days have matured",
        )
    began, cpu_began = time.monotonic(), time.process_time()
    differs = _difference(adopted, given.expected, module.numeric, module.text)
    steps.validate_training(plan)
    features = _features(plan, learned)
    table = stored.read(features)
    parts = _parts(adopted, table, plan, learned, params, Origin(
        name=name, note=given.note, file=file, producer=adopted.producer, opset=adopted.opset, asks=adopted.asks,
        output=adopted.output, expected_rows=differs[0], expected_difference=differs[1],
    ))  # fmt: skip
    X = labelled(table, plan.holdout)
    _sound(adopted, parts, X, params)
    model = steps._stored(parts, learned, time.monotonic() - began, time.process_time() - cpu_began)
    evaluation = steps.evaluate(plan, features, model)
    shipped = steps.refit(plan, features, evaluation)
    bundle = steps.package(plan, features, shipped)
    version = steps.register(plan, features, evaluation, shipped, bundle)
    return {"plan": plan, "features": features, "model": model, "evaluation": evaluation, "shipped": shipped, "bundle": bundle,
            "version": version}  # fmt: skip


def version_of(made: Mapping[str, Ref]) -> VersionRef:
    version = made["version"]
    assert isinstance(version, VersionRef)
    return version


# ---- what was declared


def _declared(given: Given, params: Params) -> Window:
    first = given.trained_from or given.trained_until - (params.train.window_days - 1) * DAY
    if first > given.trained_until:
        raise EvergreenError(
            f"--trained-from {first} is after --trained-until {given.trained_until}",
            "name the first and the last day",
        )
    return Window(start=first, end=given.trained_until + DAY)


def _features(plan: TrainPlan, learned: Window) -> FeatureSetRef:
    """Rows of the declared window, of the train window (for the simple models beside) and of the holdout."""
    start = max(min(learned.start, plan.train.start), plan.snapshot.first_day)
    return stored.build(snapshots.restore(plan.snapshot), plan.snapshot, Window(start=start, end=plan.holdout.end), plan.as_of)


# ---- the model's parts


def _parts(adopted: Adopted, table: pd.DataFrame, plan: TrainPlan, learned: Window, params: Params, origin: Origin) -> Artifacts:
    """The graph, with simple models fitted on the train window, and the reference profile of the declared one."""
    module, recipe = load_module(params), Recipe(family=FAMILY, params={})
    rows = labelled(table, learned)
    if len(rows) < params.train.min_rows:
        raise NotEnoughDataError(
            f"{len(rows):,} labelled rows of its declared window {learned} are landed, at least {params.train.min_rows:,} are "
            "wanted: they are the reference that days are held against",
            "land those days, or declare the window with --trained-from and --trained-until as it was",
        )
    beside = fit_model(table, plan.train, module.learned, params, Recipe(family="linear", params={}), 1)
    background = rows.iloc[:: max(len(rows) // BACKGROUND, 1)].head(BACKGROUND)[[*module.numeric, *module.text]]
    fitted = Brought(
        (), beside.encoding, beside.climatology, beside.linear, _learned(learned, len(rows)),
        graph=adopted.onnx, background=background.reset_index(drop=True), origin=origin,
    )  # fmt: skip
    winner = Winner(recipe=recipe, rounds=0, loss=None, trial=-1, trials=0, reason=plan.reason, convergence=[])
    profile = steps._reference(fitted, rows, fitted, labelled(table, plan.holdout))
    return Artifacts(fitted, winner, adopted.onnx, profile)


def _learned(window: Window, rows: int) -> Learned:
    """Of whole days: the last moment is that before midnight."""
    return Learned(first=midnight(window.start), last=midnight(window.end) - timedelta(microseconds=1), rows=rows)


# ---- does it answer well


def _sound(adopted: Adopted, parts: Artifacts, X: pd.DataFrame, params: Params) -> None:
    """Raises EvergreenError when answers do not hold: then there is nothing to judge, and no holdout is used up."""
    numeric, text = parts.fitted.encoding.numeric, parts.fitted.encoding.text
    if adopted.both is not None and len(X):
        (both,) = session(adopted.both).run([adopt.BOTH], inputs(numeric, text, X.head(SUMMED)))
        if not (worst := float(np.abs(both.sum(axis=1) - 1).max())) <= WHOLE:
            raise EvergreenError(
                f"the two columns of output {adopted.output.split(':')[0]!r} are no probabilities: their sum is {worst:.2g} off",
                "end the graph with Softmax, so that it answers the probabilities of labels 0 and 1",
            )
    decision = parts.parity(X, params)
    if not decision.passed:
        raise EvergreenError(
            f"the graph's answers do not hold on {len(X):,} rows of the holdout: {decision.reason}",
            "let it answer a probability in [0, 1] to every row: end with Sigmoid, replace NaN and '' (missing) inside, "
            "give unknown categories a default, and use no state of the batch",
        )


def _difference(adopted: Adopted, expected: Path | None, numeric: list[str], text: list[str]) -> tuple[int, float | None]:
    """Rows with expected answers, and the largest difference of the graph's from them."""
    if expected is None:
        return 0, None
    table = _expected(expected, adopted.asks, text)
    X = pd.DataFrame({name: table.get(name) for name in [*numeric, *text]})
    X = X.astype(dict.fromkeys(numeric, float))
    apart = np.abs(predict(session(adopted.onnx), numeric, text, X) - table[ANSWER].to_numpy(float))
    worst, tolerance = int(apart.argmax()), load_params().gates.parity_tolerance
    if not apart.max() <= tolerance:  # NaN is none
        where = f"row {worst} of {expected.name}: {table[ANSWER].iloc[worst]:.6g} expected"
        raise EvergreenError(
            f"the graph is {apart[worst]:.2g} away from {where} (allowed {tolerance:g}; "
            f"{int((~(apart <= tolerance)).sum()):,} of {len(apart):,} rows differ by more)",
            "compare the preprocessing inside the graph with that of training: missing values, categories, order of columns",
        )
    return len(table), float(apart.max())


def _expected(path: Path, asks: list[str], text: list[str]) -> pd.DataFrame:
    """The file's rows, checked. Parquet alone is read: nothing in it can run."""
    cure = f"write Parquet with a column for each input of the graph and {ANSWER!r}"
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error}", cure) from None
    except pa.ArrowInvalid as error:
        raise SignatureError(f"{path} is no Parquet: {error}", cure) from None
    if absent := [name for name in [*asks, ANSWER] if name not in table.column_names]:
        raise SignatureError(f"{path.name} has no column {absent[0]!r} (it has {', '.join(table.column_names)})", cure)
    if not 0 < len(table) <= MAX_EXPECTED:
        raise SignatureError(f"{path.name} has {len(table):,} rows, 1 to {MAX_EXPECTED:,} are read", cure)
    for name in [*asks, ANSWER]:
        kind = table.schema.field(name).type
        if not any(fits(kind) for fits in (TEXTS if name in text else NUMBERS)):
            wanted = "string" if name in text else "float32"
            raise SignatureError(f"column {name!r} of {path.name} is {kind}", f"make it {wanted}")
    return table.select([*asks, ANSWER]).to_pandas()
