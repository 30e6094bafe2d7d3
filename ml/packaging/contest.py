"""The contest on the holdout: what candidate, champion and baselines answer to the same rows, and all that the gates look at.

A recipe is judged by its *twin*, fitted on days before the holdout alone. The champion is judged by what it really answered on
those days; where no good answer of it was logged, by what its model says; and on days that it has learned from since, by its
own twin.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnxruntime as ort
import pandas as pd

from ml import metrics
from ml.config import Params
from ml.evaluation import slices
from ml.evaluation.fairness import fairness
from ml.evaluation.gates import Contender, Evidence, Holdout, best_baseline, judge
from ml.evaluation.report import scoring_of
from ml.metrics import Scoring
from ml.packaging.artifacts import Artifacts
from ml.packaging.bundle import Bundle
from ml.packaging.parity import inputs, predict, session
from ml.refs import Decision, TrainPlan
from ml.training.baseline import predict_climatology
from ml.training.encoding import Encoding, encode

CALLS = 300
"""Single rows that each graph answers for its median time."""


@dataclass(frozen=True)
class Champion:
    """The champion as it serves. `twin`: None when it ships as it was judged, or was made before twins were kept."""

    version: str
    bundle: Bundle
    shipped: Artifacts
    twin: Artifacts | None

    @classmethod
    def load(cls, version: str, digest: str) -> Champion:
        bundle = Bundle.load(digest)
        lineage = bundle.card.lineage
        shipped = Artifacts.load(lineage["artifacts"])
        same = lineage["twin"] == lineage["artifacts"]
        return cls(version, bundle, shipped, None if same else Artifacts.load(lineage["twin"]))


@dataclass(frozen=True)
class Held:
    """A contest and its verdict. `sources`: in how many rows the champion ``answered``, its model was asked, or its ``twin``
    was.
    """

    evidence: Evidence
    decision: Decision
    sources: dict[str, int]
    scoring: Scoring

    def simpler_wins(self) -> str | None:
        """Why the linear model should be judged instead: trees failed against it; None when they did not."""
        check = next(c for c in self.decision.checks if c.name == "baseline")
        linear = "linear" in self.evidence.baselines and best_baseline(self.evidence, self.scoring) == "linear"
        return f"the simple model wins: {check.detail}" if linear and not check.passed else None


def hold(
    plan: TrainPlan, X: pd.DataFrame, parts: Artifacts, champion: Champion | None, answered: Mapping[str, float], params: Params
) -> Held:
    """Lets all answer the holdout's rows, and measures.

    Args:
        X: labelled feature rows of the holdout, shape (n, columns).
        parts: the candidate's twin.
        answered: what the champion really answered, by entity id; degraded answers left out.

    """
    scoring, fitted = scoring_of(params), parts.fitted
    holdout = Holdout(
        y_true=X["label"].to_numpy(),
        event_time=X["event_time"].to_numpy(),
        days=X["event_time"].dt.date.astype(str).to_numpy(),
        uses=plan.holdout_uses + 1,
    )
    answers = _graph(parts.onnx, fitted.encoding.numeric, fitted.encoding.text, X)
    names = len(fitted.encoding.numeric) + len(fitted.encoding.text)
    candidate = Contender("candidate", answers, fitted.learned.last, fitted.leaves, names)
    baselines = {"climatology": predict_climatology(fitted.climatology, X)}
    if fitted.family != "linear":
        baselines["linear"] = fitted.linear.predict(encode(fitted.encoding, X))
    other, sources = (None, {}) if champion is None else _champion(champion, X, answered)
    graphs = [(parts.onnx, fitted.encoding.numeric, fitted.encoding.text)]
    if champion is not None:
        graphs.append((champion.bundle.model, champion.bundle.card.numeric, champion.bundle.card.text))
    measured = latencies(graphs, X)
    evidence = Evidence(
        holdout=holdout,
        candidate=candidate,
        champion=other,
        baselines=baselines,
        kind=kind(plan, parts, champion),
        feature_scores=_feature_scores(fitted.encoding, X, holdout.y_true, params),
        parity=parts.parity(X, params),
        latency_ms=measured[0],
        champion_latency_ms=measured[1] if champion else None,
        size_mb=len(parts.onnx) / 1e6,
        fairness=[
            fairness(attribute, holdout.y_true, (answers >= scoring.threshold).astype(int), slices.labels_of(X, attribute),
                     params.evaluation.min_slice_rows)
            for attribute in params.gates.fairness
        ],
    )  # fmt: skip
    evidence = _with_slices(evidence, X, fitted.encoding.numeric, params)
    return Held(evidence, judge(evidence, params.gates, scoring, params.train.seed), sources, scoring)


def kind(plan: TrainPlan, parts: Artifacts, champion: Champion | None) -> Literal["first model", "refresh", "redesign"]:
    """A refresh has the champion's family, settings and features; anything else is a redesign.

    Feature code may change in a refresh: a mended feature keeps its name.
    """
    if champion is None:
        return "first model"
    encoding, card = parts.fitted.encoding, champion.bundle.card
    same = plan.champion_recipe == parts.winner.recipe and (encoding.numeric, encoding.text) == (card.numeric, card.text)
    return "refresh" if same else "redesign"


def _champion(champion: Champion, X: pd.DataFrame, answered: Mapping[str, float]) -> tuple[Contender, dict[str, int]]:
    card = champion.bundle.card
    answers = _graph(champion.bundle.model, card.numeric, card.text, X)
    until = np.full(len(X), np.datetime64(champion.shipped.fitted.learned.last, "us"))
    logged = X["entity_id"].map(answered).to_numpy(float)
    real = ~np.isnan(logged)
    if real.any():
        answers[real] = logged[real]
    seen = X["event_time"].to_numpy() <= until
    if champion.twin is not None and seen.any():
        twin = champion.twin
        answers[seen] = _graph(twin.onnx, twin.fitted.encoding.numeric, twin.fitted.encoding.text, X)[seen]
        until[seen] = np.datetime64(twin.fitted.learned.last, "us")
    fitted = champion.shipped.fitted
    made = Contender(f"champion v{champion.version}", answers, until, fitted.leaves, len(card.numeric) + len(card.text))
    twins = int(seen.sum()) if champion.twin else 0
    used = int((real & ~seen).sum())
    return made, {"answered": used, "computed": len(X) - used - twins, "twin": twins}


def _graph(onnx: bytes, numeric: list[str], text: list[str], X: pd.DataFrame) -> np.ndarray:
    return predict(session(onnx), numeric, text, X)


def _with_slices(evidence: Evidence, X: pd.DataFrame, numeric: list[str], params: Params) -> Evidence:
    """The candidate's losses beside the champion's, or the best baseline's, slice by slice."""
    scoring, holdout = scoring_of(params), evidence.holdout
    other = evidence.champion.answers if evidence.champion else evidence.baselines[best_baseline(evidence, scoring)]
    mine, theirs = (metrics.losses(scoring.task, holdout.y_true, a) for a in (evidence.candidate.answers, other))
    parts = slices.declared(params.evaluation, X)
    parts += slices.found(params.evaluation, X, numeric, mine - theirs, holdout.days)
    judged = slices.judge(parts, mine, theirs, holdout.days, params.evaluation, params.gates, holdout.uses)
    return replace(evidence, slices=judged)


def _feature_scores(encoding: Encoding, X: pd.DataFrame, y_true: np.ndarray, params: Params) -> dict[str, float]:
    """How well each encoded column alone tells the label, by feature."""
    found: dict[str, float] = {}
    for name, column in zip(encoding.origins, encode(encoding, X).T, strict=True):
        score = metrics.feature_score(params.problem.task, y_true, column.astype(float))
        found[name] = max(found.get(name, 0.0), score)
    return found


def latencies(graphs: Sequence[tuple[bytes, Sequence[str], Sequence[str]]], X: pd.DataFrame) -> list[float]:
    """Median milliseconds for one row of each graph, on one thread as it is served; they take turns, so that all meet the same
    noise.

    Args:
        graphs: (ONNX bytes, numeric features, text features).
        X: rows to ask, used over and over.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"]) for onnx, _, _ in graphs]
    rows = X.head(CALLS)
    feeds = [inputs(list(numeric), list(text), rows) for _, numeric, text in graphs]
    times: list[list[float]] = [[] for _ in graphs]
    for i in range(CALLS):
        at = i % len(rows)
        for made, feed, taken in zip(sessions, feeds, times, strict=True):
            one = {name: values[at : at + 1] for name, values in feed.items()}
            began = time.perf_counter()
            made.run(None, one)
            taken.append(time.perf_counter() - began)
    return [1000 * statistics.median(taken) for taken in times]
