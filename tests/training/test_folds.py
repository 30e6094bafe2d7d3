"""What a recipe loses on the folds: by day, for every family and task, and stopped where it is worse."""

from __future__ import annotations

import numpy as np
import pytest

from ml.errors import NotEnoughDataError
from ml.training import folds, tuning
from ml.training.fit import labelled
from tests.training.small import FEATURES, FOLDS, small, table, with_second


@pytest.mark.parametrize("family", ["xgboost", "lightgbm"])
def test_pruning__stops_a_trial_at_the_checkpoint_where_it_is_worse(family: str) -> None:
    params = with_second()
    built = folds.build(table(), FOLDS, FEATURES, params)
    recipe = next(r for r in tuning.known(params, []) if r.family == family)
    whole = built.evaluate(recipe)
    assert whole.loss is not None
    assert [len(curve) for curve in whole.curves] == [5, 5]  # 5, 10, 15, 20 rounds, and the end
    assert all(curve == sorted(curve, reverse=True) for curve in whole.curves)
    same_curves = built.evaluate(recipe, whole.curves)
    assert (same_curves.loss, same_curves.rounds) == (whole.loss, whole.rounds)  # not worse than itself
    lowered = [list(curve) for curve in whole.curves]
    lowered[1][2] -= 1e-6
    stopped = built.evaluate(recipe, lowered)
    assert (stopped.loss, stopped.curves) == (None, [whole.curves[0], whole.curves[1][:3]])
    assert stopped.cpu_seconds > 0
    at_the_end = [[*curve[:-1], curve[-1] - 1e-6] for curve in whole.curves]
    assert built.evaluate(recipe, at_the_end).curves == whole.curves[:1]
    assert built.evaluate(recipe, [whole.curves[0], at_the_end[1]]).loss == whole.loss  # all is spent: it may as well count


@pytest.mark.parametrize("family", ["linear", "xgboost", "lightgbm"])
def test_evaluate__loss_is_that_of_the_rows_by_day(family: str) -> None:
    params = with_second()
    built = folds.build(table(), FOLDS, FEATURES, params)
    found = built.evaluate(next(r for r in tuning.known(params, []) if r.family == family))
    assert sorted(found.days) == [str(day) for _, validation in FOLDS for day in validation.days()]
    assert sum(rows for _, rows in found.days.values()) == sum(len(labelled(table(), v)) for _, v in FOLDS)
    assert found.loss == pytest.approx(sum(s for s, _ in found.days.values()) / sum(n for _, n in found.days.values()))
    by_fold = [np.array([found.days[str(day)] for day in v.days()]).sum(axis=0) for _, v in FOLDS]
    first, second = (total / rows for total, rows in by_fold)
    assert [curve[-1] for curve in found.curves] == pytest.approx([first, (first + second) / 2], abs=1e-5)


@pytest.mark.parametrize(("task", "classes"), [("multiclass", ["a", "b", "c"]), ("regression", [])])
def test_evaluate__other_tasks(task: str, classes: list[str]) -> None:
    params = with_second()
    params = params.model_copy(update={"problem": params.problem.model_copy(update={"task": task, "classes": classes})})
    rows = table()
    rows["label"] = rows["x"].abs().round().clip(0, 2) if task == "multiclass" else rows["x"] ** 2
    built = folds.build(rows, FOLDS, FEATURES, params)
    linear, trees, second = (built.evaluate(recipe).loss for recipe in tuning.known(params, []))
    assert linear is not None and trees is not None and second is not None
    assert trees < linear / 2 and second < linear


def test_folds__refuse_too_few_rows() -> None:
    with pytest.raises(NotEnoughDataError, match=r"fold 2013-01-01\.\.2013-01-11 has 39 labelled rows, at least 50"):
        folds.build(table(rows=100), FOLDS, FEATURES, small())
