"""What the benchmark of backfills says of its rounds; the rounds themselves: tests/e2e/test_backfills.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ops.bench_backfills import Outcome, report


def test_report__says_what_moved_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    fine = Outcome("train", 3, 30.0)
    assert report({1: [fine], 2: [replace(fine, seconds=20.0)]}, 3) == 0
    assert "    1.50" in capsys.readouterr().out
    moved = replace(fine, wrong=["the manifest moved"])
    assert report({1: [fine], 2: [moved]}, 3) == 1
    assert "WRONG  2 at once, train: the manifest moved" in capsys.readouterr().out
