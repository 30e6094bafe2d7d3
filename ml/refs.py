"""References: the small frozen values that travel between steps.

They hold strings and numbers, serialise to JSON, and point at content by digest, so that any worker can pick up any task.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from ml.config import FamilyName


def naive_utc(moment: datetime) -> datetime:
    """A plain datetime in UTC without a zone, as data time and the ledger have it; one without a zone is taken as UTC.

    >>> naive_utc(datetime.fromisoformat("2013-04-18T05:00:00+02:00"))
    datetime.datetime(2013, 4, 18, 3, 0)
    """
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    if type(utc) is datetime:  # nearly always; each row of a request comes by here
        return utc.replace(tzinfo=None) if utc.tzinfo else utc
    return datetime(*utc.timetuple()[:6], utc.microsecond)  # a subclass, such as pendulum's


class Ref(BaseModel):
    """Base of all references: immutable, strict, JSON both ways.

    >>> w = Window(start="2013-01-01", end="2013-01-03")
    >>> Window.model_validate_json(w.model_dump_json()) == w
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_xcom(self) -> dict[str, object]:
        """Plain JSON values, for Airflow's XCom."""
        return json.loads(self.model_dump_json())

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text())


class Window(Ref):
    """Data days ``[start, end)``, UTC.

    >>> [d.isoformat() for d in Window(start="2013-01-30", end="2013-02-01").days()]
    ['2013-01-30', '2013-01-31']
    """

    start: date
    end: date

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start < end must hold, but got (start={self.start}, end={self.end})")
        return self

    def days(self) -> list[date]:
        return [self.start + timedelta(days=i) for i in range((self.end - self.start).days)]

    def __str__(self) -> str:
        return f"{self.start}..{self.end - timedelta(days=1)}"


class LandingRef(Ref):
    """What `land` staged: one Parquet file per table and day below ``staging/<key>``, not yet validated."""

    window: Window
    as_of: datetime
    key: str
    rows: dict[str, int]


class ValidationRef(Ref):
    """What `validate` found: rows that passed per table, and where the full result and Data Docs are."""

    checkpoint: str
    run_name: str
    rows: dict[str, int]
    checks: int
    results_uri: str


class SnapshotRef(Ref):
    """One version of the raw data: DVC's ``<md5>.dir`` digest of the landed directory."""

    digest: str
    files: int
    size: int
    as_of: datetime
    """What was known then, and no more, is in it."""
    first_day: date
    last_day: date


class Recipe(Ref):
    """What a search chooses: a model family and its settings."""

    family: FamilyName
    params: dict[str, float]

    @property
    def brought(self) -> bool:
        """Whether nothing was chosen here: the model came as a graph."""
        return self.family == "onnx"


class TrainPlan(Ref):
    """What one training run will do, and why; everything else follows from it."""

    run_key: str
    """Idempotency key: the same plan run twice registers one version."""
    as_of: datetime
    reason: str
    trigger: str
    """``schedule``, ``request``, ``manual`` or ``backfill``."""
    snapshot: SnapshotRef
    train: Window
    holdout: Window
    folds: list[tuple[Window, Window]]
    """Pairs (fit, validation) inside `train`, oldest first; a gap of the embargo lies between the two."""
    champion_version: str | None
    champion_digest: str | None
    champion_recipe: Recipe | None
    warm: list[Recipe]
    """Recipes that the search tries first: those of the champion and of the last models."""
    holdout_uses: int
    """How many models were judged before on the most used day of the holdout."""
    used_by: list[str]
    """Which."""


class FeatureSetRef(Ref):
    """A built feature table in the store: ids, times, label, features."""

    digest: str
    rows: int
    snapshot: str
    """Digest of the data that it was computed from."""
    code: str
    """Digest of the feature code and parameters that computed it."""
    window: Window
    as_of: datetime


class ModelRef(Ref):
    """A fitted model in the store; ``digest`` is the SHA-256 of its ONNX graph."""

    digest: str
    artifacts: str
    """Digest of the archive with graph, members, baselines, reference profile and metadata."""
    recipe: Recipe
    rounds: int
    train: Window
    seconds: float
    cpu_seconds: float
    workers: int = 1
    """Processes that grew its trees together; another number may change their last digits."""


class Check(Ref):
    """One line of a decision. A missing value is a failed check."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    n: int
    detail: str


class Decision(Ref):
    """A verdict with its reasons."""

    kind: str
    verdict: str
    reason: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(c.passed for c in self.checks)


class EvaluationRef(Ref):
    """What the holdout said: the gate's decision and the stored report."""

    model: ModelRef
    """What was judged: the fitted model, or the linear one beside it where that wins."""
    decision: Decision
    report: str
    """Digest of the stored archive: report.json, the page, the card and pictures."""
    metrics: dict[str, float]


class ShippedRef(Ref):
    """The model that would be released: the judged one, or its refit on all matured days."""

    model: ModelRef
    twin: str
    """Artifacts of the judged model."""
    decision: Decision
    """Verdict ``refitted``, ``judged`` (ships as it was judged) or ``differs``."""


class BundleRef(Ref):
    """A package that can be served: digest of the bundle archive, and the Bento built from it."""

    digest: str
    model: str
    bento: str
    bento_archive: str
    """Digest of the exported ``.bento`` archive in the store."""
    parity: Decision


class VersionRef(Ref):
    """A registered model version."""

    version: str
    bundle: str
    model: str
    verdict: str
    backfill: bool
    run_id: str


class CanaryState(Ref):
    """Where a candidate's canary stands: what is to be done now, and why."""

    version: str
    verdict: str
    """``running`` (look again), ``pass``, ``fail`` (it was taken out), ``inconclusive`` (a person is to say)."""
    share: float
    """Of entities that it answers now."""
    manifest: int
    reason: str
    decision: Decision | None = None
    """The newest analysis; None when nothing was analysed."""


class ScoreRef(Ref):
    """Batch predictions written, one partition per day."""

    window: Window
    rows: int
    version: str
    partitions: list[str]


def run_key(identity: str) -> str:
    """The key of the run that something asked for: first 16 hex digits of the SHA-256 of its name."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class WatchRef(Ref):
    """What a day of watching came to. `request`: name of the retrain that is asked for, empty when none is."""

    day: date
    as_of: datetime
    version: str
    decision: Decision
    phase: str
    request: str
    next_allowed: datetime | None
    note: str = ""
    page: str = ""
    """Digest of the day's page."""


class ReportRef(Ref):
    """A week's summary: its days, its headline, and the digest of its page in the store."""

    week: Window
    headline: str
    page: str


class MonitorRef(Ref):
    """What the monitoring of one day found; the whole is stored under `report`."""

    day: date
    as_of: datetime
    version: str
    predictions: int
    matured: int
    report: str
    metrics: dict[str, float]
