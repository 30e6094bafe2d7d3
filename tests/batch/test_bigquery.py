"""BigQuery beside Beam: its own test client takes what a load job would get. No BigQuery answers here; reading is not run.

`make test-engines` runs this in an environment with Beam.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from ml.batch import engines
from ml.batch.job import Job, Part
from ml.errors import ConfigError
from ml.serving.segments import SCHEMA
from tests.batch.test_engines import expected, needs

Make = Callable[..., Job]
TABLE = "bigquery://project1.dataset1.scored$20130418"
pytestmark = needs("beam")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with a line for each load job: its destination, its disposition, and the rows of the files that it names.

    A file, because Beam copies the client with the functions that use it.
    """
    import apache_beam as beam
    from apache_beam.io.gcp.internal.clients import bigquery as api
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from ml.batch.engines import bigquery

    seen = tmp_path / "loads.jsonl"

    def insert(request: Any, **_: Any) -> Any:
        load = request.job.configuration.load
        rows = [json.loads(line) for uri in load.sourceUris for line in Path(uri).read_text().splitlines()]
        to = load.destinationTable
        said = {"to": f"{to.projectId}.{to.datasetId}.{to.tableId}", "how": load.writeDisposition, "rows": rows}
        with seen.open("a") as file:
            file.write(json.dumps(said) + "\n")
        return api.Job(jobReference=api.JobReference(projectId="project1", jobId="load"))

    done = mock.Mock(jobReference=api.JobReference(projectId="project1", jobId="load"))
    done.status.state, done.status.errorResult = "DONE", None
    client = mock.Mock()
    client.jobs.Get.return_value, client.jobs.Insert.side_effect = done, insert
    real = bigquery.sink
    doubles = {"test_client": client, "custom_gcs_temp_location": str(tmp_path / "temp"), "validate": False}
    monkeypatch.setattr(bigquery, "sink", lambda table: real(table, **doubles))
    # in this process: a mock does not travel to another
    monkeypatch.setattr(bigquery, "pipeline", lambda _: beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])))
    return seen


def rows_of(job: Job) -> list[dict]:
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in expected(job)[0].to_pylist()
    ]


def by_name(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: row["entity_id"])


def test_run__files_into_a_table__one_truncating_load_of_every_answer(make_job: Make, loaded: Path) -> None:
    job = make_job(rows=900)
    part = job.parts[0].model_copy(update={"output": TABLE})
    assert engines.run(job.model_copy(update={"parts": [part]}), "beam") == [1800]
    (load,) = map(json.loads, loaded.read_text().splitlines())
    assert (load["to"], load["how"]) == (TABLE.removeprefix("bigquery://"), "WRITE_TRUNCATE")
    assert by_name(load["rows"]) == by_name(rows_of(job))


def test_run__table_into_a_table__the_answers_that_files_get(
    make_job: Make, loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import apache_beam as beam

    from ml.batch.engines import bigquery

    job = make_job(rows=900)
    rows = [row for path in job.parts[0].inputs for row in pq.read_table(path).to_pylist()]
    monkeypatch.setattr(bigquery, "source", lambda table, columns: beam.Create(rows))  # stands for the service
    part = Part(inputs=["bigquery://project1.dataset1.rows"], output=TABLE)
    assert engines.run(job.model_copy(update={"parts": [part]}), "beam") == [1800]
    (load,) = map(json.loads, loaded.read_text().splitlines())
    assert by_name(load["rows"]) == by_name(rows_of(job))


def test_source__reads_the_needed_columns_straight_from_storage() -> None:
    from ml.batch.engines import bigquery

    made = bigquery.source("bigquery://project1.dataset1.rows", ["entity_id", "distance"])
    assert made.method == "DIRECT_READ"
    assert made._kwargs["table"] == "project1:dataset1.rows"
    assert made._kwargs["selected_fields"] == ["entity_id", "distance"]


def test_schema__every_column_of_the_log_has_a_type() -> None:
    from ml.batch.engines import bigquery

    fields = [bigquery._field(field) for field in SCHEMA]
    assert [field["name"] for field in fields] == SCHEMA.names
    assert {f["name"]: f["mode"] for f in fields}["flags"] == "REPEATED"


@pytest.mark.parametrize(
    ("inputs", "output", "engine", "said"),
    [
        (["bigquery://p.d.t"], TABLE, "local", "engine local does not know"),
        (["bigquery://p.d.t"], "/out.parquet", "beam", "has no order of rows"),
        (["bigquery://p.d.t", "/in.parquet"], TABLE, "beam", "inputs are tables and files"),
        (["bigquery://d.t"], TABLE, "beam", "names no table"),
    ],
    ids=["another engine", "a file as output", "mixed inputs", "no project"],
)
def test_run__what_cannot_be__says_so(make_job: Make, inputs: list[str], output: str, engine: str, said: str) -> None:
    job = make_job().model_copy(update={"parts": [Part(inputs=inputs, output=output)]})
    with pytest.raises(ConfigError, match=said):
        engines.run(job, engine)
