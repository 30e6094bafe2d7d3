"""Slices are the rows that they say, found ones are judged on other rows than found them, and the error is shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml.config import Evaluation, load_params
from ml.errors import ConfigError
from ml.evaluation import slices
from ml.evaluation.fairness import fairness

DAYS, PER_DAY = 14, 400
N = DAYS * PER_DAY
DRAW = np.random.default_rng(1)
DAY = np.repeat([f"2013-03-{17 + d}" for d in range(DAYS)], PER_DAY)
X = pd.DataFrame({
    "carrier": DRAW.choice(["AA", "UA", "HA"], N, p=[0.6, 0.38, 0.02]),
    "hour": np.where(np.arange(N) % 50 == 0, np.nan, DRAW.integers(0, 24, N)),
    "wind": DRAW.normal(size=N),
})  # fmt: skip
LOSS = DRAW.gamma(2, 0.25, N)


def evaluation(**changes: Any) -> Evaluation:
    return load_params().evaluation.model_copy(update={"slices": {}, "min_slice_rows": 300, **changes})


def judged(worse: np.ndarray, parts: list[slices.Slice], uses: int = 1, **changes: Any) -> dict[str, slices.Judged]:
    found = slices.judge(parts, LOSS + worse, LOSS, DAY, evaluation(**changes), load_params().gates, uses)
    return {each.slice.name: each for each in found}


# ---- declared


def test_declared__every_row_is_in_exactly_one_slice_of_a_feature() -> None:
    made = slices.declared(evaluation(slices={"carrier": None, "hour": [6, 12]}), X)
    rows = {each.name: each.rows for each in made}
    assert list(rows) == ["carrier = AA", "carrier = HA", "carrier = UA", "hour = 6 – 12", "hour = below 6", "hour = from 12",
                          "hour = missing"]  # fmt: skip
    np.testing.assert_array_equal(rows["hour = 6 – 12"], (X["hour"] >= 6) & (X["hour"] < 12))
    np.testing.assert_array_equal(rows["hour = missing"], X["hour"].isna())
    np.testing.assert_array_equal(sum(rows[name].astype(int) for name in rows if name.startswith("carrier")), np.ones(N))
    np.testing.assert_array_equal(sum(rows[name].astype(int) for name in rows if name.startswith("hour")), np.ones(N))


def test_declared__rare_values_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MAX_VALUES", 2)
    made = slices.declared(evaluation(slices={"carrier": None}), X)
    assert [each.name for each in made] == ["carrier = AA", "carrier = UA", "carrier = other"]
    assert made[2].rows.sum() == (X["carrier"] == "HA").sum()


def test_declared__an_unknown_feature_is_named() -> None:
    with pytest.raises(ConfigError, match="'colour'"):
        slices.declared(evaluation(slices={"colour": None}), X)


# ---- found


def test_found__names_where_it_is_worse_and_is_judged_on_other_days() -> None:
    bad = (X["wind"] > 1).to_numpy()
    excess = bad * 0.3 + DRAW.normal(0, 0.1, N)
    (worst, *_) = slices.found(evaluation(found_slices=2), X, ["wind", "hour"], excess, DAY)
    assert worst.name.startswith("wind > ")
    assert abs(float(worst.name.split("> ")[1].split()[0]) - 1) < 0.1
    assert bad[worst.rows].mean() > 0.95
    assert set(DAY[worst.rows]) == set(np.unique(DAY)[1::2]), "the days that found it do not judge it"
    assert slices.found(evaluation(found_slices=0), X, ["wind"], excess, DAY) == []
    assert slices.found(evaluation(min_slice_rows=N), X, ["wind"], excess, DAY) == []


def test_found__of_noise_are_not_called_worse() -> None:
    """The same slices on the rows that found them would be: that is what honest trees are for."""
    excess = DRAW.normal(0, 1.0, N)
    parts = slices.found(evaluation(found_slices=4), X, ["wind", "hour"], excess, DAY)
    gates = load_params().gates.model_copy(update={"slice_margin": 0.0})
    found = slices.judge(parts, LOSS + excess, LOSS, DAY, evaluation(), gates, 1)
    assert found, "something was found in noise"
    assert {each.verdict for each in found} <= {"ok", "too few rows"}
    assert sum(each.verdict == "ok" for each in found) >= 2


# ---- judged


def test_judge__says_worse_only_where_it_is() -> None:
    bad = (X["carrier"] == "UA").to_numpy()
    found = judged(bad * 0.1, slices.declared(evaluation(slices={"carrier": None}), X))
    assert {name: each.verdict for name, each in found.items()} == {
        "carrier = AA": "ok", "carrier = UA": "worse", "carrier = HA": "too few rows",
    }  # fmt: skip
    worst = found["carrier = UA"]
    assert (worst.n, worst.days) == (bad.sum(), DAYS)
    assert worst.loss - worst.reference_loss == pytest.approx(0.1)


def test_judge__shares_the_error_out_among_slices_and_uses() -> None:
    noise, carriers = DRAW.normal(0, 0.3, N), slices.declared(evaluation(slices={"carrier": None}), X)
    alone = judged(noise, [carriers[0]])["carrier = AA"].difference
    many = judged(noise, slices.declared(evaluation(slices={"carrier": None, "hour": [6, 12, 18]}), X))["carrier = AA"].difference
    used = judged(noise, [carriers[0]], uses=14)["carrier = AA"].difference
    assert alone is not None and many is not None and used is not None
    width = [d.high - d.low for d in (alone, many, used)]
    assert width[0] < width[1] < width[2]


def test_judge__a_slice_of_one_day_is_shown_and_not_judged() -> None:
    only = slices.Slice("a day", np.char.equal(DAY, DAY[0]))
    found = judged(np.full(N, 0.5), [only])["a day"]
    assert (found.n, found.days, found.difference, found.verdict) == (PER_DAY, 1, None, "too few rows")


# ---- fairness


def test_fairness__is_the_larger_spread_of_error_rates() -> None:
    y_true = np.tile([1, 1, 1, 1, 0, 0, 0, 0], 100)
    group_of = np.repeat(["a", "b"], 400)
    decided = np.concatenate([np.tile([1, 1, 1, 1, 1, 0, 0, 0], 50), np.tile([1, 1, 1, 0, 0, 0, 0, 0], 50)])
    found = fairness("origin", y_true, decided, group_of, min_rows=10)
    assert found.value == pytest.approx(0.25)  # both rates: 1 against 3/4, and 1/4 against 0
    assert [(g["group"], g["true_positive_rate"], g["false_positive_rate"]) for g in found.groups] == [
        ("a", 1.0, 0.25), ("b", 0.75, 0.0),
    ]  # fmt: skip


def test_fairness__small_groups_and_rates_that_cannot_be_do_not_count() -> None:
    y_true = np.array([1, 0] * 200 + [0] * 100 + [1] * 5)
    group_of = np.array(["a"] * 200 + ["b"] * 200 + ["only noes"] * 100 + ["small"] * 5)
    decided = np.where(group_of == "small", 0, y_true)
    assert fairness("origin", y_true, decided, group_of, min_rows=10).value == 0.0
    assert fairness("origin", y_true, decided, group_of, min_rows=1).value == 1.0
    assert np.isnan(fairness("origin", y_true, decided, np.full(len(y_true), "all"), min_rows=1).value)
