"""Makes a history as nights of work leave it: ledger, manifests, the monitoring's documents, names of landed and scored days.

    python -m ops.history --days 365 --versions 60

For measurements and tests of what reads history. Nothing is trained: figures are drawn, the same for the same arguments, and in
shape and size like real ones. It writes into the place that the environment names, which must have no ledger yet.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from ml import ledger, store
from ml.config import load_params
from ml.errors import EvergreenError
from ml.monitoring.policy import State
from ml.serving import manifest
from ml.serving.manifest import Deployed, Manifest
from ml.settings import settings

FEATURES, BINS = 53, 20
REJECTED, ROLLED_BACK = 5, 17
"""Every so manieth candidate is rejected, or rolled back the day after its promotion."""
GATE = ("untouched_holdout", "holdout_days", "score_floor", "loss_ceiling", "baseline", "champion", "leak", "slices", "fairness",
        "calibration", "parity", "latency", "size")  # fmt: skip
POLICY = ("cause", "data", "hold", "in_flight", "breaker", "cool_down", "budget", "new_labels", "same_cause")
RUNS = {
    "ingest": ("land", "validate", "snapshot", "data_docs"),
    "features": ("prepare_days",),
    "train": ("plan", "features", "tune", "fit", "evaluate", "refit", "package", "register"),
    "release": ("smoke", "canary", "promote"),
    "score": ("score",),
    "drift": ("monitor", "decide", "skew"),
}
METRICS = ("log_loss", "auc", "brier", "average_precision", "calibration_error", "cost", "f1")


@dataclass
class Maker:
    """Writes one history, day by day, into one transaction."""

    connection: sa.Connection
    days: int
    versions: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    start: date = field(default_factory=lambda: load_params().schedule.start)
    documents: list[Manifest] = field(default_factory=list)
    bundles: dict[str, Deployed] = field(default_factory=dict)
    realised: list[dict[str, Any]] = field(default_factory=list)

    def make(self) -> None:
        every = max(self.days / self.versions, 1.0)
        made = 0
        for i in range(self.days):
            as_of = datetime.combine(self.start + timedelta(days=i + 1), time(2))
            self._snapshot(i, as_of)
            self._runs(as_of)
            rollback = made % ROLLED_BACK == ROLLED_BACK - 1 and self.documents[-1].champion == self.bundles.get(str(made))
            if rollback and len(self.documents) > 1:
                self._rolled_back(as_of)
            if i >= made * every and made < self.versions:
                made += 1
                self._candidate(str(made), i, as_of.replace(hour=3))
            self._look(i, as_of.replace(hour=5))

    def _write(self, kind: str, key: str, as_of: datetime, subject: str, verdict: str, reason: str, evidence: Any) -> None:
        ledger.append(self.connection, kind, key, as_of, subject, verdict, reason, evidence)

    def _snapshot(self, i: int, as_of: datetime) -> None:
        digest = f"{i:032x}.dir"
        told = {"as_of": as_of.isoformat(), "digest": digest, "files": 2 * i + 3, "first_day": str(self.start),
                "last_day": str(as_of.date() - timedelta(days=1)), "size": 17_000 * (i + 1)}  # fmt: skip
        self._write("snapshot", f"snapshot-{digest}", as_of, digest, "made", f"{2 * i + 3} files", told)

    def _runs(self, as_of: datetime) -> None:
        """What was landed that night, and the nightly runs with what their steps cost."""
        bad = 3 if as_of.day == 13 else 0
        told: dict[str, Any] = {
            "rows": {"flights": 900 - bad, "weather": 72},
            "quarantined": {"flights": bad, "weather": 0},
            "broken": [],
        }
        self._write("landing", f"landing-{as_of:%Y%m%d}", as_of, str(as_of.date()), "quarantined" if bad else "clean", "", told)
        for dag, steps in RUNS.items():
            costs = {step: {"seconds": 9.0, "cpu_seconds": 8.0, "peak_bytes": 400_000_000} for step in steps}
            run = f"scheduled__{as_of:%Y-%m-%d}"
            told = {"run_id": run, "seconds": 30.0, "costs": costs, "tasks": {"success": len(steps)}, "conf": {}}
            with ledger.acting("schedule"):
                self._write("run", f"run-{dag}-{run}", as_of, dag, "success", "as planned", told)

    def _candidate(self, version: str, i: int, as_of: datetime) -> None:
        """The gate's entry; for one that passes also canary and promotion."""
        profile = {"numeric": {f"feature_{n:02}": {"edges": list(range(BINS - 1))} for n in range(FEATURES)}, "text": {}}
        bundle = store.put(store.pack({"profile.json": json.dumps(profile).encode(), "model.onnx": version.encode() * 1000}))
        self.bundles[version] = Deployed(version=version, bundle=bundle, model=store.sha256(version.encode()))
        champion = self.documents[-1].champion if self.documents else None
        passed = int(version) % REJECTED != 0
        verdict, reason = ("promote" if passed else "keep"), f"refresh, {'equivalent' if passed else 'worse'}: log_loss +0.0016"
        contenders = ["candidate", "linear", "climatology", *(["champion"] if champion else [])]
        self._write("gate", f"gate-{version}", as_of, f"v{version}", verdict, reason, {
            "plan": self._plan(i, as_of, champion.version if champion else None),
            "decision": {"kind": "gate", "verdict": verdict, "reason": reason, "checks": self._checks(GATE, passed)},
            "refit": {"kind": "refit", "verdict": "refitted", "reason": "refitted on 76,956 rows",
                      "checks": self._checks(GATE[:8])},
            "recipe": {"family": "xgboost", "params": {f"setting_{n}": float(self.rng.random()) for n in range(6)}},
            "metrics": {f"{name}_{metric}": float(self.rng.random()) for name in contenders for metric in METRICS},
            "run_id": store.sha256(version.encode())[:32],
        })  # fmt: skip
        if passed:
            self._released(version, as_of)

    def _released(self, version: str, as_of: datetime) -> None:
        for verdict in ("running", "pass", "passed"):
            told = {"share": 0.5, "decision": {"checks": self._checks(GATE[:6])}}
            self._write("canary", f"canary-{version}-{verdict}", as_of, f"v{version}", verdict, "answers 50% of entities", told)
        previous = self.documents[-1].champion if self.documents else None
        self._manifest(f"promote-{version}", "release", as_of, self.bundles[version], previous)
        told = self.documents[-1].to_xcom()
        self._write(
            "promotion", f"promotion-{len(self.documents)}", as_of, f"v{version}", "champion", "refresh, equivalent", told
        )

    def _rolled_back(self, as_of: datetime) -> None:
        before = self.documents[-1]
        assert before.previous is not None
        self._manifest(f"rollback-{before.version}", "anna", as_of, before.previous, before.champion)
        told = self.documents[-1].to_xcom()
        key, subject = f"rollback-{len(self.documents)}", f"v{before.previous.version}"
        self._write("rollback", key, as_of, subject, "champion", "complaints from two desks", told)

    def _manifest(self, key: str, by: str, as_of: datetime, champion: Deployed, previous: Deployed | None) -> None:
        name, number = load_params().problem.name, len(self.documents) + 1
        document = Manifest(version=number, name=name, key=key, champion=champion, previous=previous, changed_at=as_of, by=by,
                            reason="refresh, equivalent: log_loss +0.0016")  # fmt: skip
        self.documents.append(document)
        row = {"name": name, "version": number, "key": key, "document": document.model_dump_json()}
        self.connection.execute(sa.insert(ledger.metadata.tables["manifests"]).values(**row))
        self._write(manifest.KIND, f"{manifest.KIND}-{name}-{number}", as_of, f"v{champion.version}", "published",
                    document.reason, document.to_xcom())  # fmt: skip

    def _look(self, i: int, as_of: datetime) -> None:
        """A day of monitoring: the document in the store, skew, and the policy's step."""
        champion = self.documents[-1].champion if self.documents else None
        assert champion is not None
        day = as_of.date() - timedelta(days=1)
        self.realised.append({"day": str(day - timedelta(days=1)), "n": 900, "log_loss": 0.5 + 0.1 * float(self.rng.random()),
                              "auc": 0.65 + 0.1 * float(self.rng.random())})  # fmt: skip
        drifts = [self._drift(n) for n in range(FEATURES)]
        strongest = max(drifts, key=lambda one: one["psi"])
        document = {"day": str(day), "champion": champion.version, "drifts": drifts, "prediction": self._drift(0, "prediction"),
                    "recent": [{k: v for k, v in one.items() if k not in ("reference", "window")} for one in drifts],
                    "realised": self.realised[-28:], "health": self._checks(GATE), "broken": [], "moved": 0.1,
                    "overall": {name: {"value": 0.7, "low": 0.6, "high": 0.8} for name in METRICS}, "expected": 0.5,
                    "estimate": {"valid": True, "metrics": {"log_loss": {"value": 0.52, "low": 0.45, "high": 0.6}}},
                    "harm": {"verdict": "no harm shown", "excess": 0.001, "low": -0.01, "high": 0.02}, "new_labels": 4000,
                    "as_of": as_of.isoformat()}  # fmt: skip
        asked = i % 7 == 6
        verdict = "retrain" if asked else "keep"
        reason = "harm: 3 of the last 4 matured days harmed" if asked else "no cause: 1 of 4 days harmed"
        state = State(phase="retraining" if asked else "healthy", since=as_of)
        harmed = {str(day - timedelta(days=n)): bool(self.rng.random() < 0.2) for n in range(min(i, 28))}
        line = {"day": str(day), "champion": champion.version, "phase": state.phase, "verdict": verdict, "reason": reason,
                "text": f"{verdict}: AUC 0.700 ± 0.010", "broken": [], "metric": "log_loss", "realised": self.realised[-1],
                "estimate": {"value": 0.52, "low": 0.45, "high": 0.6, "valid": True}, "moved": float(self.rng.random()),
                "drift": {key: strongest[key] for key in ("name", "psi", "verdict")}}  # fmt: skip
        self._write("skew", f"skew-{day}", as_of, str(day), "equal", "0 of 26,500 values differ", {"rows": 500})
        self._write("retrain", f"retrain-{day}", as_of, f"v{champion.version}", verdict, reason, {
            "decision": {"kind": "retrain", "verdict": verdict, "reason": reason, "checks": self._checks(POLICY, asked)},
            "state": state.to_xcom(), "before": state.to_xcom(), "line": line, "page": "",
            "seen": {"age_days": 4.2, "as_of": as_of.isoformat(), "broken": [], "harmed": harmed, "new_labels": 4000},
            "monitor": {"day": str(as_of.date()), "metrics": {f"psi_{n}": 0.1 for n in range(18)}, "predictions": 900,
                        "matured": 850},
            "report": store.put(json.dumps(document).encode()),
        })  # fmt: skip

    def _drift(self, n: int, name: str = "") -> dict[str, Any]:
        psi = float(self.rng.gamma(0.6, 0.15))
        reference, window = (self.rng.integers(100, 6000, BINS).tolist() for _ in range(2))
        verdict = "none" if psi < 0.1 else "small" if psi < 0.2 else "moderate" if psi < 0.5 else "large"
        return {"name": name or f"feature_{n:02}", "kind": "numeric", "psi": psi, "js": 0.1, "wasserstein": 0.1, "ks": 0.1,
                "p": 0.0, "q": 0.0, "missing": 0.0, "unseen": 0.0, "out_of_range": 0.0, "n": sum(window),
                "importance": 1 / FEATURES, "verdict": verdict, "reference": reference, "window": window}  # fmt: skip

    def _checks(self, names: tuple[str, ...], passed: bool = True) -> list[dict[str, Any]]:
        return [
            {"name": name, "passed": passed or n > 0, "value": float(self.rng.random()), "threshold": 0.5, "n": 12_839,
             "detail": f"{name} of the candidate {self.rng.random():.4f}, over 12,839 rows of 14 days, must be ≥ 0.5"}
            for n, name in enumerate(names)
        ]  # fmt: skip

    def _plan(self, i: int, as_of: datetime, champion: str | None) -> dict[str, Any]:
        last = as_of.date()
        window = lambda a, b: {"start": str(last - timedelta(days=a)), "end": str(last - timedelta(days=b))}
        return {"as_of": as_of.isoformat(), "trigger": "request", "reason": "harm", "train": window(90, 16),
                "holdout": window(15, 1), "champion_version": champion, "holdout_uses": i % 4, "run_key": f"{i:016x}",
                "used_by": [], "warm": [],
                "snapshot": {"digest": f"{i:032x}.dir", "files": 2 * i + 3, "as_of": as_of.isoformat(),
                             "first_day": str(self.start), "last_day": str(last - timedelta(days=1))}}  # fmt: skip


def make(days: int, versions: int) -> None:
    """Writes a history of so many days with so many candidates.

    Raises:
        EvergreenError: the place has a ledger with entries.
    """
    made = ledger.engine()
    if ledger.query(limit=1):
        raise EvergreenError(
            f"the ledger at {settings().ledger} has entries", "make the history in a place of its own (EVERGREEN_VAR)"
        )
    with ledger.locked(made) as connection:
        Maker(connection, days, versions).make()
    _files(days)


def _files(days: int) -> None:
    """Names and notes of landed and scored days; a gap and a refused day every two months."""
    start = load_params().schedule.start
    tables = [name for name, table in load_params().tables.items() if table.event_time is not None]
    folders = [settings().data / "raw" / table for table in tables]
    scored = settings().var / "predictions" / "batch"
    for folder in (*folders, scored):
        folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, dict[str, Any]] = {table: {} for table in tables}
    for i in range(days):
        day = start + timedelta(days=i)
        for table, folder in zip(tables, folders, strict=True):
            if i % 61 == 60:
                continue
            (folder / f"{day}.parquet").touch()
            notes[table][str(day)] = {"as_of": f"{day + timedelta(days=1)}T02:00:00", "rows": 900}
        if i % 29:
            (scored / f"{day}.parquet").touch()
        if i % 61 == 59:
            refused = settings().data / "quarantine" / tables[0] / f"landing-{i}"
            refused.mkdir(parents=True, exist_ok=True)
            (refused / f"{day}.parquet").touch()
            reason = {
                "column": "distance",
                "rule": "between",
                "severity": "critical",
                "count": 3,
                "detail": "",
                "rows": ["a", "b", "c"],
            }
            (refused / "reasons.json").write_text(json.dumps([reason]))
    (settings().data / "landed.json").write_text(json.dumps(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--versions", type=int, default=60)
    asked = parser.parse_args()
    make(asked.days, asked.versions)
    print(f"{asked.days} days, {asked.versions} candidates, {len(manifest.history())} manifests in {settings().var}")


if __name__ == "__main__":
    main()
