"""The only reader of ``params.yaml``: what changes a model."""

from __future__ import annotations

import difflib
import hashlib
import json
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml.errors import ConfigError
from ml.settings import settings

RECORDED = "recorded_at"  # what landed files add to the declared columns: see ml/data/versions.py

ColumnType = Literal["string", "int", "float", "bool", "timestamp"]
Task = Literal["binary", "multiclass", "regression"]
FamilyName = Literal["xgboost", "lightgbm", "linear", "onnx"]  # the last: brought as a graph, never fitted here


class Section(BaseModel):
    """A part of params.yaml: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of this section."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Problem(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    table: str
    id: list[str] = Field(min_length=1)
    task: Task = "binary"
    classes: list[str] = []
    label: str
    lead_hours: float = Field(ge=0)
    timezone: str

    @model_validator(mode="after")
    def _classes_named(self) -> Self:
        if (self.task == "multiclass") != (len(self.classes) >= 3):
            raise ValueError(f"task {self.task} with {len(self.classes)} classes: multiclass needs three or more, others none")
        return self


class SourceSpec(BaseModel):
    """`kind` and whatever that kind takes (checked by the source itself)."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: Literal["nycflights", "parquet", "csv", "sql"]

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Table(Section):
    source: SourceSpec
    event_time: str | None
    known_at: str | None
    outcomes: list[str]
    key: list[str] = Field(min_length=1)
    columns: dict[str, ColumnType]
    sensitive: dict[str, str] = {}

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        if RECORDED in self.columns:
            raise ValueError(f"a column may not be named {RECORDED!r}: landed files use that name; rename it")
        for column in [*self.key, *self.outcomes, *self.sensitive]:
            if column not in self.columns:
                raise ValueError(f"column {column!r} is not among columns: {', '.join(self.columns)}")
        return self


class Schedule(Section):
    start: date
    end: date | None
    catchup: bool


class Pipeline(Section):
    start: date
    end: date
    landed_at: datetime
    as_of: datetime


class Landing(Section):
    lookback_days: int = Field(ge=0)
    max_bad_row_share: float = Field(ge=0, le=1)


class Features(Section):
    module: str | None
    outcome_hours: int = Field(ge=0)
    tick_minutes: int = Field(ge=1, le=1440)
    allow_sensitive: dict[str, str] = {}


class Train(Section):
    window_days: int = Field(ge=2)
    holdout_days: int = Field(ge=1)
    folds: int = Field(ge=1)
    fold_days: int = Field(ge=1)
    embargo_hours: float = Field(ge=0)
    min_rows: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    early_stopping_rounds: int = Field(ge=1)
    threads: int = Field(ge=1)
    seed: int = Field(ge=0)
    refit: bool = True
    ensemble: int = Field(1, ge=1, le=20)
    xgboost: dict[str, str | int | float]
    lightgbm: dict[str, str | int | float] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = self.holdout_days + self.folds * self.fold_days
        if needed >= self.window_days:
            raise ValueError(f"holdout_days + folds × fold_days must be below window_days, but {needed} ≥ {self.window_days}")
        return self


class Dimension(Section):
    low: float
    high: float
    log: bool = False
    int: bool = False
    default: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.default <= self.high:
            raise ValueError(f"low ≤ default ≤ high must hold, but got ({self.low}, {self.default}, {self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be positive when log is true, but got {self.low}")
        return self


class Tune(Section):
    trials: int = Field(ge=1)
    workers: int = Field(ge=1)
    seconds: float = Field(gt=0)
    rows: int = Field(ge=1000)
    startup: int = Field(ge=0)
    generation: int = Field(ge=1)
    checkpoint: int = Field(ge=1)
    prune: float = Field(gt=0, le=1)
    confidence: float = Field(gt=0.5, lt=1)
    space: dict[str, Dimension] = Field(min_length=1)
    second: Literal["lightgbm"] | None = None
    second_trials: int = Field(0, ge=0)
    second_space: dict[str, Dimension] = {}

    @model_validator(mode="after")
    def _second_whole(self) -> Self:
        if self.second and not (self.second_trials and self.second_space):
            raise ValueError(f"second = {self.second} needs second_trials ≥ 1 and a second_space")
        return self

    def integers(self, family: FamilyName) -> set[str]:
        """The family's searched settings that are whole numbers."""
        space = {"xgboost": self.space, "lightgbm": self.second_space, "linear": {}, "onnx": {}}[family]
        return {name for name, dimension in space.items() if dimension.int}


class Baseline(Section):
    climatology: list[str] = Field(min_length=1)


class Card(Section):
    owner: str
    intended_use: str
    limits: list[str]


class Evaluation(Section):
    slices: dict[str, list[float] | None]
    found_slices: int = Field(ge=0)
    min_slice_rows: int = Field(ge=1)
    false_alarm_cost: float = Field(ge=0)
    miss_cost: float = Field(ge=0)
    quantile: float = Field(0.5, gt=0, lt=1)
    explained_rows: int = Field(ge=1)


class Gates(Section):
    mode: Literal["enforce", "report"]
    min_days: int = Field(ge=2)
    min_score: float
    max_loss: float = Field(gt=0)
    margin: float = Field(ge=0)
    confidence: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100)
    max_feature_score: float = Field(le=1)
    slice_margin: float = Field(ge=0)
    max_calibration_error: float = Field(gt=0)
    fairness: dict[str, float]
    parity_tolerance: float = Field(gt=0, lt=0.01)
    max_latency_ms: float = Field(gt=0)
    max_latency_ratio: float = Field(gt=1)
    max_size_mb: float = Field(gt=0)
    max_refit_shift: float = Field(gt=0)


class Serving(Section):
    threshold: float = Field(ge=0, le=1)
    max_batch: int = Field(ge=1)
    budget_ms: float = Field(gt=0)


class Release(Section):
    approval: bool
    approval_hours: float = Field(gt=0)
    steps: list[float]
    min_answers: int = Field(ge=50)
    max_hours: float = Field(gt=0)
    confidence: float = Field(gt=0.5, lt=1)
    max_error_increase: float = Field(gt=0, lt=1)
    max_latency_ratio: float = Field(gt=1)
    max_score_shift: float = Field(gt=0, lt=1)
    loss_margin: float = Field(gt=0)
    min_labels: int = Field(ge=50)
    wait_for_labels: int = Field(ge=0)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.steps != sorted(set(self.steps)) or any(not 0 < share <= 0.5 for share in self.steps):
            raise ValueError(
                f"release.steps must grow and lie in (0, 0.5] (the baseline cohort is as large), but got {self.steps}"
            )
        if self.wait_for_labels and not self.steps:
            raise ValueError(f"release.wait_for_labels is {self.wait_for_labels}, but without release.steps nothing waits")
        if 0 < self.wait_for_labels < self.min_labels:
            raise ValueError(
                f"release.wait_for_labels must be 0 or at least min_labels ({self.min_labels}), below which labels do not bind, "
                f"but got {self.wait_for_labels}"
            )
        return self


class Drift(Section):
    small: float = Field(gt=0)
    moderate: float
    large: float
    false_discovery_rate: float = Field(gt=0, lt=1)
    weeks: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.small <= self.moderate <= self.large:
            raise ValueError(f"small ≤ moderate ≤ large must hold, but got ({self.small}, {self.moderate}, {self.large})")
        return self


class Harm(Section):
    confidence: float = Field(gt=0.5, lt=1)
    margin: float = Field(ge=0)
    min_rows: int = Field(ge=1)
    fresh_days: int = Field(ge=2)
    fresh_rounds: int = Field(ge=1)


class Estimate(Section):
    min_rows: int = Field(ge=1)
    min_days: int = Field(ge=2)
    learned_days: int = Field(ge=2)
    judged_days: int = Field(ge=3)
    confidence: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100)
    max_gap: float = Field(gt=0, lt=1)
    max_moved: float = Field(ge=0, le=1)
    apart_rows: int = Field(ge=1000)
    apart_auc: float = Field(gt=0.5, lt=1)

    @model_validator(mode="after")
    def _learns_enough(self) -> Self:
        if self.min_days > self.learned_days:
            raise ValueError(f"min_days ≤ learned_days must hold, but got ({self.min_days}, {self.learned_days})")
        return self


class Health(Section):
    weeks: int = Field(ge=1)
    min_weeks: int = Field(ge=1)
    due_hours: float = Field(ge=0)
    min_volume: float = Field(ge=0, lt=1)
    max_volume: float = Field(gt=1)
    max_null_increase: float = Field(gt=0, le=1)
    max_outcome_null_increase: float = Field(gt=0, le=1)
    max_duplicates: float = Field(ge=0, lt=1)
    range_margin: float = Field(ge=0)
    max_outside: float = Field(ge=0, lt=1)
    min_answered: float = Field(ge=0, lt=1)
    max_flagged: float = Field(ge=0, le=1)
    advisory: list[str] = []

    @model_validator(mode="after")
    def _remembered(self) -> Self:
        if self.min_weeks > self.weeks:
            raise ValueError(f"min_weeks ≤ weeks must hold, but got ({self.min_weeks}, {self.weeks})")
        return self


class Monitoring(Section):
    drift_days: int = Field(ge=1)
    performance_days: int = Field(ge=1)
    drift: Drift
    health: Health
    harm: Harm
    estimate: Estimate
    skew_sample: int = Field(ge=1)
    max_skew_share: float = Field(ge=0, lt=1)


class Policy(Section):
    window_days: int = Field(ge=1)
    confirm_days: int = Field(ge=1)
    cooldown_days: float = Field(ge=0)
    weekly_budget: int = Field(ge=1)
    min_new_labels: int = Field(ge=0)
    breaker: int = Field(ge=1)
    stale_days: float = Field(gt=0)
    flight_hours: float = Field(gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.confirm_days > self.window_days:
            raise ValueError(f"confirm_days ≤ window_days must hold, but got ({self.confirm_days}, {self.window_days})")
        return self


class LateAfter(Section):
    """Minutes after which a run of a DAG is late, counted from when it was queued; None: never."""

    ingest: float | None = Field(None, gt=0)
    train: float | None = Field(None, gt=0)
    release: float | None = Field(None, gt=0)
    drift: float | None = Field(None, gt=0)
    score: float | None = Field(None, gt=0)
    online: float | None = Field(None, gt=0)
    features: float | None = Field(None, gt=0)
    report: float | None = Field(None, gt=0)


class Alerts(Section):
    late_after_minutes: LateAfter


class Costs(Section):
    currency: str = Field(min_length=1, max_length=8)
    cpu_hour: float = Field(ge=0)
    business_unit: float = Field(ge=0)


class Params(Section):
    """The whole of params.yaml."""

    problem: Problem
    tables: dict[str, Table]
    schedule: Schedule
    pipeline: Pipeline
    landing: Landing
    features: Features
    train: Train
    tune: Tune
    baseline: Baseline
    evaluation: Evaluation
    card: Card
    gates: Gates
    serving: Serving
    release: Release
    monitoring: Monitoring
    policy: Policy
    alerts: Alerts
    costs: Costs

    @model_validator(mode="after")
    def _table_exists(self) -> Self:
        if self.gates.fairness and self.problem.task != "binary":
            raise ValueError("gates.fairness compares error rates of 0/1 decisions: leave it empty, or make problem.task binary")
        if self.problem.table not in self.tables:
            raise ValueError(f"problem.table {self.problem.table!r} is not among tables: {', '.join(self.tables)}")
        if self.tables[self.problem.table].event_time is None:
            raise ValueError(f"table {self.problem.table!r} needs an event_time")
        longest = self.release.max_hours * len(self.release.steps)
        if self.release.wait_for_labels and longest <= self.train.embargo_hours:
            raise ValueError(
                f"release.wait_for_labels cannot be met: a canary lasts {longest:g} h (max_hours at each of steps), and labels "
                f"mature after train.embargo_hours ({self.train.embargo_hours:g})"
            )
        for allowed in self.features.allow_sensitive:
            table, _, column = allowed.partition(".")
            if table not in self.tables or column not in self.tables[table].sensitive:
                raise ValueError(f"features.allow_sensitive names {allowed!r}, which no table declares sensitive")
        return self


@cache
def load_params(path: Path | None = None) -> Params:
    """Reads and checks params.yaml.

    Raises:
        ConfigError: names the first wrong key, its value, and what is allowed.
    """
    path = path or settings().params
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no parameter file at {path}", "set EVERGREEN_PARAMS or restore params.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}", "mend the line that is named") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise _explain(path, error) from None


def _explain(path: Path, error: ValidationError) -> ConfigError:
    """The first problem in one line: key, value, what is allowed, and the nearest known key for an unknown one."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")  # a typo explains the rest
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] != "extra_forbidden":
        return ConfigError(f"{path.name}: {key} = {first['input']!r}: {first['msg']}{more}", f"change {key} in {path}")
    section: type[BaseModel] | None = Params
    for part in first["loc"][:-1]:
        annotation = section.model_fields[str(part)].annotation if section and str(part) in section.model_fields else None
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
    cure = f"did you mean {near[0]!r}?" if near else (f"known keys: {', '.join(known)}" if known else "remove it")
    return ConfigError(f"{path.name}: unknown key {key} = {first['input']!r}{more}", cure)
