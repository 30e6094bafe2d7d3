"""Commands for people about retraining: hold it, let it go on, ask for one, and see what the policy thinks."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import typer

from ml.cli_release import AsOf, By, Reason

app = typer.Typer(pretty_exceptions_enable=False)
policy_app = typer.Typer(
    pretty_exceptions_enable=False, no_args_is_help=True, help="The retrain policy: its state, and orders that it follows."
)
app.add_typer(policy_app, name="policy")


def _give(kind: Literal["hold", "resume", "force"], by: str, reason: str, as_of: datetime | None, then: str) -> None:
    from ml import ledger
    from ml.monitoring import requests

    order = requests.give(kind, by, reason, as_of or ledger.data_now())
    typer.echo(f"{kind} at {order.at} by {by}: {then}")


@policy_app.command()
def hold(by: By, reason: Reason = "", as_of: AsOf = None) -> None:
    """Holds retrain requests until `evergreen policy resume`. Watching, nightly training and what serves go on.

    \b
    Example:
      evergreen policy hold --reason "new airport codes until Friday"
    """
    _give("hold", by, reason, as_of, "no retrain is asked for until `evergreen policy resume`")


@policy_app.command()
def resume(by: By, reason: Reason = "", as_of: AsOf = None) -> None:
    """Ends a hold, and closes the breaker that opens when retrains in a row bring no champion.

    \b
    Example:
      evergreen policy resume --reason "the rejected candidates had a broken weather feed"
    """
    _give("resume", by, reason, as_of, "the policy decides by itself again")


@policy_app.command()
def force(by: By, reason: Reason = "", as_of: AsOf = None) -> None:
    """Asks for one retrain at the next look of DAG `drift`, whatever budget, cool-down and breaker say.

    A data break, a hold and a retrain in flight still forbid it.

    \b
    Example:
      evergreen policy force --reason "labels of March were corrected"
    """
    _give("force", by, reason, as_of, "the next run of DAG drift asks for a retrain, unless data is broken or one is in flight")


@policy_app.command()
def status(as_of: AsOf = None) -> None:
    """Says what the policy thinks, why, and when a retrain is next allowed.

    \b
    Example:
      evergreen policy status
    """
    from ml import ledger
    from ml.config import load_params
    from ml.monitoring import requests
    from ml.monitoring.policy import next_allowed

    now = as_of or ledger.data_now()
    state, decision = requests.newest(now)
    since = f" since {state.since:%Y-%m-%d %H:%M}" if state.since else ""
    typer.echo(f"{state.phase}{since}")
    if decision is None:
        typer.echo("no day was watched yet: run DAG drift, or evergreen monitor and evergreen decide")
    else:
        typer.echo(f"last decision: {decision.verdict}: {decision.reason}")
        for check in decision.checks:
            typer.echo(f"  {'ok' if check.passed else '–':<3}{check.name}: {check.detail}")
    allowed = next_allowed(state, now, load_params().policy)
    typer.echo(f"a retrain is allowed from {allowed:%Y-%m-%d %H:%M} on" if allowed else "no retrain is allowed until that ends")
    for order in requests.orders(now)[-5:]:
        typer.echo(f"{order.at:%Y-%m-%d %H:%M}  {order.kind} by {order.by}: {order.reason}")
