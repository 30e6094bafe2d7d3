"""Trees grown by several workers: each reads its share, all grow the same, and they are those of one process but for last digits."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml import engines, steps, store
from ml.config import Params, Task, load_params
from ml.errors import ConfigError, EvergreenError, IntegrityError, NotEnoughDataError, NotFoundError
from ml.features import batches, stored
from ml.features.definitions import Feature, load_module
from ml.packaging import lineage
from ml.packaging.artifacts import Artifacts
from ml.refs import Decision, FeatureSetRef, Recipe, ShippedRef, SnapshotRef, TrainPlan, Window
from ml.settings import ROOT
from ml.training import folds
from ml.training.encoding import encode, fit_encoding
from ml.training.fit import fit_model, labelled
from ml.training.models import XGBoost
from ml.training.rows import rows_for, rows_of
from ml.training.spread import fit as spread_fit
from ml.training.spread import on_local, run, survey
from ml.training.spread.job import Job, Outcome, share
from ml.training.tuning import Winner
from tests.conftest import forget
from tests.engine_marks import needs
from tests.sample_models import FEATURES, made_up, small_params

WINDOW = Window(start=date(2013, 1, 3), end=date(2013, 1, 25))
RECIPE = Recipe(family="xgboost", params={"max_depth": 4, "learning_rate": 0.2, "subsample": 1.0, "colsample_bytree": 1.0})
ROUNDS = 15


def put(
    rows: int = 6000, groups: int = 700, declared: Sequence[Feature] = FEATURES, in_order: bool = True
) -> tuple[FeatureSetRef, pd.DataFrame]:
    """A feature set in the store, in several row groups, with labels that are not known; and its rows."""
    table = made_up(declared, rows).round(1)  # fewer values than bins: then bins do not depend on who has which rows
    if not in_order:
        table = table.sample(frac=1, random_state=1).reset_index(drop=True)
    table.loc[::7, "label"] = np.nan
    for feature in declared:
        if feature.kind == "text":
            table.loc[::11, feature.name] = None
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), buffer, row_group_size=groups)
    digest = store.put(buffer.getvalue())
    whole = Window(start=date(2013, 1, 1), end=date(2013, 1, 31))
    made = FeatureSetRef(digest=digest, rows=rows, snapshot="", code="", window=whole, as_of=datetime(2013, 2, 1))
    return made, stored.read(made)


every_engine = pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in ("local", "ray", "spark")])


@pytest.fixture
def workers(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EVERGREEN_TRAIN_WORKERS", "3")
    monkeypatch.setattr(batches, "BATCH", 500)
    forget()
    yield
    forget()


def job_of(features: FeatureSetRef, params: Params, rounds: int = ROUNDS, workers: int = 3) -> Job:
    """What `spread_fit.fit` hands to the workers."""
    found = survey.survey(features.digest, WINDOW, FEATURES, params)
    shares, _ = survey.shared_out(features.digest, WINDOW, found.learned.rows, workers)
    encoding = store.put(found.encoding.model_dump_json().encode())
    settings = spread_fit.member_settings(params, RECIPE)
    return Job(features=features.digest, window=WINDOW, shares=shares, encoding=encoding, settings=settings, rounds=rounds)


# ---- what is known before the rows are shared out, in a stream


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_survey__in_a_stream__is_what_one_process_learns(task: Task, workers: None) -> None:
    params = small_params(task, climatology=("place", "hour"))
    features, table = put()
    found = survey.survey(features.digest, WINDOW, FEATURES, params)
    one = fit_model(table, WINDOW, FEATURES, params, Recipe(family="linear", params={}), 1)
    assert found.encoding == one.encoding
    assert found.learned == one.learned
    assert found.climatology == one.climatology
    rows = labelled(table, WINDOW)
    assert found.encoding == fit_encoding(FEATURES, rows, rows["label"].to_numpy(), len(params.problem.classes))


def test_survey__too_few_rows_or_labels_that_do_not_vary__says_so(workers: None) -> None:
    params = small_params()
    features, _ = put(60)
    with pytest.raises(NotEnoughDataError, match=r"train window .* at least 50 are wanted"):
        survey.survey(features.digest, WINDOW, FEATURES, params)


@pytest.mark.parametrize("in_order", [True, False], ids=["by_time", "in_no_order"])
def test_shares__cover_every_labelled_row_of_the_window_once(workers: None, in_order: bool) -> None:
    features, table = put(in_order=in_order)
    rows = labelled(table, WINDOW)
    for count in (1, 2, 3, 5):
        job = job_of(features, small_params(), workers=count)
        assert sum(each.rows for each in job.shares) == len(rows)
        assert max(each.rows for each in job.shares) - min(each.rows for each in job.shares) <= 1
        assert all(a.last == b.first for a, b in zip(job.shares, job.shares[1:], strict=False))
        parts = [share(job, rank) for rank in range(count)]
        assert [len(y_true) for _, y_true in parts] == [each.rows for each in job.shares]
        encoding = fit_encoding(FEATURES, rows, rows["label"].to_numpy())
        np.testing.assert_array_equal(np.concatenate([X for X, _ in parts]), encode(encoding, rows))
        np.testing.assert_array_equal(np.concatenate([y_true for _, y_true in parts]), rows["label"])


def test_share__other_row_groups_are_not_read(workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of 3 workers needs at most 2000 of 6000 rows, and a row group of 700 at each end."""
    job, read = job_of(put()[0], small_params()), []
    ours = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, *args: object, **kwargs: object) -> Iterator[pa.RecordBatch]:
        for batch in ours(self, *args, **kwargs):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    X, _ = share(job, 1)
    assert len(X) == job.shares[1].rows < sum(read) <= job.shares[1].last - job.shares[1].first + 2 * 700


def test_sample__of_more_rows_than_may_be_held__is_evenly_spaced(workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    features, table = put()
    rows = labelled(table, WINDOW)
    _, sample = survey.shared_out(features.digest, WINDOW, len(rows), 3)
    pd.testing.assert_frame_equal(sample, rows.reset_index(drop=True))
    monkeypatch.setattr(survey, "SAMPLE", len(rows) // 3)
    _, sample = survey.shared_out(features.digest, WINDOW, len(rows), 3)
    pd.testing.assert_frame_equal(sample, rows.iloc[::4].reset_index(drop=True))  # 1/3, and a row too many: every 4th


def test_rows__of_a_window_and_for_the_folds__are_those_of_the_whole_table(workers: None) -> None:
    features, table = put()
    pd.testing.assert_frame_equal(rows_of(features, WINDOW), labelled(table, WINDOW))
    nothing = Window(start=date(2014, 1, 1), end=date(2014, 1, 2))
    pd.testing.assert_frame_equal(rows_of(features, nothing), labelled(table, nothing))
    day = lambda first, last: Window(start=date(2013, 1, first), end=date(2013, 1, last))
    cut, params = [(day(1, 12), day(13, 16)), (day(1, 16), day(17, 20))], small_params()
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"rows": 900})})
    kept = rows_for(features, cut, 900)
    assert len(kept) < len(labelled(table, day(1, 20)))
    for ours, theirs in zip(folds.build(kept, cut, FEATURES, params).folds,
                            folds.build(table, cut, FEATURES, params).folds, strict=True):  # fmt: skip
        np.testing.assert_array_equal(ours.X_fit, theirs.X_fit)
        np.testing.assert_array_equal(ours.X_validation, theirs.X_validation)
        np.testing.assert_array_equal(ours.days, theirs.days)


# ---- the workers


@pytest.mark.e2e
@every_engine
def test_fit__three_workers__one_model__nearly_that_of_one_process(
    engine: str, workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_ENGINE", engine)
    forget()
    params = small_params(ensemble=2)
    features, table = put()
    seen: list[Outcome] = []
    monkeypatch.setattr(spread_fit, "run", lambda *args: seen.extend(run(*args)) or seen)
    made = spread_fit.fit(features, WINDOW, FEATURES, params, RECIPE, ROUNDS)
    rows = labelled(table, WINDOW)
    third = len(rows) // 3
    assert [outcome.rank for outcome in seen] == [0, 1, 2]
    assert sum(outcome.rows for outcome in seen) == len(rows)
    assert all(outcome.rows in (third, third + 1) for outcome in seen)  # no worker has had more than its share
    assert seen[0].boosters == seen[1].boosters == seen[2].boosters  # digests of what each has grown
    assert len(made.fitted.members) == len(seen[0].boosters) == 2
    assert made.workers == 3
    one = fit_model(table, WINDOW, FEATURES, params, RECIPE, ROUNDS)
    assert np.abs(made.fitted.predict(rows) - one.predict(rows)).max() < 1e-5  # sums in another order
    np.testing.assert_array_equal(made.fitted.linear.weights, one.linear.weights)
    again = XGBoost.load(store.get(seen[0].boosters[0]), "binary")
    assert again.dump() == made.fitted.members[0].dump()
    if engine != "local":  # the engine does not matter
        job = job_of(features, params)
        assert [outcome.boosters for outcome in run(job, "local")] == [outcome.boosters for outcome in seen]


@pytest.mark.e2e
def test_fit_step__by_two_workers__noted_with_the_model(workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(shipped.replace("min_rows: 5000 ", "min_rows: 50 "))
    monkeypatch.setenv("EVERGREEN_PARAMS", str(tmp_path / "params.yaml"))
    monkeypatch.setenv("EVERGREEN_TRAIN_WORKERS", "2")
    forget()
    features, table = put(declared=load_module(load_params()).features)
    holdout = Window(start=date(2013, 1, 26), end=date(2013, 1, 30))
    winner = Winner(recipe=RECIPE, rounds=5, loss=None, trial=0, trials=0, reason="", convergence=[])
    ref = steps._fitted(WINDOW, features, winner, holdout)
    assert ref.workers == 2
    parts = Artifacts.load(ref.artifacts)
    assert parts.fitted.learned.rows == len(labelled(table, WINDOW))
    assert parts.parity(labelled(table, holdout), load_params()).passed
    decision = Decision(kind="refit", verdict="judged", reason="", checks=[])
    plan = TrainPlan.model_construct(**dict.fromkeys(TrainPlan.model_fields, None) | {
        "snapshot": SnapshotRef.model_construct(digest=""), "as_of": datetime(2013, 2, 1)})  # fmt: skip
    tags = lineage.of(plan, features, ShippedRef(model=ref, twin=ref.artifacts, decision=decision))
    assert tags["workers"] == "2"
    alone = ref.model_copy(update={"workers": 1})
    assert "workers" not in lineage.of(plan, features, ShippedRef(model=alone, twin="", decision=decision))


def test_fit__one_worker__is_the_same_bytes_as_ever(workspace: Path) -> None:
    params = small_params()
    features, table = put()
    made, one = (
        spread_fit.fit(features, WINDOW, FEATURES, params, RECIPE, 5),
        fit_model(table, WINDOW, FEATURES, params, RECIPE, 5),
    )
    assert made.workers == 1
    assert made.fitted.members[0].dump() == one.members[0].dump()
    pd.testing.assert_frame_equal(made.rows, labelled(table, WINDOW))


def test_fit__other_families__one_worker(workers: None) -> None:
    assert spread_fit.workers_for(Recipe(family="linear", params={})) == 1
    assert spread_fit.workers_for(RECIPE) == 3


@pytest.mark.e2e
@every_engine
def test_run__a_worker_is_killed__the_others_end_and_run_again_it_is_whole(engine: str, workers: None, tmp_path: Path) -> None:
    params = small_params()
    features, _ = put()
    endless, failures = job_of(features, params, rounds=1_000_000), list[Exception]()

    def train() -> None:
        try:
            run(endless, engine)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    members = _joined(engine, thread, failures)
    members[1].kill()
    thread.join(timeout=300)
    assert not thread.is_alive(), "the step hangs"
    (failure,) = failures
    assert isinstance(failure, EvergreenError)
    assert "the others were stopped" in failure.what
    assert "run the step again" in failure.cure
    if engine == "local":
        assert failure.what.startswith("worker 2 of 3 was killed by SIGKILL")
    _, alive = psutil.wait_procs(members, timeout=60)
    assert alive == []
    assert len(run(job_of(features, params, workers=2), engine)) == 2


def _joined(engine: str, thread: threading.Thread, failures: list[Exception]) -> list[psutil.Process]:
    """The three workers' processes, once each is connected to the two others; by rank for engine local."""
    name = {"local": "ml.training.spread.process", "ray": "ray::_work", "spark": "pyspark.daemon"}[engine]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and thread.is_alive():
        found: list[tuple[str, psutil.Process, set[frozenset[int]]]] = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in (said := " ".join(process.cmdline())):
                    found.append((said, process, _connections(process)))
        peers = [sum(bool(mine & theirs) for _, other, theirs in found if other != one) for _, one, mine in found]
        if sum(each == 2 for each in peers) == 3:
            return [one for (_, one, _), each in sorted(zip(found, peers, strict=True), key=lambda f: f[0][0]) if each == 2]
        time.sleep(0.1)
    raise AssertionError(f"the workers never met: {failures}")


def _connections(process: psutil.Process) -> set[frozenset[int]]:
    """The ports at both ends of each; two processes that have one in common talk to each other."""
    found = (each for each in process.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED)
    return {frozenset((each.laddr.port, each.raddr.port)) for each in found}


@pytest.mark.e2e
@every_engine
def test_run__a_worker_fails__its_own_words(engine: str, workers: None) -> None:
    job = job_of(put()[0], small_params(), workers=1 if engine == "local" else 2)
    with pytest.raises(EvergreenError, match=r"(?s)the others were stopped: .*no object 000"):
        run(job.model_copy(update={"encoding": "0" * 64}), engine)


def test_failure__one_was_killed_and_has_pulled_others_down__it_is_the_one_that_is_named(tmp_path: Path) -> None:
    for rank, said in enumerate(("the connection to rank 1 was lost", "growing", "growing")):
        (tmp_path / f"{rank}.log").write_text(said)
    assert (
        on_local._failure(tmp_path, [1, -9, None]).what == "worker 2 of 3 was killed by SIGKILL, the others were stopped: growing"
    )
    assert on_local._failure(tmp_path, [1, None, 1]).what.startswith(
        "worker 1 of 3 failed, the others were stopped: the connection"
    )


def test_run__workers_do_not_agree__no_model(workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers say is made up here: no real one was ever seen to say it."""
    job = job_of(put()[0], small_params())
    fine = [Outcome(rank=i, rows=s.rows, boosters=["a"], peak_mb=1, seconds=1, cpu_seconds=1) for i, s in enumerate(job.shares)]
    for change, message in (({"rows": 7}, "workers have read"), ({"boosters": ["b"]}, "have grown 2 different models")):
        said = [*fine[:2], fine[2].model_copy(update=change)]
        monkeypatch.setattr(on_local, "carry", lambda job, address, said=said: [each.model_dump_json() for each in said])
        with pytest.raises(IntegrityError, match=message):
            run(job, "local")


def test_run__beam__says_that_it_cannot(workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(put()[0], small_params())
    monkeypatch.setitem(engines.NEEDS, "beam", "json")
    with pytest.raises(ConfigError, match=r"engine beam cannot train(?s:.*)EVERGREEN_ENGINE to local, ray or spark"):
        run(job, "beam")


def test_fit__table_was_damaged__is_found_before_any_worker_starts(workers: None) -> None:
    features, _ = put()
    path = Path(os.environ["EVERGREEN_VAR"]) / "store" / features.digest[:2] / features.digest
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="has digest"):
        spread_fit.fit(features, WINDOW, FEATURES, small_params(), RECIPE, 5)
    path.unlink()
    with pytest.raises(NotFoundError, match="no object"):
        spread_fit.fit(features, WINDOW, FEATURES, small_params(), RECIPE, 5)
