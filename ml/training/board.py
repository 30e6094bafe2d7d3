"""The shared study as a board of slots: claimed, worked at, done; in Optuna's storage, so that its tools can show it.

A claim is a RUNNING trial that is made with its slot number in one step, so that of two claims at once the lower trial number has
the slot. No claim is a lock: a slot may be done twice without harm, as its outcome follows from its recipe.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ml.config import Dimension, FamilyName, Params
from ml.refs import Recipe
from ml.settings import settings
from ml.training.folds import Outcome

optuna.logging.set_verbosity(optuna.logging.WARNING)

STALE_SECONDS = 60.0
"""A claim is a dead worker's when it is older than this and than `STALE_TIMES` the slowest trial yet."""
STALE_TIMES = 10.0
FIRST_STALE_SECONDS = 900.0
"""The same, while no trial has finished from which the time could be known."""
TABLE_ATTEMPTS = 6
MEASURED = ("rounds", "cpu_seconds", "seconds", "days", "curves")


def storage(study: str) -> BaseStorage:
    """The shared storage: the URL in EVERGREEN_OPTUNA, or a journal file per study."""
    url = settings().optuna
    if url:
        return _database(url)
    path = Path(settings().var) / "studies" / f"{study}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _database(url: str) -> BaseStorage:
    """Storage in a database, which keeps no connection open while a trial runs.

    Workers that start together in an empty database all make the tables, and all but one fail at first: hence the attempts.
    """
    for attempt in range(TABLE_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs={"poolclass": sa.NullPool})
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError):
            if attempt == TABLE_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def spaces(params: Params) -> dict[FamilyName, dict[str, Dimension]]:
    """Families that are searched, with their spaces."""
    made: dict[FamilyName, dict[str, Dimension]] = {"xgboost": params.tune.space}
    if params.tune.second:
        made[params.tune.second] = params.tune.second_space
    return made


def distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """A search space in Optuna's terms."""
    return {
        name: IntDistribution(int(d.low), int(d.high), log=d.log) if d.int else FloatDistribution(d.low, d.high, log=d.log)
        for name, d in space.items()
    }


@dataclass(frozen=True)
class Slot:
    """A slot that is done."""

    number: int
    recipe: Recipe
    outcome: Outcome

    def learned(self, space: dict[str, BaseDistribution]) -> FrozenTrial:
        """As a trial that TPE learns from; a pruned one by how far it came and its loss there."""
        values = {n: int(v) if isinstance(space[n], IntDistribution) else v for n, v in self.recipe.params.items()}
        seen = dict(enumerate(itertools.chain.from_iterable(self.outcome.curves)))
        state = TrialState.PRUNED if self.outcome.loss is None else TrialState.COMPLETE
        return create_trial(state=state, value=self.outcome.loss, params=values, distributions=space, intermediate_values=seen)


class Board:
    """The shared study as a board of slots that are claimed and done."""

    def __init__(self, study: str, worker: int, params: Params) -> None:
        self.shared, self.worker, self.params = storage(study), worker, params
        try:
            self.study = self.shared.create_new_study([StudyDirection.MINIMIZE], study)
        except DuplicatedStudyError:  # another worker was first
            self.study = self.shared.get_study_id_from_name(study)
        self.mine: set[int] = set()

    def done(self) -> dict[int, Slot]:
        """Slots that are done. One done twice counts as the first that ended, so that all workers see the same."""
        ended = [t for t in self._trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        ended.sort(key=lambda t: (t.datetime_complete, t.number), reverse=True)
        return {t.user_attrs["slot"]: _slot(t) for t in ended}

    def claim(self, number: int, recipe: Recipe) -> int | None:
        """The id of a RUNNING trial for the slot; None if another worker is at it."""
        if self._holder(number) is not None:
            return None
        attrs = {"slot": number, "family": recipe.family, "worker": self.worker, "claimed": time.time()}
        space = distributions(spaces(self.params).get(recipe.family, {}))
        trial = self.shared.create_new_trial(self.study, _trial(recipe, space, TrialState.RUNNING, attrs))
        self.mine.add(trial)
        if self._holder(number) == trial:
            return trial
        self.shared.set_trial_state_values(trial, TrialState.FAIL)  # two claimed at once: the lower number has it
        return None

    def finish(self, trial: int, outcome: Outcome, seconds: float) -> None:
        """Writes what the trial found. If others gave this worker up meanwhile, it is kept as a trial of its own."""
        found = {**outcome.__dict__, "seconds": seconds}
        state = TrialState.PRUNED if outcome.loss is None else TrialState.COMPLETE
        values = None if outcome.loss is None else [outcome.loss]
        try:
            for name in MEASURED:
                self.shared.set_trial_user_attr(trial, name, found[name])
            self.shared.set_trial_state_values(trial, state, values)
        except UpdateFinishedTrialError:
            claim = self.shared.get_trial(trial)
            attrs = {**claim.user_attrs, **{name: found[name] for name in MEASURED}}
            self.shared.create_new_trial(
                self.study,
                create_trial(
                    state=state, values=values, params=claim.params, distributions=claim.distributions, user_attrs=attrs
                ),
            )

    def _holder(self, number: int) -> int | None:
        """The trial that has claimed the slot; claims of the dead are closed on the way."""
        trials = self._trials()
        slowest = max((t.user_attrs["seconds"] for t in trials if "seconds" in t.user_attrs), default=None)
        patience = FIRST_STALE_SECONDS if slowest is None else max(STALE_SECONDS, STALE_TIMES * slowest)
        for t in trials:
            if t.state != TrialState.RUNNING or t.user_attrs["slot"] != number:
                continue
            mine, back = t._trial_id in self.mine, t.user_attrs["worker"] == self.worker  # back: it was killed, and started again
            if mine or (not back and time.time() - t.user_attrs["claimed"] <= patience):
                return t._trial_id
            try:
                self.shared.set_trial_state_values(t._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:  # it ended at this moment, which is as good
                continue
        return None

    def _trials(self) -> list[FrozenTrial]:
        return self.shared.get_all_trials(self.study, deepcopy=False)


def _trial(recipe: Recipe, distributions: dict[str, BaseDistribution], state: TrialState, attrs: dict[str, Any]) -> FrozenTrial:
    values = {n: int(v) if isinstance(distributions[n], IntDistribution) else v for n, v in recipe.params.items()}
    return create_trial(state=state, params=values, distributions=distributions, user_attrs=attrs)


def _slot(trial: FrozenTrial) -> Slot:
    attrs = trial.user_attrs
    days = {day: (float(total), int(rows)) for day, (total, rows) in attrs["days"].items()}
    outcome = Outcome(trial.value, attrs["rounds"], attrs["cpu_seconds"], days, attrs["curves"])
    return Slot(attrs["slot"], Recipe(family=attrs["family"], params={n: float(v) for n, v in trial.params.items()}), outcome)
