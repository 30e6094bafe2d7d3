"""`evergreen ledger`: who decided what and why, what served when, and whether anybody has touched the notes since."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from ml.errors import EvergreenError

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The decision ledger: every verdict with its reason and who it came from. Times are UTC.",
)
Moment = Annotated[datetime | None, typer.Argument(help="wall clock, UTC, e.g. 2026-05-04T09:30:00; default: now")]


@app.command()
def show(
    kind: Annotated[list[str] | None, typer.Option(help="only this kind, e.g. retrain; may be given again")] = None,
    subject: Annotated[str | None, typer.Option(help="only about this, e.g. v7 or a DAG")] = None,
    actor: Annotated[str | None, typer.Option(help="only from this actor, e.g. cli:anna or schedule")] = None,
    since: Annotated[datetime | None, typer.Option(help="only with this data time or later")] = None,
    until: Annotated[datetime | None, typer.Option(help="only with this data time or earlier")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="only so many, the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line, with evidence, actor and digest")] = False,
) -> None:
    """Prints the decisions, oldest first: when (data time), what kind, what about, verdict, from whom, why.

    \b
    Examples:
      evergreen ledger show --kind retrain --last 5
      evergreen ledger show --actor cli:anna --json
    """
    from ml import ledger

    for e in reversed(ledger.query(kind or None, subject, actor, since, until, limit=last)):
        if as_json:
            typer.echo(json.dumps(asdict(e) | {name: getattr(e, name).isoformat() for name in ("as_of", "recorded_at")}))
        else:
            typer.echo(f"{e.as_of:%Y-%m-%d %H:%M}  {e.kind:<10} {e.subject:<8} {e.verdict:<9} {e.actor:<12} {e.reason}")


@app.command()
def verify(
    head: Annotated[str | None, typer.Option(help="a head that was noted earlier: proves that nothing was cut off since")] = None,
) -> None:
    """Checks that no entry was changed, removed or moved since it was written; exit code 1 when one was.

    Note the head that it prints somewhere else now and then: entries cut off at the end show only against it.

    \b
    Examples:
      evergreen ledger verify
      evergreen ledger verify --head 3f1c9a…
    """
    from ml import ledger

    if head is not None and (len(head) != 64 or set(head) - set("0123456789abcdef")):
        raise EvergreenError(f"--head {head} is no digest", "give the 64 hex digits that `evergreen ledger verify` printed")
    found = ledger.verify(head)
    if found.fault is None:
        typer.echo(f"{found.count} entries hold\nhead {found.head}")
        return
    fault = found.fault
    named = f"entry {fault.id} ({fault.key})" if fault.key else f"after entry {fault.id - 1}"
    typer.echo(f"{named}: {fault.what}: {fault.detail}\n{found.count} entries before it hold\nhead {found.head}")
    sys.exit(1)


@app.command()
def at(moment: Moment = None) -> None:
    """Says what was in production at a moment: champion, canary, manifest, retrain policy; since when, by whom and why.

    \b
    Example:
      evergreen ledger at 2026-05-04T09:30:00
    """
    from ml.monitoring import production
    from ml.refs import naive_utc

    found = production.at(naive_utc(moment or datetime.now(UTC)))
    document, state = found.document, found.state
    champion = document.champion.version if document.champion else "none"
    typer.echo(f"champion   version {champion}, since {_clock(found.champion_since)}")
    if document.canary is not None:
        typer.echo(f"canary     version {document.canary.version}, share {document.canary_share:g}")
    else:
        typer.echo("canary     none")
    if document.experiment is not None:
        arms = ", ".join(f"{arm} = version {deployed.version}" for arm, deployed in sorted(document.experiment.arms.items()))
        typer.echo(f"experiment {document.experiment.name}: {arms}; share {document.experiment.share:g}")
    typer.echo(
        f"manifest   {document.version}, since {_clock(found.changed)}, by {document.by} ({found.actor}): {document.reason}"
    )
    if found.looked is None:
        typer.echo("policy     had looked at no day yet")
    else:
        flight = f", in flight: {state.in_flight}" if state.in_flight else ""
        typer.echo(f"policy     {state.phase}, as of its look at {_clock(found.looked)}{flight}")
    held = f"by {found.order.by}: {found.order.reason}" if found.order is not None and found.holds else "none"
    typer.echo(f"hold       {held}")


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
