"""The search: generations, claims, pruning, and the choice; the same winner however the workers run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from ml.config import Params, load_params
from ml.errors import ConfigError, NotFoundError
from ml.refs import Recipe
from ml.training import board, folds, tuning
from ml.training.board import Board, Slot
from ml.training.folds import Folds, Outcome, Thresholds
from ml.training.tuning import LINEAR, Winner
from tests.training.small import FEATURES, FOLDS, small, table, with_second


def same(winner: Winner) -> Winner:
    """Without what it cost, which no two runs share."""
    steps = [{k: v for k, v in step.items() if k != "cpu_seconds"} for step in winner.convergence]
    return winner.model_copy(update={"convergence": steps})


class Surface(Folds):
    """Folds with a loss that is known: cheap where only claims and generations matter."""

    def __init__(self, params: Params, before: Callable[[Recipe], None] = lambda recipe: None) -> None:
        super().__init__([], params)
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "seen", [])

    def evaluate(self, recipe: Recipe, thresholds: Thresholds | None = None) -> Outcome:
        self.before(recipe)
        self.seen.append(recipe)
        return outcome(
            1.0 if recipe == LINEAR else 0.5 + (recipe.params["max_depth"] - 6) ** 2 / 100 + recipe.params["subsample"] / 10
        )


def outcome(loss: float | None, spread: float = 0.0) -> Outcome:
    """14 days of 100 rows; `spread` moves days up and down in turns."""
    days = {f"2013-01-{d + 1:02}": (100 * ((loss or 0) + spread * (-1) ** d), 100) for d in range(14)}
    return Outcome(loss, 10, 1.0, days if loss is not None else {}, [[loss or 9.0]])


def put(study: str, params: Params, slots: Sequence[tuple[Recipe, Outcome]]) -> None:
    """Writes finished slots."""
    board = Board(study, 0, params)
    for number, (recipe, found) in enumerate(slots):
        trial = board.claim(number, recipe)
        assert trial is not None
        board.finish(trial, found, 1.0)


def default(params: Params, **changed: float) -> Recipe:
    return Recipe(family="xgboost", params={**{name: d.default for name, d in params.tune.space.items()}, **changed})


# ---- the same winner


def test_study__has_the_same_winner_however_the_workers_run(workspace: Path) -> None:
    params = small()
    built = folds.build(table(), FOLDS, FEATURES, params)

    def search(name: str, workers: int) -> Winner:
        together = [
            threading.Thread(target=tuning.run_worker, args=(name, (k, workers), params, [], built))
            for k in reversed(range(workers))
        ]
        for worker in together:
            worker.start()
        for worker in together:
            worker.join()
        return same(tuning.winner(name, params, None))

    alone = search("alone", 1)
    assert alone == search("again", 1) == search("two", 2) == search("three", 3)
    assert alone.trials == params.tune.trials + 1
    assert alone.recipe.family == "xgboost"
    assert alone.reason.startswith(f"trial {alone.trial} (xgboost) is the best of 10: loss 0.")


def test_study__a_killed_workers_retry_goes_on_at_once(workspace: Path) -> None:
    params = small()

    class Killed(BaseException):
        pass

    def dies_at_fifth(recipe: Recipe) -> None:
        if len(dying.seen) == 5:
            raise Killed

    dying = Surface(params, dies_at_fifth)
    with pytest.raises(Killed):
        tuning.run_worker("killed", (0, 1), params, [], dying)
    retried = Surface(params)
    assert tuning.run_worker("killed", (0, 1), params, [], retried) == params.tune.trials + 1 - 5
    assert not [recipe for recipe in retried.seen if recipe in dying.seen]
    assert tuning.run_worker("killed", (0, 1), params, [], Surface(params)) == 0
    tuning.run_worker("whole", (0, 1), params, [], Surface(params))
    assert tuning.winner("killed", params, None) == tuning.winner("whole", params, None)
    states = [t.state for t in Board("killed", 0, params)._trials()]
    assert (states.count(TrialState.FAIL), states.count(TrialState.RUNNING)) == (1, 0)


def test_study__a_claim_is_void_at_once_when_its_worker_is_back(workspace: Path) -> None:
    params = small()
    assert Board("back", 1, params).claim(0, LINEAR) is not None
    assert Board("back", 0, params).claim(0, LINEAR) is None
    assert Board("back", 1, params).claim(0, LINEAR) is not None


def test_study__a_dead_workers_claim_is_taken_over_after_a_while(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = small()
    assert Board("left", 1, params).claim(0, LINEAR) is not None
    other = Board("left", 0, params)
    assert other.claim(0, LINEAR) is None
    monkeypatch.setattr(board, "FIRST_STALE_SECONDS", 0.0)
    assert other.claim(0, LINEAR) is not None


def test_study__what_a_worker_that_was_given_up_found_is_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = small()
    slow, quick = Board("slow", 1, params), Board("slow", 0, params)
    late = slow.claim(0, LINEAR)
    monkeypatch.setattr(board, "FIRST_STALE_SECONDS", 0.0)
    assert quick.claim(0, LINEAR) is not None
    assert late is not None
    slow.finish(late, outcome(0.7), 1.0)
    assert quick.done()[0].outcome == outcome(0.7)


def test_study__a_worker_waits_for_the_others_slots(workspace: Path) -> None:
    params, board_worker = small(trials=3, startup=1), 1
    other = Board("wait", board_worker, params)
    trial = other.claim(0, LINEAR)
    assert trial is not None
    seen: list[Recipe] = []
    waiting = threading.Thread(target=lambda: tuning.run_worker("wait", (0, 2), params, [], Surface(params, seen.append)))
    waiting.start()
    while not seen:  # the default's slot is free, and done first
        time.sleep(0.01)
    time.sleep(3 * tuning.POLL_SECONDS)
    assert seen == [default(params)]  # generation 1 needs all of generation 0
    other.finish(trial, outcome(1.0), 1.0)
    waiting.join()
    assert len(seen) == 3


# ---- generations


def test_known__linear_then_defaults_then_warm_without_duplicates_and_misfits() -> None:
    params = small()
    deep = default(params, max_depth=99)
    warm = [
        default(params),
        deep,
        deep,
        Recipe(family="xgboost", params={"max_depth": 3.0}),
        Recipe(family="lightgbm", params={}),
        LINEAR,
    ]
    assert tuning.known(params, warm) == [LINEAR, default(params), default(params, max_depth=params.tune.space["max_depth"].high)]
    few = small(trials=1)
    assert tuning.known(few, warm) == [LINEAR, default(few)]


def test_generations__learn_from_those_before_and_from_nothing_else() -> None:
    params = small()
    good, bad = [Slot(k, default(params, max_depth=3 + k % 6), outcome(0.5 + k / 50)) for k in range(8)], []
    bad = [replace(slot, outcome=outcome(0.9 - slot.number / 50)) for slot in good]
    third = tuning.drawn("xgboost", 4, good, 3, params)
    assert third == tuning.drawn("xgboost", 4, good, 3, params)
    assert third != tuning.drawn("xgboost", 4, bad, 3, params)
    assert len({json.dumps(recipe.params) for recipe in third}) == 4
    assert tuning.drawn("xgboost", 4, good, 1, params) == tuning.drawn("xgboost", 4, bad, 1, params)
    assert all(d.low <= r.params[name] <= d.high for r in third for name, d in params.tune.space.items())


def test_search__finds_better_than_chance(workspace: Path) -> None:
    """On a known surface, generations that learn come nearer to its bottom than the quasi-random sequence alone."""
    learns, draws = small(trials=30, startup=6, generation=4), small(trials=30, startup=30)
    best = {}
    for name, params in (("learns", learns), ("draws", draws)):
        tuning.run_worker(name, (0, 1), params, [], Surface(params))
        best[name] = tuning.winner(name, params, None).loss
    assert best["learns"] < best["draws"]


def test_budget__no_generation_begins_after_the_seconds(workspace: Path) -> None:
    params = small(seconds=6.5)  # a second a trial: generations end at 2, 5 and 7
    assert tuning.run_worker("short", (0, 1), params, [], Surface(params)) == 7
    assert tuning.run_worker("short", (1, 2), params, [], Surface(params)) == 0


# ---- pruning


def test_thresholds__are_the_quantile_of_finished_trials_alone() -> None:
    params = small(prune=0.5)
    before = [Slot(k, default(params), replace(outcome(0.5), curves=[[0.5 + k / 10, 0.4]])) for k in range(3)]
    pruned = Slot(3, default(params), replace(outcome(None), curves=[[0.0]]))
    assert tuning.thresholds("xgboost", [*before, pruned, Slot(4, LINEAR, outcome(0.1))], params) == [pytest.approx([0.6, 0.4])]
    assert tuning.thresholds("xgboost", before, small(prune=1)) == ()
    assert tuning.thresholds("xgboost", before[:1], params) == ()


# ---- the choice


def test_winner__the_incumbent_stays_unless_another_is_better_beyond_noise(workspace: Path) -> None:
    params = small()
    champion, other = default(params, max_depth=4), default(params, max_depth=7)
    put(
        "noise",
        params,
        [(LINEAR, outcome(0.6)), (default(params), outcome(0.6)), (champion, outcome(0.5)), (other, outcome(0.49, 0.2))],
    )
    found = tuning.winner("noise", params, champion)
    assert (found.recipe, found.trial, found.trials, found.rounds) == (champion, 2, 4, 10)
    assert found.reason.startswith(
        "the champion's recipe stays: trial 3 (xgboost) is not better beyond noise, loss -0.01000 [-0."
    )
    put(
        "clear",
        params,
        [(LINEAR, outcome(0.6)), (default(params), outcome(0.6)), (champion, outcome(0.5)), (other, outcome(0.49))],
    )
    assert tuning.winner("clear", params, champion).recipe == other
    assert tuning.winner("clear", params, champion).reason.startswith(
        "trial 3 (xgboost) replaces the champion's recipe: loss -0.01000"
    )


def test_winner__without_champion_is_the_best_of_the_first_family(workspace: Path) -> None:
    params = small()
    put("first", params, [(LINEAR, outcome(0.4)), (default(params), outcome(0.49, 0.2)), (default(params, max_depth=8), outcome(0.48))])
    for champion in (None, default(params, max_depth=3)):  # that champion is not in the study
        found = tuning.winner("first", params, champion)
        assert (found.recipe, found.reason) == (default(params, max_depth=8), "trial 2 (xgboost) is the best of 3: loss 0.48000")


def test_winner__a_linear_champion_stays_unless_beaten_beyond_noise(workspace: Path) -> None:
    params = small()
    put("close", params, [(LINEAR, outcome(0.5)), (default(params), outcome(0.43, 0.2))])
    assert tuning.winner("close", params, LINEAR).recipe == LINEAR
    put("far", params, [(LINEAR, outcome(0.5)), (default(params), outcome(0.43))])
    assert tuning.winner("far", params, LINEAR).recipe == default(params)


def test_winner__a_second_family_must_beat_what_was_chosen(workspace: Path) -> None:
    params = with_second()
    second = next(r for r in tuning.known(params, []) if r.family == "lightgbm")
    for name, loss, spread, family in (("better", 0.4, 0.0, "lightgbm"), ("noise", 0.48, 0.2, "xgboost")):
        put(name, params, [(LINEAR, outcome(0.6)), (default(params), outcome(0.5)), (second, outcome(loss, spread))])
        assert tuning.winner(name, params, None).recipe.family == family


def test_winner__survives_json(workspace: Path) -> None:
    params = small()
    put("json", params, [(LINEAR, outcome(0.5)), (default(params), outcome(None)), (default(params, max_depth=8), outcome(0.4))])
    found = tuning.winner("json", params, None)
    assert Winner.model_validate_json(found.model_dump_json()) == found
    assert [(step["state"], step["best"], step["cpu_seconds"]) for step in found.convergence] == [
        ("complete", 0.5, 1.0), ("pruned", 0.5, 2.0), ("complete", 0.4, 3.0),
    ]  # fmt: skip


def test_winner__of_an_empty_study_says_what_to_run(workspace: Path) -> None:
    with pytest.raises(NotFoundError, match="run the tune step"):
        tuning.winner("nothing", small(), None)


def test_second_family__takes_part_in_the_same_study(workspace: Path) -> None:
    params = with_second(trials=4, second_trials=3, startup=1)
    assert tuning.run_worker("both", (0, 1), params, [], folds.build(table(), FOLDS, FEATURES, params)) == 8
    families = [step["family"] for step in tuning.winner("both", params, None).convergence]
    assert families == ["linear", "xgboost", "lightgbm", "xgboost", "lightgbm", "xgboost", "xgboost", "lightgbm"]


def test_params__a_second_family_needs_a_budget_and_a_space(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        Path("params.yaml")
        .read_text()
        .replace("second: null", "second: lightgbm")
        .replace("second_trials: 12", "second_trials: 0")
    )
    with pytest.raises(ConfigError, match="needs second_trials"):
        load_params(path)
