"""The gate benchmark: its sums by day are the gate's own arithmetic, its nulls are null, and what it reads off is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ml import metrics, significance
from ml.config import load_params
from ml.settings import ROOT
from ops import bench_gates
from ops import gate_trials as gt

DAYS, ROWS, MODELS = 40, 200, bench_gates.MODELS


def pool() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Labels, answers of equal models that err by whole days, days."""
    rng = np.random.default_rng(1)
    days = np.repeat(np.arange(DAYS), ROWS)
    margin = rng.standard_normal(DAYS * ROWS)
    y_true = (rng.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(float)
    shifted = [margin + 0.8 * np.repeat(rng.standard_normal(DAYS), ROWS) for _ in range(MODELS)]
    return y_true, [1 / (1 + np.exp(-m)) for m in shifted], days


@pytest.fixture(scope="module")
def scored() -> gt.Scored:
    return gt.summed(*pool())


def drawn_rows(drawn: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of two models on the rows of drawn days, and the blocks: a day that is drawn twice is two blocks."""
    y_true, answers, days = pool()
    losses = [metrics.log_losses(y_true, answers[model]) for model in (first, second)]
    taken = [np.flatnonzero(days == day) for day in drawn]
    rows = np.concatenate(taken)
    return losses[0][rows], losses[1][rows], np.repeat(np.arange(len(drawn)), [len(t) for t in taken])


def test_upper_ends__are_those_of_the_gate_on_rows(scored: gt.Scored) -> None:
    rng = np.random.default_rng(2)
    pairs, drawn = gt.pairs_of(MODELS, 5, rng), gt.holdouts(DAYS, 14, 5, rng)
    made = scored.trials(pairs, drawn, "as they are", rng)
    ends, plain = gt.upper_ends(made.sums, made.counts, 0.95, 1000, 7)
    for i, (first, second) in enumerate(pairs):
        interval = significance.paired_by_day(*drawn_rows(drawn[i], first, second), 0.95, 1000, 7)
        assert ends[i] == pytest.approx(interval.high, rel=1e-9)
    assert (plain < ends).all()


def test_row_ends__are_those_of_a_z_interval_on_rows(scored: gt.Scored) -> None:
    rng = np.random.default_rng(3)
    drawn = gt.holdouts(DAYS, 7, 1, rng)
    made = scored.trials(np.array([[0, 1]]), drawn, "as they are", rng)
    first, second, _ = drawn_rows(drawn[0], 0, 1)
    difference = first - second
    wanted = difference.mean() + stats.norm.ppf(0.975) * difference.std(ddof=1) / np.sqrt(len(difference))
    assert gt.row_ends(made, 0.95)[0] == pytest.approx(wanted)


@pytest.mark.parametrize("null", ["centred", "consecutive days"])
def test_trials__of_centred_pairs_are_null_on_the_pool(scored: gt.Scored, null: str) -> None:
    whole = np.arange(DAYS)[None]
    made = scored.trials(np.array([[0, 1]]), whole, null, np.random.default_rng(0))
    assert made.sums.sum() == pytest.approx(0, abs=1e-9)
    first, second, _ = drawn_rows(whole[0], 0, 1)
    difference = first - second
    assert made.squares.sum() == pytest.approx(((difference - difference.mean()) ** 2).sum())


def test_trials__swapped_by_day_exchange_about_half_of_the_days(scored: gt.Scored) -> None:
    pairs, drawn = np.tile([0, 1], (50, 1)), np.tile(np.arange(DAYS), (50, 1))
    rng = np.random.default_rng(0)
    plain, swapped = (scored.trials(pairs, drawn, null, rng).sums for null in ("as they are", "swapped by day"))
    assert np.array_equal(np.abs(plain), np.abs(swapped))
    assert 0.45 < (plain == swapped).mean() < 0.55
    assert 0.2 < (plain == swapped).mean(axis=1).min() < (plain == swapped).mean(axis=1).max() < 0.8  # by day, not by trial


def test_pairs_of__never_pairs_a_model_with_itself_and_reaches_all() -> None:
    pairs = gt.pairs_of(4, 500, np.random.default_rng(0))
    assert {tuple(pair) for pair in pairs} == {(i, j) for i in range(4) for j in range(4) if i != j}


def test_holdouts__consecutive_ones_are_days_in_a_row_inside_the_pool() -> None:
    drawn = gt.holdouts(20, 14, 300, np.random.default_rng(0), consecutive=True)
    assert (np.diff(drawn, axis=1) == 1).all()
    assert (drawn.min(), drawn.max()) == (0, 19)


def test_detectable__reads_a_known_curve() -> None:
    differences = np.geomspace(0.001, 0.1, 15)
    detected = 0.025 + 0.975 / (1 + (0.02 / differences) ** 2)  # from chance to 1, logistic in the logarithm
    wanted = 0.02 * np.sqrt(0.775 / 0.2)
    middle, low, high = gt.detectable(differences, detected, 0.8, 10, 0)
    assert middle == pytest.approx(wanted, rel=1e-3)
    assert low <= middle * 1.001 and high >= middle * 0.999


def test_detectable__refuses_pairs_on_one_side() -> None:
    with pytest.raises(ValueError, match="all 3 pairs are detected on one side of 80%"):
        gt.detectable(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]), 0.8, 10, 0)


def test_better__when_paid_is_what_the_paid_interval_says(scored: gt.Scored) -> None:
    gates, rng = load_params().gates.model_copy(update={"resamples": 1000}), np.random.default_rng(5)
    null = scored.trials(gt.pairs_of(MODELS, 100, rng), gt.holdouts(DAYS, 14, 100, rng), "centred", rng)
    made = gt.Trials(null.sums - 1.5 * null.sums.std() / np.sqrt(14), null.squares, null.counts)  # the first is better by some
    ends, _ = gt.upper_ends(made.sums, made.counts, significance.paid(gates.confidence, 3), gates.resamples, 0)
    assert np.array_equal(gt.better(made, gates, 2, 0), ends < 0)
    assert gt.better(made, gates, 0, 0).sum() > gt.better(made, gates, 2, 0).sum() > 0


def test_promoted__pays_for_used_days(scored: gt.Scored) -> None:
    gates = load_params().gates.model_copy(update={"resamples": 200, "confidence": 0.8})
    counts = {arm: gt.promoted(scored, 10, 7, 100, gates, 0, arm).sum() for arm in ("unpaid", "paid", "paid ahead")}
    assert counts["unpaid"] > counts["paid"] > counts["paid ahead"]


def test_false_promotion__shows_that_independent_rows_promote_falsely(
    scored: gt.Scored, capsys: pytest.CaptureFixture[str]
) -> None:
    models = bench_gates.Models(pd.DataFrame(), load_params())
    models.__dict__["equal"] = {"made up": scored}
    summary = bench_gates.false_promotion(models, 400, None)
    assert len(summary) == 2 * len(gt.NULLS)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| made up")]
    by_null = {(row[1].strip(), int(row[2])): [float(cell.split("%")[0]) for cell in row[3:]] for row in rows}
    better, false, plain, independent, _refused = by_null["swapped by day", 14]
    assert better == false <= plain < independent
    assert independent > 20
    better, false, *_ = by_null["as they are", 14]
    assert false <= better


def test_reuse__draws_its_picture(scored: gt.Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    small = params.model_copy(update={"gates": params.gates.model_copy(update={"resamples": 200, "confidence": 0.8}),
                                      "train": params.train.model_copy(update={"holdout_days": 5})})  # fmt: skip
    monkeypatch.setattr(bench_gates, "HISTORIES", 20)
    models = bench_gates.Models(pd.DataFrame(), small)
    models.__dict__["equal"] = {"made up": scored}
    assert len(bench_gates.reuse(models, 400, tmp_path / "new")) == 4
    assert (tmp_path / "new" / "gate-reuse.png").read_bytes().startswith(b"\x89PNG")


def test_bench_gates__teaches_and_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "ops.bench_gates"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(part in shown.stdout for part in bench_gates.PARTS)
    refused = subprocess.run([*command, "powers"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, "unknown part 'powers'" in refused.stderr) == (2, True)
