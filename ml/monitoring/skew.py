"""The skew check: were served features what training will see? A sample is computed again offline and compared by value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ml.config import load_params
from ml.data import rows
from ml.errors import SkewError
from ml.features import inputs, stored
from ml.refs import Check, Decision, SnapshotRef
from ml.serving.log import read_online
from ml.store import sha256

EXAMPLES = 3
Values = Mapping[str, Any]


@dataclass(frozen=True)
class FeatureSkew:
    """How one feature compared. `examples`: (entity, served, recomputed), at most three."""

    name: str
    compared: int
    differing: int
    examples: list[tuple[str, Any, Any]]


@dataclass(frozen=True)
class Report:
    """What one check found."""

    answers: int
    """Logged answers of the interval."""
    flagged: dict[str, int]
    """By flag: answers that are not compared, because they said themselves that their features were not the due ones."""
    rows: int
    """Rows compared."""
    not_landed: int
    """Sampled rows that the landed data does not have."""
    not_computed: dict[str, int]
    """By feature: served values that the present code does not compute."""
    features: list[FeatureSkew]
    """Worst first."""

    @property
    def compared(self) -> int:
        return sum(f.compared for f in self.features)

    @property
    def differing(self) -> int:
        return sum(f.differing for f in self.features)


def check(root: Path, snapshot: SnapshotRef, start: datetime, end: datetime, as_of: datetime) -> Report:
    """Compares a sample of the online answers to rows with event time in [start, end) with what landed data gives.

    The sample is the first unflagged answer of each row, at most `monitoring.skew_sample` rows, chosen by a hash of their names,
    so that it is the same whenever it is taken. Features are computed by the present code and parameters.

    Args:
        root: the restored snapshot; it must hold the interval.
    """
    params = load_params()
    answers = read_online(start, end).to_pylist()
    plain = {a["entity_id"]: a for a in reversed(answers) if not a["flags"]}  # reversed: the first one stays
    chosen = sorted(plain, key=lambda name: sha256(name.encode()))[: params.monitoring.skew_sample]
    landed = rows.problem_rows(root, start, end, as_of)
    wanted = landed.filter(pa.compute.is_in(landed["entity_id"], pa.array(chosen, pa.string())))
    computed = stored.compute(params, wanted, inputs.landed(root, snapshot.last_day), as_of)
    again = {row["entity_id"]: row for row in computed.to_pylist()}
    served = {name: json.loads(plain[name]["features"]) for name in chosen}
    flags = pd.Series([flag for a in answers for flag in a["flags"]], dtype=object).value_counts()
    return compare(served, again, len(answers), {str(flag): int(n) for flag, n in flags.items()})


def compare(served: Mapping[str, Values], again: Mapping[str, Values], answers: int, flagged: dict[str, int]) -> Report:
    """Compares served with recomputed values by row name; equal is equal to the last bit, and missing equals missing."""
    compared: dict[str, int] = {}
    differing: dict[str, list[tuple[str, Any, Any]]] = {}
    not_computed: dict[str, int] = {}
    both = [name for name in served if name in again]
    for row in both:
        for feature, value in served[row].items():
            if feature not in again[row]:
                not_computed[feature] = not_computed.get(feature, 0) + 1
                continue
            compared[feature] = compared.get(feature, 0) + 1
            if value != again[row][feature]:
                differing.setdefault(feature, []).append((row, value, again[row][feature]))
    found = [FeatureSkew(f, n, len(differing.get(f, [])), differing.get(f, [])[:EXAMPLES]) for f, n in compared.items()]
    found.sort(key=lambda f: (-f.differing, f.name))
    return Report(answers, flagged, len(both), len(served) - len(both), not_computed, found)


def judge(report: Report, max_share: float) -> Decision:
    """``equal``, ``skewed``, or ``unknown`` when there was nothing to compare: that is no good news."""
    share = report.differing / report.compared if report.compared else None
    found = Check(
        name="differing_values",
        value=share,
        threshold=max_share,
        n=report.compared,
        passed=share is not None and share <= max_share,
        detail=_reason(report),
    )
    verdict = "unknown" if share is None else "equal" if found.passed else "skewed"
    return Decision(kind="skew", verdict=verdict, reason=_reason(report), checks=[found])


def evidence(report: Report) -> dict[str, Any]:
    """For the ledger: counts, and every feature that differs."""
    return asdict(report) | {"features": [asdict(f) for f in report.features if f.differing]}


def alert(report: Report, decision: Decision) -> SkewError:
    """What an engineer reads: the worst features, one example, where to look."""
    worst = [f for f in report.features if f.differing][:3]
    example = f"; e.g. {worst[0].name} of {worst[0].examples[0][0]}: served {worst[0].examples[0][1]!r}, landed data gives " \
              f"{worst[0].examples[0][2]!r}" if worst else ""  # fmt: skip
    return SkewError(
        f"{decision.verdict}: {decision.reason}{example}",
        "see `evergreen ledger show --kind skew`; usual causes: rows that reached the source later than their known_at says, "
        "requests whose fields differ from the landed row's, a service or refresh that runs other feature code",
    )


def _reason(report: Report) -> str:
    seen = f"{report.answers} answers" + "".join(f", {n} {flag}" for flag, n in sorted(report.flagged.items()))
    if not report.compared:
        return f"nothing could be compared: {seen}, {report.not_landed} sampled rows not landed"
    worst: Sequence[str] = [f"{f.name} in {f.differing} of {f.compared} rows" for f in report.features if f.differing][:3]
    differ = f"{report.differing:,} of {report.compared:,} values differ in {report.rows} rows"
    rest = f"; {report.not_landed} sampled rows not landed" if report.not_landed else ""
    return f"{differ}" + (f": {', '.join(worst)}" if worst else "") + f" ({seen}){rest}"
