"""``make bench-harm``: how often the test of harm errs, and how soon it sees harm, with champions of the shipped year.

Parts. yardstick: what a fresh model beside the champion takes out of a day's loss. false-alarms: years in which nothing happens,
made of a champion's own days. delay: the same years with harm of known size. rows: real days whose labels or inputs are changed,
and the real lives of the champions. Everything is built and fitted in this run, in a temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ml.config import Harm, Params, load_params
from ml.monitoring import harm
from ml.refs import Window
from ops import harm_trials
from ops.bench_features import YEAR, landed, landed_days, say, show
from ops.bench_gates import shared
from ops.harm_picture import picture
from ops.harm_worlds import CHANGE_AFTER, Life, World, flipped, moved_by, moved_inputs

PARTS = ("yardstick", "false-alarms", "delay", "rows")
CHAMPIONS = (date(2013, 4, 1), date(2013, 7, 1), date(2013, 10, 1))
"""Days on whose morning they were trained and began to serve."""
CHANGED = CHAMPIONS[1]
"""The one whose world is changed."""
LIFE = 40
"""Days of a champion's life that are looked at."""
CALM = 14
"""The first of them, from which years are made in which nothing happens."""
WITHIN = 60
"""Days of harm within which it is to be seen."""
DAYS = 365
BLOCKS = (1, 7)
HARMS = (0.01, 0.02, 0.05)
BEGINS = (0, 40)
FLIPS = (0.15, 0.3, 0.5)
"""Shares of the labels of one airport's flights that are turned round."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_harm", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--years", type=int, default=1000, help="made years a line; default 1000")
    parser.add_argument("--picture", type=Path, help="where to write the picture, e.g. docs/harm.png; default: none")
    parser.add_argument("--days", type=Path, help="also write every day's losses there, as CSV")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if asked.years < 100:
        parser.error(f"--years {asked.years} is less than 100: shares would mean little")
    began = time.monotonic()
    run: dict[str, Callable[[Bench], list[str]]] = {
        "yardstick": yardstick, "false-alarms": false_alarms, "delay": delay, "rows": real_rows,
    }  # fmt: skip
    with landed_days(*YEAR):
        bench, summary = Bench(features(), load_params(), asked.years), []
        for part in asked.parts or PARTS:
            say(f"\n## {part}\n")
            summary += run[part](bench)
        if asked.days:
            written(bench, asked.days)
        if asked.picture:
            picture(bench.lives, bench.alarms, bench.seen, bench.limits, asked.picture)
    say(f"\n## Summary, after {time.monotonic() - began:.0f} s\n\n" + "\n".join(f"- {line}" for line in summary))


def features() -> pd.DataFrame:
    """Feature rows of the whole year, as known three days after it."""
    from ml.features import stored

    began = time.monotonic()
    root, version = landed(YEAR[1])
    as_of = datetime.combine(YEAR[1], datetime.min.time()) + timedelta(days=3)
    found = stored.read(stored.build(root, version, Window(start=YEAR[0], end=YEAR[1]), as_of))
    say(f"features of {len(found):,} rows in {time.monotonic() - began:.0f} s")
    return found


# ---- champions and their days


@dataclass
class Bench:
    """The champions' lives, made once, and what the picture shows."""

    table: pd.DataFrame
    params: Params
    years: int
    alarms: dict[str, np.ndarray] = field(default_factory=dict)
    """By rule: day of the first alarm of all years in which nothing happens."""
    seen: dict[tuple[int, float], np.ndarray] = field(default_factory=dict)
    """By the day on which harm begins and its size: day of the first alarm."""

    @cached_property
    def world(self) -> World:
        return World(self.table, self.params, [])

    @cached_property
    def lives(self) -> list[Life]:
        began, found = time.monotonic(), []
        for first in CHAMPIONS:
            found.append(self.world.life(first, LIFE))
            days = len(found[-1].holdout)
            say(f"champion of {first}: {days} days of holdout, {LIFE} of service, {time.monotonic() - began:.0f} s")
        say("")
        return found

    @property
    def limits(self) -> Harm:
        return self.params.monitoring.harm

    def years_of(self, life: Life, figure: str, days: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Made years of live days, (years, days), and a holdout for each, (years, holdout days), of one pool: `figure` of the
        champion's holdout and of its first `CALM` days, each less its mean.
        """
        rng = np.random.default_rng([life.first.toordinal(), block])
        parts = [np.array([getattr(d, figure) for d in some]) for some in (life.holdout, life.live[:CALM])]
        pool = np.concatenate([part - part.mean() for part in parts])
        holdout = harm_trials.drawn(pool, self.years, len(life.holdout), block, rng)
        return harm_trials.drawn(pool, self.years, days, block, rng), holdout


# ---- parts


def yardstick(bench: Bench) -> list[str]:
    """What is left of the spread of days once a fresh model's loss is taken off."""
    table = []
    for life in bench.lives:
        loss, behind = (np.array([getattr(d, name) for d in life.live[:CALM]]) for name in ("loss", "behind"))
        worst = max(life.live, key=lambda d: d.loss)
        table.append([
            str(life.first), f"{loss.mean():.3f}", f"{loss.std(ddof=1):.3f}", f"{behind.std(ddof=1):.4f}",
            f"{np.std([d.behind for d in life.holdout], ddof=1):.4f}", f"{loss.std() / behind.std():.1f}",
            f"{harm_trials.lag_one(loss):+.2f}", f"{harm_trials.lag_one(behind):+.2f}", f"{life.expected:+.4f}",
            f"{worst.day:%d %b}: {worst.loss:.2f}, {worst.behind - life.expected:+.3f}",
        ])  # fmt: skip
    heads = ["champion of", "mean loss", "sd of days: loss", "less the yardstick's", "on the holdout", "times steadier",
             "day to next: loss", "less the yardstick's", "expected", "worst day: loss, excess"]  # fmt: skip
    say(f"the first {CALM} days of service; the worst day is of {LIFE}\n")
    show(heads, table)
    cpu = np.array(bench.world.cpu)
    say(f"\nyardstick: {len(cpu)} days, CPU seconds a day: median {np.median(cpu):.2f}, largest {cpu.max():.2f}")
    steadier = [float(row[5]) for row in table]
    return [
        f"yardstick: {np.median(cpu):.2f} CPU s a day; days are {min(steadier):.1f} to {max(steadier):.1f} times steadier with it"
    ]


RULES: dict[str, tuple[str, harm_trials.Rule]] = {
    "ours": ("behind", harm_trials.ours),
    "ours, whole life alone": ("behind", harm_trials.whole_life),
    "asymptotic sequence": ("behind", harm_trials.asymptotic),
    "t-test every day": ("behind", harm_trials.daily_t_test),
    "2 of 3 days, + 0.03": ("behind", harm_trials.of_days(0.03)),
    "2 of 3 days, + 0.03, no yardstick": ("loss", harm_trials.of_days(0.03)),
}
"""By name: which figure of a day they look at, and the rule."""


def false_alarms(bench: Bench) -> list[str]:
    """Share of years with any alarm, when live days and the holdout's are of the same making, or the margin apart."""
    table, worst = [], dict.fromkeys((0.0, bench.limits.margin), 0.0)
    for life in bench.lives:
        for block in BLOCKS:
            for above in worst:
                hits = []
                for name, (figure, rule) in RULES.items():
                    live, holdout = bench.years_of(life, figure, DAYS, block)
                    first = rule(live + above, holdout, bench.limits)
                    hits.append(int((first < DAYS).sum()))
                    if not above:
                        bench.alarms[name] = np.append(bench.alarms.get(name, np.empty(0, int)), first)
                table.append([str(life.first), block, f"{above:g}", shared(hits[0], bench.years),
                              *(f"{n / bench.years:.1%}" for n in hits[1:])])  # fmt: skip
                worst[above] = max(worst[above], hits[0] / bench.years)
    say(f"{bench.years:,} years of {DAYS} days a line, each with a holdout of its own; brackets: 95 % (Wilson)\n")
    show(["champion of", "days in a row", "true excess", *RULES], table)
    return [f"false alarms, true excess {above:g}: years with any, worst line {share:.1%}: "
            f"{'at most 5 %' if share <= 0.05 else 'MORE THAN 5 %'}" for above, share in worst.items()]  # fmt: skip


def delay(bench: Bench) -> list[str]:
    """Days until harm of known size is seen, by rule."""
    table, summary, rules = [], [], list(RULES)[:3]
    for begins in BEGINS:
        for size in HARMS:
            row = []
            for name in rules:
                figure, rule = RULES[name]
                made = []
                for life in bench.lives:
                    live, holdout = bench.years_of(life, figure, begins + WITHIN, BLOCKS[-1])
                    live[:, begins:] += size
                    made.append(rule(live, holdout, bench.limits))
                first = np.concatenate(made)
                middle, late, seen = harm_trials.delays(first, begins, WITHIN)
                row.append(f"{_days(middle)}; {_days(late)}; {seen:.0%}")
                if name == rules[0]:
                    bench.seen[begins, size] = first
                    summary.append(f"delay, harm of {size:g} from day {begins} on: median {_days(middle)} days, 90 % within "
                                   f"{_days(late)}, {seen:.0%} within {WITHIN}")  # fmt: skip
            table.append([f"{size:g}", begins, *row])
    say(f"{bench.years * len(bench.lives):,} years a line, days in runs of {BLOCKS[-1]}; a margin of {bench.limits.margin:g}\n"
        f"median; 90th percentile; seen within {WITHIN} days of harm\n")  # fmt: skip
    show(["harm", "begins after day", *rules], table)
    return summary


def _days(waited: float) -> str:
    return f"{waited:.0f}" if np.isfinite(waited) else f"> {WITHIN}"


def real_rows(bench: Bench) -> list[str]:
    """Real lives: as they were, with labels turned round, with inputs moved."""
    lives = [("as it was", life, 0) for life in bench.lives]
    for share in FLIPS:
        changed = flipped(bench.table, CHANGED, share)
        lives.append((f"{share:.0%} of one airport's labels turned", other_world(bench, changed), CHANGE_AFTER))
    moved = moved_inputs(bench.table, CHANGED)
    name = f"inputs moved (PSI of the hour {moved_by(bench.table, moved, CHANGED):.2f}), labels follow"
    lives.append((name, other_world(bench, moved), CHANGE_AFTER))
    table, summary = [], []
    for name, life, begins in lives:
        told = [harm.judge(life.live[: i + 1], life.holdout, bench.limits) for i in range(LIFE)]
        alarm = next((i for i, found in enumerate(told) if found.verdict == "harmed"), None)
        excess = float(np.mean([d.behind for d in life.live[begins:]])) - life.expected
        loss, before = (np.array([[d.loss for d in some]]) for some in (life.live, life.holdout))
        raw = int(harm_trials.of_days(0.03)(loss, before, bench.limits)[0])
        said = "never" if alarm is None else f"{alarm + 1 - begins}"
        table.append([str(life.first), name, begins, f"{excess:+.4f}", said,
                      "" if alarm is None else f"{told[alarm].since}: {told[alarm].low:+.4f}",
                      "never" if raw >= LIFE else f"{raw + 1 - begins}"])  # fmt: skip
        summary.append(f"rows, champion of {life.first}, {name}: excess {excess:+.4f}, alarm on day: {said}")
    say(f"\n{LIFE} days each; days are counted from the change, those before it are negative\n")
    heads = ["champion of", "what was done", "after day", "mean excess since", "alarm on day", "harm since, at least",
             "2 of 3 days, + 0.03, no yardstick"]  # fmt: skip
    show(heads, table)
    return summary


def other_world(bench: Bench, table: pd.DataFrame) -> Life:
    """The changed champion's life in another table; models and yardsticks from before the change stay."""
    began, ordinary = time.monotonic(), next(life for life in bench.lives if life.first == CHANGED)
    before = {day: made for day, made in bench.world.yards.items() if day < CHANGED + timedelta(days=CHANGE_AFTER)}
    found = World(table, bench.params, [], bench.world.fits, before).life(CHANGED, LIFE)
    say(f"another world for the champion of {CHANGED}: {time.monotonic() - began:.0f} s")
    return Life(CHANGED, ordinary.holdout, found.live)


def written(bench: Bench, path: Path) -> None:
    rows = [dict(champion=life.first, kind=kind, **d.model_dump()) for life in bench.lives for kind in ("holdout", "live")
            for d in getattr(life, kind)]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    say(f"days: {path}")


if __name__ == "__main__":
    main()
