"""Evidently's side of ``make bench-drift``: runs by itself, in an environment that has Evidently and nothing of ours.

``python drift_evidently.py FOLDER``: the folder holds ``before.parquet``, ``after.parquet`` and ``columns.json`` (name → number
or text). The last line of output is JSON: CPU seconds of the functions alone and of the whole report, values, versions.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

METHODS = {
    "number": ("psi", "jensenshannon", "wasserstein", "ks"),
    "text": ("psi", "jensenshannon", "chisquare"),
}


def main(folder: Path) -> None:
    import pandas as pd

    before, after = (pd.read_parquet(folder / f"{name}.parquet") for name in ("before", "after"))
    columns: dict[str, str] = json.loads((folder / "columns.json").read_text())
    wanted = [(name, method) for name, kind in columns.items() for method in METHODS[kind]]
    bare, values = functions(before, after, columns, wanted)
    print(json.dumps({
        "bare": bare, "report": report(before, after, columns, wanted), "values": values, "statistics": len(wanted),
        "versions": {name: version(name) for name in ("evidently", "numpy", "pandas", "scipy")},
    }))  # fmt: skip


def functions(before: Any, after: Any, columns: dict[str, str], wanted: list[tuple[str, str]]) -> tuple[float, dict[str, Any]]:
    """Its statistical functions as the report calls them: on columns without missing values."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    types = {"number": ColumnType.Numerical, "text": ColumnType.Categorical}
    values: dict[str, Any] = {name: {} for name in columns}
    began = time.process_time()
    for name, method in wanted:
        reference, current, kind = before[name].dropna(), after[name].dropna(), types[columns[name]]
        found = get_stattest(reference, current, kind, method)(reference, current, kind, None)
        values[name][method] = float(found.drift_score)
    return time.process_time() - began, values


def report(before: Any, after: Any, columns: dict[str, str], wanted: list[tuple[str, str]]) -> float:
    """CPU seconds of its report with one metric for each statistic of each column."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(
        numerical_columns=[name for name, kind in columns.items() if kind == "number"],
        categorical_columns=[name for name, kind in columns.items() if kind == "text"],
    )
    current, reference = (Dataset.from_pandas(table, data_definition=definition) for table in (after, before))
    asked = Report([ValueDrift(column=name, method=method) for name, method in wanted])
    began = time.process_time()
    made = asked.run(current, reference).dict()["metrics"]
    seconds = time.process_time() - began
    if len(made) < len(wanted):
        raise RuntimeError(f"the report holds {len(made)} metrics, {len(wanted)} were asked for")
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
