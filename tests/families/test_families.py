"""PyTorch and Keras: each trains briefly on real rows in an environment of its own, is registered by the real command, and serves.

Needs ``make test-families``, which makes the environments; without them these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml import ledger, steps
from ml.refs import VersionRef
from ml.settings import ROOT, settings
from tests.behaviour.chain import AS_OF, SMALL, landed
from tests.sample_bundle import REQUEST
from tests.serving.conftest import serve_process

pytestmark = pytest.mark.e2e
FAMILIES = ("torch", "keras")


def python_of(family: str) -> Path:
    return ROOT / ".families" / family / "bin" / "python"


def evergreen(*arguments: object) -> str:
    command = [sys.executable, "-c", "from ml.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory, parsed_sources: Path) -> Iterator[Path]:
    """What was known of the first ten days, as anybody gets it for training elsewhere."""
    if missing := [family for family in FAMILIES if not python_of(family).exists()]:
        pytest.skip(f"no environment for {' and '.join(missing)}: run `make test-families`")
    with landed(tmp_path_factory.mktemp("families"), parsed_sources, SMALL) as home:
        evergreen("training-set", "2013-01-01", "2013-01-11", AS_OF.isoformat(), "--out", home / "january.parquet")
        yield home / "january.parquet"


@pytest.mark.parametrize("family", FAMILIES)
def test_family__trained_elsewhere__is_judged_registered_and_serves(family: str, training_set: Path) -> None:
    out = training_set.parent / family
    script = ROOT / "examples" / family / "train.py"
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN", "PYTHON"))}
    command = [str(python_of(family)), str(script), str(training_set), str(out)]
    trained = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr[-3000:]
    evergreen(
        "register", "--onnx", f"{out}.onnx", "--expected", f"{out}.parquet", "--name", f"mlp in {family}",
        "--trained-from", "2013-01-01", "--trained-until", "2013-01-10", "--as-of", AS_OF.isoformat(),
    )  # fmt: skip
    version = VersionRef.read(settings().var / "refs" / "version.json")
    gate = ledger.entries("gate", subject=f"v{version.version}")[-1]
    parity = next(check for check in gate.evidence["decision"]["checks"] if check["name"] == "parity")
    assert parity["passed"], parity["detail"]
    print(f"\n{family}: v{version.version} {version.verdict}: AUC {gate.evidence['metrics']['candidate_auc']:.4f}, "
          f"log-loss {gate.evidence['metrics']['candidate_log_loss']:.4f}; largest difference {parity['value']:.1e}")  # fmt: skip
    assert gate.evidence["metrics"]["candidate_auc"] > 0.55
    steps.canary(version, AS_OF, skip="nobody asks this one: no canary could end")
    steps.promote(version, AS_OF)
    with serve_process() as (_, client):
        said = client.post("/predict?explain=true", json=REQUEST).json()
    (said,) = said if isinstance(said, list) else (said,)
    assert (said["model_version"], said["flags"].count("fallback")) == (version.version, 0)
    assert 0 < said["probability"] < 1
    assert len(said["explanation"]["contributions"]) > 5
