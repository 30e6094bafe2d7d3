"""NannyML's CBPE beside ours, on the same weeks. It wants old versions of what we use, so it runs in an environment of its own.

Run as a script by that environment's Python, it is NannyML's side: it reads two CSV files and writes JSON, and imports nothing of
ours. Imported, it is our side: it makes the environment in a temporary folder, runs the script, and compares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml.config import Estimate as Limits
    from ml.metrics import Scoring
    from ml.monitoring.estimate import Estimate
    from ml.monitoring.expected import Labelled

NAMES = {"roc_auc": "auc", "accuracy": "accuracy", "precision": "precision", "recall": "recall"}
"""NannyML's metrics and ours; it estimates neither log-loss nor Brier score."""
INSTALL, RUN = 240, 240


def run(holdout: Labelled, later: Labelled, threshold: float) -> dict[str, Any] | str:
    """NannyML's estimates by week, with the holdout for its reference; or the reason why there are none."""
    with tempfile.TemporaryDirectory(prefix="evergreen-nannyml-") as name:
        home = Path(name)
        began = time.monotonic()
        python, wrong = installed(home)
        if wrong:
            return wrong
        print(f"NannyML installed in {time.monotonic() - began:.0f} s", flush=True)
        for part, rows in (("reference", holdout), ("analysis", later)):
            table(rows, threshold).to_csv(home / f"{part}.csv", index=False)
        command = [str(python), __file__, str(home)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN, check=False, env=bare(home), cwd=home)
        if done.returncode:
            return f"NannyML failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        return dict(json.loads((home / "found.json").read_text()))


def installed(home: Path) -> tuple[Path, str]:
    """The new environment's Python, and what went wrong, if anything."""
    uv = Path(sys.prefix) / "uv" / "bin" / "uv"
    if not uv.exists():
        return uv, f"there is no {uv.relative_to(sys.prefix)} in this environment: make setup"
    python = home / "env" / "bin" / "python"
    for command in (
        ["venv", "-q", "--python", sys.executable, str(home / "env")],
        ["pip", "install", "-q", "--python", str(python), "nannyml", "statsmodels"],  # which it imports and does not ask for
    ):
        asked = [str(uv), *command]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=INSTALL, check=False, env=bare(home))
        except subprocess.TimeoutExpired:
            return python, f"uv {command[0]} took more than {INSTALL} s"
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return python, f"uv {' '.join(command[:2])} failed: {lines[-1].strip()}"
    return python, ""


def bare(home: Path) -> dict[str, str]:
    """This process's environment without its Python; caches that NannyML's libraries write go to the temporary folder."""
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    return kept | {"NML_DISABLE_USAGE_LOGGING": "1", "MPLCONFIGDIR": str(home)}


def table(rows: Labelled, threshold: float) -> Any:
    """As NannyML wants it."""
    import pandas as pd

    return pd.DataFrame({
        "at": rows.days.astype("datetime64[D]").astype("datetime64[s]"), "y_proba": rows.y_proba,
        "y_pred": (rows.y_proba >= threshold).astype(int), "y_true": rows.y_true.astype(int),
    })  # fmt: skip


def compare(
    peer: dict[str, Any],
    holdout: Labelled,
    weeks: list[Labelled],
    told: list[Estimate | None],
    scoring: Scoring,
    limits: Limits,
) -> list[str]:
    """Prints values and errors side by side; gives the summary's lines.

    Args:
        told: our estimates of the weeks as made in part weeks; None: made here, from the holdout alone.
    """
    import numpy as np

    from ml.monitoring import expected as ex
    from ops.bench_features import say, show

    began = time.process_time()
    alone = [ex.forecast(week, holdout, scoring, limits, 0) for week in weeks]
    seconds = time.process_time() - began
    truths = [ex.realised(week, scoring) for week in weeks]
    if [chunk["n"] for chunk in peer["weeks"]] != [len(week.days) for week in weeks]:
        return [f"nannyml: its weeks are not ours: {[c['n'] for c in peer['weeks']]} against {[len(w.days) for w in weeks]} rows"]
    lines, shown, summary = [], [], []
    for theirs, ours in NAMES.items():
        truth = np.array([t[ours] for t in truths])
        said = {
            "NannyML": np.array([c[theirs]["value"] for c in peer["weeks"]]),
            "ours, holdout alone": np.array([f[ours].value for f in alone], dtype=float),
            "ours": np.array([np.nan if t is None else t.metrics[ours].value for t in told], dtype=float),
        }
        ends = {
            "NannyML": [(c[theirs]["low"], c[theirs]["high"]) for c in peer["weeks"]],
            "ours, holdout alone": [(f[ours].low, f[ours].high) for f in alone],
            "ours": [(None, None) if t is None else (t.metrics[ours].low, t.metrics[ours].high) for t in told],
        }
        for who, values in said.items():
            if np.isnan(values).all():
                continue
            inside = [low is not None and low <= true <= high for (low, high), true in zip(ends[who], truth, strict=True)]
            lines.append([ours, who, f"{np.nanmean(np.abs(values - truth)):.4f}", f"{np.mean(inside):.0%}"])
        if ours == "auc":
            shown = [[w, f"{truth[w]:.4f}", *(f"{v[w]:.4f}" for v in said.values())] for w in range(0, len(weeks), 3)]
            errors = [f"{who} {np.nanmean(np.abs(v - truth)):.4f}" for who, v in said.items() if not np.isnan(v).all()]
            summary.append("nannyml: mean error of AUC by week: " + ", ".join(errors))
    say("one champion, all its weeks; NannyML's reference is the holdout, its interval three standard errors; 'ours' learns on\n")
    show(["metric", "by", "mean absolute error", "realised inside the interval"], lines)
    say("\nAUC of every third week\n")
    show(["week", "realised", "NannyML", "ours, holdout alone", "ours"], shown)
    say(f"\nCPU seconds: NannyML {peer['fit']:.2f} to fit and {peer['estimate']:.2f} to estimate, ours {seconds:.2f}")
    chances = [np.array(c["chance"]) for c in peer["weeks"]]
    apart = max(
        abs(ex.expected(week.y_proba, chance, scoring)[ours] - c[theirs]["value"])
        for week, chance, c in zip(weeks, chances, peer["weeks"], strict=True)
        for theirs, ours in NAMES.items()
    )
    say(f"of the same calibrated probabilities, the largest difference of any figure is {apart:.1e}")
    return [*summary, f"nannyml: of the same calibrated probabilities, figures differ by {apart:.1e} at most"]


# ---- NannyML's side


def peer_side(home: Path) -> None:
    """Estimates `analysis.csv` by `reference.csv`, week by week; writes found.json."""
    import nannyml
    import pandas as pd

    parts = {name: pd.read_csv(home / f"{name}.csv", parse_dates=["at"]) for name in ("reference", "analysis")}
    began = time.process_time()
    cbpe = nannyml.CBPE(
        y_pred_proba="y_proba", y_pred="y_pred", y_true="y_true", timestamp_column_name="at", metrics=list(NAMES),
        problem_type="classification_binary", chunk_period="W",
    ).fit(parts["reference"])  # fmt: skip
    fitted = time.process_time()
    found = cbpe.estimate(parts["analysis"].drop(columns="y_true")).filter(period="analysis").to_df()
    done = time.process_time()
    rows = parts["analysis"]
    week = rows["at"].dt.to_period("W")
    weeks = []
    for i, (_, mine) in enumerate(rows.groupby(week)):
        chance = cbpe.calibrator.calibrate(mine["y_proba"]) if cbpe.needs_calibration else mine["y_proba"]
        figures = {
            name: {
                "value": float(found[name, "value"].iloc[i]),
                "low": float(found[name, "lower_confidence_boundary"].iloc[i]),
                "high": float(found[name, "upper_confidence_boundary"].iloc[i]),
            }
            for name in NAMES
        }
        weeks.append({"n": len(mine), "chance": [float(p) for p in chance], **figures})
    (home / "found.json").write_text(json.dumps({"fit": fitted - began, "estimate": done - fitted, "weeks": weeks}))


if __name__ == "__main__":
    peer_side(Path(sys.argv[1]))
