"""Tuning: workers share one Optuna study, and the winner does not depend on who was faster.

Each trial's settings are known before any worker starts (defaults, the champion's, then a seeded quasi-random sequence), and a
trial has a slot number; the slots are dealt out in a seeded order. A slot that is already in the study is not run again, so a
killed worker's retry goes on where it stopped. The price is that no trial learns from another: see docs/adr/0003.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ml.config import Tune, settings
from ml.errors import NotFoundError

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Winner(Ref):
    """The best trial of a study. `loss` is the mean over the validation folds."""

    recipe: Recipe
    rounds: int
    loss: float
    trial: int
    trials: int
    reason: str
    convergence: list[dict[str, Any]]


def storage(study: str) -> BaseStorage:
    """The shared storage: the URL in EVERGREEN_OPTUNA, or a journal file per study."""
    url = settings().optuna
    if url:
        return RDBStorage(url)
    path = Path(settings().var) / "studies" / f"{study}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def distributions(params: Tune) -> dict[str, optuna.distributions.BaseDistribution]:
    """params.yaml's search space in Optuna's terms."""
    made: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, d in params.space.items():
        if d.int:
            made[name] = optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log)
        else:
            made[name] = optuna.distributions.FloatDistribution(d.low, d.high, log=d.log)
    return made


def slots(params: Tune, champion: Mapping[str, float] | None, seed: int) -> list[dict[str, float]]:
    """The settings of every trial, in order: the declared defaults, the champion's where they fit the space, a scrambled
    Sobol sequence.
    """
    chosen = [{name: d.default for name, d in params.space.items()}]
    if champion is not None and set(champion) == set(params.space):
        chosen.append({n: min(max(champion[n], d.low), d.high) for n, d in params.space.items()})
    space = distributions(params)
    # The first sample of a QMC study comes from its independent sampler, so a first throw-away trial opens the sequence.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    study = optuna.create_study(sampler=sampler)
    study.ask(space)
    while len(chosen) < params.trials:
        chosen.append({name: float(value) for name, value in study.ask(space).params.items()})
    return chosen[: params.trials]


def run_worker(
    study_name: str,
    share: tuple[int, int],
    params: Tune,
    champion: Mapping[str, float] | None,
    seed: int,
    objective: Callable[[Mapping[str, float]], tuple[float, int]],
) -> int:
    """Runs this worker's slots that are not in the study yet.

    Args:
        share: number of this worker (from 0), and how many there are.
        objective: settings → (mean validation log-loss, rounds).

    Returns:
        Number of trials done now.
    """
    worker, workers = share
    study = optuna.create_study(study_name=study_name, storage=storage(study_name), load_if_exists=True)
    every = slots(params, champion, seed)
    there = {t.user_attrs["slot"] for t in study.get_trials(deepcopy=False)}
    space, began, done = distributions(params), time.monotonic(), 0
    dealt = np.random.default_rng(seed).permutation(len(every)).tolist()  # neighbours in a Sobol sequence cost alike
    for slot in dealt[worker::workers]:
        if slot in there:
            continue
        if done and time.monotonic() - began > params.seconds:
            print(f"tuning stops before slot {slot + 1} of {len(every)}: {params.seconds:g} s are used up", file=sys.stderr)
            break
        log_loss, rounds = objective(every[slot])
        trial = optuna.trial.create_trial(
            params={n: int(v) if params.space[n].int else v for n, v in every[slot].items()},
            distributions=space,
            value=log_loss,
            user_attrs={"slot": slot, "rounds": rounds, "worker": worker},
        )
        study.add_trial(trial)
        done += 1
        print(f"trial {slot + 1}/{len(every)}: log-loss {log_loss:.5f}, {rounds} rounds", file=sys.stderr)
    return done


def winner(study_name: str) -> Winner:
    """The best trial; among equals the lowest slot.

    Raises:
        NotFoundError: the study holds no finished trial.
    """
    study = optuna.create_study(study_name=study_name, storage=storage(study_name), load_if_exists=True)
    by_slot = {t.user_attrs["slot"]: t for t in reversed(study.get_trials(deepcopy=False))}
    if not by_slot:
        raise NotFoundError(f"study {study_name!r} holds no finished trial", "run the tune step of this plan first")
    best = min(by_slot.values(), key=lambda t: (t.value, t.user_attrs["slot"]))
    params = {n: float(v) for n, v in best.params.items()}
    return Winner(best.user_attrs["slot"], len(by_slot), params, best.user_attrs["rounds"], float(best.value or 0.0))
