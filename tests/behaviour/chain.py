"""A training chain that takes seconds: two weeks, two trials, gates that only report. And versions that were tampered with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ml import steps, tracking
from ml.config import load_params
from ml.packaging.artifacts import Artifacts
from ml.refs import BundleRef, EvaluationRef, FeatureSetRef, ModelRef, ShippedRef, TrainPlan, VersionRef, Window
from ml.settings import ROOT
from tests.conftest import forget

SMALL = {
    "window_days: 90": "window_days: 16",
    "holdout_days: 14": "holdout_days: 6",
    "folds: 4": "folds: 1",
    "fold_days: 7": "fold_days: 3",
    "max_rounds: 300": "max_rounds: 20",
    "trials: 24": "trials: 2",
    "workers: 2": "workers: 1",
    "rows: 100000": "rows: 3000",
    "mode: enforce": "mode: report",
    "min_days: 10": "min_days: 6",
    "resamples: 10000": "resamples: 200",
    "explained_rows: 2000": "explained_rows: 100",
}
AS_OF = datetime(2013, 1, 19, 3)
LANDED = Window(start="2013-01-01", end="2013-01-19")


@dataclass(frozen=True)
class Chain:
    """A landed fortnight and the version that was trained on it, with the references on the way."""

    home: Path
    plan: TrainPlan
    features: FeatureSetRef
    model: ModelRef
    evaluation: EvaluationRef
    shipped: ShippedRef
    bundle: BundleRef
    version: VersionRef

    def register(self, run_key: str, shipped: ShippedRef) -> VersionRef:
        """Another version of the same plan: the lineage is of `shipped`, whatever the present code and parameters are."""
        plan = self.plan.model_copy(update={"run_key": run_key})
        return steps.register(plan, self.features, self.evaluation, shipped, self.bundle)


@contextmanager
def landed(
    home: Path, parsed_sources: Path, changes: Mapping[str, str], window: Window = LANDED, as_of: datetime = AS_OF
) -> Iterator[Path]:
    """Below `home`: params.yaml with `changes` of its text, landed days, a snapshot."""
    text = (ROOT / "params.yaml").read_text()
    for found, put in changes.items():
        assert found in text, found
        text = text.replace(found, put)
    (home / "params.yaml").write_text(text)
    (home / "var").mkdir()
    (home / "var" / "cache").symlink_to(parsed_sources)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "var"):
            patch.setenv(f"EVERGREEN_{name.upper()}", str(home / name))
        patch.setenv("EVERGREEN_PARAMS", str(home / "params.yaml"))
        forget()
        steps.validate(steps.land(window, as_of - timedelta(hours=1)))
        steps.snapshot(as_of - timedelta(hours=1))
        yield home
    forget()


def trained(home: Path) -> Chain:
    """All steps of the train pipeline."""
    plan = steps.plan(AS_OF, "first model", "manual", "run-1")
    features = steps.features(plan)
    steps.tune(plan, features, 0, 1)
    model = steps.fit(plan, features)
    evaluation = steps.evaluate(plan, features, model)
    shipped = steps.refit(plan, features, evaluation)
    bundle = steps.package(plan, features, shipped)
    version = steps.register(plan, features, evaluation, shipped, bundle)
    return Chain(home, plan, features, model, evaluation, shipped, bundle, version)


def relabelled(version: VersionRef, **changes: str) -> str:
    """A version that says of itself what `version` says, but for `changes` of its tags."""
    name = load_params().problem.name
    tags = tracking.tags(name, version.version) | changes
    parts = Artifacts.load(tags["artifacts"])
    _, number = tracking.log_and_register(
        "relabelled-" + "-".join(f"{tag}-{value[:12]}" for tag, value in sorted(changes.items())),
        name,
        title="relabelled",
        params={},
        metrics={},
        tags={tag: value for tag, value in tags.items() if tag != tracking.KEY},
        artifacts={},
        plots={},
        onnx=parts.onnx,
        numeric=parts.fitted.encoding.numeric,
        text=parts.fitted.encoding.text,
        dataset=("raw", tags["snapshot"]),
        description="",
    )
    return number
