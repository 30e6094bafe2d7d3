"""Tuning: workers share one Optuna study, trials learn from each other, and the winner does not depend on who was faster.

Slots (numbered trials) come in generations: what is already known (the linear model, declared defaults, `warm` recipes), a
seeded quasi-random sequence, then batches of a seeded TPE sampler built anew from all slots of the generations before. So a
slot's recipe, its pruning thresholds and its outcome follow from the generations before it, and doing it twice is harmless.
Workers claim slots in the study (ml/training/board.py). See docs/adr/0003.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from ml.config import FamilyName, Params
from ml.errors import NotFoundError
from ml.refs import Recipe, Ref
from ml.significance import Interval, paired_sums
from ml.training.board import Board, Slot, distributions, spaces
from ml.training.folds import Folds, Outcome, Thresholds

POLL_SECONDS = 0.2
"""How often a worker without a slot looks whether the others have finished theirs."""
LINEAR = Recipe(family="linear", params={})
FIRST: FamilyName = "xgboost"
"""The family that `tune.space` is of."""


class Winner(Ref):
    """What the study chose. `loss` is the mean over all validation rows (None: there was no study); `trial` the slot; `trials`
    counts pruned ones, too.

    `convergence` holds by slot: slot, family, state, best (loss until then) and cpu_seconds (summed until then).
    """

    recipe: Recipe
    rounds: int
    loss: float | None
    trial: int
    trials: int
    reason: str
    convergence: list[dict[str, Any]]


# ---- what every slot holds


def fitted(recipe: Recipe, params: Params) -> Recipe | None:
    """The recipe clipped into its space; None if its family is not searched or its settings are other ones."""
    if recipe.family == "linear":
        return LINEAR
    space = spaces(params).get(recipe.family, {})
    if not space or set(recipe.params) != set(space):
        return None
    clipped = {name: min(max(float(recipe.params[name]), d.low), d.high) for name, d in space.items()}
    return Recipe(family=recipe.family, params={name: float(round(v)) if space[name].int else v for name, v in clipped.items()})


def generations(params: Params) -> Iterator[dict[FamilyName, int]]:
    """How many trials of each family the generations after the first hold at most."""
    yield dict.fromkeys(spaces(params), params.tune.startup)
    while True:
        yield dict.fromkeys(spaces(params), params.tune.generation)


def known(params: Params, warm: Sequence[Recipe]) -> list[Recipe]:
    """The first generation: the linear model, each family's declared defaults, then `warm` without duplicates and misfits."""
    defaults = [
        Recipe(family=family, params={n: d.default for n, d in space.items()}) for family, space in spaces(params).items()
    ]
    made, left = [LINEAR], _budget(params)
    for recipe in (fitted(each, params) for each in [*defaults, *warm]):
        if recipe is not None and recipe not in made and left[recipe.family] > 0:
            made.append(recipe)
            left[recipe.family] -= 1
    return made


def drawn(family: FamilyName, count: int, before: Sequence[Slot], number: int, params: Params) -> list[Recipe]:
    """The recipes of one family in generation `number`: a quasi-random sequence in generation 1, then TPE over all before.

    TPE: Bergstra et al. 2011, NeurIPS 24:2546, section 4; multivariate: Falkner et al. 2018, PMLR 80:1437, section 4. Points of
    one batch repel each other by counting as bad until they are known.
    """
    space, seed = distributions(spaces(params)[family]), params.train.seed + number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler
        if number == 1:
            sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=0, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    if number == 1:
        study.ask(space)  # a QMC study's first sample comes from elsewhere: it opens the sequence and is thrown away
    else:
        study.add_trials([slot.learned(space) for slot in before if slot.recipe.family == family])
    return [Recipe(family=family, params={n: float(v) for n, v in study.ask(space).params.items()}) for _ in range(count)]


def thresholds(family: FamilyName, before: Sequence[Slot], params: Params) -> Thresholds:
    """By fold and checkpoint, the quantile `tune.prune` of earlier finished trials' best losses there.

    Median stopping (Golovin et al. 2017, KDD 23:1487, section 3.2; any quantile instead of the median), but only over generations
    that are over, so that it does not depend on who was faster.
    """
    curves = [slot.outcome.curves for slot in before if slot.recipe.family == family and slot.outcome.loss is not None]
    if len(curves) < 2 or params.tune.prune == 1:
        return ()
    folds = range(len(curves[0]))
    return [np.quantile([curve[k] for curve in curves], params.tune.prune, axis=0).tolist() for k in folds]


# ---- the work


def run_worker(study: str, share: tuple[int, int], params: Params, warm: Sequence[Recipe], folds: Folds) -> int:
    """Takes part in the study until all its slots are done.

    Args:
        share: number of this worker (from 0; no two at a time have the same), and how many there are.
        warm: recipes to try first: the champion's, then those of the last studies.

    Returns:
        Number of trials done now.
    """
    worker, workers = share
    board, before, count = Board(study, worker, params), list[Slot](), 0
    for number, recipes in _plan(params, warm, before):
        used = sum(slot.outcome.cpu_seconds for slot in before)
        if number and used > params.tune.seconds:
            print(f"tuning stops before generation {number}: {used:.0f} of {params.tune.seconds:g} s are used", file=sys.stderr)
            break
        first = len(before)
        limits = {family: thresholds(family, before, params) for family in spaces(params)}
        wanted = dict(enumerate(recipes, first))
        order = sorted(wanted, key=lambda slot: ((slot - worker) % workers, slot))  # its own share, then what others left
        while missing := [slot for slot in order if slot not in board.done()]:
            if not (taken := _first_claimed(board, missing, wanted)):
                time.sleep(POLL_SECONDS)
                continue
            slot, trial = taken
            began = time.monotonic()
            outcome = folds.evaluate(wanted[slot], limits.get(wanted[slot].family))
            board.finish(trial, outcome, time.monotonic() - began)
            count += 1
            _say(slot, wanted[slot], outcome)
        finished = board.done()
        before += [finished[slot] for slot in wanted]
    return count


def _plan(params: Params, warm: Sequence[Recipe], before: list[Slot]) -> Iterator[tuple[int, list[Recipe]]]:
    """Generations in order; `before` is to hold all slots of those that were handed out."""
    yield 0, known(params, warm)
    for number, sizes in enumerate(generations(params), 1):
        left = _budget(params)
        for slot in before:
            left[slot.recipe.family] -= 1
        made = [r for family, size in sizes.items() for r in drawn(family, min(size, left[family]), before, number, params)]
        if made:
            yield number, made
        elif number > 1:
            return


def _first_claimed(board: Board, missing: Sequence[int], wanted: Mapping[int, Recipe]) -> tuple[int, int] | None:
    """The first of the missing slots that nobody is at, and its trial."""
    for slot in missing:
        trial = board.claim(slot, wanted[slot])
        if trial is not None:
            return slot, trial
    return None


# ---- the choice


def winner(study: str, params: Params, champion: Recipe | None) -> Winner:
    """The recipe to fit: the incumbent's, unless another is better beyond noise on the validation days.

    The incumbent is the champion's recipe. Where there is none in the study, it is the best trial of the first family; whether
    trees are better than the linear model at all is judged on the holdout. The best of a second family must in turn beat the
    recipe that was chosen so far.

    Raises:
        NotFoundError: the study holds no finished trial.
    """
    board = Board(study, -1, params)
    slots = [slot for _, slot in sorted(board.done().items())]
    complete = [slot for slot in slots if slot.outcome.loss is not None]
    recipe = fitted(champion, params) if champion else None
    incumbent, said = next((slot for slot in complete if slot.recipe == recipe), None), list[str]()
    named, challengers = "the champion's recipe", [FIRST, params.tune.second]
    if incumbent is None:
        challengers = [params.tune.second]
        incumbent = min((s for s in complete if s.recipe.family == FIRST), key=_rank, default=None)
        if incumbent is None:
            raise NotFoundError(f"study {study!r} holds no finished trial of {FIRST}", "run the tune step of this plan first")
        named = _name(incumbent)
        said.append(f"{named} is the best of {len(slots)}: loss {incumbent.outcome.loss:.5f}")
    chosen = incumbent
    for family in challengers:
        rival = min((s for s in complete if s.recipe.family == family and s != chosen), key=_rank, default=None)
        if rival is None:
            continue
        gain = compared(rival.outcome, chosen.outcome, params)
        beside = named if chosen is incumbent else _name(chosen)
        figures = f"{gain.mean:+.5f} [{gain.low:+.5f}, {gain.high:+.5f}] over {gain.days} days"
        if gain.high < 0:
            said.append(f"{_name(rival)} replaces {beside}: loss {figures}, better beyond noise")
            chosen = rival
        else:
            said.append(f"{beside} stays: {_name(rival)} is not better beyond noise, loss {figures}")
    reason = "; ".join(said) or f"{named} stays: nothing else finished"
    outcome = chosen.outcome
    return Winner(
        recipe=chosen.recipe,
        rounds=outcome.rounds,
        loss=float(outcome.loss or 0),
        trial=chosen.number,
        trials=len(slots),
        reason=reason,
        convergence=convergence(slots),
    )


def _rank(slot: Slot) -> tuple[float, int]:
    return slot.outcome.loss or 0.0, slot.number


def compared(first: Outcome, second: Outcome, params: Params) -> Interval:
    """Interval of the mean difference in loss, first − second, by whole validation days; negative: the first is better."""
    days = sorted(second.days)
    sums = np.array([first.days[day][0] - second.days[day][0] for day in days])
    counts = np.array([second.days[day][1] for day in days])
    return paired_sums(sums, counts, params.tune.confidence, params.gates.resamples, params.train.seed)


def convergence(slots: Sequence[Slot]) -> list[dict[str, Any]]:
    """The way of a study: see `Winner`."""
    made, best, used = [], None, 0.0
    for slot in slots:
        loss = slot.outcome.loss
        best = loss if best is None else min(best, loss if loss is not None else best)
        used += slot.outcome.cpu_seconds
        state = "pruned" if loss is None else "complete"
        made.append(
            {"slot": slot.number, "family": slot.recipe.family, "state": state, "best": best, "cpu_seconds": round(used, 3)}
        )
    return made


# ---- small things


def _name(slot: Slot) -> str:
    return "the linear model" if slot.recipe == LINEAR else f"trial {slot.number} ({slot.recipe.family})"


def _budget(params: Params) -> dict[FamilyName, int]:
    """Trials of each family; the linear model's is one, and beside the others'."""
    return {"linear": 1, "xgboost": params.tune.trials, "lightgbm": params.tune.second_trials}


def _say(slot: int, recipe: Recipe, outcome: Outcome) -> None:
    found = (
        f"pruned in fold {len(outcome.curves)}" if outcome.loss is None else f"loss {outcome.loss:.5f}, {outcome.rounds} rounds"
    )
    print(f"trial {slot} ({recipe.family}): {found}, {outcome.cpu_seconds:.1f} CPU s", file=sys.stderr)
