"""Which rows broke which rule, what of a landing is good all the same, and how to say it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ml.config import load_params
from ml.data.landed import write_rows
from ml.data.landing import quarantine_folder, quarantine_reasons
from ml.errors import DataQualityError
from ml.refs import LandingRef

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broken:
    """One rule of a suite that did not hold."""

    table: str
    column: str | None
    rule: str
    severity: str
    rows: np.ndarray | None
    """Positions of the offending rows, int64; None when the rule is about the table as a whole, or could not be checked."""
    detail: str

    def to_json(self, ids: Sequence[str]) -> dict[str, Any]:
        return {
            "column": self.column,
            "rule": self.rule,
            "severity": self.severity,
            "count": len(ids),
            "detail": self.detail,
            "rows": list(ids),
        }


def split(
    landing: LandingRef, table: str, rows: pa.Table, counts: dict[str, int], files: dict[str, Path], broken: list[Broken]
) -> tuple[dict[str, Path], int]:
    """Which file to publish for each day, and how many rows they hold; the rest goes to quarantine."""
    bad = np.zeros(rows.num_rows, dtype=bool)
    for one in broken:
        bad[slice(None) if one.rows is None else one.rows] = True
    if not bad.any():
        return files, rows.num_rows
    good: dict[str, Path] = {}
    passed, offset = 0, 0
    for day, count in counts.items():
        part, wrong = rows.slice(offset, count), bad[offset : offset + count]
        if wrong.any():
            refused = wrong if wrong.mean() <= load_params().landing.max_bad_row_share else np.ones(count, dtype=bool)
            reasons = pa.array(_reasons(broken, offset, count))
            write_rows(
                part.append_column("broken_rules", reasons).filter(pa.array(refused)),
                quarantine_folder(table, landing.key) / f"{day}.parquet",
            )
            part = part.filter(pa.array(~refused))
        if part.num_rows:
            good[day] = files[day]
        if part.num_rows and wrong.any():
            good[day] = files[day].parent.with_name(f".{table}-good") / f"{day}.parquet"
            write_rows(part, good[day])
        passed, offset = passed + part.num_rows, offset + count
    ids = row_ids(table, rows.to_pandas())
    quarantine_reasons(table, landing.key, [b.to_json(ids if b.rows is None else [ids[i] for i in b.rows]) for b in broken])
    return good, passed


def raise_for(broken: list[Broken], rows: dict[str, pd.DataFrame], where: Callable[[str], Path], cure: str = "") -> None:
    """Raises for the worst of the critical rules, with up to three more; logs the others."""
    for one in broken:
        if one.severity != "critical":
            log.warning("table '%s', column '%s': '%s' broken by %s; kept", one.table, one.column, one.rule, one.detail)
    critical = [one for one in broken if one.severity == "critical"]
    if not critical:
        return
    worst = max(critical, key=lambda one: np.inf if one.rows is None else len(one.rows))
    found = rows[worst.table]
    if worst.rows is None:
        count, examples, rule = len(found), [], f"{worst.rule}: {worst.detail}"
    else:
        count, examples, rule = len(worst.rows), row_ids(worst.table, found.iloc[worst.rows[:3]]), worst.rule
    place = where(worst.table)
    error = DataQualityError.from_parts(worst.table, worst.column, rule, count, examples, str(place))
    more = [f"{one.table}.{one.column or '*'} {one.rule} ({one.detail})" for one in critical if one is not worst]
    rest = f"; and {len(more)} more: {'; '.join(more[:3])}" if more else ""
    raise DataQualityError(error.what + rest, f"look at {place}; {cure}" if cure else error.cure)


def row_ids(table: str, rows: pd.DataFrame) -> list[str]:
    """A name for each row: its entity id where it has one, else its key."""
    if "entity_id" in rows.columns:
        return [str(name) for name in rows["entity_id"]]
    parts = [
        rows[c].dt.strftime("%Y%m%dT%H%M") if pd.api.types.is_datetime64_any_dtype(rows[c]) else rows[c].astype(str)
        for c in load_params().tables[table].key
        if c in rows.columns
    ]
    return ["-".join(map(str, names)) for names in zip(*parts, strict=True)]


def but_one_copy(rows: pd.DataFrame, found: np.ndarray, key: list[str]) -> np.ndarray:
    """Of rows that share a key and are equal in every column, one is good; where they differ nobody knows which, and none is."""
    shared = rows.iloc[found]
    firsts = shared.drop_duplicates()
    good = firsts.index[~firsts.duplicated(key, keep=False)]
    return np.setdiff1d(found, good.to_numpy(dtype=np.int64))


def _reasons(broken: list[Broken], offset: int, count: int) -> list[str]:
    """For each row of a day, the rules that it broke."""
    reasons: list[list[str]] = [[] for _ in range(count)]
    for one in broken:
        inside = range(count) if one.rows is None else one.rows[(one.rows >= offset) & (one.rows < offset + count)] - offset
        for position in inside:
            reasons[position].append(f"{one.column}: {one.rule}" if one.column else one.rule)
    return ["; ".join(rules) for rules in reasons]
