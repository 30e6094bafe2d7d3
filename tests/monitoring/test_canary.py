"""The canary's verdict: harm is found, harmlessness is shown, and what is not known yet is running."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ml.config import Release, load_params
from ml.monitoring.canary import analyse, at_step, evidence, least_answers
from ml.refs import Check, Decision

LIMITS = load_params().release
NOON = datetime(2013, 4, 1, 12)


def logged(n: int, seed: int = 0, shift: float = 0.0, slower: float = 1.0, errors: float = 0.0, manifest: int = 2,
           blur: float = 0.0, copies: bool = True) -> tuple[pd.DataFrame, pd.Series]:  # fmt: skip
    """Entries of `n` answers by the canary (version 2) and by the baseline (version 1) with their copies, 8 an hour; and labels."""
    rng = np.random.default_rng(seed)
    rows, labels = [], {}
    for i in range(2 * n):
        canary_side = i % 2 == 0
        truth = rng.uniform(0.05, 0.6)
        said = float(np.clip(1 / (1 + np.exp(-np.log(truth / (1 - truth)) - blur * rng.standard_normal())) + shift, 0.001, 0.999))
        failed = canary_side and rng.random() < errors
        entity, at = f"{seed}-{manifest}-{i}", NOON + timedelta(minutes=7.5 * i)
        labels[entity] = float(rng.random() < truth)
        seconds = 0.003 * float(np.exp(0.4 * rng.standard_normal())) * (slower if canary_side else 1.0)
        common = {"entity_id": entity, "request_id": f"r{entity}", "event_time": at, "logged_at": at, "manifest": manifest}
        answers = {"2": said, "1": truth}
        first, second = ("2", "1") if canary_side else ("1", "2")
        shown = "1" if failed else first
        rows.append(common | {"cohort": "canary" if canary_side else "baseline", "model_version": shown, "probability": answers[shown],
                              "seconds": seconds, "flags": ["fallback_champion"] if failed else []})  # fmt: skip
        if copies:
            rows.append(
                common
                | {"cohort": "shadow", "model_version": second, "probability": answers[second], "seconds": 0.0, "flags": []}
            )
    return pd.DataFrame(rows), pd.Series(labels)


def verdict(entries: pd.DataFrame, labels: pd.Series, limits: Release = LIMITS, manifest: int | None = None) -> Decision:
    return analyse(entries, labels, limits, "2", "1", manifest)


def check(decision: Decision, name: str) -> Check:
    return next(c for c in decision.checks if c.name == name)


def test_analyse__equal_models_pass_when_it_is_shown() -> None:
    entries, labels = logged(1200)
    decision = verdict(entries, labels)
    assert (decision.verdict, decision.passed) == ("pass", True)
    assert [c.name for c in decision.checks] == ["answers", "errors", "latency", "scores", "quality"]
    assert verdict(entries.sample(frac=1, random_state=1), labels) == decision  # the order of the rows says nothing


def test_analyse__too_few_answers_are_running_even_if_nothing_is_wrong() -> None:
    few = logged(LIMITS.min_answers + 20)
    assert check(verdict(*few), "answers").passed
    assert verdict(*few).verdict == "running"
    assert "not shown yet" in check(verdict(*few), "errors").detail
    enough, labels = logged(least_answers(LIMITS) + 5)
    assert verdict(enough, labels * np.nan).verdict == "pass"


def test_analyse__of_nothing_says_so_in_words() -> None:
    entries, labels = logged(1)
    nothing = verdict(entries.iloc[:0], labels)
    assert nothing.verdict == "running"
    assert "nan" not in nothing.reason and "latency: not shown yet: nothing to compare yet" in nothing.reason


@pytest.mark.parametrize(
    ("harm", "name"),
    [({"errors": 0.1}, "errors"), ({"slower": 2.5}, "latency"), ({"shift": 0.12}, "scores"), ({"shift": -0.12}, "scores"), ({"blur": 1.2}, "quality")],
)  # fmt: skip
def test_analyse__harm_is_found_and_named(harm: dict[str, Any], name: str) -> None:
    decision = verdict(*logged(1500, **harm))
    assert decision.verdict == "fail"
    assert "harm is shown" in check(decision, name).detail
    assert name in decision.reason


def test_analyse__a_wreck_fails_before_min_answers() -> None:
    entries, labels = logged(20, errors=1.0)
    assert verdict(entries, labels).verdict == "fail"


def test_analyse__quality_does_not_bind_before_min_labels_and_needs_hours() -> None:
    entries, labels = logged(1200, blur=1.2)
    labels.iloc[LIMITS.min_labels - 100 :] = np.nan
    early = verdict(entries, labels)
    assert early.verdict == "pass"
    assert "shown only" in check(early, "quality").detail
    entries, labels = logged(1200)
    in_one_hour = entries.assign(event_time=NOON)
    assert verdict(in_one_hour, labels).verdict == "running"
    assert "not shown yet" in check(verdict(in_one_hour, labels), "quality").detail


def test_analyse__waits_for_labels_and_says_how_many_there_are() -> None:
    waiting = LIMITS.model_copy(update={"wait_for_labels": 800})
    entries, labels = logged(1200)
    few = labels.copy()
    few.iloc[120:] = np.nan
    assert verdict(entries, few).verdict == "pass", "nobody waits"
    early = verdict(entries, few, waiting)
    assert (early.verdict, early.reason) == ("running", "labels: 120 of 800 labels")
    assert (check(early, "labels").value, check(early, "labels").threshold) == (120.0, 800.0)
    few.iloc[120:700] = labels.iloc[120:700]
    assert verdict(entries, few, waiting).reason == "labels: 700 of 800 labels", "more than min_labels, and still too few"
    assert verdict(entries, labels, waiting).verdict == "pass"
    worse, truth = logged(1500, blur=1.2)
    assert verdict(worse, truth * np.nan, waiting).verdict == "running"
    assert verdict(worse, truth, waiting).verdict == "fail"


def test_at_step__only_the_last_waits() -> None:
    waiting = LIMITS.model_copy(update={"wait_for_labels": 800})
    assert [at_step(waiting, share).wait_for_labels for share in LIMITS.steps] == [0] * (len(LIMITS.steps) - 1) + [800]
    assert at_step(waiting, 0.05).steps == LIMITS.steps, "the chance of a false alarm is shared by all of them"


def test_analyse__without_copies_scores_are_not_shown() -> None:
    decision = verdict(*logged(1200, copies=False))
    assert decision.verdict == "running"
    assert check(decision, "scores").n == 0


def test_analyse__earlier_steps_add_pairs_but_no_answers() -> None:
    before, old = logged(1200, manifest=2)
    now, new = logged(60, seed=1, manifest=3)
    entries, labels = pd.concat([before, now]), pd.concat([old, new])
    decision = verdict(entries, labels, manifest=3)
    assert decision.verdict == "running"
    assert (check(decision, "answers").value, check(decision, "scores").n) == (60, 2520)
    assert verdict(before, old, manifest=3).verdict == "running"  # nothing of the new step yet


def test_evidence__what_is_no_pair_is_left_out() -> None:
    entries, labels = logged(300, errors=0.2)
    failed = entries["flags"].str.len() > 0
    found = evidence(entries, labels, "2", "1")
    assert found.canary_errors.sum() == failed.sum() > 0
    assert len(found.canary_scores) == 600 - failed.sum() == len(found.loss_gaps)
    twice = pd.concat([entries, entries.assign(request_id="again" + entries["request_id"], probability=0.5)])
    twice.loc[twice["request_id"].str.startswith("again"), "logged_at"] += timedelta(days=9)
    assert np.array_equal(evidence(twice, labels, "2", "1").canary_scores, found.canary_scores)
    seen_by_none = entries[entries["cohort"] == "canary"].assign(cohort="shadow", flags=[[]] * 300)
    seen_by_none["entity_id"] = "x" + seen_by_none["entity_id"]
    copies = pd.concat([seen_by_none.assign(model_version=version) for version in "12"])
    assert len(evidence(pd.concat([entries, copies]), labels, "2", "1").canary_scores) == len(found.canary_scores)
    arrow = evidence(pa.Table.from_pandas(entries), labels, "2", "1")
    assert all(np.array_equal(a, b) for a, b in zip(vars(arrow).values(), vars(found).values(), strict=True))


def test_analyse__a_batch_is_one_time_of_a_cohort() -> None:
    entries, labels = logged(400)
    batch = entries.assign(
        request_id=entries["cohort"].where(entries["cohort"] != "shadow", "x") + entries.index.astype(str).str[:1]
    )
    assert (
        len(evidence(batch, labels, "2", "1").canary_seconds)
        == batch.loc[batch["cohort"] == "canary", "request_id"].nunique()
        < 400
    )


def test_least_answers__is_what_errors_or_the_parameter_ask_for() -> None:
    assert least_answers(LIMITS) > LIMITS.min_answers
    assert least_answers(LIMITS.model_copy(update={"max_error_increase": 0.2})) == LIMITS.min_answers
