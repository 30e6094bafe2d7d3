"""The replay: every night's model learns from nothing that came later, policies see nothing that had not matured, and the figures
are those of trying everything by hand.
"""

from __future__ import annotations

import dataclasses
import io
from datetime import date, datetime, timedelta
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ml import cli, metrics, store
from ml.config import Params, load_params
from ml.errors import NotEnoughDataError
from ml.features.definitions import load_module
from ml.monitoring import replay, replay_matrix, replay_policies, replay_report, replay_run
from ml.monitoring.harm import bounded
from ml.monitoring.replay import Gate, Past, every, never, newest, on, walk
from ml.monitoring.replay_matrix import STEPS, Matrix
from ml.monitoring.replay_policies import Counts, Yardstick
from ml.refs import FeatureSetRef, Window
from tests.sample_models import FEATURES, made_up

FIRST = date(2013, 3, 1)


def made(days: int, aging: float = 0.03, rows: int = 40, seed: int = 1) -> Matrix:
    """A world in which a model gets worse by `aging` of log-odds noise for each day of its age."""
    draw = np.random.default_rng(seed)
    margin = draw.normal(size=(days, rows))
    y_true = (draw.random((days, rows)) < 1 / (1 + np.exp(-2 * margin))).astype(float)
    answers = []
    for night in range(days):
        age = np.arange(days - night)[:, None]
        noisy = 2 * margin[night:] + aging * age * draw.normal(size=(days - night, rows))
        answers.append(np.rint(STEPS / (1 + np.exp(-noisy))).astype(np.uint16).ravel())
    return summed(y_true, answers)


def summed(y_true: np.ndarray, answers: list[np.ndarray]) -> Matrix:
    days, rows = y_true.shape
    loss, clipped = np.full((2, days, days), np.nan)
    for night, found in enumerate(answers):
        y_proba, truth = found / STEPS, y_true[night:].ravel()
        by_row = metrics.log_losses(truth, y_proba), bounded("binary", truth, y_proba)
        for table, values in zip((loss, clipped), by_row, strict=True):
            table[night, night:] = values.reshape(-1, rows).sum(axis=1)
    return Matrix(
        days=tuple(FIRST + timedelta(days=d) for d in range(days)), gap=1, y_true=y_true.ravel(),
        rows_from=np.arange(days + 1) * rows, answers=tuple(answers), loss=loss, bounded=clipped, cpu=np.ones(days),
    )  # fmt: skip


WORLD = made(60)


def shortened(**train: int) -> Params:
    params = load_params()
    gates = params.gates.model_copy(update={"resamples": 500})
    return params.model_copy(update={"train": params.train.model_copy(update={"holdout_days": 7, **train}), "gates": gates})


# ---- walks


def test_walk__a_model_serves_from_the_day_after_it_was_asked_for() -> None:
    found = walk(WORLD, 20, 26, on([21, 24]), newest)
    assert found.serving.tolist() == [19, 19, 21, 21, 21, 24]
    assert (found.asked, found.taken, found.returns) == ((21, 24), 2, 0)


def test_walk__going_back_is_counted() -> None:
    back = walk(WORLD, 20, 24, on([20]), lambda past, candidate: candidate if candidate is not None else past.pool[0])
    assert back.serving.tolist() == [19, 20, 19, 19]
    assert back.returns == 1


def test_together__is_the_newest_champions_that_served() -> None:
    found = walk(WORLD, 20, 27, on([21, 24]), newest)
    assert found.together(2) == [(19,), (19,), (19, 21), (19, 21), (19, 21), (21, 24), (21, 24)]
    y_proba = WORLD.served(found.together(2), 20)[2 * 40 : 3 * 40]
    assert y_proba == pytest.approx((WORLD.of(19, 22) + WORLD.of(21, 22)) / 2)


def test_every__is_nightly_for_one_day() -> None:
    assert walk(WORLD, 20, 25, every(1), newest).asked == (20, 21, 22, 23, 24)
    assert walk(WORLD, 20, 35, every(7), newest).asked == (20, 27, 34)
    assert walk(WORLD, 20, 25, never, newest).asked == ()


def test_mean_loss__is_that_of_the_rows_that_were_served() -> None:
    found = walk(WORLD, 20, 40, every(5), newest)
    rows = slice(WORLD.rows_from[20], WORLD.rows_from[40])
    expected = metrics.log_loss(WORLD.y_true[rows], WORLD.served(found.together(1), 20))
    assert replay.mean_loss(WORLD, found) == pytest.approx(expected, abs=1e-12)


# ---- the oracle and chance


def test_oracle__equals_trying_every_set_of_mornings() -> None:
    first, end = 20, 29
    best, path = replay.oracle(WORLD, first, end)
    for count in range(4):
        tried = [
            replay.mean_loss(WORLD, walk(WORLD, first, end, on(mornings), newest))
            for size in range(count + 1)
            for mornings in combinations(range(first, end - 1), size)
        ]
        assert best[count] == pytest.approx(min(tried), abs=1e-12)
        assert replay.mean_loss(WORLD, path(count)) == pytest.approx(best[count], abs=1e-12)
        assert len(path(count).asked) <= count


def test_chance__with_every_morning_is_nightly() -> None:
    nightly = walk(WORLD, 20, 40, every(1), newest)
    for drawn in replay.by_chance(20, 40, 20, 3):
        assert drawn.serving.tolist() == nightly.serving.tolist()


def test_chance__is_a_walk_on_the_drawn_mornings() -> None:
    draws = list(replay.by_chance(20, 40, 4, 5))
    assert len({drawn.asked for drawn in draws}) > 1
    for drawn in draws:
        assert len(drawn.asked) == 4
        assert drawn.serving.tolist() == walk(WORLD, 20, 40, on(drawn.asked), newest).serving.tolist()


# ---- the gate


@pytest.mark.parametrize(("aging", "accepted"), [(0.0, True), (0.4, True), (-1.0, False)], ids=["equal", "fresher", "worse"])
def test_gate__refuses_a_candidate_that_is_worse_alone(aging: float, accepted: bool) -> None:
    """Worse: every later night's model answers ever more at random."""
    world = made(60, max(aging, 0), rows=300)
    if aging < 0:
        draw, rows = np.random.default_rng(2), 300
        noise = [draw.normal(scale=0.1 * night, size=len(a)) for night, a in enumerate(world.answers)]
        answers = [
            np.rint(STEPS / (1 + np.exp(-(np.log(a + 1) - np.log(STEPS + 1 - a) + e)))).astype(np.uint16)
            for a, e in zip((np.clip(a.astype(float), 1, STEPS - 1) for a in world.answers), noise, strict=True)
        ]
        world = summed(world.y_true.reshape(-1, rows), answers)
    gate = Gate(shortened())
    past = Past(world, 30, 40, tuple([29] * 11), ())
    assert gate.accepts(past, 40, 29) is accepted
    assert gate(past, 40) == (40 if accepted else 29)
    assert gate(past, None) == 29


def test_gate__judges_nobody_on_days_that_it_learned_from() -> None:
    """What a model, or its twin, answers on days that it has learned from is spoilt in a copy; no verdict changes."""
    spoilt = WORLD.loss.copy()
    for night in range(len(WORLD.days)):
        spoilt[night, : WORLD.matured(night) + 1] = 1e6
    copy, gate = dataclasses.replace(WORLD, loss=spoilt), Gate(shortened())
    for morning, champion in [(40, 39), (40, 36), (40, 30), (40, 25)]:
        days = np.arange(WORLD.matured(morning) - 6, WORLD.matured(morning) + 1)
        for model in (morning, champion):
            assert gate.sums(copy, model, days).tolist() == gate.sums(WORLD, model, days).tolist()
            assert gate.sums(WORLD, model, days).max() < 1e5


# ---- nothing is known before its time


def changed_after(matrix: Matrix, day: int) -> Matrix:
    """The same world until `day`; all labels that matured later are others, so that every figure made of them is another one."""
    cut = day - 1  # yesterday was not over 24 hours ago
    tables = {name: getattr(matrix, name).copy() for name in ("loss", "bounded")}
    for table in tables.values():
        table[:, cut:] *= np.random.default_rng(3).uniform(0.2, 5, table[:, cut:].shape)
    return dataclasses.replace(matrix, **tables)


@pytest.mark.parametrize("day", [30, 37, 45])
def test_default__asks_and_serves_the_same_whatever_comes_later(day: int) -> None:
    params = quick()

    def asked_until(matrix: Matrix) -> list[int]:
        found = walk(matrix, 20, 60, *replay_policies.default(Yardstick.of(matrix, 1.0), params))
        assert found.asked, "a policy that never asks would pass"
        return [a for a in found.asked if a <= day] + found.serving[: day - 20 + 1].tolist()

    world = made(60, aging=0.2, rows=600)
    assert asked_until(world) == asked_until(changed_after(world, day))


def test_evidence__ends_with_the_day_before_yesterday() -> None:
    world = made(60, rows=600)
    past = Past(world, 20, 40, tuple([19] * 21), ())
    seen = replay_policies.Shipped(Yardstick.of(world, 1.0), quick()).evidence(past, datetime(2013, 4, 10, 5))
    assert past.matrix.days[past.day] == date(2013, 4, 10)
    assert max(seen.harmed) == date(2013, 4, 8)
    assert min(seen.harmed) == world.days[20], "the first day that it served"
    assert seen.new_labels == 600 * 21, "it learned up to day 17; days 18 to 38"
    assert seen.age_days == pytest.approx(22 + 5 / 24)


def quick() -> Params:
    params = shortened()
    harm = params.monitoring.harm.model_copy(update={"min_rows": 100, "margin": 0.0})
    policy = params.policy.model_copy(update={"min_new_labels": 100, "stale_days": 8, "cooldown_days": 1})
    return params.model_copy(update={"monitoring": params.monitoring.model_copy(update={"harm": harm}), "policy": policy})


# ---- scores


@pytest.fixture(scope="module")
def replayed() -> replay_report.Replayed:
    params = quick()
    yardstick = Yardstick.of(WORLD, 0.5)
    table = made_up(FEATURES, 6000)
    table["event_time"] += pd.Timestamp(FIRST) - pd.Timestamp("2013-01-11")  # ten days before the first night, twenty after
    counts = Counts.of(table, FEATURES, WORLD)
    return replay_run.period(WORLD, 20, 60, replay_run.arms(counts, yardstick, params), yardstick, params, 50)


def test_scores__are_shares_of_what_nightly_gains(replayed: replay_report.Replayed) -> None:
    own = {score.name: score for score in replayed.scores}
    assert [own["never"].gain, own["nightly"].gain] == pytest.approx([0, 1])
    assert (own["never"].retrains, own["nightly"].retrains, own["every 4 days"].retrains) == (0, 40, 10)
    assert own["oracle"].gain >= max(1, own["oracle, the default's count"].gain)
    assert own["oracle, the default's count"].gain >= own["default"].gain
    assert 0 <= replayed.beaten <= 1


def test_scores__count_what_was_fitted(replayed: replay_report.Replayed) -> None:
    """A fit is a second here, a yardstick half of one: 10 fits; with a twin each 20; 40 mornings with a yardstick 20 more."""
    own = {score.name: score for score in replayed.scores}
    assert own["every 4 days"].cpu_seconds == pytest.approx(10)
    assert own["every 4 days, gated"].cpu_seconds == pytest.approx(20)
    assert own["default"].cpu_seconds == pytest.approx(2 * own["default"].retrains + 20)


def test_report__says_table_csv_and_picture(replayed: replay_report.Replayed, tmp_path: Path) -> None:
    told = replay_run.told(replayed)
    assert "| nightly |" in told
    assert "of nightly's gain over never with" in told
    figures, drawn = replay_run.write(WORLD, [replayed], tmp_path)
    table = pd.read_csv(figures)
    assert set(table["name"]) == {score.name for score in replayed.scores}
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_counts__largest_psi_is_of_the_feature_that_moved() -> None:
    table = made_up(FEATURES, 6000)
    table["event_time"] += pd.Timestamp(FIRST) - pd.Timestamp("2013-01-11")
    late = table["event_time"] >= pd.Timestamp(FIRST) + pd.Timedelta(days=10)
    moved = Counts.of(table.assign(x=table["x"] + 2 * late), FEATURES, WORLD)
    assert moved.largest((-10, 0), (10, 17))[0] == "x"
    assert moved.largest((-10, 0), (10, 17))[1] > 0.5
    assert Counts.of(table, FEATURES, WORLD).largest((-10, 0), (10, 17))[1] < 0.2


# ---- the matrix


@pytest.fixture
def rows(workspace: Path) -> pd.DataFrame:
    """50 days of made-up rows of the shipped problem, 120 a day."""
    params = load_params()
    table = pd.concat([made_up(load_module(params).learned, 3000, seed) for seed in (1, 2)], ignore_index=True)
    table.loc[3000:, "event_time"] += pd.Timedelta(days=30)
    table["entity_id"] = [f"row-{i}" for i in range(len(table))]
    table["known_at"] = table["event_time"] + pd.Timedelta(hours=3)
    return table.sort_values(["event_time", "entity_id"], ignore_index=True)


def kept(table: pd.DataFrame) -> FeatureSetRef:
    """The table as a feature set in the store."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    window = Window(start=date(2013, 1, 1), end=date(2013, 3, 2))
    return FeatureSetRef(
        digest=store.put(buffer.getvalue()), rows=len(table), snapshot="0" * 32, code="0" * 16, window=window,
        as_of=datetime(2013, 3, 5),
    )  # fmt: skip


def build(table: pd.DataFrame, told: list[str], first: int = 50, end: int = 54, processes: int = 1) -> Matrix:
    start = date(2013, 1, 1)
    return replay_matrix.build(kept(table), start + timedelta(days=first), start + timedelta(days=end), processes, told.append)


def test_matrix__a_night_learns_from_nothing_that_was_not_known(rows: pd.DataFrame) -> None:
    night = pd.Timestamp("2013-02-20")  # day 50: the embargo leaves days up to 18 February
    unknown = (rows["event_time"] >= night - pd.Timedelta(days=1)) | (rows["known_at"] > night)
    told: list[str] = []
    plain = build(rows, told)
    spoilt = build(rows.assign(label=np.where(unknown, 1 - rows["label"], rows["label"])), told)
    assert plain.answers[0].tolist() == spoilt.answers[0].tolist()
    assert plain.answers[2].tolist() != spoilt.answers[2].tolist(), "that night, the labels of 19 February were known"


def test_matrix__leaves_out_what_took_longer_than_the_embargo(rows: pd.DataFrame) -> None:
    late = rows["event_time"].dt.floor("D") == pd.Timestamp("2013-02-18")
    slow = rows.assign(known_at=rows["known_at"].mask(late, pd.Timestamp("2013-02-21")))
    unlabelled = rows.assign(label=rows["label"].mask(late))
    first = [build(table, [], end=51).answers[0].tolist() for table in (rows, slow, unlabelled)]
    assert first[1] == first[2] != first[0]


def test_matrix__is_built_once_and_goes_on_where_it_stopped(rows: pd.DataFrame) -> None:
    told: list[str] = []
    build(rows, told, end=52)
    again = build(rows, told, end=52)
    assert [line.split(";")[0] for line in told if "in the store" in line] == [
        "0 of 2 nights are in the store", "2 of 2 nights are in the store",
    ]  # fmt: skip
    assert again.loss.shape == (2, 2)
    assert np.isnan(again.loss[1, 0])


def test_matrix__sums_are_those_of_its_answers(rows: pd.DataFrame) -> None:
    found = build(rows, [], processes=2)
    for model, day in [(0, 0), (0, 3), (2, 3)]:
        y_true = found.y_true[found.rows_from[day] : found.rows_from[day + 1]]
        y_proba = found.of(model, day)
        assert found.loss[model, day] == pytest.approx(metrics.log_losses(y_true, y_proba).sum())
        assert found.bounded[model, day] == pytest.approx(bounded("binary", y_true, y_proba).sum())
    assert found.n.sum() == len(found.y_true)
    assert (found.cpu > 0).all()
    assert metrics.auc(found.y_true, found.served([(0,)] * 4, 0)) > 0.8


def test_matrix__too_few_days_are_named(rows: pd.DataFrame) -> None:
    with pytest.raises(NotEnoughDataError, match="2013-01-11, has fewer than 30 days to learn from"):
        build(rows, [], first=10)


def test_command__teaches() -> None:
    outcome = CliRunner().invoke(cli.app, ["replay", "--help"])
    assert outcome.exit_code == 0
    assert "evergreen replay --as-of" in outcome.output
