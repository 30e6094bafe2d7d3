"""Without a feature module the model gets the raw columns and the calendar."""

from __future__ import annotations

from pathlib import Path

from ml.config import load_params
from ml.features import offline
from ml.features.assembly import Assembler
from ml.features.definitions import code_digest, load_module
from ml.features.online import SQLiteStore
from tests.features.rows import ONE, flights, join
from tests.features.test_history import AS_OF

SHIPPED = load_params()
RAW = SHIPPED.model_copy(update={"features": SHIPPED.features.model_copy(update={"module": None})})


def test_raw_module__holds_no_outcome_and_no_time() -> None:
    names = {feature.name for feature in load_module(RAW).features}
    assert names == {"carrier", "flight", "origin", "dest", "tailnum", "distance", "minute", "sched_dep_time", "sched_arr_time",
                     "hour", "weekday"}  # fmt: skip
    assert {f.name for f in load_module(RAW).features if f.kind == "text"} == {"carrier", "origin", "dest", "tailnum"}


def test_raw_module__online_equals_offline_and_nothing_is_stale(tmp_path: Path) -> None:
    rows = flights([ONE, ONE | {"tailnum": None, "event": 9}])
    trained = offline.compute(RAW, rows, join(RAW, {}), AS_OF).to_pylist()
    spec = RAW.tables["flights"]
    requests = rows.select([c for c in spec.columns if c not in spec.outcomes]).to_pylist()
    served = Assembler(RAW).assemble(SQLiteStore(tmp_path / "never-written.db"), requests)
    assert served.flags == [[], []]
    for row, features in zip(trained, served.features, strict=True):
        assert {name: row[name] for name in features} == features
    assert (trained[0]["hour"], trained[0]["weekday"]) == (
        20.0,
        6.0,
    )  # midnight UTC of Monday 1 April is Sunday 20:00 in New York


def test_code_digest__changes_with_the_parameters_that_features_read() -> None:
    assert code_digest(RAW) != code_digest(SHIPPED)
