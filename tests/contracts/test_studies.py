"""A study in PostgreSQL: the same winner as in a file, also when workers start together in an empty database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml.settings import settings
from ml.training import tuning
from tests.training.small import small
from tests.training.test_tuning import Surface, same


def test_study__in_postgresql_has_the_winner_of_a_file(
    workspace: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = small()
    tuning.run_worker("study", (0, 1), params, [], Surface(params))
    in_file = same(tuning.winner("study", params, None))
    monkeypatch.setenv("EVERGREEN_OPTUNA", postgres_url)
    settings.cache_clear()
    with ThreadPoolExecutor(3) as together:
        counts = list(together.map(lambda k: tuning.run_worker("study", (k, 3), params, [], Surface(params)), range(3)))
    assert sum(counts) >= params.tune.trials + 1
    assert same(tuning.winner("study", params, None)) == in_file
