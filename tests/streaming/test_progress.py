"""What is committed: never past a record whose answer the brokers do not have, and bookmarks that no later answer is before."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.streaming.progress import Progress, bookmarks_of

TOPICS = ("answers", "dead")


def progress(start: int = 0, answered: set[int] | None = None) -> Progress:
    return Progress(start, dict.fromkeys(TOPICS, 0), answered or set())


def test_acknowledge__out_of_order__done_waits_for_the_first() -> None:
    part = progress(5)
    first, second = part.take(5), part.take(6)
    assert first is not None and second is not None
    part.acknowledge(second, ("answers", 11))
    assert (part.done, part.waiting, part.bookmarks["answers"]) == (5, 2, 0)
    part.acknowledge(first, ("answers", 10))
    assert (part.done, part.waiting, part.bookmarks["answers"]) == (7, 0, 12)


def test_take__answered_before__is_done_without_an_answer() -> None:
    part = progress(5, {5, 7})
    assert part.take(5) is None
    assert part.done == 6
    sixth = part.take(6)
    assert sixth is not None
    assert part.take(7) is None
    assert part.done == 6
    part.acknowledge(sixth, ("dead", 3))
    assert part.done == 8
    assert part.bookmarks == {"answers": 0, "dead": 4}


def test_take__offsets_with_holes__what_is_missing_is_done() -> None:
    part = progress(0)
    each = part.take(9)
    assert each is not None
    part.acknowledge(each, ("answers", 0))
    assert part.done == 10


@given(
    dead=st.lists(st.booleans(), min_size=1, max_size=30),
    acknowledged=st.integers(0, 30),
    order=st.randoms(use_true_random=False),
)
def test_bookmarks__any_outcomes_in_any_order__no_answer_of_an_undone_record_stands_before_them(
    dead: list[bool], acknowledged: int, order: object
) -> None:
    part, ends, outputs, taken = progress(), dict.fromkeys(TOPICS, 0), [], []
    for offset, is_dead in enumerate(dead):
        topic = "dead" if is_dead else "answers"
        outputs.append((topic, ends[topic]))
        ends[topic] += 1
        taken.append(part.take(offset))
    order.shuffle(arrived := list(range(len(dead))))  # type: ignore[attr-defined]
    for offset in arrived[:acknowledged]:
        each = taken[offset]
        assert each is not None
        part.acknowledge(each, outputs[offset])
    assert set(range(part.done)) <= set(arrived[:acknowledged])
    found = bookmarks_of(part.metadata(), TOPICS)
    assert found is not None
    assert all(at >= found[topic] for topic, at in outputs[part.done :])


@pytest.mark.parametrize(
    "metadata",
    [None, "", "by hand", "[]", json.dumps({"answers": 3}), json.dumps({"answers": 3, "dead": "4"})],
    ids=["none", "empty", "text", "list", "one-topic", "no-number"],
)
def test_bookmarks_of__not_ours__none(metadata: str | None) -> None:
    assert bookmarks_of(metadata, TOPICS) is None
