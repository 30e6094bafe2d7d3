"""`evergreen`: one command per step, and a few for people.

A step's references travel through JSON files: each command reads the ones that it needs from ``--refs`` and writes its own
there, so a chain of commands is a pipeline.
"""

from __future__ import annotations

import getpass
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from ml import (
    cli_batch,
    cli_bring,
    cli_ledger,
    cli_models,
    cli_observe,
    cli_release,
    cli_replay,
    cli_stream,
    cli_watch,
    ledger,
    logs,
    steps,
)
from ml.config import load_params
from ml.errors import EvergreenError, NothingToDo
from ml.refs import Ref, Window
from ml.settings import settings

WRITES = {
    "land": "landing",
    "validate": "validation",
    "fit": "model",
    "evaluate": "evaluation",
    "refit": "shipped",
    "package": "bundle",
    "register": "version",
}
"""The file that a step writes, where it has another name than the step."""

REFS_HELP = "folder of the references' JSON files; default <var>/refs"
Refs = Annotated[Path | None, typer.Option(help=REFS_HELP)]

EXAMPLES = {
    "land": "evergreen land --start 2013-01-01 --end 2013-04-01 --as-of 2013-04-01T02:00",
    "validate": "evergreen validate",
    "snapshot": "evergreen snapshot --as-of 2013-04-01T02:00",
    "data_docs": "evergreen data-docs",
    "prepare_days": "evergreen prepare-days --start 2013-04-01 --end 2013-04-02 --as-of 2013-04-02T02:30",
    "plan": "evergreen plan --as-of 2013-04-01T03:00 --reason 'first model' --trigger manual --run-key first",
    "pull": "evergreen pull",
    "validate_training": "evergreen validate-training",
    "features": "evergreen features",
    "tune": "evergreen tune --worker 0 --workers 1",
    "fit": "evergreen fit",
    "evaluate": "evergreen evaluate",
    "refit": "evergreen refit",
    "package": "evergreen package",
    "register": "evergreen register",
    "smoke": "evergreen smoke",
    "canary": "evergreen canary --as-of 2013-04-01T04:00",
    "promote": "evergreen promote --as-of 2013-04-01T04:00",
    "materialise": "evergreen materialise --as-of 2013-04-18T09:00",
    "score": "evergreen score --start 2013-04-01 --end 2013-04-18 --as-of 2013-04-18T04:00",
    "monitor": "evergreen monitor --window-end 2013-04-21 --as-of 2013-04-21T05:00",
    "decide": "evergreen decide --trigger manual",
    "report": "evergreen report --week-end 2013-04-22 --as-of 2013-04-22T07:00",
    "skew": "evergreen skew --window-end 2013-04-21 --as-of 2013-04-21T05:00",
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Continuous training, step by step. Times are UTC. Try: evergreen land --help",
)


@app.callback()
def _who_acts(context: typer.Context) -> None:
    logs.begin()
    context.with_resource(ledger.acting(f"cli:{_login()}"))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid-{os.getuid()}"


def step_names() -> list[str]:
    """Every step of `ml.steps`, in the order in which they stand there."""
    functions = inspect.getmembers(steps, inspect.isfunction)
    own = [
        (f.__code__.co_firstlineno, name) for name, f in functions if f.__module__ == steps.__name__ and not name.startswith("_")
    ]
    return [name for _, name in sorted(own)]


def _command(name: str) -> Callable[..., None]:
    """The command of a step: windows become --start and --end, references files, everything else an option."""
    function = getattr(steps, name)
    hints = get_type_hints(function, vars(steps))
    parameters = [_option("refs", Path | None, REFS_HELP, None)]
    for parameter in inspect.signature(function).parameters:
        if hints[parameter] is Window:
            parameters += [_option("start", datetime, "first day"), _option("end", datetime, "day after the last")]
        elif not _is_ref(hints[parameter]):
            kind = datetime if hints[parameter] in (date, datetime) else hints[parameter]
            default = inspect.signature(function).parameters[parameter].default
            parameters.append(_option(parameter, kind, parameter.replace("_", " "), default))

    def run(**given: Any) -> None:
        refs = _folder(given.pop("refs"))
        arguments = {p: _argument(refs, p, hints[p], given) for p in inspect.signature(function).parameters}
        began = time.monotonic()
        outcome = function(**arguments)
        target = refs / f"{WRITES.get(name, name)}.json"
        shown = outcome.model_dump_json(indent=2) if isinstance(outcome, Ref) else json.dumps(outcome)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(shown + "\n")
        typer.echo(shown)
        logs.say(f"{name}: {time.monotonic() - began:.1f} s → {target}")

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__doc__ = f"{inspect.getdoc(function)}\n\n\b\nExample:\n  {EXAMPLES[name]}"
    return run


def _option(name: str, kind: Any, text: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _argument(refs: Path, name: str, kind: type, given: dict[str, Any]) -> Any:
    if kind is Window:
        start, end = given["start"].date(), given["end"].date()
        if start >= end:
            raise EvergreenError(f"--start {start} is not before --end {end}", "--end is the day after the last day")
        return Window(start=start, end=end)
    if _is_ref(kind):
        path = refs / f"{name}.json"
        if not path.exists():
            raise EvergreenError(
                f"no {name} at {path}", f"run the step that writes it, or name its folder with --refs (it is a {kind.__name__})"
            )
        try:
            return kind.read(path)  # type: ignore[attr-defined]
        except ValidationError as error:
            raise EvergreenError(
                f"{path} is no {kind.__name__}: {error.errors()[0]['msg']}", "run the step that writes it again"
            ) from None
    return given[name].date() if kind is date else given[name]


def _folder(refs: Path | None) -> Path:
    return refs or settings().var / "refs"


def _is_ref(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Ref) and kind is not Window


for _name in step_names():
    if _name not in ("features", "rollback"):  # these two are written by hand
        _made = _command(_name)
        app.command(_name.replace("_", "-"))(cli_bring.or_brought(_made) if _name == "register" else _made)

app.add_typer(cli_models.app)
app.add_typer(cli_release.app)
app.add_typer(cli_observe.app)
app.add_typer(cli_watch.app)
app.add_typer(cli_batch.app)
app.add_typer(cli_replay.app)
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(cli_stream.app, name="stream")

features_app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(features_app, name="features")


@features_app.callback(invoke_without_command=True)
def features(context: typer.Context, refs: Refs = None) -> None:
    """Computes the feature rows of train window and holdout, unless they are there already. Its commands tell about features.

    \b
    Examples:
      evergreen features
      evergreen features list
    """
    if context.invoked_subcommand is None:
        _command("features")(refs=refs)


@features_app.command("list")
def features_list() -> None:
    """Prints every feature: where it comes from, how fresh it must be, which model versions use it.

    \b
    Example:
      evergreen features list
    """
    from ml.features import catalogue

    params = load_params()
    typer.echo(catalogue.table(params, _feature_users()))
    typer.echo(f"\n{len(catalogue.entries(params))} features; {_online_freshness()}")


@features_app.command("show")
def features_show(name: str) -> None:
    """Prints one feature, or one view with its features.

    \b
    Example:
      evergreen features show origin_rate_24h
    """
    from ml.features import catalogue

    typer.echo(catalogue.details(load_params(), name, _feature_users()))
    typer.echo(f"{'now':<10} {_online_freshness()}")


@features_app.command("dictionary")
def features_dictionary(out: Path = Path("docs/data-dictionary.md")) -> None:
    """Writes the data dictionary from the declarations.

    \b
    Example:
      evergreen features dictionary --out docs/data-dictionary.md
    """
    from ml.features import catalogue

    out.write_text(catalogue.dictionary(load_params()))
    typer.echo(str(out))


@features_app.command("cost")
def features_cost(as_of: datetime) -> None:
    """Measures what each view costs: computing and keeping a day of history, and reading it online.

    \b
    Example:
      evergreen features cost 2013-04-18T09:00
    """
    from ml.data import snapshots
    from ml.features import catalogue, inputs
    from ml.features.online import open_store

    version = snapshots.find(as_of)
    source = inputs.landed(snapshots.restore(version), version.last_day)
    measured = catalogue.costs(load_params(), source, inputs.midnight(version.last_day), open_store(settings().online))
    heads = ("features", "a day, ms", "a day, kB", "entities", "online, kB", "a read, µs")
    typer.echo(f"{'VIEW':<16}" + "".join(f"{head:>12}" for head in heads))
    for c in measured:
        figures = (c.features, c.compute_ms, c.history_kb, c.entities, c.online_kb, c.read_us)
        typer.echo(f"{c.view:<16}" + "".join(f"{f:>12.1f}" if isinstance(f, float) else f"{f:>12}" for f in figures))


@features_app.command("ablation")
def features_ablation(refs: Refs = None) -> None:
    """Refits the model of --refs (plan, features, model) without each view, and names the features that it never asks about.

    \b
    Example:
      evergreen features ablation
    """
    from ml.evaluation import ablation as removal
    from ml.features import stored
    from ml.features.definitions import load_module
    from ml.packaging.artifacts import Artifacts
    from ml.refs import FeatureSetRef, ModelRef, TrainPlan

    folder, params = _folder(refs), load_params()
    plan, made, model = (
        _argument(folder, name, kind, {})
        for name, kind in (("plan", TrainPlan), ("features", FeatureSetRef), ("model", ModelRef))
    )
    parts, module = Artifacts.load(model.artifacts), load_module(params)
    settings_ = removal.Settings(parts.winner.recipe, parts.winner.rounds, plan.train, plan.holdout)
    found = removal.ablation(
        stored.read(made),
        module.learned,
        removal.groups(module),
        settings_,
        params,
        lambda what: logs.say(f"fit {what}"),
    )
    typer.echo(f"{'WITHOUT':<16}{'features':>9}{'score lost':>11}{'loss added':>15}  {'interval':<20}  removing it")
    for a in found:
        interval = f"[{a.loss_added.low:+.4f}, {a.loss_added.high:+.4f}]"
        typer.echo(f"{a.group:<16}{a.features:>9}{a.score_lost:>+11.4f}{a.loss_added.mean:>+15.4f}  {interval:<20}  {a.verdict}")
    typer.echo(f"never asked about: {', '.join(parts.fitted.unused) or 'none'}")


@app.command("training-set")
def training_set(start: datetime, end: datetime, as_of: datetime, out: Path = Path("training-set.parquet")) -> None:
    """Writes the rows with event time in [START, END) with their features and labels, as known at AS_OF, to Parquet.

    Asked again later, it answers the same: what became known after AS_OF, late corrections included, is not in it.

    \b
    Example:
      evergreen training-set 2013-03-01 2013-04-01 2013-04-01T03:00 --out march.parquet
    """
    from ml.data import snapshots
    from ml.features import stored

    version = snapshots.find(as_of)
    ref = stored.build(snapshots.restore(version), version, Window(start=start.date(), end=end.date()), as_of)
    stored.read(ref).to_parquet(out, index=False)
    typer.echo(f"{out}: {ref.rows} rows as known at {as_of}, data version {version.digest[:12]}, feature code {ref.code}")


def _feature_users() -> dict[str, list[str]]:
    from ml.features.definitions import load_module

    if not load_module(load_params()).views:
        return {}
    from ml.features import repository

    return repository.users(load_params())


def _online_freshness() -> str:
    from ml.features.online import StoreDownError, open_store

    try:
        tick, _ = open_store(settings().online).read([])
    except StoreDownError as error:
        return str(error)
    return f"the online store holds the values of {tick} UTC" if tick else "the online store was never written"


@app.command()
def metrics(refs: Refs = None, out: Path = Path("pipeline")) -> None:
    """Writes an evaluation's figures for `dvc metrics` and `dvc plots`.

    \b
    Example:
      evergreen metrics --out pipeline
    """
    from ml import store
    from ml.refs import EvaluationRef

    evaluation = EvaluationRef.read(_folder(refs) / "evaluation.json")
    report = json.loads(store.unpack(store.get(evaluation.report))["report.json"])
    out.mkdir(parents=True, exist_ok=True)
    rounded = {who: {k: round(v, 6) for k, v in values.items()} for who, values in report["overall"].items()}
    (out / "metrics.json").write_text(json.dumps({"rows": report["rows"], **rounded}, indent=2) + "\n")
    daily = report["by_day"]
    lines = [
        {"day": day, **{who: round(loss[i], 6) for who, loss in daily["loss"].items()}} for i, day in enumerate(daily["days"])
    ]
    (out / "by_day.json").write_text(json.dumps(lines, indent=2) + "\n")


@app.command()
def pin(refs: Refs = None) -> None:
    """Writes a snapshot's pointer into a tracked .dvc file, for those who want it in git.

    \b
    Example:
      evergreen snapshot --as-of 2013-04-01T02:00 && evergreen pin
    """
    from ml.data import snapshots
    from ml.refs import SnapshotRef

    typer.echo(snapshots.pin(SnapshotRef.read(_folder(refs) / "snapshot.json")))


@app.command()
def serve() -> None:
    """Answers predictions over HTTP by the deployed champion, until it is stopped; follows the deployment manifest.

    \b
    Example:
      EVERGREEN_SERVING_PORT=3100 EVERGREEN_SERVING_WORKERS=2 evergreen serve
    """
    from ml.serving.app import serve as run

    run(settings().host, settings().serving_port, settings().serving_workers)


@app.command()
def config() -> None:
    """Prints every EVERGREEN_* variable with its value and meaning, and checks params.yaml.

    \b
    Example:
      EVERGREEN_SERVING_PORT=3100 evergreen config
    """
    here = settings()
    for name, field in type(here).model_fields.items():
        typer.echo(f"EVERGREEN_{name.upper()}={getattr(here, name)}" + (f"   # {field.description}" if field.description else ""))
    typer.echo(f"{here.params}: digest {load_params().digest()}")


def main() -> None:
    """Entry point: errors on one screen, exit code 1; a policy's no is exit code 0."""
    try:
        app()
    except NothingToDo as reason:
        logs.say(f"nothing to do: {reason}")
    except EvergreenError as error:
        logs.say(f"error: {error}", logging.ERROR)
        sys.exit(1)
