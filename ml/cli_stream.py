"""`evergreen stream`: answers what a Kafka topic asks, asks again what was answered wrongly or not at all, collects the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False)
replay_app = typer.Typer(
    pretty_exceptions_enable=False, no_args_is_help=True, help="Puts records into the topic of requests again."
)
app.add_typer(replay_app, name="replay")

Rate = Annotated[float, typer.Option(min=0.1, help="records a second at most: live ones wait behind them")]
Name = Annotated[str | None, typer.Option(help="of the replay, in a header of its records and answers; default: the time")]


@app.callback(invoke_without_command=True)
def stream(context: typer.Context) -> None:
    """Answers the records of a Kafka topic by the deployed champion, until it is stopped; follows the deployment manifest.

    \b
    Example:
      EVERGREEN_KAFKA=kafka:9092 evergreen stream
    """
    if context.invoked_subcommand is None:
        from ml.streaming.run import answer

        answer()


@app.command()
def collect() -> None:
    """Makes Parquet of the prediction log's topic, so that the loop can read it, until it is stopped.

    \b
    Example:
      EVERGREEN_KAFKA=kafka:9092 EVERGREEN_KAFKA_LOG=evergreen-log evergreen stream collect
    """
    from ml.streaming.run import collect as run

    run()


@replay_app.command("dead-letters")
def replay_dead_letters(
    since: datetime | None = None,
    until: datetime | None = None,
    reason: Annotated[str | None, typer.Option(help="only those with this reason: invalid, failed, …")] = None,
    rate: Rate = 200.0,
    name: Name = None,
) -> None:
    """Asks again what could not be answered: all since the last such replay, or what became a dead letter in a period (UTC).

    \b
    Examples:
      evergreen stream replay dead-letters
      evergreen stream replay dead-letters --since 2013-04-18T09:00 --until 2013-04-18T10:00 --reason failed
    """
    from ml.streaming import replay

    typer.echo(f"{replay.dead_letters(since, until, reason, rate, name or _now())} dead letters are asked again")


@replay_app.command("requests")
def replay_requests(since: datetime, until: datetime, rate: Rate = 200.0, name: Name = None) -> None:
    """Asks again what was asked in [SINCE, UNTIL), UTC. Answers have the message ids of the first ones.

    \b
    Example:
      evergreen stream replay requests 2013-04-18T09:00 2013-04-18T10:00 --rate 100
    """
    from ml.streaming import replay

    typer.echo(f"{replay.requests(since, until, rate, name or _now())} records are asked again")


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
