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
MODELS = 16
ROUNDS = 100
HOLDOUTS = (7, 14, 28)
POWER = 0.8
NIGHTS, HISTORIES = 30, 1000
ALIKE = {"other seeds": False, "other seeds, other days": True}
"""Kinds of equal models → whether each learns from training days of its own, drawn with replacement."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_gates", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all", default=[])
    parser.add_argument("--trials", type=int, default=2000, help="drawn holdouts for each line of a table; default 2000")
    parser.add_argument("--pictures", type=Path, help="folder for gate-power.png and gate-reuse.png; default: no pictures")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if asked.trials < 100:
        parser.error(f"--trials {asked.trials} is less than 100")
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
    found = stored.read(stored.build(root, version, Window(start=TRAIN.start, end=POOL.end), as_of))
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
    own_days: bool = False
    noise: float = 0.0


@dataclass(frozen=True)
class Models:
    """Fits models on the train window of a feature table and answers the labelled rows of the pool."""

    table: pd.DataFrame
    params: Params

    @cached_property
    def train(self) -> pd.DataFrame:
        return labelled(self.table, TRAIN)

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
        for kind, own_days in ALIKE.items():
            recipes = [Recipe(f"{kind} {i}", seed=i, own_days=own_days) for i in range(MODELS)]
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
        chosen = self.train[rng.random(len(self.train)) < recipe.row_share]
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
    made = [Recipe(f"{n} rounds", 0, "fewer rounds", rounds=n) for n in (10, 15, 20, 25, 30, 40, 50, 60, 75)]
    made += [
        Recipe(f"{share:.1%} of rows", 0, "fewer rows", row_share=share) for share in (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5)
    ]
    made += [Recipe(f"without {name}", 0, "fewer features", without=names) for name, names in groups.items()]
    made += [Recipe(f"noise {sd}", 0, "noise", noise=sd) for sd in (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)]
    return [Recipe(**{**vars(recipe), "seed": 100 + number}) for number, recipe in enumerate(made)]


# ---- parts


def false_promotion(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Share of *better* among equal models: the gate, and what most would use in its place, on the same trials."""
    gates, table, summary = models.params.gates, [], []
    for kind, scored in models.equal.items():
        for null in gt.NULLS:
            for length in HOLDOUTS[:2]:
                rng = np.random.default_rng(length)
                pairs = gt.pairs_of(MODELS, trials, rng)
                drawn = gt.holdouts(len(scored.counts), length, trials, rng, consecutive=null == "consecutive days")
                made = scored.trials(pairs, drawn, null, rng)
                ours, plain = gt.upper_ends(made.sums, made.counts, gates.confidence, gates.resamples, models.params.train.seed)
                said = gt.verdicts(ours, gates.margin)
                better, refused = int((said == "better").sum()), int((said == "worse").sum())
                others = [int((ends < 0).sum()) for ends in (plain, gt.row_ends(made, gates.confidence))]
                table.append([kind, null, length, *(shared(n, trials) for n in (better, *others, refused))])
                high = gt.wilson(better, trials)[1]
                if length == 14 or better / trials > 0.05:
                    found = f"{shared(better, trials)} better; at most 5 % are allowed"
                    verdict = "kept" if high <= 0.05 else "TOO MANY" if better / trials > 0.05 else "kept, but not for certain"
                    summary.append(f"false promotions, {kind}, {null}, {length} days: {found}: {verdict}")
        spread = scored.log_loss.std(ddof=1), scored.auc.std(ddof=1)
        say(f"{kind}: {MODELS} models, AUC {scored.auc.mean():.4f} ± {spread[1]:.4f}, log-loss {scored.log_loss.mean():.4f} ± {spread[0]:.4f}")  # fmt: skip
    say(f"\n{trials:,} trials a line; brackets: 95 % intervals (Wilson)\n")
    show(["equal models", "made equal", "days", "better: the gate", "plain percentile", "rows as independent", "refused"], table)
    return summary


def power(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Share of *better* against the true difference, and the difference that is seen in `POWER` of the trials."""
    gates, rows, recipes = models.params.gates, models.pool, worse_ones(models.params)
    scored = gt.summed(rows["label"].to_numpy(), models.answers([Recipe("whole", 99), *recipes], rows), day_of(rows))
    lost, added = scored.auc[0] - scored.auc[1:], scored.log_loss[1:] - scored.log_loss[0]
    say(f"\nthe whole model on {len(scored.counts)} days, {len(rows):,} rows: AUC {scored.auc[0]:.4f}, "
        f"log-loss {scored.log_loss[0]:.4f}\n")  # fmt: skip
    detected = np.zeros((len(HOLDOUTS), len(recipes)))
    for i, length in enumerate(HOLDOUTS):
        for j in range(len(recipes)):
            rng = np.random.default_rng(1000 * length + j)
            drawn = gt.holdouts(len(scored.counts), length, trials, rng)
            made = scored.trials(np.tile([0, j + 1], (trials, 1)), drawn, "as they are", rng)
            detected[i, j] = gt.better(made, gates, 0, models.params.train.seed).mean()
        say(f"{length} days: {len(recipes)} pairs done")
    heads = ["worse model", "AUC lost", "log-loss added", *(f"seen in {length} days" for length in HOLDOUTS)]
    order = np.argsort(lost)
    show(heads, [[recipes[j].name, f"{lost[j]:+.4f}", f"{added[j]:+.4f}", *(f"{d:.1%}" for d in detected[:, j])] for j in order])
    summary, lines = [], []
    for length, seen in zip(HOLDOUTS, detected, strict=True):
        found = [gt.detectable(x[x > 0], seen[x > 0], POWER, 500, 0) for x in (lost, added)]
        lines.append([length, *(f"{mid:.4f} [{low:.4f}, {high:.4f}]" for mid, low, high in found)])
        summary.append(f"power: {POWER:.0%} on {length} days from an AUC difference of {lines[-1][1]}, log-loss {lines[-1][2]}")
    say(f"\nseen in {POWER:.0%} of {trials:,} trials; brackets: 95 %, pairs resampled\n")
    show(["days", "true AUC difference", "true log-loss difference"], lines)
    if pictures:
        power_picture([r.kind for r in recipes], lost, detected, pictures / "gate-power.png")
    return summary


def reuse(models: Models, trials: int, pictures: Path | None) -> list[str]:
    """Nightly candidates on overlapping holdouts: false promotions with and without the payment, and with fresh days."""
    gates, length, table, summary, lines = models.params.gates, models.params.train.holdout_days, [], [], {}
    for kind, scored in models.equal.items():
        for arm in ("fresh", "unpaid", "paid"):
            began = time.monotonic()
            won = gt.promoted(scored, NIGHTS, length, HISTORIES, gates, models.params.train.seed, arm)
            say(f"{kind}, {arm}: {HISTORIES:,} histories of {NIGHTS} nights in {time.monotonic() - began:.0f} s")
            late = won[:, -length:]
            number = f"{late.sum(axis=1).mean():.3f} ± {1.96 * late.sum(axis=1).std() / np.sqrt(HISTORIES):.3f}"
            anywhere, lately = int(won.any(axis=1).sum()), int(late.any(axis=1).sum())
            table.append([kind, arm, shared(lately, HISTORIES), number, shared(anywhere, HISTORIES)])
            summary.append(f"reuse, {kind}, {arm}: {number} false promotions in {length} nights")
            lines[kind, arm] = won
    say(f"\npaid: from night {length} on the interval's confidence is {paid(gates.confidence, length):.4f}\n")
    heads = ["equal models", "days", f"histories with one in the last {length} nights", f"expected in {length} nights",
             f"histories with one in {NIGHTS} nights"]  # fmt: skip
    show(heads, table)
    if pictures:
        reuse_picture(lines, pictures / "gate-reuse.png")
    return summary


def shared(hits: int, trials: int) -> str:
    low, high = gt.wilson(hits, trials)
    return f"{hits / trials:.1%} [{low:.1%}, {high:.1%}]"


# ---- pictures


def power_picture(kinds: list[str], lost: np.ndarray, detected: np.ndarray, path: Path) -> None:
    figure, axes = canvas()
    marks, worse = dict(zip(dict.fromkeys(kinds), "os^D", strict=False)), lost > 0
    x = np.geomspace(lost[worse].min(), lost.max(), 200)
    for colour, length, seen in zip(("tab:red", "tab:blue", "tab:green"), HOLDOUTS, detected, strict=True):
        axes.plot(x, gt.curve(lost[worse], seen[worse])(x), color=colour, label=f"{length} days")
        for kind, mark in marks.items():
            mine = worse & (np.array(kinds) == kind)
            axes.scatter(lost[mine], seen[mine], color=colour, marker=mark, s=22, alpha=0.7)
    for kind, mark in marks.items():
        axes.scatter([], [], color="grey", marker=mark, s=22, label=kind)
    axes.axhline(POWER, color="grey", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="true AUC difference", ylabel="share of holdouts with the verdict better", ylim=(-0.02, 1.02))
    axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    say(f"picture: {path}")


def reuse_picture(lines: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    figure, axes = canvas()
    colours = {"fresh": "grey", "unpaid": "tab:red", "paid": "tab:blue"}
    for (kind, arm), won in lines.items():
        style = "-" if ALIKE[kind] else ":"
        axes.plot(
            np.arange(1, NIGHTS + 1), won.sum(axis=0).cumsum() / len(won), style, color=colours[arm], label=f"{arm}, {kind}"
        )
    axes.set(xlabel="night", ylabel="false promotions so far, expected number", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    say(f"picture: {path}")


def canvas() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    return figure, figure.subplots()


if __name__ == "__main__":
    main()
