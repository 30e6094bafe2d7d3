"""`evergreen replay`: builds the matrix, walks every policy through both parts of the time, and scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ml import metrics
from ml.config import Params, load_params
from ml.data import snapshots
from ml.evaluation.report import scoring_of
from ml.features import stored
from ml.features.definitions import load_module
from ml.features.inputs import midnight
from ml.monitoring import fresh, replay_matrix
from ml.monitoring.replay import (  # fmt: skip
    Choice,
    Gate,
    Policy,
    Score,
    Walk,
    by_chance,
    every,
    mean_loss,
    never,
    newest,
    oracle,
    twin_of,
    walk,
)
from ml.monitoring.replay_matrix import Matrix, rows_of
from ml.monitoring.replay_policies import AnyFeature, Counts, Harmed, Yardstick, default
from ml.monitoring.replay_report import DEFAULT, NEVER, Chance, Replayed, picture, table, to_csv
from ml.refs import FeatureSetRef, Window

START_DAYS = 45
"""Days of data before the first night, unless it is named."""
NIGHTLY = "nightly"
SCORED_SEEDS = 20
"""Random policies whose AUC and cost are computed, too."""
CURVE_SEEDS = 200
"""Random policies for each point of the picture's curve."""


@dataclass(frozen=True)
class Arm:
    """One policy of the comparison; `gated`: every retrain costs its twin, too; `fresh`: every day costs a yardstick.

    `together`: the newest so many champions answer by their mean.
    """

    name: str
    policy: Policy
    choose: Choice
    gated: bool = False
    fresh: bool = False
    together: int = 1


def run(
    as_of: datetime, split: date, first: date | None, processes: int, seeds: int, told: Callable[[str], None]
) -> tuple[Matrix, list[Replayed]]:
    """Both parts of the time: before `split`, on which thresholds are chosen, and from it on.

    Args:
        as_of: names the data version; its first and last day bound the time.
        first: first night with a model; default `START_DAYS` after the first day.

    Raises:
        NotEnoughDataError: one of the parts is empty.
    """
    params, version = load_params(), snapshots.find(as_of)
    end = version.last_day + timedelta(days=1)
    features = stored.build(snapshots.restore(version), version, Window(start=version.first_day, end=end), as_of)
    night = first or version.first_day + timedelta(days=START_DAYS)
    matrix = replay_matrix.build(features, night, end, processes, told)
    yardstick = Yardstick.of(matrix, fresh_cpu(features, matrix, params))
    counts = Counts.of(rows_of(features), load_module(params).learned, matrix)
    begin = params.train.holdout_days + matrix.gap + 1  # from here on every champion has a twin
    parts = [(begin, matrix.at(split)), (matrix.at(split), len(matrix.days))]
    return matrix, [period(matrix, *part, arms(counts, yardstick, params), yardstick, params, seeds) for part in parts]


def arms(counts: Counts, yardstick: Yardstick, params: Params) -> list[Arm]:
    """The policies that are compared, anew for each period: the shipped one has a memory."""
    gate = Gate(params)
    return [
        Arm(NEVER, never, newest),
        Arm(NIGHTLY, every(1), newest),
        Arm("nightly, gated", every(1), gate, gated=True),
        Arm("nightly, mean of two", every(1), newest, together=2),
        Arm("every 4 days", every(4), newest),
        Arm("every 4 days, mean of two", every(4), newest, together=2),
        Arm("weekly", every(7), newest),
        Arm("weekly, gated", every(7), gate, gated=True),
        Arm("monthly", every(30), newest),
        Arm("every 4 days, gated", every(4), gate, gated=True),
        Arm("any feature's PSI", AnyFeature(counts, params, params.monitoring.drift.moderate), newest),
        Arm("shown harm", Harmed(yardstick, params), newest, fresh=True),
        Arm(DEFAULT, *default(yardstick, params), gated=True, fresh=True),
        Arm(f"{DEFAULT}, mean of two", *default(yardstick, params), gated=True, fresh=True, together=2),
    ]


def period(
    matrix: Matrix, first: int, end: int, arms: Sequence[Arm], yardstick: Yardstick, params: Params, seeds: int
) -> Replayed:
    """Walks and scores the policies on days [first, end)."""
    walks = {arm.name: walk(matrix, first, end, arm.policy, arm.choose) for arm in arms}
    losses = {name: mean_loss(matrix, walked) for name, walked in walks.items()}

    def gain(loss: np.ndarray | float) -> np.ndarray:
        return np.asarray((losses[NEVER] - loss) / (losses[NEVER] - losses[NIGHTLY]))

    best, path = oracle(matrix, first, end)
    count = len(walks[DEFAULT].asked)
    walks |= {"oracle, the default's count": path(count), "oracle": path(int(np.argmin(best)))}
    own = {arm.name: arm for arm in arms}
    scores = [scored(name, walked, own.get(name), gain, matrix, yardstick, params) for name, walked in walks.items()]
    drawn = [mean_loss(matrix, walked) for walked in by_chance(first, end, count, seeds)]
    some = [scored("", walked, None, gain, matrix, yardstick, params) for walked in by_chance(first, end, count, SCORED_SEEDS)]
    middle = float(np.mean(drawn))
    scores.append(replace(_mean(some, "by chance, the default's count"), log_loss=middle, gain=float(gain(middle))))
    beaten = float(np.mean(np.array(drawn) > losses[DEFAULT]))
    name = f"{matrix.days[first]} to {matrix.days[end - 1]}"
    return Replayed(name, first, end, scores, walks, chance(matrix, first, end, gain), gain(best), beaten, seeds)


def chance(matrix: Matrix, first: int, end: int, gain: Callable[[float], np.ndarray]) -> Chance:
    """What chance brings for each of some numbers of retrains."""
    counts = np.unique(np.geomspace(1, end - first, 14).round().astype(int))
    gains = [[float(gain(mean_loss(matrix, w))) for w in by_chance(first, end, int(k), CURVE_SEEDS)] for k in counts]
    low, high = np.quantile(gains, [0.05, 0.95], axis=1)
    return Chance(counts, np.mean(gains, axis=1), low, high, CURVE_SEEDS)


def _mean(scores: Sequence[Score], name: str) -> Score:
    figures = {f.name: np.mean([getattr(score, f.name) for score in scores]) for f in fields(Score) if f.name != "name"}
    made: dict[str, Any] = {n: round(v) if n in ("retrains", "taken", "returns") else float(v) for n, v in figures.items()}
    return Score(name=name, **made)


def scored(
    name: str, walked: Walk, arm: Arm | None, gain: Callable[[float], np.ndarray], matrix: Matrix, yardstick: Yardstick,
    params: Params,
) -> Score:  # fmt: skip
    rows = slice(matrix.rows_from[walked.first], matrix.rows_from[walked.first + len(walked.serving)])
    asked = list(walked.asked)
    cpu = matrix.cpu[asked].sum()
    if arm and arm.gated:
        cpu += matrix.cpu[[twin_of(matrix, model, params) for model in asked]].sum()
    if arm and arm.fresh:
        cpu += yardstick.cpu * len(walked.serving)
    y_true, y_proba = matrix.y_true[rows], matrix.served(walked.together(arm.together if arm else 1), walked.first)
    loss = metrics.log_loss(y_true, y_proba)
    return Score(
        name=name, retrains=len(asked), taken=walked.taken, returns=walked.returns, log_loss=loss,
        auc=metrics.auc(y_true, y_proba), cost=metrics.cost(y_true, y_proba, scoring_of(params)), cpu_seconds=float(cpu),
        gain=float(gain(loss)),
    )  # fmt: skip


def fresh_cpu(features: FeatureSetRef, matrix: Matrix, params: Params) -> float:
    """CPU seconds of one day's yardstick in production, the mean of the last three days."""
    began, sample = time.process_time(), matrix.days[-3:]
    for day in sample:
        fresh.answers(rows_of(features), day, midnight(day), params)
    return (time.process_time() - began) / len(sample)


def told(replayed: Replayed) -> str:
    """A period's table, and how the default stands beside chance and nightly."""
    own = {score.name: score for score in replayed.scores}
    mine, nightly = own[DEFAULT], own[NIGHTLY]
    return (
        f"{replayed.name}\n\n{table(replayed)}\n\n"
        f"{DEFAULT}: {mine.gain:.1%} of nightly's gain over never with {mine.retrains} retrains for {nightly.retrains} "
        f"({mine.retrains / nightly.retrains:.0%}); better than {replayed.beaten:.1%} of {replayed.seeds:,} "
        "random policies with as many"
    )


def write(matrix: Matrix, periods: Sequence[Replayed], folder: Path) -> list[Path]:
    """Writes replay.csv (both parts) and replay.png (the last part); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, drawn = folder / "replay.csv", folder / "replay.png"
    figures.write_text(to_csv(periods))
    drawn.write_bytes(picture(periods[-1], matrix, [DEFAULT, NIGHTLY, "weekly", "shown harm", "oracle, the default's count"]))
    return [figures, drawn]
