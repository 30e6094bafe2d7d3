"""The end of experiments, as the manifests tell it: noted in the ledger whoever ended them, and how."""

from __future__ import annotations

from itertools import pairwise

from ml import ledger
from ml.serving import manifest

KIND = "experiment"
"""Kind of ledger entry: an experiment began, or ended."""


def key(name: str) -> str:
    """Of the manifest by which a person ends an experiment, and of the ledger's note of its end, whoever ended it."""
    return f"{KIND}-{name}-stop"


def note() -> None:
    """Notes the end of every experiment that is in the manifest no more: by which change, by whom and why. Again is once.

    The manifests know all of it: a change that was killed before its note, or was made past these functions, gets one when
    somebody next looks.
    """
    documents = manifest.history()
    for before, out in pairwise(documents):
        trial = before.experiment
        if trial is None or (out.experiment is not None and out.experiment.name == trial.name):
            continue
        verdict, reason = "stopped", out.reason
        if out.key != key(trial.name):
            reason = f"stopped by {_cause(out.key)}, manifest {out.version}, by {out.by}: {out.reason}"
        elif out.champion != before.champion:
            verdict = f"adopted {next(arm for arm, deployed in trial.arms.items() if deployed == out.champion)}"
        evidence = {"manifest": out.version, "by": out.by}
        ledger.record(KIND, key(trial.name), out.changed_at, trial.name, verdict, reason, evidence)


def _cause(key: str) -> str:
    """What kind of change a manifest's key stands for."""
    return {"rollback": "rollback", "promote": "promotion"}.get(key.partition("-")[0], f"change {key}")
