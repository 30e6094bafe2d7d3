"""The training pipeline on the other two tasks: from real rows to the gates' verdict and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml import steps, store
from ml.errors import ConfigError
from ml.refs import EvaluationRef, FeatureSetRef, TrainPlan
from tests.behaviour.chain import AS_OF, SMALL, landed

LATE = '"CAST(arr_delay >= 15 AS INTEGER)"'
OTHER = {"max_refit_shift: 0.10": "max_refit_shift: 20.0", "  fairness:  ": "  fairness: {}", "    origin: 0.20\n": ""}
TASKS = {
    "regression": {"task: binary ": "task: regression ", LATE: "arr_delay", "max_loss: 0.70": "max_loss: 5000.0"},
    "multiclass": {
        "task: binary ": "task: multiclass\n  classes: [early, fair, late] ",
        LATE: '"CASE WHEN arr_delay < -10 THEN 0 WHEN arr_delay < 15 THEN 1 WHEN arr_delay IS NULL THEN NULL ELSE 2 END"',
        "max_loss: 0.70": "max_loss: 1.1",
    },
}


def judged() -> tuple[TrainPlan, FeatureSetRef, EvaluationRef]:
    plan = steps.plan(AS_OF, "another task", "manual", "run-1")
    features = steps.features(plan)
    steps.tune(plan, features, 0, 1)
    return plan, features, steps.evaluate(plan, features, steps.fit(plan, features))


@pytest.mark.parametrize("task", list(TASKS))
def test_pipeline__judges_other_tasks_and_refuses_to_serve_them(task: str, tmp_path: Path, parsed_sources: Path) -> None:
    with landed(tmp_path, parsed_sources, {**SMALL, **TASKS[task], **OTHER}):
        plan, features, evaluation = judged()
        files = store.unpack(store.get(evaluation.report))
        report = json.loads(files["report.json"])
        checks = {check.name: check for check in evaluation.decision.checks}
        shipped = steps.refit(plan, features, evaluation)
        with pytest.raises(ConfigError, match=f"problem.task is {task}"):
            steps.package(plan, features, shipped)
    assert checks["parity"].passed, checks["parity"].detail
    assert checks["untouched_holdout"].passed
    assert (report["task"], evaluation.decision.verdict) == (task, "promote"), "mode report"
    measured = set(report["overall"]["candidate"])
    assert measured >= ({"rmse", "mae", "pinball"} if task == "regression" else {"macro_f1", "log_loss"})
    page = files["report.html"].decode()
    assert all(word in page for word in (("RMSE", "pinball") if task == "regression" else ("early", "fair", "late")))
    assert shipped.decision.verdict == "refitted", shipped.decision.reason
