"""`evergreen replay`: what policies of retraining would have brought."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from ml import logs
from ml.settings import settings

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def replay(
    as_of: Annotated[datetime, typer.Option(help="data version; all labels that were known by then may be used in judging")],
    split: Annotated[datetime, typer.Option(help="first day that is reported; thresholds are chosen on the days before")],
    first: Annotated[
        datetime | None, typer.Option(help="first night with a model; default 45 days after the first landed day")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="that fit models at the same time")] = 2,
    seeds: Annotated[int, typer.Option(min=20, help="random policies with the default's number of retrains")] = 1000,
    out: Annotated[Path | None, typer.Option(help="folder for replay.csv and replay.png; default <var>/replay")] = None,
) -> None:
    """Prints what policies of retraining would have brought on the landed days: never, nightly, weekly, on drift, on harm, by
    chance, knowing the future, and the one of params.yaml.

    A model of every night is fitted once and kept in the store: a year takes about ten minutes of two cores at first, and about a
    minute after a change of `policy` or `monitoring.harm`. Ctrl-C loses nothing but the nights in work.

    \b
    Examples:
      evergreen replay --as-of 2014-01-04 --split 2013-07-01
      evergreen replay --as-of 2014-01-04 --split 2013-07-01 --processes 4 --out docs
    \b
    Not landed yet?
      evergreen land --start 2013-01-01 --end 2014-01-01 --as-of 2014-01-03T02:00
      evergreen validate && evergreen snapshot --as-of 2014-01-03T02:00
    """
    from ml.monitoring import replay_run

    began = time.monotonic()
    folder = out or settings().var / "replay"
    matrix, periods = replay_run.run(as_of, split.date(), first.date() if first else None, processes, seeds, _say)
    for replayed in periods:
        typer.echo("\n" + replay_run.told(replayed))
    for path in replay_run.write(matrix, periods, folder):
        logs.say(f"{path}")
    logs.say(f"replay: {timedelta(seconds=round(time.monotonic() - began))}")


def _say(line: str) -> None:
    logs.say(line)
