"""The benchmark of estimated performance: its changed worlds are changed as they say, and it teaches its options."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml.config import load_params
from ml.evaluation.report import scoring_of
from ml.monitoring import expected as ex
from ml.monitoring.expected import Labelled
from ml.settings import ROOT
from ops import bench_estimate, estimate_peer
from ops.estimate_cases import Champion, disturbed, tilted

MONDAY, A_DAY = 15859, 120
"""3 June 2013, in days since 1970; rows of a day."""


def champion(weeks: int = 10) -> Champion:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(MONDAY, MONDAY + 7 * (weeks + 2)), A_DAY)
    y_proba = rng.beta(2, 5, len(days))
    whole = Labelled(y_proba, days, (rng.random(len(days)) < y_proba).astype(float))
    held = days < MONDAY + 14
    features = {name: rng.standard_normal(int((~held).sum())) for name, _ in bench_estimate.TILTS}
    return Champion(date(2013, 6, 2), pd.DataFrame(), whole[held], whole[~held], pd.DataFrame(features))


def bench(weeks: int = 10) -> bench_estimate.Bench:
    params = load_params()
    quick = params.monitoring.estimate.model_copy(update={"resamples": 100, "min_rows": 100})
    made = params.model_copy(update={"monitoring": params.monitoring.model_copy(update={"estimate": quick})})
    return bench_estimate.Bench([champion(weeks)], made, scoring_of(made))


def test_disturbed__shuffles_within_days_and_raises_zeros() -> None:
    later, rng = champion().later, np.random.default_rng(1)
    chosen = later.days >= MONDAY + 28
    shuffled = disturbed(later, chosen, (1.0, 0.0), rng)
    assert np.array_equal(shuffled[~chosen], later.y_true[~chosen])
    by_day = [np.bincount(later.days - MONDAY, weights=labels) for labels in (shuffled, later.y_true)]
    assert np.array_equal(*by_day)
    assert (shuffled != later.y_true)[chosen].mean() > 0.2
    assert ex.realised(Labelled(later.y_proba, later.days, shuffled)[chosen], bench().scoring)["auc"] == pytest.approx(
        0.5, abs=0.03
    )
    raised = disturbed(later, chosen, (0.0, 0.25), rng)
    zeros = chosen & (later.y_true == 0)
    assert raised[zeros].mean() == pytest.approx(0.25, abs=0.03)
    assert np.array_equal(raised[~zeros], later.y_true[~zeros])


def test_tilted__draws_more_of_what_is_large() -> None:
    values = np.append(np.arange(1000.0), np.nan)
    rng = np.random.default_rng(0)
    up, down = tilted(values, 1.0, rng), tilted(values, -1.0, rng)
    assert len(up) == len(values)
    assert np.nanmean(values[up]) > 650 and np.nanmean(values[down]) < 350


def test_known__are_only_labels_that_have_come() -> None:
    made = champion()
    start = made.starts[3]
    assert made.known(start + 7, 7).days.max() == start - 1
    assert len(made.known(made.starts[0] + 7, 28).days) == 0
    assert len(made.starts) == 10 and (made.starts[0] - MONDAY) == 14


def test_parts__tell_their_tables_and_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench()
    summary = made.weeks() + made.inputs() + made.relation()
    shown = capsys.readouterr().out
    assert len(summary) == 2 + len(bench_estimate.TILTS) + len(bench_estimate.CHANGES)
    by_guess = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in shown.splitlines() if line.startswith("|")}
    assert {"estimate", "as on the holdout", "CBPE, answers as they are"} <= set(by_guess)
    shuffled = made.courses["all labels are another row's of the day"][0]
    assert shuffled[0][0] == 1 and shuffled[1][0] == 0  # believed in the week of the change, not in the next
    assert abs(shuffled[0][1]) > 0.1
    bench_estimate.draw(made, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_compare__of_our_own_figures_finds_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    made, mine = bench(4), champion(4)
    weeks = [mine.later[mine.week(start)] for start in mine.starts]
    told = []
    for week in weeks:
        said = ex.expected(week.y_proba, week.y_proba, made.scoring)
        figures = {theirs: {"value": said[ours], "low": 0.0, "high": 1.0} for theirs, ours in estimate_peer.NAMES.items()}
        told.append({"n": len(week.days), "chance": week.y_proba.tolist(), **figures})
    peer = {"fit": 0.1, "estimate": 0.1, "weeks": told}
    summary = estimate_peer.compare(peer, mine.holdout, weeks, [None] * 4, made.scoring, made.limits)
    assert "figures differ by 0.0e+00 at most" in summary[-1]
    assert "| auc | NannyML |" in capsys.readouterr().out
    told[0]["n"] = 1
    assert "its weeks are not ours" in estimate_peer.compare(peer, mine.holdout, weeks, [None] * 4, made.scoring, made.limits)[0]


def test_installed__says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "there is no uv/bin/uv" in estimate_peer.installed(tmp_path)[1]
    tool = tmp_path / "uv" / "bin" / "uv"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    tool.chmod(0o755)
    assert estimate_peer.installed(tmp_path)[1] == "uv venv -q failed: no such package"
    assert estimate_peer.run(champion(3).holdout, champion(3).later, 0.5) == "uv venv -q failed: no such package"


def test_bench_estimate__teaches_and_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "ops.bench_estimate"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(part in shown.stdout for part in bench_estimate.PARTS)
    for wrong, message in (
        (["years"], "unknown part 'years'"),
        (["weeks", "--picture", "x.png"], "--picture shows weeks and relation"),
    ):
        refused = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False, cwd=ROOT)
        assert (refused.returncode, message in refused.stderr) == (2, True)
