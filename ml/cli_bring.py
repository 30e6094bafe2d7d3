"""`evergreen register`: the step, or with --onnx a model that somebody else trained."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ml import logs
from ml.errors import EvergreenError
from ml.settings import settings

DATE = ["%Y-%m-%d"]


def or_brought(step: Callable[..., None]) -> Callable[..., None]:
    """The command: `step` without --onnx."""

    def register(
        refs: Annotated[Path | None, typer.Option(help="folder of the references' JSON files; default <var>/refs")] = None,
        onnx: Annotated[Path | None, typer.Option(help="a graph to judge, package and register")] = None,
        as_of: Annotated[datetime | None, typer.Option(help="when it is judged, on the last days matured by then")] = None,
        trained_until: Annotated[
            datetime | None, typer.Option(formats=DATE, help="the last day that it learned from; required")
        ] = None,
        trained_from: Annotated[
            datetime | None, typer.Option(formats=DATE, help="the first; default: train.window_days before")
        ] = None,
        expected: Annotated[
            Path | None, typer.Option(help="Parquet: a column for each input, and the model's own `probability`")
        ] = None,
        name: Annotated[str, typer.Option(help="what people call it; default: the file's name")] = "",
        note: Annotated[str, typer.Option(help="why it is brought; goes into the ledger")] = "",
    ) -> None:
        if onnx is None:
            if any(each is not None for each in (as_of, trained_until, trained_from, expected)) or name or note:
                raise EvergreenError("without --onnx nothing is declared", "add --onnx FILE, or leave the other options out")
            step(refs=refs)
            return
        if as_of is None or trained_until is None:
            missing = "--as-of" if as_of is None else "--trained-until"
            raise EvergreenError(
                f"register --onnx needs {missing}",
                "say when it is judged (--as-of 2013-04-01T03:00) and what it learned from (--trained-until 2013-03-14)",
            )
        from ml import bring

        first = trained_from.date() if trained_from else None
        given = bring.Given(onnx, trained_until.date(), first, expected, name, note)
        made, folder = bring.register(given, as_of), refs or settings().var / "refs"
        for what, ref in made.items():
            ref.write(folder / f"{what}.json")
        version = bring.version_of(made)
        typer.echo(version.model_dump_json(indent=2))
        logs.say(f"v{version.version}: {version.verdict}; references for smoke, canary and promote in {folder}")

    register.__doc__ = (step.__doc__ or "").replace(
        "\n\n\b\nExample:\n",
        "\n\nWith --onnx: takes a graph that was trained elsewhere, whatever made it, and judges, packs and registers it by the "
        "same gates (docs/bring-your-own-model.md).\n\n\b\nExamples:\n",
    ) + "\n  evergreen register --onnx mlp.onnx --trained-until 2013-03-14 --as-of 2013-04-01T03:00 --expected mlp.parquet"
    return register
