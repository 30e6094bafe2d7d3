"""From feature rows to the day's partitions, as step `score` does it, and back as monitoring reads them."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from ml import store
from ml.batch import engines, score
from tests.batch.conftest import AS_OF, feature_rows
from tests.sample_bundle import sample_bundle


@pytest.mark.usefixtures("workspace")
def test_job__a_partition_a_day__read_back_as_answered() -> None:
    rows = feature_rows(50)
    job = score.job(store.put(sample_bundle()), "3", rows, [date(2013, 4, 17), date(2013, 4, 18)], AS_OF)
    assert engines.run(job, "local") == [0, 50]
    assert sorted(path.name for path in score.folder().iterdir()) == ["2013-04-17.parquet", "2013-04-18.parquet"]
    found = score.read_batch(datetime(2013, 4, 17), datetime(2013, 4, 19))
    assert found["entity_id"].tolist() == rows["entity_id"].to_pylist()
    assert score.answers_by("3")["count"] == 50
    before = [path.read_bytes() for path in sorted(score.folder().iterdir())]
    assert engines.run(job, "local") == [0, 50]
    assert [path.read_bytes() for path in sorted(score.folder().iterdir())] == before
