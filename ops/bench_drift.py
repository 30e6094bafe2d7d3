"""``make bench-drift``: what a day of watching costs, on the 2nd and on the 365th day, and beside Evidently.

Parts: days (profile of one new day, drift of a week and of a year from stored profiles), evidently (the same statistics on the
same rows by Evidently, in an environment of its own that is made in a temporary folder and removed). All rows are made up in
this run: 30 numbers, 20 texts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from ops.bench_features import say, show

PARTS = ("days", "evidently")
FIRST = date(2025, 1, 1)
WINDOW = 7
TURNS = 5
TOLERANCE = 1e-9
TARGETS = {"days": 1.1, "evidently": 30.0}
INSTALL_SECONDS, RUN_SECONDS = 600, 3600
RIVAL = Path(__file__).with_name("drift_evidently.py")
DIFFERS = {
    "chisquare": "theirs takes the reference as exact (one sample), ours as a sample too",
    "own bins": "theirs cuts the range of both samples into equal bins, ours has the reference's quantiles",
    "rows": "theirs reads every row of both, ours the counts of bins",
    "many categories": "theirs has a bin for each, ours for the 50 commonest and one for the rest",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_drift", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a day, and of the reference (default 1,000,000)")
    parser.add_argument("--days", type=int, default=365, help="last day that is measured (default 365)")
    parser.add_argument(
        "--stored-rows", type=int, default=20_000, help="of each day before it: a profile is as large (default 20,000)"
    )
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    try:
        os.environ |= {"EVERGREEN_VAR": str(home / "var"), "EVERGREEN_STORE": str(home / "store")}
        run(home, asked.parts or PARTS, asked.rows, asked.days, asked.stored_rows)
    finally:
        shutil.rmtree(home)


def run(home: Path, parts: Sequence[str], rows: int, days_: int, stored_rows: int) -> None:
    from ml.monitoring.profiles import build_profile

    began = time.monotonic()
    before = table(rows, seed=0)
    say(f"made {rows:,} rows of {len(NUMERIC)} numbers and {len(TEXT)} texts in {time.monotonic() - began:.0f} s")
    taken, reference = timed(lambda: build_profile(list(NUMERIC), list(TEXT), before))
    size = len(reference.model_dump_json())
    say(f"the reference profile, once per model: {taken:.2f} CPU s, {size / 1e3:,.0f} kB")
    verdicts = []
    if "days" in parts:
        say("\n## days\n")
        verdicts.append(days(reference, rows, days_, stored_rows))
    if "evidently" in parts:
        say("\n## evidently\n")
        verdicts.append(evidently(home, reference, before, rows))
    say("\n## in short\n")
    for verdict in verdicts:
        say(f"- {verdict}")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, in which other work on the machine does not count; and what was made."""
    began, made = time.process_time(), work()
    return time.process_time() - began, made


# ---- the rows

Column = Callable[[np.random.Generator, int, float], np.ndarray]
"""Draws n values; the last argument says how far they have moved, 0 for not at all."""


def _normal(i: int) -> Column:
    return lambda draw, n, moved: draw.normal(10 * i + moved * 0.3, 1, n)


def _skewed(i: int) -> Column:
    return lambda draw, n, moved: draw.lognormal(0.1 * moved, 0.2 + 0.1 * i, n)


def _few(i: int) -> Column:
    return lambda draw, n, moved: _chosen(draw, n, np.linspace(1, 3 + moved, 3 + 2 * i)).astype(float)


def _gaps(i: int) -> Column:
    return lambda draw, n, moved: np.where(draw.random(n) < 0.02 * (i + 1), np.nan, draw.normal(moved * 0.2, 1, n))


def _zeros(i: int) -> Column:
    return lambda draw, n, moved: np.where(draw.random(n) < 0.9, 0.0, draw.exponential(i + 1 + 0.2 * moved, n))


def _text(categories: int, missing: float = 0.0) -> Column:
    names = np.array([f"category {i}" for i in range(categories)] + [None], dtype=object)

    def drawn(draw: np.random.Generator, n: int, moved: float) -> np.ndarray:
        weights = 1 / np.arange(1, categories + 1) ** (1 - 0.1 * moved)
        return np.asarray(names[np.where(draw.random(n) < missing, categories, _chosen(draw, n, weights))])

    return drawn


def _chosen(draw: np.random.Generator, n: int, weights: np.ndarray) -> np.ndarray:
    """Numbers from 0 on, as often as their weights say."""
    return np.minimum(np.searchsorted(np.cumsum(weights) / weights.sum(), draw.random(n)), len(weights) - 1)


NUMERIC: dict[str, Column] = (
    {f"many_{i}": _normal(i) for i in range(7)} | {f"many_{7 + i}": _skewed(i) for i in range(7)}
    | {f"few_{i}": _few(i) for i in range(8)} | {f"gaps_{i}": _gaps(i) for i in range(4)}
    | {f"zeros_{i}": _zeros(i) for i in range(4)}
)  # fmt: skip
TEXT: dict[str, Column] = (
    {f"text_{i}": _text(2 + 3 * i) for i in range(12)} | {f"text_gaps_{i}": _text(10, 0.02 * (i + 1)) for i in range(4)}
    | {f"text_many_{i}": _text(300) for i in range(4)}
)  # fmt: skip


def table(rows: int, seed: int, moved: float = 0.0) -> pd.DataFrame:
    """Made-up rows; every second column moves."""
    made = {}
    for i, (name, column) in enumerate((NUMERIC | TEXT).items()):
        made[name] = column(np.random.default_rng([seed, i]), rows, moved * (i % 2))
    return pd.DataFrame(made)


# ---- day 2 and day 365


def days(reference: Any, rows: int, last: int, stored_rows: int) -> str:
    """A new day of `rows` rows on day 2, 36 and `last`, in turns; the days before it are in the store."""
    from ml.monitoring.profiles import profile_day, remembered

    began, digest = time.monotonic(), reference.digest()
    for number in range(1, last):
        day = FIRST + timedelta(days=number - 1)
        remembered(digest, day, "stored", lambda n=number: profile_day(reference, table(stored_rows, n, 0.5)))  # type: ignore[misc]  # a default binds n
        if number % 60 == 0:
            say(f"profiles of {number} days are in the store, {time.monotonic() - began:.0f} s")
    fresh = table(rows, last + 1, 1.0)
    numbers = [n for n in (2, 36, last) if n <= last]
    taken: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
    for turn in range(TURNS):
        for number in numbers:
            began = time.monotonic()
            taken[number].append(one_day(reference, fresh, number, f"turn {turn}"))
            taken[number][-1] |= {"all of it by the clock": time.monotonic() - began}
        say(
            f"turn {turn + 1} of {TURNS}: "
            + ", ".join(f"day {n} {t[-1]['all of it by the clock']:.2f} s" for n, t in taken.items())
        )
    *parts, clock = taken[last][0]
    middle = {n: {part: median(t[part] for t in found) for part in (*parts, clock)} for n, found in taken.items()}
    daily = {n: sum(found[part] for part in parts[:-1]) for n, found in middle.items()}
    say("")
    show(
        ["CPU seconds (median)", *(f"day {n}" for n in numbers)],
        [[part, *(f"{middle[n][part]:.3f}" for n in numbers)] for part in parts]
        + [["a day without that last part", *(f"{daily[n]:.3f}" for n in numbers)],
           ["of day 2", *(f"{daily[n] / daily[numbers[0]]:.3f}" for n in numbers)],
           [clock, *(f"{middle[n][clock]:.3f}" for n in numbers)]],
    )  # fmt: skip
    ratio, target = daily[last] / daily[numbers[0]], TARGETS["days"]
    year = (daily[last] + middle[last][parts[-1]]) / daily[numbers[0]]
    return f"day {last} costs {ratio:.2f} of day 2 (target at most {target:g}: {met(ratio <= target)}); " \
           f"with the sum of all {last} days {year:.2f}"  # fmt: skip


def one_day(reference: Any, fresh: pd.DataFrame, number: int, answers: str) -> dict[str, float]:
    """Seconds of each part of a day's drift."""
    from ml.config import load_params
    from ml.monitoring.drift import feature_drift, same_weekdays
    from ml.monitoring.profiles import merge, profile_day, remembered

    limits = load_params().monitoring.drift
    today, digest = FIRST + timedelta(days=number - 1), reference.digest()

    def stored(wanted: Sequence[date]) -> list[Any]:
        return [remembered(digest, day, answers if day == today else "stored", unexpected) for day in wanted if day >= FIRST]

    def unexpected() -> Any:
        raise RuntimeError("a day that should be in the store is not")

    new, _ = timed(lambda: remembered(digest, today, answers, lambda: profile_day(reference, fresh)))
    week = [today - timedelta(days=k) for k in range(WINDOW)]
    by_training, current = timed(lambda: merge(stored(week)))
    judged, _ = timed(lambda: feature_drift(reference, current, limits))
    earlier = [day for day in same_weekdays(week, limits.weeks) if day >= FIRST]
    by_weekdays = 0.0
    if earlier:
        by_weekdays, _ = timed(lambda: feature_drift(reference, current, limits, merge(stored(earlier))))
    every = [FIRST + timedelta(days=k) for k in range(number)]
    year, _ = timed(lambda: feature_drift(reference, merge(stored(every)), limits))
    return {
        "the new day's profile": new, f"the last {WINDOW} days, added up": by_training, "drift from the training": judged,
        "drift from the same weekdays before": by_weekdays, "all days so far, added up, and their drift": year,
    }  # fmt: skip


def met(good: bool) -> str:
    return "met" if good else "MISSED"


# ---- beside Evidently


def evidently(home: Path, reference: Any, before: pd.DataFrame, rows: int) -> str:
    """The same statistics of one new day by both, in this run; every value that has one definition must be the same."""
    from ml.config import load_params
    from ml.monitoring.drift import feature_drift
    from ml.monitoring.profiles import profile_day

    python, why = rival_python(home / "environment")
    if python is None:
        return f"Evidently: skipped, {why}"
    after = table(rows, 1, 1.0)
    before.to_parquet(home / "before.parquet")
    after.to_parquet(home / "after.parquet")
    asked = dict.fromkeys(NUMERIC, "number") | dict.fromkeys(TEXT, "text")
    (home / "columns.json").write_text(json.dumps(asked))
    del after
    current = pd.read_parquet(home / "after.parquet")  # the strings of both come from the same file
    limits = load_params().monitoring.drift
    turns = []
    day = profile_day(reference, current)
    for _ in range(TURNS):
        counting, _ = timed(lambda: profile_day(reference, current))
        judging, _ = timed(lambda: feature_drift(reference, day, limits))
        turns.append((counting + judging, counting, judging))
    whole, counting, judging = sorted(turns)[TURNS // 2]
    say(f"ours: {whole:.2f} CPU s (profile {counting:.2f} s, drift {judging:.2f} s), median of {TURNS}; now theirs, some minutes")
    theirs = rival(python, home)
    if isinstance(theirs, str):
        return f"Evidently: skipped, {theirs}"
    say(f"theirs: {', '.join(f'{name} {found}' for name, found in theirs['versions'].items())}\n")
    show(
        [f"{rows:,} rows x {len(asked)} columns, {theirs['statistics']} statistics", "CPU seconds", "times ours"],
        [
            ["ours, from the rows", whole, 1.0],
            ["Evidently's functions alone", theirs["bare"], theirs["bare"] / whole],
            ["Evidently's report", theirs["report"], theirs["report"] / whole],
        ],
    )
    say("")
    differing = same_values(reference, day, theirs["values"])
    ratio, target = theirs["report"] / whole, TARGETS["evidently"]
    return f"Evidently's report takes {ratio:.0f} times as long (target {target:g}: {met(ratio >= target)}), its functions " \
           f"alone {theirs['bare'] / whole:.0f} times; {differing}"  # fmt: skip


def rival_python(folder: Path) -> tuple[Path | None, str]:
    """The interpreter of a new environment with Evidently, from the index that the user's uv is set to; else why not."""
    uv = Path(sys.prefix) / "uv" / "bin" / "uv"
    if not uv.exists():
        return None, "there is no uv in the project's environment (make setup)"
    python = folder / "bin" / "python"
    wanted = ["evidently", f"numpy=={np.__version__}", f"pandas=={pd.__version__}", f"scipy=={version('scipy')}", "pyarrow"]
    say(f"installing {', '.join(wanted)} into an environment of their own")
    make: list[str | Path] = [uv, "venv", "-q", "--python", sys.executable, folder]
    fill: list[str | Path] = [uv, "pip", "install", "-q", "--python", python, *wanted]
    for command in (make, fill):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return None, f"uv took more than {INSTALL_SECONDS} s"
        if done.returncode:
            return None, f"uv could not install it: {' '.join(done.stderr.split())[-300:]}"
    return python, ""


def rival(python: Path, home: Path) -> dict[str, Any] | str:
    """What Evidently took and found, by `ops/drift_evidently.py`; or why it did not end."""
    try:
        done = subprocess.run([python, RIVAL, home], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it took more than {RUN_SECONDS} s"
    if done.returncode:
        raise RuntimeError(f"{RIVAL.name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def same_values(reference: Any, day: Any, theirs: dict[str, dict[str, float]]) -> str:
    """Compares all, of known values, and says which must be the same."""
    from ml.monitoring import drift

    base, rows = reference.as_day(), []
    worst: dict[str, list[float]] = {}
    for name, values in theirs.items():
        kind = "numeric" if name in NUMERIC else "text"
        r, c = (np.array(getattr(side, kind)[name].counts) for side in (base, day))
        ours = {"psi": drift.psi(r, c), "jensenshannon": drift.jensen_shannon(r, c) * math.sqrt(math.log(2))}
        if kind == "numeric":
            points, std = np.array(reference.numeric[name].points), reference.numeric[name].std
            ours |= {"ks": drift.ks(r, c)[1], "wasserstein": drift.wasserstein(points, r, c) / std}
        else:
            ours["chisquare"] = drift.chi2(r, c)[1]
        for method, value in ours.items():
            group = f"{method}, {reason(name, method)}"
            worst.setdefault(group, []).append(abs(value - values[method]) / max(1.0, abs(values[method])))
    for group, gaps in sorted(worst.items(), key=lambda item: (not item[0].endswith(" same"), item[0])):
        method, _, why = group.partition(", ")
        rows.append([method, len(gaps), f"{max(gaps):.1e}", "same" if why == "same" else DIFFERS[why]])
    show(["statistic", "columns", "largest difference", "definition"], rows)
    alike = {group: gaps for group, gaps in worst.items() if group.endswith(", same")}
    wrong = {group: max(gaps) for group, gaps in alike.items() if not max(gaps) <= TOLERANCE}
    if wrong:
        return f"values of one definition DIFFER: {wrong}"
    return f"{sum(map(len, alike.values()))} values of one definition are the same within {TOLERANCE:g}"


def reason(name: str, method: str) -> str:
    """Why a statistic of a column cannot be the same, a key of `DIFFERS`; ``same`` if it must be."""
    if method == "chisquare":
        return "chisquare"
    if name in NUMERIC and not name.startswith("few"):
        return "own bins" if method in ("psi", "jensenshannon") else "rows"
    return "many categories" if name.startswith("text_many") else "same"


if __name__ == "__main__":
    main()
