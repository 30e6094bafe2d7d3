"""Validation with Great Expectations: suites and checkpoints are files in ``great_expectations/``, its context lives in memory.

The files are the truth and are never written; results are kept as JSON below ``<var>/gx/results``, and Data Docs are built from
those, later.
Severity ``critical`` (the default) quarantines and fails; ``warning`` and ``info`` are reported and the rows kept.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from great_expectations.core import ExpectationSuite
from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context import EphemeralDataContext
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier, ValidationResultIdentifier

import great_expectations as gx
from ml import ledger, shared
from ml.config import load_params
from ml.data.landed import publish, read_rows
from ml.data.landing import quarantine_folder, staged
from ml.data.quality import Broken, but_one_copy, raise_for, split
from ml.errors import ConfigError, NotFoundError
from ml.refs import LandingRef, ValidationRef, run_key
from ml.settings import ROOT, settings

log = logging.getLogger(__name__)

KIND = "landing"
"""Kind of ledger entry: how many rows of a landing were published, how many went to quarantine."""
DECLARED = ROOT / "great_expectations"
UNIQUE = ("expect_compound_columns_to_be_unique", "expect_column_values_to_be_unique")
LONG = ("unexpected_list", "unexpected_index_list", "unexpected_index_query")  # the rows themselves are in quarantine


def validate(landing: LandingRef) -> ValidationRef:
    """Runs the ``landing`` checkpoint over what is staged, publishes what is good, and puts what is not into quarantine.

    Rows that break a rule are taken out; a day where they are more than `landing.max_bad_row_share`, or whose table breaks a rule
    as a whole, goes to quarantine whole. Running it again has the same effect.

    Raises:
        DataQualityError: some rule was broken. Good rows and days are published all the same.
    """
    files = staged(landing)
    days = {table: {day: read_rows(path) for day, path in found.items()} for table, found in files.items()}
    whole = {table: pa.concat_tables(parts.values()) for table, parts in days.items() if parts}
    results, broken = _run("landing", {table: rows.to_pandas() for table, rows in whole.items()}, landing.key)
    passed: dict[str, int] = {}
    good: dict[str, dict[str, Path]] = {}
    for table, rows in whole.items():
        mine = [b for b in broken if b.table == table and b.severity == "critical"]
        counts = [part.num_rows for part in days[table].values()]
        good[table], passed[table] = split(landing, table, rows, dict(zip(days[table], counts, strict=True)), files[table], mine)
    published = publish(good, landing.as_of)
    for table, day in ((t, d) for t, outcomes in published.items() for d, outcome in outcomes.items() if outcome == "stale"):
        log.warning("%s of %s is landed with newer knowledge than %s: left as it is", day, table, landing.as_of)
    ref = _store("landing", landing.key, passed, results, broken, {"published": published})
    _noted(landing, passed, {table: len(rows) - passed[table] for table, rows in whole.items()}, broken)
    frames = {table: rows.to_pandas() for table, rows in whole.items()} if broken else {}
    raise_for(broken, frames, lambda table: quarantine_folder(table, landing.key))
    return ref


def _noted(landing: LandingRef, passed: dict[str, int], quarantined: dict[str, int], broken: list[Broken]) -> None:
    """What became of a landing, into the ledger; landed again, it is noted again only if it came out otherwise."""
    bad = sum(quarantined.values())
    rules = sorted({f"{b.table}: {b.rule}" for b in broken if b.severity == "critical"})
    reason = f"{sum(passed.values()):,} rows published" + (f", {bad:,} in quarantine: {'; '.join(rules)}" if rules else "")
    evidence = {"rows": passed, "quarantined": quarantined, "broken": rules, "window": landing.window.to_xcom()}
    key = f"{KIND}-{landing.key}-{run_key(json.dumps(evidence, sort_keys=True))}"
    ledger.record(KIND, key, landing.as_of, str(landing.window), "quarantined" if rules else "clean", reason, evidence)


def validate_rows(checkpoint: str, rows: dict[str, pd.DataFrame], run_name: str) -> ValidationRef:
    """Runs a checkpoint over rows in memory (to learn from, to score); nothing is taken out, nothing published.

    Args:
        checkpoint: name of a file in ``great_expectations/checkpoints``.
        rows: table → rows, as `ml.data.rows` gives them. Outcome columns that are absent count as all null.
        run_name: names the run in results and Data Docs.

    Raises:
        DataQualityError: a critical rule was broken; names the worst.
        ConfigError: the checkpoint does not exist, or has no suite for a table.
    """
    whole = {}
    for table, given in rows.items():
        absent = [c for c in load_params().tables[table].outcomes if c not in given.columns]
        whole[table] = given.reset_index(drop=True).assign(**dict.fromkeys(absent, None))
    results, broken = _run(checkpoint, whole, run_name)
    ref = _store(checkpoint, run_name, {table: len(given) for table, given in whole.items()}, results, broken, {})
    raise_for(
        broken,
        whole,
        lambda _: _results_path(checkpoint, run_name),
        "land the days again that these rows come from, or mend the rule",
    )
    return ref


def stored(checkpoint: str, run_name: str) -> ValidationRef:
    """The reference of a validation that ran, failed ones too.

    Raises:
        NotFoundError: no such run.
    """
    path = _results_path(checkpoint, run_name)
    shared.add(path)
    if not path.exists():
        raise NotFoundError(f"no results of checkpoint '{checkpoint}', run {run_name!r}, at {path}", "run the validation again")
    return ValidationRef.model_validate(json.loads(path.read_text())["ref"])


def data_docs(validation: ValidationRef) -> str:
    """Adds the pages of one validation to the Data Docs site, from its stored results.

    Returns:
        Path of the site's ``index.html``.
    """
    results = _results_path(validation.checkpoint, validation.run_name)
    shared.add(results)
    kept = json.loads(results.read_text())
    _docs_folder().mkdir(parents=True, exist_ok=True)
    with open(_docs_folder() / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the context rewrites its own files; one builder at a time
        with shared.lock("docs"):
            before = shared.pull(_docs_folder())
            _build(validation, kept)
            shared.push(before, _docs_folder())
    return str(_docs_index())


def _build(validation: ValidationRef, kept: dict[str, Any]) -> None:
    run = RunIdentifier(run_name=validation.run_name, run_time=datetime.fromisoformat(kept["run_time"]))
    context = gx.get_context(mode="file", project_root_dir=_docs_folder())
    pages: list[ValidationResultIdentifier] = []
    for table, found in kept["results"].items():
        suite = ExpectationSuiteIdentifier(name=_suites(validation.checkpoint)[table])
        page = ValidationResultIdentifier(expectation_suite_identifier=suite, run_id=run, batch_identifier=table)
        context.validation_results_store.set(page, expectationSuiteValidationResultSchema.load(found))
        pages.append(page)
    context.build_data_docs(resource_identifiers=pages)


def _run(checkpoint: str, rows: dict[str, pd.DataFrame], run_name: str) -> tuple[dict[str, Any], list[Broken]]:
    """Every table against its suite: GX's results as JSON, and the rules that were broken."""
    context = _context()
    results: dict[str, Any] = {}
    broken: list[Broken] = []
    for table, given in rows.items():
        suites = _suites(checkpoint)
        if table not in suites:
            raise ConfigError(
                f"checkpoint '{checkpoint}' has no suite for table '{table}'",
                f"add it to {DECLARED}/checkpoints/{checkpoint}.json",
            )
        asset = context.data_sources.pandas_default.add_dataframe_asset(f"{table}-{uuid.uuid4().hex}")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": given})
        found = batch.validate(_suite(suites[table]), result_format={"result_format": "COMPLETE"})
        mine = [_broken(table, given, one) for one in found.results if not one.success]
        log.info("%s: %d rows, %d rules, %d broken", table, len(given), len(found.results), len(mine))
        broken += mine
        results[table] = found.to_json_dict()
        context.data_sources.pandas_default.delete_asset(asset.name)
    return results, broken


def _broken(table: str, rows: pd.DataFrame, one: Any) -> Broken:
    config = one.expectation_config
    kwargs = {name: value for name, value in config.kwargs.items() if name not in ("batch_id", "column") and value is not None}
    column = config.kwargs.get("column")
    rule = config.type.removeprefix("expect_").removeprefix("column_").replace("_", " ")
    arguments = ", ".join(f"{name}={value}" for name, value in kwargs.items() if name not in ("row_condition", "column_list"))
    rule += f" ({arguments})" if arguments else ""
    if "column_list" in kwargs:
        rule += f" ({', '.join(kwargs['column_list'])})"
    positions = one.result.get("unexpected_index_list")
    if positions is None:
        observed = one.result.get("observed_value")
        failures = [info.get("exception_message") for info in one.exception_info.values() if isinstance(info, dict)]
        return Broken(
            table, column, rule, str(config.severity.value), None, str(failures[0] if failures else f"observed {observed}")
        )
    found = np.unique(np.asarray(positions, dtype=np.int64))
    if config.type in UNIQUE:
        found = but_one_copy(rows, found, kwargs.get("column_list") or [column])
    share = f"{len(found):,} of {len(rows):,} rows"
    return Broken(table, column, rule, str(config.severity.value), found, share)


def _store(
    checkpoint: str, run_name: str, rows: dict[str, int], results: dict[str, Any], broken: list[Broken], extra: dict[str, Any]
) -> ValidationRef:
    path = _results_path(checkpoint, run_name)
    checks = sum(len(found["results"]) for found in results.values())
    where = shared.name_of(path) if shared.wanted() else str(path)
    ref = ValidationRef(checkpoint=checkpoint, run_name=run_name, rows=rows, checks=checks, results_uri=where)
    for found in results.values():
        for one in found["results"]:
            one["result"] = {name: value for name, value in one["result"].items() if name not in LONG}
    kept = {
        "ref": ref.model_dump(mode="json"),
        "success": not any(one.severity == "critical" for one in broken),
        "run_time": datetime.now(UTC).isoformat(),
        "data_docs": str(_docs_index()),
        "broken": [
            {"table": b.table, "column": b.column, "rule": b.rule, "severity": b.severity, "detail": b.detail} for b in broken
        ],
        **extra,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    aside.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    content = aside.read_bytes()
    aside.rename(path)
    shared.share({path: content})
    return ref


def _results_path(checkpoint: str, run_name: str) -> Path:
    return settings().var / "gx" / "results" / checkpoint / f"{re.sub(r'[^A-Za-z0-9._-]', '_', run_name)}.json"


def _docs_folder() -> Path:
    return settings().var / "gx" / "docs"


def _docs_index() -> Path:
    return _docs_folder() / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"


def _suites(checkpoint: str) -> dict[str, str]:
    """Table → suite, as the checkpoint's file says."""
    return dict(_declared("checkpoints", checkpoint)["suites"])


def _suite(name: str) -> ExpectationSuite:
    declared = _declared("expectations", name)
    return ExpectationSuite(name=declared["name"], expectations=declared["expectations"], meta=declared.get("meta"))


def _declared(kind: str, name: str) -> dict[str, Any]:
    path = DECLARED / kind / f"{name}.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json")))
        raise ConfigError(f"no file {path}; there are: {there}", "add it, or use one of those") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "mend the line that is named") from None


@cache
def _context() -> EphemeralDataContext:
    """GX's runtime, in memory: two runs at once share nothing, and the git tree stays as it is."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context
