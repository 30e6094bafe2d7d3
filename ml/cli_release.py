"""Commands for people that change what serves: rollback, and A/B experiments."""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ml.errors import ConfigError
from ml.serving.manifest import Manifest

if TYPE_CHECKING:
    from ml.monitoring.experiment import Metric

AsOf = Annotated[
    datetime | None,
    typer.Option(help="data time of the change; default: now, or the ledger's latest time when the source has ended"),
]
By = Annotated[str, typer.Option(default_factory=getpass.getuser, show_default="your login", help="who does it")]
Reason = Annotated[str, typer.Option(help="why; it is written into manifest and ledger")]

app = typer.Typer(pretty_exceptions_enable=False)
experiment_app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, help="A/B tests on live entities.")
app.add_typer(experiment_app, name="experiment")


@app.command()
def rollback(
    by: By,
    to: Annotated[str | None, typer.Option(help="version that shall serve instead; it must have served before")] = None,
    reason: Reason = "rolled back by hand",
    as_of: AsOf = None,
) -> None:
    """Ends a running canary or experiment; without one, the previous champion serves again. Twice is once.

    \b
    Examples:
      evergreen rollback --reason "complaints about morning flights"
      evergreen rollback --to 3
    """
    from ml.serving import manifest, release

    before = manifest.current()
    now = release.rollback(to, by, reason, as_of)
    if before is not None and now.version == before.version:
        typer.echo(f"nothing changed: {_what(now)} since manifest {now.version} ({now.reason})")
    else:
        typer.echo(f"{_what(now)} now (manifest {now.version}); services follow within a second")
    typer.echo(_undo(now))


def _what(now: Manifest) -> str:
    return f"version {now.champion.version if now.champion else None} serves all"


def _undo(now: Manifest) -> str:
    """How to come back to what was before manifest `now`."""
    from ml.serving import manifest

    before = next((document for document in reversed(manifest.history()) if document.version < now.version), None)
    if before is None or before.champion is None:
        return "there was nothing before it"
    if before.champion != now.champion:
        return f"undo: evergreen rollback --to {before.champion.version}"
    if before.canary is not None:
        return f"undo: release version {before.canary.version} again, with a new as_of (DAG release, or evergreen canary)"
    if before.experiment is not None:
        return f"undo: start an experiment under a new name; {before.experiment.name!r} has ended"
    return "nothing to undo"


@experiment_app.command("start")
def start(
    name: str,
    arm: Annotated[list[str], typer.Option(help="ARM=VERSION, once for each arm beside control, which is the champion")],
    share: Annotated[float, typer.Option(help="of all entities, split evenly between the arms")],
    minimum_effect: Annotated[float, typer.Option(help="smallest difference to control that matters, in the metric's unit")],
    by: By,
    metric: Annotated[str, typer.Option(help="log_loss, brier, cost or decision_rate")] = "log_loss",
    reason: Reason = "",
    as_of: AsOf = None,
    power: Annotated[float, typer.Option(help="chance to see an effect of that size if there is one")] = 0.8,
    per_day: Annotated[
        float | None, typer.Option(help="entities asked for a day; default: as in the newest days of the log")
    ] = None,
    sd: Annotated[float | None, typer.Option(help="spread of the metric over entities; default: as in the log")] = None,
    forecast_only: Annotated[bool, typer.Option("--forecast", help="say how long it would take, and start nothing")] = False,
) -> None:
    """Splits a share of the entities evenly between the champion and other versions, and says how long it will take.

    \b
    Example:
      evergreen experiment start deeper-trees --arm treatment=4 --share 0.2 --metric log_loss --minimum-effect 0.01
    """
    from ml.monitoring import trials

    asked = cast("Metric", metric)  # `trials` refuses others
    plan = trials.Plan(name, _arms(arm), share, asked, minimum_effect, power, per_day, sd)
    if forecast_only:
        needs = trials.forecast(plan)
    else:
        now, needs = trials.start(plan, by, reason, as_of)
        arms = ", ".join(f"{a} = version {d.version}" for a, d in sorted(now.experiment.arms.items())) if now.experiment else ""
        typer.echo(f"experiment {name}: {arms}; {share:.0%} of entities (manifest {now.version})")
    typer.echo(
        f"{metric}: a difference of {minimum_effect:g} shows after {needs.per_arm:,} entities in each arm, about "
        f"{needs.days:.1f} days of traffic, the labels' delay on top ({needs.per_arm_fixed:,} if one looked once, at the end)"
    )


@experiment_app.command("status")
def status(name: Annotated[str | None, typer.Argument(help="default: the one that runs")] = None) -> None:
    """Says what an experiment has shown so far. Looking often is safe: its intervals hold at any time.

    \b
    Example:
      evergreen experiment status
    """
    from ml.monitoring import trials

    found = trials.status(name)
    typer.echo(f"{'ARM':<14}{'version':>8}{'entities':>10}{found.metric:>14}{'difference':>12}  {'interval':<20}  verdict")
    for arm in found.arms:
        mean, difference = (f"{v:.4f}" if v is not None else "–" for v in (arm.mean, arm.difference))
        interval = f"{arm.low:+.4f} to {arm.high:+.4f}" if arm.low is not None and arm.high is not None else "–"
        typer.echo(f"{arm.name:<14}{arm.version:>8}{arm.n:>10,}{mean:>14}{difference:>12}  {interval:<20}  {arm.verdict}")
    for check in found.decision.checks:
        typer.echo(f"{'ok' if check.passed else '–':<3}{check.name}: {check.detail}")
    typer.echo(f"{found.decision.verdict}: {found.decision.reason}")
    if found.ended:
        typer.echo(f"ended: {found.ended}")


@experiment_app.command("stop")
def stop(
    by: By,
    adopt: Annotated[str | None, typer.Option(help="arm whose model becomes the champion")] = None,
    reason: Reason = "",
    as_of: AsOf = None,
) -> None:
    """Ends the running experiment: the champion, or the arm that is adopted, answers all.

    \b
    Examples:
      evergreen experiment stop
      evergreen experiment stop --adopt treatment --reason "log-loss 0.012 lower"
    """
    from ml.monitoring import trials

    now = trials.stop(by, reason, adopt, as_of)
    typer.echo(f"{_what(now)} (manifest {now.version}): {now.reason}")
    typer.echo(_undo(now))


def _arms(given: list[str]) -> dict[str, str]:
    arms = dict(text.partition("=")[::2] for text in given)
    if len(arms) < len(given) or not all(name and version for name, version in arms.items()):
        raise ConfigError(f"--arm {' --arm '.join(given)}", "give each arm a name of its own: --arm treatment=4")
    return arms
