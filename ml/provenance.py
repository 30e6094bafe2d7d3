"""What a task read and made, as the references that went into it and came out of it say.

Since data stays and references travel, a task's arguments and outcome name what it handled, with versions. What is handled
beside, by tasks that are given a time or return a number, is in `BESIDE`. Pure values: `dags/lineage.py` makes events of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ml import refs
from ml.config import load_params
from ml.refs import Ref, SnapshotRef, TrainPlan, VersionRef
from ml.revision import revision
from ml.settings import settings

SCHEMA = "urn:evergreen:lineage-facets:1"
"""``$id`` of docs/lineage-facets.json."""

BESIDE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "land": (("source/*",), ()),
    "prepare_days": (("snapshot",), ("history",)),
    "features": (("history",), ()),
    "materialise": (("raw/*",), ("online_features",)),
    "canary": (("predictions/online",), ()),
    "promote": ((), ("deployment",)),
    "score": (("raw/*",), ()),
    "monitor": (("raw/*", "predictions/online", "predictions/batch"), ()),
    "skew": (("raw/*", "predictions/online"), ()),
    "report": (("monitoring",), ()),
}
"""By task: the names of what it reads and writes beside its references; ``*`` stands for each declared table."""


@dataclass(frozen=True)
class Dataset:
    """Something with a name that lasts, in one version: a digest, or a number; empty where no reference tells it."""

    name: str
    version: str = ""


@dataclass(frozen=True)
class Handled:
    """What one task read and made."""

    inputs: list[Dataset] = field(default_factory=list)
    outputs: list[Dataset] = field(default_factory=list)
    facets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, as docs/lineage-facets.json has them."""


def namespace() -> str:
    """Of the datasets: two problems in one lineage store do not mix."""
    return f"evergreen://{load_params().problem.name}"


def handled(task: str, arguments: Iterable[Any], outcome: Any = None) -> Handled:
    """What a task handled.

    Args:
        task: its id.
        arguments: as XCom and asset events carried them; those that are no references are passed over.
        outcome: what it returned, in the same form; None when it has not ended, or ended badly.
    """
    given = [ref for value in arguments if (ref := recognised(value))]
    made = recognised(outcome)
    reads, writes = (list(_named(names)) for names in BESIDE.get(task, ((), ())))
    inputs = [dataset for ref in given if not isinstance(ref, TrainPlan) for dataset in _points_at(ref)]
    inputs += [*(_made_from(made) if made else []), *reads]
    if all(isinstance(ref, TrainPlan) for ref in given):  # who has nothing made from the planned data reads that data itself
        inputs += [Dataset("snapshot", ref.snapshot.digest) for ref in given if isinstance(ref, TrainPlan)]
    outputs = _points_at(made) if made else []
    if outcome is not None:
        version = str(outcome) if task == "promote" else ""  # its outcome is the number of the deployment manifest
        outputs += [Dataset(dataset.name, version) for dataset in writes]
    return Handled(_once(inputs), _once(outputs), _facets([*given, *([made] if made else [])]))


def recognised(value: Any) -> Ref | None:
    """The reference that plain values are, by their keys: no two references have the same; None when they are none.

    >>> recognised({"start": "2013-01-01", "end": "2013-01-03"})
    Window(start=datetime.date(2013, 1, 1), end=datetime.date(2013, 1, 3))
    >>> recognised({"start": "2013-01-01"})
    """
    if not isinstance(value, dict):
        return None
    kind = next((kind for kind in _kinds() if set(kind.model_fields) == set(value)), None)
    return kind.model_validate(value) if kind else None


def _kinds() -> list[type[Ref]]:
    return [kind for kind in vars(refs).values() if isinstance(kind, type) and issubclass(kind, Ref) and kind is not Ref]


def _points_at(ref: Ref) -> list[Dataset]:
    """The datasets that a reference names."""
    match ref:
        case refs.LandingRef():
            return [Dataset(f"staging/{table}", ref.key) for table in sorted(ref.rows)]
        case refs.ValidationRef(checkpoint="landing"):
            return [Dataset(f"raw/{table}") for table in sorted(ref.rows)]
        case SnapshotRef():
            return [Dataset("snapshot", ref.digest)]
        case refs.FeatureSetRef():
            return [Dataset("features", ref.digest)]
        case refs.ModelRef():
            return [Dataset("model", ref.digest)]
        case refs.ShippedRef():
            return [Dataset("model", ref.model.digest)]
        case refs.EvaluationRef():
            return [Dataset("evaluation", ref.report)]
        case refs.BundleRef():
            return [Dataset("bundle", ref.digest)]
        case VersionRef():
            return [Dataset("registered_model", ref.version)]
        case refs.CanaryState():
            return [Dataset("deployment", str(ref.manifest))]
        case refs.ScoreRef():
            return [Dataset("predictions/batch", f"{ref.window} by v{ref.version}")]
        case refs.MonitorRef():
            return [Dataset("monitoring", ref.report)]
        case refs.WatchRef():
            return [Dataset("daily_page", ref.page)]
        case refs.ReportRef():
            return [Dataset("weekly_page", ref.page)]
    return []


def _made_from(ref: Ref) -> list[Dataset]:
    """The datasets that an outcome says it was made from."""
    match ref:
        case refs.FeatureSetRef():
            return [Dataset("snapshot", ref.snapshot)]
        case refs.ScoreRef() | refs.MonitorRef() | refs.CanaryState():
            return [Dataset("registered_model", ref.version)]
    return []


def _named(names: Iterable[str]) -> Iterator[Dataset]:
    for name in names:
        tables = sorted(load_params().tables) if name.endswith("*") else [""]
        yield from (Dataset(name.removesuffix("*") + table) for table in tables)


def _once(datasets: Iterable[Dataset]) -> list[Dataset]:
    """Each once; one whose version is known stands for the same without."""
    found = list(dict.fromkeys(datasets))
    known = {dataset.name for dataset in found if dataset.version}
    return [dataset for dataset in found if dataset.version or dataset.name not in known]


def _facets(given: list[Ref]) -> dict[str, dict[str, Any]]:
    """The data version and the MLflow run, where a reference knows them; the newest reference counts."""
    whole = [_data(ref) for ref in given if isinstance(ref, SnapshotRef | TrainPlan)]
    data = whole or [{"digest": ref.snapshot} for ref in given if isinstance(ref, refs.FeatureSetRef)]
    version = next((ref for ref in reversed(given) if isinstance(ref, VersionRef)), None)
    facets = {}
    if data:
        facets["evergreen_dataVersion"] = data[-1] | {"revision": revision()}
    if version:
        facets["evergreen_mlflowRun"] = {
            "runId": version.run_id,
            "model": load_params().problem.name,
            "version": version.version,
            "verdict": version.verdict,
            "pages": settings().mlflow_pages,
        }
    return facets


def _data(ref: SnapshotRef | TrainPlan) -> dict[str, Any]:
    snapshot = ref.snapshot if isinstance(ref, TrainPlan) else ref
    days = {"firstDay": snapshot.first_day.isoformat(), "lastDay": snapshot.last_day.isoformat()}
    return {"digest": snapshot.digest, "asOf": snapshot.as_of.isoformat(), **days}
