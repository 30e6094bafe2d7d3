"""``make bench-gates``: how often the promotion gate errs, measured on the shipped year with models of known worth.

Parts. false-promotion: equal models, how often is one called better? power: how small a true difference is seen?
reuse: a candidate every night on overlapping holdouts, with and without paying for used days. Everything is built and
fitted in this run, in a temporary folder that is removed; the gate is the shipped one (gates.confidence, gates.margin).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.config import Params, load_params
from ml.features.definitions import Feature, load_module
from ml.refs import Window
from ml.significance import paid
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import labelled
from ml.training.models import FAMILIES, settings_of
from ops import gate_trials as gt
from ops.bench_features import YEAR, landed, landed_days, say, show

PARTS = ("false-promotion", "power", "reuse")
TRAIN = Window(start=date(2013, 3, 3), end=date(2013, 6, 1))
POOL = Window(start=date(2013, 6, 2), end=date(2013, 12, 31))
"""Judged days, after a day's gap; the last day of the year has flights that land in the next."""
NULL_DAYS = 90
"""So many of the pool's first days are drawn from when models are equal."""
MODELS = 10
ROUNDS = 100
HOLDOUTS = (7, 14)
POWER = 0.8
POWER_PLANS = {"7 days": (7, 0, 4), "14 days": (14, 0, 4), "28 days": (28, 0, 4), "14 days, used 13 times": (14, 13, 20)}
"""Name → days, earlier uses of these days, and by what --trials is divided (a paid interval takes 17 times the resamples)."""
NIGHTS, HISTORIES = 30, 1000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_gates", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument(
        "--trials", type=int, default=2000, help="drawn holdouts a line; a quarter of them in power; default 2000"
    )
    parser.add_argument("--pictures", type=Path, help="folder for gate-power.png and gate-reuse.png; default: no pictures")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if asked.trials < 400:
        parser.error(f"--trials {asked.trials} is less than 400: shares would mean little")
    began = time.monotonic()
    run: dict[str, Callable[[Models, int, Path | None], list[str]]] = {
        "false-promotion": false_promotion, "power": power, "reuse": reuse,
    }  # fmt: skip
    with landed_days(*YEAR):
        models, summary = Models(features(), load_params()), []
        for part in asked.parts or PARTS:
            say(f"\n## {part}\n")
            summary += run[part](models, asked.trials, asked.pictures)
    say(f"\n## Summary, after {time.monotonic() - began:.0f} s\n\n" + "\n".join(f"- {line}" for line in summary))


def features() -> pd.DataFrame:
    """Feature rows of train window and pool, as known three days after the year."""
    from ml.features import stored

    began = time.monotonic()
    root, version = landed(YEAR[1])
    as_of = datetime.combine(YEAR[1], datetime.min.time()) + timedelta(days=3)
    found = stored.read(stored.build(root, version, Window(start=TRAIN.start - timedelta(days=MODELS), end=POOL.end), as_of))
    say(f"features of {len(found):,} rows in {time.monotonic() - began:.0f} s")
    return found


# ---- models


@dataclass(frozen=True)
class Recipe:
    """One model: what it is made of, by what it is made worse."""

    name: str
    seed: int
    kind: str = "whole"
    rounds: int = ROUNDS
    row_share: float = 1.0
    without: frozenset[str] = frozenset()
    days_ago: int = 0
    own_days: bool = False
    noise: float = 0.0


ALIKE: dict[str, Callable[[int], Recipe]] = {
    "other seeds": lambda i: Recipe("another seed", seed=i),
    "windows a day apart": lambda i: Recipe("another day", seed=i, days_ago=i),
    "training days drawn anew": lambda i: Recipe("other training days", seed=i, own_days=True),
}
"""Kinds of equal models, the more different the lower."""


@dataclass(frozen=True)
class Models:
    """Fits models on the train window of a feature table and answers the labelled rows of the pool."""

    table: pd.DataFrame
    params: Params

    @cached_property
    def pool(self) -> pd.DataFrame:
        return labelled(self.table, POOL)

    @cached_property
    def equal(self) -> dict[str, gt.Scored]:
        """Models of one recipe by kind of `ALIKE`, on the first `NULL_DAYS` days of the pool."""
        days = day_of(self.pool)
        first = days < np.unique(days)[NULL_DAYS]
        rows = self.pool[first]
        found = {}
        for kind, recipe_of in ALIKE.items():
            recipes = [recipe_of(i) for i in range(MODELS)]
            found[kind] = gt.summed(rows["label"].to_numpy(), self.answers(recipes, rows), day_of(rows))
        return found

    def answers(self, recipes: Sequence[Recipe], rows: pd.DataFrame) -> list[np.ndarray]:
        """Probabilities for `rows`, shape (n,) for each recipe."""
        began, found = time.monotonic(), []
        for number, recipe in enumerate(recipes, start=1):
            found.append(self.answer(recipe, rows))
            if number % 8 == 0 or number == len(recipes):
                say(f"fitted {number} of {len(recipes)} models ({recipe.name}), {time.monotonic() - began:.0f} s")
        return found

    def answer(self, recipe: Recipe, rows: pd.DataFrame) -> np.ndarray:
        rng = np.random.default_rng(recipe.seed)
        before = timedelta(days=recipe.days_ago)
        train = labelled(self.table, Window(start=TRAIN.start - before, end=TRAIN.end - before))
        chosen = train[rng.random(len(train)) < recipe.row_share]
        if recipe.own_days:
            days = day_of(chosen)
            unique = np.unique(days)
            chosen = pd.concat([chosen[days == day] for day in rng.choice(unique, len(unique))])
        columns: list[Feature] = [f for f in load_module(self.params).learned if f.name not in recipe.without]
        y_true = chosen["label"].to_numpy()
        encoding = fit_encoding(columns, chosen, y_true)
        space = self.params.tune.space
        settings = settings_of(
            "xgboost", "binary", 0, self.params.train, {name: float(d.default) for name, d in space.items()},
            {name for name, d in space.items() if d.int}, threads=1, seed=recipe.seed,
        )  # fmt: skip
        model = FAMILIES["xgboost"].fit(encode(encoding, chosen), y_true, settings, recipe.rounds, "binary")
        y_proba = model.predict(encode(encoding, rows))
        margin = np.log(y_proba / (1 - y_proba)) + recipe.noise * rng.standard_normal(len(rows))
        return np.asarray(1 / (1 + np.exp(-margin)))


def day_of(rows: pd.DataFrame) -> np.ndarray:
    return rows["event_time"].dt.floor("D").to_numpy()


def worse_ones(params: Params) -> list[Recipe]:
    """Models that are worse than the whole one by graded amounts, of four makes."""
    groups = {view.name: frozenset(view.columns) for view in load_module(params).views}
    made = [Recipe(f"{n} rounds", 0, "fewer rounds", rounds=n) for n in (6, 10, 15, 20, 25, 30, 40, 60)]
    made += [
        Recipe(f"{share:.1%} of rows", 0, "fewer rows", row_share=share)
        for share in (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5)
    ]
    made += [Recipe(f"without {name}", 0, "fewer features", without=names) for name, names in groups.items()]
    for names in (["weather", "origin"], ["weather", "origin", "carrier", "dest"]):
        without = frozenset[str]().union(*(groups[name] for name in names))
        made.append(Recipe(f"without {', '.join(names)}", 0, "fewer features", without=without))
    made += [Recipe(f"noise {sd}", 0, "noise", noise=sd) for sd in (0.15, 0.2, 0.25, 0.3, 0.4, 0.5)]
    return [Recipe(**{**vars(recipe), "seed": 100 + number}) for number, recipe in enumerate(made)]


# ---- parts


def false_promotion(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Share of *better* among equal models: the gate, and what most would use in its place, on the same trials."""
    gates, table, summary = models.params.gates, [], []
    for kind, scored in models.equal.items():
        for null, length in product(gt.NULLS, HOLDOUTS):
            rng = np.random.default_rng(length)
            pairs = gt.pairs_of(MODELS, trials, rng)
            drawn = gt.holdouts(len(scored.counts), length, trials, rng, consecutive=null == "consecutive days")
            made = scored.trials(pairs, drawn, null, rng)
            ours, plain = gt.upper_ends(made.sums, made.counts, gates.confidence, gates.resamples, models.params.train.seed)
            said = gt.verdicts(ours, gates.margin)
            # "as they are" has pairs of which the first is truly better: there, "better" is right
            wrong = (scored.log_loss[pairs[:, 0]] >= scored.log_loss[pairs[:, 1]]) | (null != "as they are")
            better, false = (said == "better"), (said == "better") & wrong
            others = [(plain < 0) & wrong, (gt.row_ends(made, gates.confidence) < 0) & wrong]
            found = [shared(int(hits.sum()), trials) for hits in (better, false, *others, said == "worse")]
            table.append([kind, null, length, *found])
            allowed = "at most 5 %" if better.mean() <= 0.05 else "MORE THAN 5 %"
            summary.append(f"{kind}, {null}, {length} days: better {found[0]}: {allowed}; falsely {found[1]}")
        auc, loss = scored.auc, scored.log_loss
        say(f"{kind}: {MODELS} models, AUC {auc.mean():.4f} ± {auc.std(ddof=1):.4f}, "
            f"log-loss {loss.mean():.4f} ± {loss.std(ddof=1):.4f}")  # fmt: skip
    say(f"\n{trials:,} trials a line, drawn from {NULL_DAYS} days; brackets: 95 % intervals (Wilson)\n")
    heads = ["equal models", "made equal", "days", "better", "falsely", "falsely: plain percentile", "falsely: independent rows",
             "refused"]  # fmt: skip
    show(heads, table)
    return summary


def power(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Share of *better* against the true difference, and the difference that is seen in `POWER` of the trials."""
    rows, recipes = models.pool, worse_ones(models.params)
    scored = gt.summed(rows["label"].to_numpy(), models.answers([Recipe("whole", 99), *recipes], rows), day_of(rows))
    lost, added = scored.auc[0] - scored.auc[1:], scored.log_loss[1:] - scored.log_loss[0]
    say(f"\nthe whole model on {len(scored.counts)} days, {len(rows):,} rows: AUC {scored.auc[0]:.4f}, "
        f"log-loss {scored.log_loss[0]:.4f}\n")  # fmt: skip
    detected = {}
    for plan, (length, uses, divided) in POWER_PLANS.items():
        began = time.monotonic()
        detected[plan] = seen_of(scored, length, uses, trials // divided, models.params)
        say(f"{plan}: {len(recipes)} pairs, {trials // divided} trials each, {time.monotonic() - began:.0f} s")
    order = np.argsort(lost)
    say("")
    show(
        ["worse model", "AUC lost", "log-loss added", *(f"seen: {plan}" for plan in detected)],
        [[recipes[j].name, f"{lost[j]:+.4f}", f"{added[j]:+.4f}", *(f"{d[j]:.0%}" for d in detected.values())] for j in order],
    )
    kinds = np.array([recipe.kind for recipe in recipes])
    table, summary = [], []
    for plan, seen in detected.items():
        found = [gt.detectable(x[x > 0], seen[x > 0], POWER, 300, 0) for x in (lost, added)]
        shown = [f"{mid:.4f} [{low:.4f}, {high:.4f}]" for mid, low, high in found]
        table.append([plan, *shown, *(one_make(lost, seen, (kinds == kind) & (lost > 0)) for kind in dict.fromkeys(kinds))])
        summary.append(f"power: {POWER:.0%} on {plan} from a true AUC difference of {shown[0]}, log-loss {shown[1]}")
    say(f"\nseen in {POWER:.0%} of the trials; brackets: 95 %, pairs resampled\n")
    show(
        ["holdout", "true AUC difference", "true log-loss difference", *(f"AUC: {kind}" for kind in dict.fromkeys(kinds))], table
    )
    if pictures:
        power_picture(kinds, lost, detected, pictures / "gate-power.png")
    return summary


def seen_of(scored: gt.Scored, length: int, uses: int, trials: int, params: Params) -> np.ndarray:
    """The share of trials in which model 0 is *better* than each other one, shape (models - 1,)."""
    found = []
    for j in range(1, len(scored.loss)):
        rng = np.random.default_rng(1000 * length + j)
        drawn = gt.holdouts(len(scored.counts), length, trials, rng)
        made = scored.trials(np.tile([0, j], (trials, 1)), drawn, "as they are", rng)
        found.append(gt.better(made, params.gates, uses, params.train.seed).mean())
    return np.array(found)


def one_make(lost: np.ndarray, seen: np.ndarray, chosen: np.ndarray) -> str:
    """Where pairs of one make reach `POWER`, or that the largest does not."""
    if gt.straddles(seen[chosen], POWER):
        return f"{gt.crossing(lost[chosen], seen[chosen], POWER):.4f}"
    return f"> {lost[chosen].max():.4f}" if (seen[chosen] <= POWER).all() else f"< {lost[chosen].min():.4f}"


def reuse(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Nightly candidates on overlapping holdouts: false promotions with and without the payment, and with fresh days."""
    gates, length, table, summary, arms = models.params.gates, models.params.train.holdout_days, [], [], {}
    kind, scored = list(models.equal.items())[-1]
    for arm in ("fresh", "unpaid", "paid", "paid ahead"):
        began = time.monotonic()
        won = arms[arm] = gt.promoted(scored, NIGHTS, length, HISTORIES, gates, models.params.train.seed, arm)
        say(f"{arm}: {HISTORIES:,} histories of {NIGHTS} nights in {time.monotonic() - began:.0f} s")
        early, late = expected(won[:, :length]), expected(won[:, -length:])
        shares = [shared(int(w.any(axis=1).sum()), HISTORIES) for w in (won[:, -length:], won)]
        table.append([arm, early, late, *shares])
        summary.append(f"reuse, {arm}: false promotions in the first {length} nights {early}, in the last {length} {late}")
    say(f"\nequal models: {kind}; a paid interval from night {length} on: confidence {paid(gates.confidence, length):.4f}\n")
    heads = ["days", f"expected in the first {length} nights", f"in the last {length}",
             f"histories with one in the last {length}", f"with one in all {NIGHTS}"]  # fmt: skip
    show(heads, table)
    if pictures:
        reuse_picture(arms, pictures / "gate-reuse.png")
    return summary


def expected(won: np.ndarray) -> str:
    number = won.sum(axis=1)
    return f"{number.mean():.3f} ± {1.96 * number.std() / np.sqrt(len(number)):.3f}"


def shared(hits: int, trials: int) -> str:
    low, high = gt.wilson(hits, trials)
    return f"{hits / trials:.1%} [{low:.1%}, {high:.1%}]"


# ---- pictures


def power_picture(kinds: np.ndarray, lost: np.ndarray, detected: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = canvas()
    marks, worse = dict(zip(dict.fromkeys(kinds), "os^D", strict=False)), lost > 0
    x = np.geomspace(lost[worse].min(), lost.max(), 200)
    for colour, (plan, seen) in zip(("tab:red", "tab:blue", "tab:green", "tab:purple"), detected.items(), strict=True):
        axes.plot(x, gt.curve(lost[worse], seen[worse])(x), color=colour, label=plan)
        for kind, mark in marks.items():
            mine = worse & (kinds == kind)
            axes.scatter(lost[mine], seen[mine], color=colour, marker=mark, s=22, alpha=0.7)
    for kind, mark in marks.items():
        axes.scatter([], [], color="grey", marker=mark, s=22, label=kind)
    axes.axhline(POWER, color="grey", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="true AUC difference", ylabel="share of holdouts with the verdict better", ylim=(-0.02, 1.02))
    axes.legend()
    save(figure, path)


def reuse_picture(arms: dict[str, np.ndarray], path: Path) -> None:
    """Running sums by night, with 95 % bands over histories."""
    figure, axes = canvas()
    nights = np.arange(1, NIGHTS + 1)
    for colour, (arm, won) in zip(("grey", "tab:red", "tab:blue", "tab:green"), arms.items(), strict=True):
        so_far = won.cumsum(axis=1)
        mean, half = so_far.mean(axis=0), 1.96 * so_far.std(axis=0) / np.sqrt(len(won))
        axes.plot(nights, mean, color=colour, label=arm)
        axes.fill_between(nights, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="night", ylabel="expected number of false promotions so far", ylim=(0, None))
    axes.legend()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    say(f"picture: {path}")


def canvas() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    return figure, figure.subplots()


if __name__ == "__main__":
    main()
