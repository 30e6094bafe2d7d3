"""``make bench-estimate``: how right estimated performance is, by week, on the shipped year, and when it says that it is not.

Parts. weeks: six champions on the weeks after their holdouts, beside simpler guesses. inputs: the same with weeks whose rows
are drawn by weight, so that inputs move and the relation does not. relation: labels changed from a day on. apart: the two-sample
test. nannyml: NannyML's CBPE on the same weeks, in an environment of its own; skipped where it cannot be installed.
Everything is landed and fitted in this run, in a temporary folder that is removed. It ends by itself and prints a summary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from ml.config import Params, load_params
from ml.evaluation.report import scoring_of
from ml.features.definitions import load_module
from ml.metrics import Scoring
from ml.monitoring import estimate as es
from ml.monitoring import expected as ex
from ml.monitoring.expected import Labelled
from ml.monitoring.multivariate import tell_apart
from ops import estimate_peer
from ops.bench_features import YEAR, landed_days, say, show
from ops.bench_gates import features, save
from ops.estimate_cases import WEEK, Champion, champions, day_number, disturbed, tilted

PARTS = ("weeks", "inputs", "relation", "apart", "nannyml")
CHAMPIONS = 6
DELAYS = (7, 28)
"""Days after which labels come, in the two worlds that are shown; the shipped ones come within a day."""
SHOWN = ("auc", "log_loss", "accuracy", "positives")
LAST = 14
"""Labelled days of the simple guess "as of late"."""
TILTS = (("minute_of_day", 1.0), ("minute_of_day", -1.0), ("distance", 1.0), ("origin_rate_6h", 0.7), ("weather_wind_speed", 0.7))
"""Features that rows are drawn by, with weights ``exp(strength · standard deviations from the mean)``."""
CHANGES = {
    "nothing changes": (0.0, 0.0),
    "half of all labels are another row's of the day": (0.5, 0.0),
    "all labels are another row's of the day": (1.0, 0.0),
    "15 % of the 0 become 1": (0.0, 0.15),
}
"""Share of labels that are shuffled within their day (the level stays, the order goes), and of zeros that become one."""
AFTER = 6
"""Weeks that are looked at after a change, which comes after so many weeks of the champion:"""
BEFORE = 3
NULLS = 20
PLAIN = 60


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_estimate", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--champions", type=int, default=CHAMPIONS, help=f"1 to {CHAMPIONS}; default {CHAMPIONS}")
    parser.add_argument("--every", type=int, default=1, help="judge every so many-th week in weeks and inputs; default 1: all")
    parser.add_argument("--picture", type=Path, help="file for the picture; default: none")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if not 1 <= asked.champions <= CHAMPIONS:
        parser.error(f"--champions {asked.champions} is not in 1 to {CHAMPIONS}")
    if asked.every < 1:
        parser.error(f"--every {asked.every} is less than 1")
    parts = asked.parts or list(PARTS)
    if asked.picture and not {"weeks", "relation"} <= set(parts):
        parser.error("--picture shows weeks and relation: run both")
    began = time.monotonic()
    with landed_days(*YEAR):
        params = load_params()
        cases = champions(features(), params, asked.champions)
        bench = Bench(cases, params, scoring_of(params), asked.every)
        run: dict[str, Callable[[], list[str]]] = {
            "weeks": bench.weeks, "inputs": bench.inputs, "relation": bench.relation, "apart": bench.apart,
            "nannyml": bench.nannyml,
        }  # fmt: skip
        summary = []
        for part in parts:
            started = time.monotonic()
            say(f"\n## {part}\n")
            summary += run[part]()
            say(f"\n{part}: {time.monotonic() - started:.0f} s")
    if asked.picture:
        draw(bench, asked.picture)
    say(f"\n## Summary, after {time.monotonic() - began:.0f} s\n\n" + "\n".join(f"- {line}" for line in summary))


# ---- parts


@dataclass
class Bench:
    """The parts, on the same champions; each prints its tables and gives the summary's lines."""

    champions: list[Champion]
    params: Params
    scoring: Scoring
    every: int = 1

    def __post_init__(self) -> None:
        self.limits = self.params.monitoring.estimate
        self.told: dict[tuple[int, int, int], es.Estimate] = {}
        self.courses: dict[str, np.ndarray] = {}

    def estimate(self, champion: Champion, answers: Labelled, matured: Labelled) -> es.Estimate:
        return es.estimate(answers, champion.holdout, matured, 0.0, self.scoring, self.limits)

    def weeks(self) -> list[str]:
        """Errors by week of five guesses, at two label delays, and what their intervals hold."""
        summary = []
        for delay in DELAYS:
            errors: dict[str, list[list[float]]] = {}
            held: dict[str, list[list[bool]]] = {"estimate": [], "plain": []}
            valid, spent = [], 0.0
            for c, champion in enumerate(self.champions):
                for start in champion.starts[:: self.every]:
                    rows, matured = champion.later[champion.week(start)], champion.known(start + WEEK, delay)
                    truth, began = ex.realised(rows, self.scoring), time.process_time()
                    found = self.told[c, start, delay] = self.estimate(champion, rows, matured)
                    spent += time.process_time() - began
                    valid.append(found.valid)
                    settled = es.settle(found, truth)
                    held["estimate"].append([settled[name].inside is True for name in SHOWN])
                    for guess, said in self.guesses(champion, rows, matured, found).items():
                        errors.setdefault(guess, []).append([said[name] - truth[name] for name in SHOWN])
                    if delay == DELAYS[0]:
                        ends = self.plain(rows, champion.holdout + matured)
                        held["plain"].append([bool(ends[name][0] <= truth[name] <= ends[name][1]) for name in SHOWN])
                say(f"labels after {delay} days: champion {c + 1} of {len(self.champions)}, {len(valid)} weeks so far")
            summary += self.tell_weeks(delay, errors, held, np.array(valid), spent / len(valid))
        return summary

    def guesses(self, champion: Champion, rows: Labelled, matured: Labelled, found: es.Estimate) -> dict[str, dict[str, float]]:
        """What each contender says of a week."""
        held, recent = champion.holdout, (champion.holdout + matured).newest(LAST)
        once = ex.recalibrated(rows.y_proba, *ex.recalibration(held))
        return {
            "as on the holdout": ex.realised(held, self.scoring),
            f"as on the last {LAST} labelled days": ex.realised(recent, self.scoring),
            "CBPE, answers as they are": ex.expected(rows.y_proba, rows.y_proba, self.scoring),
            "CBPE, recalibrated on the holdout": ex.expected(rows.y_proba, once, self.scoring),
            "estimate": {name: figure.value for name, figure in found.metrics.items() if figure.value is not None},
        }

    def plain(self, rows: Labelled, known: Labelled) -> dict[str, tuple[float, float]]:
        """Intervals of the expected metrics by days drawn anew, without labels: what days' inputs do, and no more."""
        rng, drawn = np.random.default_rng(0), []
        chance = ex.recalibrated(rows.y_proba, *ex.recalibration(known.newest(self.limits.learned_days)))
        blocks = [np.flatnonzero(rows.days == day) for day in np.unique(rows.days)]
        for _ in range(PLAIN):
            taken = np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])
            drawn.append(ex.expected(rows.y_proba[taken], chance[taken], self.scoring))
        tail = (1 - self.limits.confidence) / 2
        return {name: tuple(np.quantile([d[name] for d in drawn], [tail, 1 - tail])) for name in SHOWN}

    def tell_weeks(self, delay: int, errors: dict[str, list[list[float]]], held: dict[str, list[list[bool]]], valid: np.ndarray,
                   seconds: float) -> list[str]:  # fmt: skip
        say(f"\nmean absolute error of {len(valid)} weeks, labels after {delay} days\n")
        sizes = {guess: np.abs(np.array(of)) for guess, of in errors.items()}
        lines = [[guess, *(f"{value:.4f}" for value in size.mean(axis=0))] for guess, size in sizes.items()]
        ours = sizes["estimate"]
        for name, chosen in (("valid", valid), ("invalid", ~valid)):
            if chosen.any():
                lines.append([f"estimate, {name} ({chosen.sum()} weeks)", *(f"{v:.4f}" for v in ours[chosen].mean(axis=0))])
        show(["guess", *SHOWN], lines)
        say(f"\nweeks whose realised figure lies in the {self.limits.confidence:.0%} interval\n")
        named = {"estimate": "estimate", "plain": "days drawn anew, labels not"}
        show(["interval", *SHOWN], [[named[kind], *(f"{v:.0%}" for v in np.mean(of, axis=0))] for kind, of in held.items() if of])
        covered = np.mean(held["estimate"], axis=0)
        simple = sizes[f"as on the last {LAST} labelled days"].mean(axis=0)
        mean = zip(SHOWN, ours.mean(axis=0), simple, strict=True)
        return [
            f"weeks, labels after {delay} days: mean error "
            + ", ".join(f"{name} {error:.4f} ({error / other:.2f} of 'as of late')" for name, error, other in mean)
            + f"; inside the {self.limits.confidence:.0%} interval: "
            + ", ".join(f"{name} {share:.0%}" for name, share in zip(SHOWN, covered, strict=True))
            + f"; valid in {valid.mean():.0%}; {seconds:.2f} CPU s each"
        ]

    def inputs(self) -> list[str]:
        """Rows of a week drawn by weight: inputs move, each row keeps its label."""
        table, summary = [], []
        for name, strength in TILTS:
            told: list[list[list[float]]] = []
            for c, champion in enumerate(self.champions):
                for start in champion.starts[: 4 * self.every : self.every]:
                    chosen = np.flatnonzero(champion.week(start))
                    taken = tilted(champion.rows[name].to_numpy(float)[chosen], strength, np.random.default_rng([c, start]))
                    rows, moved = champion.later[chosen], champion.later[chosen[taken]]
                    known = (champion.holdout + champion.known(start + WEEK, DELAYS[0])).newest(self.limits.learned_days)
                    line = ex.recalibration(known)
                    truths, said = [], []
                    for of in (rows, moved):
                        truths.append(ex.realised(of, self.scoring))
                        said.append(ex.expected(of.y_proba, ex.recalibrated(of.y_proba, *line), self.scoring))
                    (was, now), (of_was, of_now) = truths, said
                    told.append([[now[m] - was[m], of_was[m] - was[m], of_now[m] - now[m]] for m in SHOWN])
            sizes = np.abs(np.array(told)).mean(axis=0)  # (metrics, 3)
            label = f"{name} {'up' if strength > 0 else 'down'}"
            table += [[label, m, *(f"{v:.4f}" for v in sizes[j])] for j, m in enumerate(SHOWN)]
            j = SHOWN.index("log_loss")
            before, after = sizes[j, 1:]
            summary.append(f"inputs, {label}: moves log-loss by {sizes[j, 0]:.4f}; error {after:.4f}, without {before:.4f}")
        say(f"means of absolute values over {len(told)} weeks\n")
        show(["rows drawn by", "metric", "metric moves by", "error, week as it is", "error, moved week"], table)
        return summary

    def relation(self) -> list[str]:
        """Labels changed from a day on: whether it is said, and how far off the estimate is, by week since."""
        table, summary = [], []
        for name, change in CHANGES.items():
            long = [champion for champion in self.champions if len(champion.starts) >= BEFORE + AFTER]
            course = self.courses[name] = np.array([self.changed(champion, change, c) for c, champion in enumerate(long)])
            valid, auc, loss = np.abs(course).mean(axis=0).T
            table += [[name, w, f"{valid[w]:.0%}", f"{auc[w]:.4f}", f"{loss[w]:.4f}"] for w in range(AFTER)]
            summary.append(
                f"relation, {name}: called invalid in the week of it {1 - valid[0]:.0%}, in the next {1 - valid[1]:.0%}; "
                f"error of AUC {auc[0]:.3f}, after {AFTER - 1} weeks {auc[-1]:.3f}"
            )
            say(f"{name}: {len(course)} champions, {AFTER} weeks each")
        say(f"\nlabels come after {DELAYS[0]} days: in week 0 none is known from after the change\n")
        show(["change", "week since", "called valid", "error of AUC", "error of log-loss"], table)
        return summary

    def changed(self, champion: Champion, change: tuple[float, float], seed: int) -> list[list[float]]:
        """(valid, error of AUC, error of log-loss) of each week since the change."""
        first, later = champion.starts[BEFORE], champion.later
        y_true = disturbed(later, later.days >= first, change, np.random.default_rng(seed))
        world = replace(champion, later=Labelled(later.y_proba, later.days, y_true))
        course = []
        for start in range(first, first + AFTER * WEEK, WEEK):
            rows = world.later[world.week(start)]
            found = self.estimate(world, rows, world.known(start + WEEK, DELAYS[0]))
            settled = es.settle(found, ex.realised(rows, self.scoring))
            course.append([float(found.valid), settled["auc"].error, settled["log_loss"].error])
        return course

    def apart(self) -> list[str]:
        """The two-sample test: on weeks of the training window itself, and on weeks ever later."""
        names = [feature.name for feature in load_module(self.params).learned]
        verdicts, naive, spent = [], [], []
        for trial in range(NULLS):
            train = self.champions[trial % len(self.champions)].train
            days, rng = day_number(train), np.random.default_rng(trial)
            window = np.isin(days, rng.choice(np.unique(days), WEEK, replace=False))
            began = time.process_time()
            others, mine = train.loc[~window, names], train.loc[window, names]
            found = tell_apart(others, mine, days[~window], days[window], self.limits, trial)
            spent.append(time.process_time() - began)
            verdicts.append(found.verdict)
            if trial < 5:  # as usually done: rows are held out, not days
                mixed = rng.integers(0, 90, len(days))
                naive.append(tell_apart(others, mine, mixed[~window], mixed[window], self.limits, trial).auc)
        say(f"seven days drawn from the training window, against the others, {NULLS} times: "
            + ", ".join(f"{v} {verdicts.count(v)}" for v in ("same", "small", "moved"))
            + f"; rows held out in place of days: AUC {np.mean(naive):.2f}; {np.median(spent):.1f} CPU s each\n")  # fmt: skip
        table = []
        for champion in self.champions[:2]:
            for w in range(0, len(champion.starts), 5):
                chosen, train = champion.week(champion.starts[w]), champion.train
                found = tell_apart(train[names], champion.rows.loc[chosen, names], day_number(train), champion.later.days[chosen],
                                   self.limits)  # fmt: skip
                top = ", ".join(f"{name} {share:.0%}" for name, share in list(found.features.items())[:3])
                table.append([f"{champion.end}", w, f"{found.auc:.2f} [{found.low:.2f}, {found.high:.2f}]", found.verdict, top])
        show(["champion until", "week", "AUC", "verdict", "told by"], table)
        wrong = NULLS - verdicts.count("same")
        return [
            f"apart: equal days told apart in {wrong} of {NULLS}; with rows held out in place of days: AUC {np.mean(naive):.2f} "
            f"of nothing; {np.median(spent):.1f} CPU s for {self.limits.apart_rows:,} rows"
        ]

    def nannyml(self) -> list[str]:
        """The same weeks of the first champion, beside NannyML with the holdout for its reference."""
        champion = self.champions[0]
        peer = estimate_peer.run(champion.holdout, champion.later, self.scoring.threshold)
        if isinstance(peer, str):
            say(f"skipped: {peer}")
            return [f"nannyml: skipped: {peer}"]
        weeks = [champion.later[champion.week(start)] for start in champion.starts]
        told = [self.told.get((0, start, DELAYS[0])) for start in champion.starts]
        return estimate_peer.compare(peer, champion.holdout, weeks, told, self.scoring, self.limits)


# ---- picture


def draw(bench: Bench, path: Path) -> None:
    """Left: one champion's weeks, realised in the estimate's interval. Right: errors after a change, and what is called valid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    champion = bench.champions[0]
    starts = champion.starts[:: bench.every]
    told = [bench.told[0, start, DELAYS[0]] for start in starts]
    truth = [ex.realised(champion.later[champion.week(start)], bench.scoring)["log_loss"] for start in starts]
    days = np.array(starts).astype("datetime64[D]")
    figures = [t.metrics["log_loss"] for t in told]
    low, high, value = np.array([[f.low, f.high, f.value] for f in figures], dtype=float).T
    left.fill_between(days, low, high, alpha=0.2, label="its interval")
    left.plot(days, value, color="tab:blue", label="estimated")
    left.plot(days, truth, color="black", label="realised")
    wrong = ~np.array([t.valid for t in told])
    left.scatter(days[wrong], np.array(truth)[wrong], color="tab:red", zorder=3, label="estimate called invalid")
    left.set(ylabel="log-loss of a week", title=f"one model, learned until {champion.end - timedelta(days=1)}")
    left.tick_params(axis="x", rotation=30)
    left.legend()
    for colour, (name, course) in zip(("grey", "tab:orange", "tab:red", "tab:blue"), bench.courses.items(), strict=True):
        error, valid = np.abs(course[..., 1]).mean(axis=0), course[..., 0].mean(axis=0)
        right.plot(range(AFTER), error, color=colour, label=name)
        right.scatter(range(AFTER), error, color=colour, s=20 + 100 * (1 - valid))
    right.set(xlabel="weeks since the labels changed (large dots: called invalid)", ylabel="error of the estimated AUC")
    right.set_ylim(bottom=0)
    right.legend()
    save(figure, path)


if __name__ == "__main__":
    main()
