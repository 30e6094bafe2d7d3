"""Commands for people about batch scoring: files of any size, by any engine."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("score-files")
def score_files(
    inputs: list[str],
    output: Annotated[str, typer.Option(help="Parquet file that is replaced whole; a path or a URL")],
    as_of: Annotated[datetime, typer.Option(help="the champion of then answers; written as logged_at")],
    engine: Annotated[str, typer.Option(help="local, ray, spark or beam; default EVERGREEN_ENGINE")] = "",
    log_features: Annotated[bool, typer.Option(help="write the feature values too, as the prediction log has them")] = False,
) -> None:
    """Answers, by the champion, for every row of Parquet files of features: in their order, to one Parquet file.

    With --engine beam, --output may be a BigQuery table, bigquery://project.dataset.table, and then so may INPUTS.

    \b
    Example:
      evergreen score-files march.parquet --output scored.parquet --as-of 2013-04-18T04:00 --engine local
    """
    from ml import steps
    from ml.batch import engines
    from ml.batch.job import Job, Part
    from ml.config import load_params
    from ml.settings import settings

    champion = steps._require_champion(as_of)
    part = Part(inputs=[_whole(name) for name in inputs], output=_whole(output))
    job = Job(
        bundle=champion.bundle,
        version=champion.version,
        name=load_params().problem.name,
        as_of=as_of,
        parts=[part],
        log_features=log_features,
    )
    began, chosen = time.monotonic(), engine or settings().engine
    (rows,) = engines.run(job, chosen, settings().engine_address)
    typer.echo(f"{part.output}: {rows:,} rows scored by v{champion.version}, engine {chosen}, {time.monotonic() - began:.1f} s")


def _whole(name: str) -> str:
    """A path as every worker understands it."""
    return name if "://" in name else str(Path(name).resolve())
