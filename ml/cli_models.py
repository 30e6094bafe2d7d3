"""Commands for people that tell about one model: why it said what it said, where it comes from, whether it can be made again."""

from __future__ import annotations

import difflib
import json
import logging
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml import logs
from ml.config import Params, Problem, load_params
from ml.errors import EvergreenError, IntegrityError, NotFoundError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ml.packaging.bundle import Bundle
    from ml.packaging.rebuild import Rebuilt
    from ml.refs import SnapshotRef

TIME_FORMAT = "%Y%m%dT%H%M"
"""The end of a row's name (see `ml.data.rows`)."""
BAR = 16
"""Characters of the longest bar."""
SHOWN_TEXT = 20
SIMILAR = 0.8
"""Share of characters in common from which a name is offered instead; those of one minute have more than half anyway."""
SHOWN_TIME = "%Y-%m-%d %H:%M"

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def explain(
    entity: Annotated[str, typer.Option(help="the row's name, as answers and logs give it")],
    as_of: Annotated[datetime, typer.Option(help="what became known later is not used")],
    version: Annotated[str | None, typer.Option(help="registered version; default: the champion of then")] = None,
    top: Annotated[int, typer.Option(min=1, help="features that are named; the rest is added up")] = 12,
) -> None:
    """Explains one answer: the row's features as known at AS_OF, and each one's share in what the model says.

    \b
    Examples:
      evergreen explain --entity UA-1545-EWR-20130418T1015 --as-of 2013-04-18T08:15
      evergreen explain --version 3 --entity UA-1545-EWR-20130418T1015 --as-of 2013-04-18T08:15 --top 5
    """
    from ml.data import snapshots
    from ml.evaluation.explain import one_row
    from ml.features import inputs, stored
    from ml.packaging.bundle import Bundle

    params = load_params()
    number, digest = _version(version, as_of)
    bundle, landed = Bundle.load(digest), snapshots.find(as_of)
    model, root = bundle.fitted(), snapshots.restore(landed)
    row = _row(params, landed, root, entity, as_of)
    X = stored.compute(params, row, inputs.landed_and_live(params, root, landed.last_day, as_of), as_of).to_pandas()
    answer = _graph_answer(bundle, X)
    found = one_row(model, X, top)
    _same(answer, found["answer"], number)
    event, asked = X["event_time"].iloc[0], X["prediction_time"].iloc[0]
    typer.echo(
        f"{entity}: event {event:{SHOWN_TIME}} UTC, to be predicted at {asked:{SHOWN_TIME}}, as known at {as_of:{SHOWN_TIME}}"
    )
    typer.echo(f"version {number} answers {_answer(found['answer'], bundle)}\n")
    typer.echo("\n".join(_table(found)))
    typer.echo("\n" + _words(found, model.task, len(model.members)))


@app.command()
def rebuild(
    versions: Annotated[list[str], typer.Argument(metavar="VERSION...", help="registered versions, e.g. 3 or v3")],
) -> None:
    """Makes registered models again from data version, code and parameters, and compares digests; exit code 1 if any differs.

    Where the code has changed since, that of then comes from git. Nothing that was computed before is used.

    \b
    Examples:
      evergreen rebuild 3
      evergreen rebuild 1 2 3
    """
    from ml.packaging import rebuild as again

    bad = 0
    for version in versions:
        logs.say(f"v{version.removeprefix('v')}: making it again")
        try:
            made = again.rebuild(version)
        except EvergreenError as error:  # the other versions are still to be made
            logs.say(f"error: {error}", logging.ERROR)
            bad += 1
            continue
        bad += not made.equal
        typer.echo("\n".join(_rebuilt(made)))
    if bad:
        raise typer.Exit(1)


def _rebuilt(made: Rebuilt) -> list[str]:
    """The outcome for a person."""
    lines = [
        f"v{made.version}: {'equal' if made.equal else 'DIFFERENT'}",
        f"  data version  {made.snapshot}",
        f"  code          {made.code}, {made.tree}",
        f"  params        {made.params}",
        f"  rows          {made.rows:,}",
        f"  expected      {made.expected}",
        f"  found         {made.found}",
        f"  seconds       {made.seconds:.1f}",
    ]
    if made.differences:
        lines.append(f"  not as then   {'; '.join(made.differences)}")
    elif not made.equal:
        lines.append("  not as then   nothing that was recorded: another machine, or the tag `model` is not of this making")
    return lines


@app.command()
def lineage(
    version: Annotated[str, typer.Argument(help="registered version, e.g. 3 or v3")],
    as_json: Annotated[bool, typer.Option("--json", help="the same for programs")] = False,
) -> None:
    """Prints where a model comes from and what became of it: raw days, features, search, gate, package, releases, answers.

    \b
    Examples:
      evergreen lineage 3
      evergreen lineage 3 --json
    """
    from ml.monitoring import lineage as chain

    found = chain.collect(version)
    typer.echo(json.dumps(found, indent=2, default=str) if as_json else chain.text(found))


def _version(version: str | None, as_of: datetime) -> tuple[str, str]:
    """Number and bundle of the version that is meant."""
    if version is None:
        from ml import steps

        champion = steps._require_champion(as_of)
        return champion.version, champion.bundle
    from ml import tracking

    registered = tracking.version_ref(version.removeprefix("v"))
    return registered.version, registered.bundle


def _row(params: Params, landed: SnapshotRef, root: Any, entity: str, as_of: datetime) -> pa.Table:
    """The row to predict that has this name.

    Raises:
        NotFoundError: there is none; the format of a name is given, and a similar one of the day if there is one.
    """
    import pyarrow.compute as pc

    from ml.features import inputs

    moment = _moment(entity)
    if moment is not None:
        rows = inputs.to_score(params, root, landed.last_day, moment, moment + timedelta(minutes=1), as_of)
        rows = rows.filter(pc.equal(rows["entity_id"], entity))
        if len(rows):
            return rows.slice(0, 1)
    day = datetime.combine(moment or as_of, time.min)
    names = inputs.to_score(params, root, landed.last_day, day, day + timedelta(days=1), as_of)["entity_id"].to_pylist()
    similar = difflib.get_close_matches(entity, names, n=1, cutoff=SIMILAR)
    hint = f"did you mean {similar[0]}?" if similar else f"no row of {day:%Y-%m-%d} has a similar name"
    raise NotFoundError(
        f"no row {entity!r} ({len(names):,} rows of {day:%Y-%m-%d} are known)", f"names are {_format(params.problem)}; {hint}"
    )


def _moment(entity: str) -> datetime | None:
    """The event time in a row's name; None when there is none."""
    try:
        return datetime.strptime(entity.rpartition("-")[2], TIME_FORMAT)
    except ValueError:
        return None


def _format(problem: Problem) -> str:
    return "-".join(f"<{column}>" for column in problem.id) + "-<event time, UTC, as YYYYMMDDTHHMM>"


def _graph_answer(bundle: Bundle, X: pd.DataFrame) -> Any:
    """What the served graph says to the row."""
    from ml.packaging.parity import predict, session

    return predict(session(bundle.model), bundle.card.numeric, bundle.card.text, X)[0]


def _same(graph: Any, model: Any, version: str) -> None:
    """Raises IntegrityError when the model that explains is not the one that answers."""
    import numpy as np

    from ml.serving.explaining import TOLERANCE

    apart = float(np.abs(np.subtract(graph, model)).max())
    if not apart <= TOLERANCE * max(1.0, float(np.abs(graph).max())):
        raise IntegrityError(
            f"graph and explainer of version {version} differ by {apart:.2g}: {graph}, {model}", "package it again"
        )


def _answer(answer: float | list[float], bundle: Bundle) -> str:
    """The answer in words."""
    if isinstance(answer, list):
        return ", ".join(f"{share:.4f}" for share in answer)
    if bundle.card.task != "binary":
        return f"{answer:g}"
    threshold = bundle.card.threshold
    return f"{answer:.4f}: the probability of 1; from {threshold:g} on it decides for 1, so here for {int(answer >= threshold)}"


def _table(found: dict[str, Any]) -> list[str]:
    """Feature, value, contribution, and its bar: to the right when it raises the margin, to the left when it lowers it."""
    from ml.evaluation.explain import OTHERS

    parts = found["contributions"]
    width = max(len("FEATURE"), *(len(part["feature"]) for part in parts))
    largest = max(abs(part["contribution"]) for part in parts) or 1.0
    lines = [_line("FEATURE", "VALUE", "CONTRIBUTION", width), _line("base", "", f"{found['base']:+.4f}", width)]
    for part in parts:
        bar = "▇" * round(BAR * abs(part["contribution"]) / largest)
        left, right = ("", bar) if part["contribution"] > 0 else (bar, "")
        value = "" if part["feature"] == OTHERS else _value(part["value"])
        line = _line(part["feature"], value, f"{part['contribution']:+.4f}", width)
        lines.append(f"{line}  {left:>{BAR}}│{right}")
    return [*lines, _line("margin", "", f"{found['margin']:+.4f}", width)]


def _line(feature: str, value: str, contribution: str, width: int) -> str:
    return f"{feature:<{width}}  {value:>{SHOWN_TEXT}}  {contribution:>12}"


def _value(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return value[:SHOWN_TEXT] if isinstance(value, str) else f"{value:.6g}"


def _words(found: dict[str, Any], task: str, members: int) -> str:
    """What the numbers are, and that they add up."""
    base, margin = found["base"], found["margin"]
    added = f"base {base:+.4f} and contributions {margin - base:+.4f} add up to {margin:+.4f}"
    if task == "regression":
        return f"Contributions are in the unit of the label: {added}, the answer."
    if task == "multiclass":
        return f"Contributions are in log-odds of the likeliest class over the mean of all: {added}."
    made = (
        f"the mean of {members} members' log-odds; the answer is the mean of their probabilities"
        if members > 1
        else (f"and 1 / (1 + e^{-margin:.4f}) is the answer")
    )
    return (
        "Contributions are in log-odds, ln(p / (1 - p)): 0 is even odds, +0.69 doubles the odds of 1, -0.69 halves them.\n"
        "The base is what the model says on average, before it looks at the row.\n"
        f"Here {added}, {made}."
    )
