"""The benchmark's walk: the real steps and verdict on made-up rows; it teaches its options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml import metrics
from ml.config import load_params
from ops import bench_canary
from ops import canary_trials as ct

ROOT = Path(__file__).parent.parent
LIMITS = load_params().release.model_copy(update={"steps": [0.25, 0.5]})
N = 20_000
DRAW = np.random.default_rng(0)
TRUTH = DRAW.uniform(0.05, 0.6, N)
ASKED = np.datetime64("2013-06-01", "s") + np.arange(N) * np.timedelta64(90, "s")
STREAM = ct.Stream(ASKED, ASKED + np.timedelta64(2, "h"), (DRAW.random(N) < TRUTH).astype(float), DRAW.random(N), TRUTH,
                   np.timedelta64(21, "D"))  # fmt: skip
EQUAL = ct.Candidate("equal", [TRUTH])


def walk(candidate: ct.Candidate, seed: int = 1) -> ct.Outcome:
    return ct.walk(STREAM, candidate, LIMITS, ct.Server(), seed)


def test_walk__an_equal_candidate_goes_through_all_steps() -> None:
    found = walk(EQUAL)
    assert (found.verdict, found.step, found.because) == ("pass", 1, "")
    assert found.answers == pytest.approx(0.25 * (found.requests - found.longest_step) + 0.5 * found.longest_step, rel=0.5)
    assert found.hours == pytest.approx(found.requests * 90 / 3600, rel=0.01)
    assert walk(EQUAL) == found  # the seed says all


@pytest.mark.parametrize(
    ("harm", "because"), [({"errors": 0.1}, "errors"), ({"slower": 2.0}, "latency"), ({"shift": 0.2}, "scores"), ({"blur": 2.0}, "quality")]
)  # fmt: skip
def test_walk__harm_is_rolled_back_for_its_reason(harm: dict[str, Any], because: str) -> None:
    found = walk(replace(EQUAL, **harm))
    assert (found.verdict, found.because) == ("fail", because)


def test_walk__without_labels_a_blurred_candidate_is_promoted() -> None:
    assert walk(ct.unlabelled(replace(EQUAL, blur=1.0), "unlabelled")).verdict == "pass"


def test_walk__waiting_for_labels__the_blurred_candidate_is_caught_and_it_takes_hours() -> None:
    fast = replace(EQUAL, blur=1.0, faster=4)
    assert walk(replace(fast, label_hours=48)).verdict == "pass", "its steps pass before a label matures"
    caught = walk(replace(fast, label_hours=48, waits=500))
    assert (caught.verdict, caught.because, caught.step) == ("fail", "quality", 1)
    fine = walk(replace(EQUAL, faster=4, label_hours=48, waits=500))
    assert fine.verdict == "pass"
    assert fine.hours > 48
    assert fine.hours == pytest.approx(fine.requests * 90 / 3600 / 4, rel=0.05)
    assert 48 < fine.longest_hours < fine.hours


def test_blur_for__costs_as_much_auc_as_asked() -> None:
    blur = ct.blur_for(STREAM.y_true, TRUTH, 0.05)
    blurred = replace(EQUAL, blur=blur).of_trial(np.random.default_rng(5))
    assert metrics.auc(STREAM.y_true, TRUTH) - metrics.auc(STREAM.y_true, blurred) == pytest.approx(0.05, abs=0.01)


def test_tables_and_picture__say_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {
        "fine": [walk(EQUAL, seed) for seed in range(3)],
        "slow": [walk(replace(EQUAL, slower=2.0), seed) for seed in range(3)],
    }
    bench_canary.verdicts(outcomes)
    bench_canary.times(STREAM, outcomes, LIMITS)
    bench_canary.draw(outcomes, list(outcomes), tmp_path / "new" / "canary.png")
    quick = bench_canary.fast(EQUAL, 500)
    assert (quick.name, quick.faster, quick.waits) == ("equal, 30 x traffic, waits for 500 labels", 30, 500)
    bench_canary.hours(outcomes)
    told = capsys.readouterr().out
    assert f"| fine | {bench_canary._middle([o.hours for o in outcomes['fine']], '.1f')} |" in told
    assert "latency 3" in told
    assert (tmp_path / "new" / "canary.png").read_bytes().startswith(b"\x89PNG")
    assert bench_canary.line("bad", "slow", outcomes["slow"]).endswith("wanted: at least 95%: met")
    assert bench_canary.line("equal", "slow", outcomes["slow"]).endswith("NOT MET")


def test_bench_canary__teaches_and_refuses_too_few_trials() -> None:
    command = [sys.executable, "-m", "ops.bench_canary"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--trials" in shown.stdout
    mixed = subprocess.run(
        [*command, "--only", "traffic", "--picture", "p.png"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (mixed.returncode, "leave out --only" in mixed.stderr) == (2, True)
    refused = subprocess.run([*command, "--trials", "3"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, "less than 20" in refused.stderr) == (2, True)
