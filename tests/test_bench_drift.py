"""The benchmark of drift: it ends by itself with a summary, knows a value that differs, and teaches its options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.spatial import distance

from ml.monitoring.profiles import build_profile, profile_day
from ops import bench_drift

ROOT = Path(__file__).parent.parent
NAMES = ("few_3", "text_4", "many_1")


def test_bench_drift__days_end_with_a_summary() -> None:
    command = [sys.executable, "-m", "ops.bench_drift", "days", "--rows", "2000", "--days", "40", "--stored-rows", "100"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "- day 40 costs" in said.splitlines()[-1]
    assert said.count("turn ") == bench_drift.TURNS


def test_bench_drift__tells_the_same_values_from_others() -> None:
    before, after = bench_drift.table(5000, 0), bench_drift.table(5000, 1, 1.0)
    reference = build_profile(["few_3", "many_1"], ["text_4"], before)
    theirs = {}
    for name in NAMES:
        r, c = (table[name].value_counts().sort_index().align(other[name].value_counts(), fill_value=0)[0].to_numpy()
                for table, other in ((before, after), (after, before)))  # fmt: skip
        shares = [np.maximum(x / x.sum(), 1e-4) for x in (r, c)]
        theirs[name] = {"psi": float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum()),
                        "jensenshannon": float(distance.jensenshannon(r, c)), "chisquare": 0.5}  # fmt: skip
        if name != "text_4":
            away = stats.wasserstein_distance(before[name], after[name]) / before[name].std(ddof=0)
            same = stats.ks_2samp(before[name], after[name], method="asymp").pvalue
            theirs[name] |= {"wasserstein": float(away), "ks": float(same)}
    day = profile_day(reference, after)
    # four of few_3, two of text_4; many_1 and chisquare are defined otherwise
    assert bench_drift.same_values(reference, day, theirs) == "6 values of one definition are the same within 1e-09"
    theirs["few_3"]["psi"] += 1e-8
    assert "DIFFER: {'psi, same'" in bench_drift.same_values(reference, day, theirs)


def test_bench_drift__teaches_and_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "ops.bench_drift"]
    taught = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Evidently" in taught.stdout
    refused = subprocess.run([*command, "nights"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (refused.returncode, "unknown part 'nights'" in refused.stderr) == (2, True)
