"""``make bench-tuning``: what the search earns for its CPU seconds, beside what people usually do, on three months.

Contenders: recipe (Optuna and cross_val_score, 100 trials), ours cold, ours warm (starts from the best trees of the month
before), FLAML (with ours' time as budget), XGBoost and LightGBM as they come. Each runs in a process of its own, on one thread;
all get the same encoded rows; what each chose is fitted on the whole train window and judged on the same holdout. The time of
these last fits and of judging is nobody's, but FLAML's own. CPU seconds are user + system of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ops.bench_features import YEAR, land, landed, say
from ops.bench_tuning_report import compare, draw, mean, summarise

MONTHS = {"april": datetime(2013, 5, 1, 3), "july": datetime(2013, 8, 1, 3), "december": datetime(2014, 1, 1, 3)}
CONTENDERS: tuple[str, ...] = ("recipe", "ours cold", "ours warm", "FLAML", "XGBoost defaults", "LightGBM defaults")
ESTIMATORS = (50, 300)
"""The recipe's range of n_estimators; the other ranges are ours."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench_tuning", description=__doc__)
    parser.add_argument("months", nargs="*", help=f"of {', '.join(MONTHS)}; default all", default=[])
    parser.add_argument("--trials", type=int, default=100, help="of the recipe (default 100)")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="run these alone, beside what is kept")
    parser.add_argument(
        "--keep", type=Path, help="folder where tables and finished contenders stay; what is there is not run again"
    )
    parser.add_argument("--picture", type=Path, help="draw loss against CPU seconds into this PNG")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    unknown = [month for month in asked.months if month not in MONTHS]
    if unknown:
        parser.error(f"unknown month {unknown[0]!r}; months are {', '.join(MONTHS)}")
    if asked.contender:
        contend(Path(asked.contender[0]), asked.contender[1], asked.trials)
        return
    home = asked.keep or Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    try:
        run(home.resolve(), asked.months or list(MONTHS), asked.only, asked.trials, asked.picture)
    finally:
        if not asked.keep:
            shutil.rmtree(home)


def run(home: Path, months: Sequence[str], only: Sequence[str] | None, trials: int, picture: Path | None) -> None:
    prepare(home, months)
    found: dict[str, dict[str, Any]] = {}
    for month in months:
        for name in CONTENDERS:
            if not only or name in only or kept(home / month, name).exists():
                found.setdefault(month, {})[name] = contender(home / month, name, trials)
    found = {month: one for month, one in found.items() if {"recipe", "ours cold", "FLAML"} <= set(one)}
    for month in found:
        say(f"\n## {month}\n")
        compare(found[month])
    summarise(found)
    if picture:
        draw(found, picture)


# ---- rows


def prepare(home: Path, months: Sequence[str]) -> None:
    """One folder per month: the feature table, as known then, and that of a month before."""
    wanted = {home / month / name: as_of for month in months
              for name, as_of in (("table", MONTHS[month]), ("before", MONTHS[month] - timedelta(days=30)))}  # fmt: skip
    missing = {path: as_of for path, as_of in wanted.items() if not path.with_suffix(".parquet").exists()}
    if not missing:
        return
    os.environ |= {"EVERGREEN_VAR": str(home / "var"), "EVERGREEN_DATA": str(home / "data")}
    for name in ("EVERGREEN_ONLINE", "EVERGREEN_FEAST", "EVERGREEN_STORE", "EVERGREEN_LEDGER", "EVERGREEN_DVC_REMOTE"):
        os.environ.pop(name, None)
    (home / "var").mkdir(parents=True, exist_ok=True)
    from ml.config import load_params
    from ml.features import stored
    from ml.refs import Window
    from ml.training.splits import split

    land(*YEAR)
    root, version = landed(YEAR[1])
    for path, as_of in missing.items():
        began, windows = time.monotonic(), split(as_of, load_params().train)
        ref = stored.build(root, version, Window(start=windows.train.start, end=windows.holdout.end), as_of)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored.read(ref).to_parquet(path.with_suffix(".parquet"))
        say(f"features for {as_of:%Y-%m-%d}: {ref.rows:,} rows in {time.monotonic() - began:.0f} s")


class Rows:
    """The encoded matrices of one month that every contender gets."""

    def __init__(self, folder: Path, name: str = "table") -> None:
        from ml.config import load_params
        from ml.features.definitions import load_module
        from ml.training.encoding import encode, fit_encoding
        from ml.training.fit import labelled
        from ml.training.splits import split

        self.params = load_params()
        self.features = load_module(self.params).learned
        self.table = pd.read_parquet(folder / f"{name}.parquet")
        as_of = MONTHS[folder.name] - timedelta(days=30 if name == "before" else 0)
        self.windows = split(as_of, self.params.train)
        train, holdout = labelled(self.table, self.windows.train), labelled(self.table, self.windows.holdout)
        self.y, self.y_holdout = train["label"].to_numpy(), holdout["label"].to_numpy()
        self.days = holdout["event_time"].dt.date.astype(str).to_numpy()
        encoding = fit_encoding(self.features, train, self.y)
        self.X, self.X_holdout = encode(encoding, train), encode(encoding, holdout)


# ---- contenders


def contender(folder: Path, name: str, trials: int) -> dict[str, Any]:
    """Runs one contender in a fresh process, unless its outcome is kept."""
    path = kept(folder, name)
    if not path.exists():
        say(f"{folder.name}: {name} …")
        command = [sys.executable, "-m", "ops.bench_tuning", "--trials", str(trials), "--contender", str(folder), name]
        one = {"OMP_NUM_THREADS": "1", "EVERGREEN_VAR": str(folder / "var"), "EVERGREEN_OPTUNA": ""}
        subprocess.run(command, check=True, env=os.environ | one)
    made: dict[str, Any] = json.loads(path.read_text())
    said = f"{made['cpu']:.0f} CPU s, log-loss {mean(made['days']):.5f}"
    say(f"{folder.name}: {name}: {said}")
    return made


def kept(folder: Path, name: str) -> Path:
    """Where the outcome of a contender is."""
    return folder / f"{name.replace(' ', '-')}.json"


def contend(folder: Path, name: str, trials: int) -> None:
    """One contender: writes CPU seconds of its search, its answers' losses on the holdout, and its way there."""
    rows = Rows(folder)
    if name == "recipe":
        made = recipe(rows, trials)
    elif name.startswith("ours"):
        made = ours(rows, folder, name)
    elif name == "FLAML":
        made = flaml(rows, json.loads((folder / "ours-cold.json").read_text()))
    else:
        made = defaults(rows, name)
    kept(folder, name).write_text(json.dumps(made))


def spent() -> float:
    """CPU seconds of this process and its children until now."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def judged(rows: Rows, y_proba: np.ndarray) -> dict[str, list[float]]:
    """Sum of log-losses and number of rows, by day of the holdout."""
    from ml import metrics

    names, day_of = np.unique(rows.days, return_inverse=True)
    sums = np.bincount(day_of, weights=metrics.log_losses(rows.y_holdout, y_proba))
    return {str(day): [float(total), int(n)] for day, total, n in zip(names, sums, np.bincount(day_of), strict=True)}


def recipe(rows: Rows, trials: int) -> dict[str, Any]:
    """The usual tutorial: TPE over XGBClassifier, n_estimators in the space, three-fold cross-validation on all training rows."""
    import optuna
    from sklearn.model_selection import cross_val_score
    from xgboost import XGBClassifier

    def model(chosen: dict[str, Any]) -> XGBClassifier:
        return XGBClassifier(**chosen, tree_method="hist", n_jobs=1, random_state=0)

    def objective(trial: optuna.Trial) -> float:
        chosen: dict[str, Any] = {"n_estimators": trial.suggest_int("n_estimators", *ESTIMATORS)}
        for key, d in rows.params.tune.space.items():
            draw = trial.suggest_int if d.int else trial.suggest_float
            chosen[key] = draw(key, d.low, d.high, log=d.log)
        score = cross_val_score(model(chosen), rows.X, rows.y, cv=3, scoring="neg_log_loss", n_jobs=1).mean()
        steps.append({"cpu": spent() - began, "loss": -float(score), "chosen": chosen})
        if len(steps) % 10 == 0:
            print(f"  {len(steps)} of {trials} trials, {steps[-1]['cpu']:.0f} CPU s", flush=True)
        return -float(score)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    steps: list[dict[str, Any]] = []
    began = spent()
    optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0)).optimize(objective, n_trials=trials)
    cpu = spent() - began

    def answers(chosen: dict[str, Any]) -> np.ndarray:
        return np.asarray(model(chosen).fit(rows.X, rows.y).predict_proba(rows.X_holdout)[:, 1])

    way = [{"cpu": s["cpu"], "loss": s["loss"], "days": judged(rows, answers(s["chosen"]))} for s in bettered(steps)]
    best = min(steps, key=lambda s: s["loss"])["chosen"]
    return {"cpu": cpu, "trials": trials, "days": way[-1]["days"], "way": way, "chosen": best}


def bettered(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps whose loss was the best until then."""
    best, kept = float("inf"), []
    for step in steps:
        if step["loss"] < best:
            best = step["loss"]
            kept.append(step)
    return kept


def ours(rows: Rows, folder: Path, name: str) -> dict[str, Any]:
    """One worker of the study: what it chose, and its best trees, which are what the search found before any incumbent's say."""
    from ml.training import tuning

    warm = []
    if name == "ours warm":
        warm = [best_tree(*searched(Rows(folder, "before"), "before", [])[:2]).recipe]  # its price was last month's
    began, clock = spent(), time.monotonic()
    slots, params, built = searched(rows, name.replace(" ", "-"), warm)
    cpu, seconds = spent() - began, time.monotonic() - clock
    chosen = tuning.winner(name.replace(" ", "-"), params, warm[0] if warm else None)
    used, steps = built, []
    for slot in slots:
        used += slot.outcome.cpu_seconds
        if slot.outcome.loss is not None and slot.recipe.family != "linear":
            steps.append({"cpu": used, "loss": slot.outcome.loss, "recipe": slot.recipe, "rounds": slot.outcome.rounds})
    way = [{"cpu": s["cpu"], "loss": s["loss"], "days": answered(rows, s["recipe"], s["rounds"])} for s in bettered(steps)]
    return {
        "cpu": cpu, "seconds": seconds, "trials": len(slots), "days": answered(rows, chosen.recipe, chosen.rounds), "way": way,
        "linear": answered(rows, tuning.LINEAR, 1), "reason": chosen.reason, "chosen": chosen.recipe.model_dump(),
        "pruned": sum(slot.outcome.loss is None for slot in slots),
    }  # fmt: skip


def searched(rows: Rows, study: str, warm: Sequence[Any]) -> tuple[list[Any], Any, float]:
    """The study's slots, the parameters, and the CPU seconds that building the folds took."""
    from ml.training import folds, tuning
    from ml.training.board import Board

    began = spent()
    made = folds.build(rows.table, rows.windows.folds, rows.features, rows.params)
    built = spent() - began
    tuning.run_worker(study, (0, 1), rows.params, warm, made)
    return [slot for _, slot in sorted(Board(study, -1, rows.params).done().items())], rows.params, built


def best_tree(slots: Sequence[Any], params: Any) -> Any:
    complete = [slot for slot in slots if slot.outcome.loss is not None and slot.recipe.family == "xgboost"]
    return min(complete, key=lambda slot: slot.outcome.loss)


def answered(rows: Rows, recipe: Any, rounds: int) -> dict[str, list[float]]:
    """A recipe fitted on the whole train window, judged on the holdout."""
    from ml.training.models import FAMILIES, settings_of

    integers = {name for name, d in rows.params.tune.space.items() if d.int}
    settings = settings_of(recipe.family, "binary", 0, rows.params.train, recipe.params, integers, 1)
    model = FAMILIES[recipe.family].fit(rows.X, rows.y, settings, rounds, "binary")
    return judged(rows, model.predict(rows.X_holdout))


def flaml(rows: Rows, like: dict[str, Any]) -> dict[str, Any]:
    """FLAML with the time that ours cold took: as a budget it knows only wall time, so it gets ours' wall time."""
    from flaml import AutoML

    automl, began = AutoML(), spent()
    automl.fit(
        rows.X, rows.y, task="classification", metric="log_loss", estimator_list=["xgboost", "lgbm"], n_jobs=1, seed=0, verbose=0,
        time_budget=max(like["cpu"], like["seconds"]),
    )  # fmt: skip
    cpu = spent() - began
    return {"cpu": cpu, "days": judged(rows, automl.predict_proba(rows.X_holdout)[:, 1]), "chosen": automl.best_config}


def defaults(rows: Rows, name: str) -> dict[str, Any]:
    """A library as it comes; its search costs nothing."""
    from lightgbm import LGBMClassifier
    from xgboost import XGBClassifier

    made = XGBClassifier(n_jobs=1) if name.startswith("XGBoost") else LGBMClassifier(n_jobs=1, verbosity=-1)
    return {"cpu": 0.0, "days": judged(rows, np.asarray(made.fit(rows.X, rows.y).predict_proba(rows.X_holdout))[:, 1])}


if __name__ == "__main__":
    main()
