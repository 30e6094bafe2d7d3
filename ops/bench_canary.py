"""``make bench-canary``: what a canary stops, what it lets through, and how long it takes, with real models on the shipped
year.

Two healthy candidates and bad ones made of them walk through the steps of params.yaml, 500 times each, from random days of the
year's second half. Everything is landed and fitted in this run, in a temporary folder that is removed; the verdict is the
shipped one (ml.monitoring.canary). It ends by itself and prints tables and a summary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml import metrics
from ml.config import Release, load_params
from ml.errors import ConfigError
from ml.monitoring import canary
from ml.serving.router import CANARY, bucket
from ops import canary_trials as ct
from ops.bench_features import YEAR, landed_days, say, show
from ops.bench_gates import POOL, Models, Recipe, canvas, features, save, shared

ALIKE = 4
"""Models of each healthy kind, of which a trial draws one."""
ROUNDS = 100
AT_LIMIT, WAITS, SLOW = ", at the limit", ", waits for", 5
"""A candidate on its limit runs to the last row, one that waits for labels meets half of all rows for days: one walk for so many
of the others', unless it is asked for by name."""
FASTER = 30
"""Times the rows' own rate: so fast that all steps pass before a label matures."""
WANTED = {"equal": 0.02, "bad": 0.95}
"""Equal ones are rolled back at most so often, bad ones at least."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_canary", description=__doc__)
    parser.add_argument("--trials", type=int, default=500, help="walks of each candidate; default 500")
    parser.add_argument("--only", default="", help="walk only candidates whose name holds this, e.g. traffic; default: all")
    parser.add_argument("--picture", type=Path, help="file for the picture; default: none")
    asked = parser.parse_args(arguments)
    if asked.trials < 20:
        parser.error(f"--trials {asked.trials} is less than 20: shares would mean little")
    if asked.only and asked.picture:
        parser.error("--picture shows all candidates: leave out --only")
    began = time.monotonic()
    with landed_days(*YEAR):
        table = features()
        summary = measure(table, asked.trials, asked.picture, asked.only)
    spent = f"{time.monotonic() - began:.0f} s, of which this process computed {time.process_time():.0f} s"
    say(f"\n## Summary, after {spent}\n\n" + "\n".join(f"- {line}" for line in summary))


def measure(table: pd.DataFrame, trials: int, picture: Path | None, only: str = "") -> list[str]:
    """All candidates' trials; prints the tables and gives the summary's lines.

    Args:
        table: feature rows of train window and pool.
        only: a part of the names of those that walk; default: all.

    Raises:
        ConfigError: no candidate's name holds `only`.
    """
    params = load_params()
    stream, *kinds = candidates(table)
    equal, bad, others = ([c for c in kind if only in c.name] for kind in kinds)
    if not (equal or bad or others):
        raise ConfigError(f"no candidate is called {only!r}", f"choose from: {'; '.join(c.name for kind in kinds for c in kind)}")
    limits, server = params.release, ct.Server()
    say(f"\nlimits: {limits.model_dump()}; a step needs at least {canary.least_answers(limits)} answers of each cohort\n")
    true_harm(stream, [*equal, *bad, *others])
    outcomes = {}
    for candidate in (*equal, *bad, *others):
        began = time.monotonic()
        long = not only and (AT_LIMIT in candidate.name or WAITS in candidate.name)
        number = trials // SLOW if long else trials
        outcomes[candidate.name] = [ct.walk(stream, candidate, limits, server, seed) for seed in range(number)]
        looks = sum(o.looks for o in outcomes[candidate.name])
        say(f"{candidate.name}: {number} walks, {looks:,} looks, {time.monotonic() - began:.0f} s")
    say("\nbrackets: 95 % intervals (Wilson)\n")
    verdicts(outcomes)
    quick = {c.name: outcomes.pop(c.name) for c in others if c.faster > 1}
    if outcomes:
        say("\nuntil the verdict, median and 95 of 100:\n")
        times(stream, outcomes, limits)
    if quick:
        say(f"\nhours until the verdict at {FASTER} x the rows' rate, median and 95 of 100:\n")
        hours(quick)
    if picture:
        draw(outcomes, [c.name for c in (*equal, *bad)], picture)
    outcomes |= quick
    return [
        line(kind, c.name, outcomes[c.name]) for kind, some in (("equal", equal), ("bad", bad), ("other", others)) for c in some
    ]


# ---- candidates


def candidates(table: pd.DataFrame) -> tuple[ct.Stream, list[ct.Candidate], list[ct.Candidate], list[ct.Candidate]]:
    """The stream, equal candidates, bad ones, and others that have no wanted share."""
    pool = table[(table["event_time"] >= pd.Timestamp(POOL.start)) & (table["event_time"] < pd.Timestamp(POOL.end))]
    pool = pool.sort_values(["prediction_time", "entity_id"], ignore_index=True)
    models = Models(table, load_params())
    recipes = [Recipe("champion", 1, rounds=ROUNDS, days_ago=7)]
    recipes += [Recipe("another seed", 10 + i, rounds=ROUNDS, days_ago=7) for i in range(ALIKE)]
    recipes += [Recipe("a week newer", 20 + i, rounds=ROUNDS) for i in range(ALIKE)]
    champion, *rest = models.answers(recipes, pool)
    seeds, newer = rest[:ALIKE], rest[ALIKE:]
    y_true = pool["label"].to_numpy(float)
    labelled = ~np.isnan(y_true)
    stream = ct.Stream(
        asked=pool["prediction_time"].to_numpy("datetime64[s]"),
        event=pool["event_time"].to_numpy("datetime64[s]"),
        y_true=y_true,
        buckets=np.array([bucket(entity, CANARY) for entity in pool["entity_id"]]),
        champion=champion,
        span=np.timedelta64((POOL.end - POOL.start).days, "D"),
    )
    blur = ct.blur_for(y_true[labelled], newer[0][labelled], 0.03)
    blurred = ct.Candidate("AUC -0.03", newer, blur=blur)
    equal = [ct.Candidate("another seed", seeds), ct.Candidate("a week newer", newer)]
    bad = [
        blurred,
        ct.Candidate("probability +0.1", newer, shift=0.1),
        ct.Candidate("twice as slow", newer, slower=2.0),
        ct.Candidate("2 % errors", newer, errors=0.02),
    ]
    limit = load_params().release.max_error_increase
    others = [
        ct.Candidate("log-odds +0.1", newer, odds_shift=0.1),
        ct.Candidate("all errors", newer, errors=1.0),
        ct.Candidate(f"{limit:.1%} errors{AT_LIMIT}", newer, errors=limit),
        ct.unlabelled(blurred, "AUC -0.03, no labels in time"),
        *(fast(each, waits) for waits in (0, load_params().release.min_labels) for each in (*equal, blurred)),
    ]
    return stream, equal, bad, others


def fast(candidate: ct.Candidate, waits: int) -> ct.Candidate:
    """The same with so much traffic that labels come late, and a release that waits for some of them, or for none."""
    told = f"{WAITS} {waits} labels" if waits else ""
    return replace(candidate, name=f"{candidate.name}, {FASTER} x traffic{told}", faster=FASTER, waits=waits)


def true_harm(stream: ct.Stream, some: Sequence[ct.Candidate]) -> None:
    """What each candidate is on all rows, against the champion."""
    labelled, rows = ~np.isnan(stream.y_true), []
    y_true, champion = stream.y_true[labelled], stream.champion
    whole, loss = metrics.auc(y_true, champion[labelled]), metrics.log_loss(y_true, champion[labelled])
    for candidate in some:
        drawn = [candidate.of_trial(np.random.default_rng(seed)) for seed in range(8)]
        rows.append([
            candidate.name,
            f"{np.mean([metrics.auc(y_true, p[labelled]) for p in drawn]) - whole:+.4f}",
            f"{np.mean([metrics.log_loss(y_true, p[labelled]) for p in drawn]) - loss:+.4f}",
            f"{np.mean([p.mean() for p in drawn]) - champion.mean():+.4f}", f"{candidate.slower:g}", f"{candidate.errors:.1%}",
        ])  # fmt: skip
    days = stream.span / np.timedelta64(1, "D")
    say(f"champion on {len(champion):,} rows of {days:.0f} days ({len(champion) / days / 24:.0f} an hour): AUC {whole:.4f}, "
        f"log-loss {loss:.4f}\n")  # fmt: skip
    show(["candidate", "AUC", "log-loss", "mean answer", "latency ×", "errors +"], rows)


# ---- tables


def verdicts(outcomes: dict[str, list[ct.Outcome]]) -> None:
    """Shares of the three ends, and what was blamed."""
    rows = []
    for name, found in outcomes.items():
        ends = {verdict: [o for o in found if o.verdict == verdict] for verdict in ("fail", "pass", "running")}
        reasons = [_counted(o.because for o in ends[v]) for v in ("fail", "running")]
        shares = [shared(len(some), len(found)) for some in ends.values()]
        rows.append([name, len(found), *shares, *reasons, _counted(f"{o.step + 1}" for o in ends["fail"])])
    show(
        ["candidate", "walks", "rolled back", "promoted", "rows ended", "rolled back for", "not shown at the end", "at step"],
        rows,
    )


def times(stream: ct.Stream, outcomes: dict[str, list[ct.Outcome]], limits: Release) -> None:
    """Answers, requests, time at the rows' own rate, and the traffic at which `max_hours` suffice."""
    rows = []
    for name, found in outcomes.items():
        done = [o for o in found if o.verdict != "running"]
        if not done:
            rows.append([name, *["-"] * 4])
            continue
        shown = [_middle([getattr(o, field) for o in done]) for field in ("answers", "requests")]
        days = _middle([o.hours / 24 for o in done], ".1f")
        rate = float(np.quantile([o.longest_step for o in done], 0.95)) / limits.max_hours / 3600
        rows.append([name, *shown, days, f"{rate:.2f}"])
    show(["candidate", "the canary's answers", "requests", "days at the rows' rate",
          f"requests a second at which {limits.max_hours:g} h a step suffice for 95 of 100"], rows)  # fmt: skip


def hours(outcomes: dict[str, list[ct.Outcome]]) -> None:
    """What waiting costs: hours until the verdict, and those of the longest step, which `max_hours` must allow."""
    rows = []
    for name, found in outcomes.items():
        done = [o for o in found if o.verdict != "running"]
        shown = [_middle([getattr(o, field) for o in done], ".1f") for field in ("hours", "longest_hours")] if done else ["-"] * 2
        rows.append([name, *shown, _middle([o.answers for o in done]) if done else "-"])
    show(["candidate", "hours", "hours of the longest step", "the canary's answers"], rows)


def line(kind: str, name: str, found: Sequence[ct.Outcome]) -> str:
    """One line of the summary."""
    stopped = sum(o.verdict == "fail" for o in found)
    told = (
        f"{name}: rolled back {shared(stopped, len(found))}, promoted {sum(o.verdict == 'pass' for o in found) / len(found):.1%}"
    )
    if kind == "other":
        return told
    share = stopped / len(found)
    met = share <= WANTED[kind] if kind == "equal" else share >= WANTED[kind]
    return f"{told}; wanted: {'at most' if kind == 'equal' else 'at least'} {WANTED[kind]:.0%}: {'met' if met else 'NOT MET'}"


def _middle(values: Sequence[float], form: str = ",.0f") -> str:
    middle, late = np.quantile(values, [0.5, 0.95])
    return f"{middle:{form}}; {late:{form}}"


def _counted(names: Any) -> str:
    found, counts = np.unique(list(names), return_counts=True)
    return ", ".join(f"{name} {count}" for name, count in sorted(zip(found, counts, strict=True), key=lambda p: -p[1])) or "-"


def draw(outcomes: dict[str, list[ct.Outcome]], names: Sequence[str], path: Path) -> None:
    """The share of walks with a verdict (solid: rolled back, dashed: promoted), by requests so far."""
    figure, axes = canvas()
    for name, colour in zip(names, ("grey", "black", "tab:red", "tab:blue", "tab:green", "tab:purple"), strict=False):
        for verdict, style in (("fail", "-"), ("pass", "--")):
            at = np.sort([o.requests for o in outcomes[name] if o.verdict == verdict])
            if len(at) > 0.02 * len(outcomes[name]):
                axes.step(at, np.arange(1, len(at) + 1) / len(outcomes[name]), style, color=colour, where="post",
                          label=f"{name}: {'rolled back' if verdict == 'fail' else 'promoted'}")  # fmt: skip
    axes.set(
        xscale="log", xlabel="requests to the service since the canary began", ylabel="share of releases", ylim=(-0.02, 1.02)
    )
    axes.legend(fontsize="small")
    save(figure, path)


if __name__ == "__main__":
    main()
