"""From raw rows to answers, with the ladder of fallbacks: model → baseline rates; online features → declared defaults."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ml.config import Features, Params, Problem, Table
from ml.errors import IntegrityError
from ml.features.assembly import Assembled, Assembler
from ml.features.definitions import Value
from ml.features.online import OnlineStore, SQLiteStore
from ml.packaging.bundle import Bundle
from ml.serving.explaining import MISSING, Explainer
from ml.serving.log import Entry
from ml.serving.predictor import PredictionError, Predictor
from ml.serving.schema import Answer, Explained, RequestError, RequestSchema

FALLBACK = "fallback_baseline"
CHAMPION = "champion"
WARM = 8
NO_STORE = SQLiteStore(Path("/nonexistent/online.db"))
"""Reads as a store that was never written: declared defaults, flagged."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """One model, ready to answer. Immutable: a swap replaces the whole."""

    version: str
    manifest_version: int
    since: datetime
    """Wall clock, UTC."""
    bundle: Bundle
    predictor: Predictor
    schema: RequestSchema
    assembler: Assembler

    @classmethod
    def of(cls, bundle: Bundle, version: str, manifest_version: int = 0) -> Serving:
        """Loads, probes and warms a bundle; it answers as recorded, or it is refused.

        Raises:
            IntegrityError: the graph cannot be loaded, fails its probe, or the recorded requests cannot be answered.
        """
        predictor = Predictor(bundle)
        predictor.probe()
        since, assembler = datetime.now(UTC).replace(tzinfo=None), Assembler(_params(bundle))
        computed = {name for feature in assembler.module.features for name in (feature.name, *feature.formerly)}
        if absent := [name for name in [*bundle.card.numeric, *bundle.card.text] if name not in computed]:
            raise IntegrityError(
                f"bundle {bundle.digest[:12]} needs features {absent} that this code does not compute",
                "serve it with the code it was made with (its Bento), or train a new version",
            )
        serving = cls(version, manifest_version, since, bundle, predictor, RequestSchema(bundle), assembler)
        try:
            for example in bundle.examples[:WARM]:  # so that the first request does not pay for calendars and caches
                rows, _ = serving.schema.parse(json.dumps(example.request).encode())
                serving.answer(NO_STORE, rows, "warm")
        except RequestError as error:
            problem = f"bundle {bundle.digest[:12]} cannot answer its own recorded request: {error.detail}"
            raise IntegrityError(problem, "package the model again") from error
        return serving

    def answer(
        self, store: OnlineStore, rows: Sequence[Mapping[str, Any]], request_id: str
    ) -> tuple[list[Answer], list[Entry], dict[str, int]]:
        """Answers each row; the same as entries for the log; and by view, how many rows had its values filled in.

        Raises:
            RequestError: 422, no event time or features can be computed from a row's fields.
        """
        assembled = self._assemble(store, rows)
        y_proba, fallbacks = self._predict(assembled.features)
        logged_at = datetime.now(UTC).replace(tzinfo=None)
        answers, entries = [], []
        for i, probability in enumerate(y_proba):
            flags = assembled.flags[i] + fallbacks[i]
            answers.append(
                Answer.model_construct(
                    probability=probability,
                    decision=int(probability >= self.bundle.card.threshold),
                    entity_id=assembled.entity_ids[i],
                    model_version=self.version,
                    cohort=CHAMPION,
                    request_id=request_id,
                    flags=flags,
                )
            )
            entries.append(
                Entry(
                    entity_id=assembled.entity_ids[i],
                    event_time=assembled.event_times[i],
                    prediction_time=assembled.prediction_times[i],
                    logged_at=logged_at,
                    model_version=self.version,
                    probability=probability,
                    flags=flags,
                    request_id=request_id,
                    tick=assembled.tick,
                    features=assembled.features[i],
                )
            )
        return answers, entries, assembled.filled

    def explain(self, answers: Sequence[Answer], entries: Sequence[Entry]) -> list[Explained]:
        """The same answers, each with its explanation, or with the flag that it has none: the baseline rate cannot be explained.

        Args:
            answers, entries: made by `answer`; they stay as they are.
        """
        by_model = [i for i, answer in enumerate(answers) if FALLBACK not in answer.flags]
        found = self._explainer.explain([entries[i] for i in by_model]) if by_model else []
        explanations = dict(zip(by_model, found, strict=True))
        return [
            Explained.model_construct(
                **dict(answer) | {"flags": answer.flags + ([] if explanations.get(i) else [MISSING])},
                explanation=explanations.get(i),
            )
            for i, answer in enumerate(answers)
        ]

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.bundle)

    def _assemble(self, store: OnlineStore, rows: Sequence[Mapping[str, Any]]) -> Assembled:
        """Features from the online store, else from the declared defaults; when that fails too, the row is at fault."""
        try:
            return self.assembler.assemble(store, rows)
        except Exception:
            logger.warning("online features failed; trying declared defaults", exc_info=True)
        try:
            return self.assembler.assemble(NO_STORE, rows)
        except Exception as error:
            problem = f"no features can be computed from these fields: {' '.join(str(error).split())[:200]}"
            raise RequestError(422, [{"loc": ["body"], "msg": problem, "type": "features"}]) from error

    def _predict(self, features: Sequence[Mapping[str, Value]]) -> tuple[list[float], list[list[str]]]:
        """Probabilities and flags per row; a row that the model cannot answer gets its group's baseline rate."""
        try:
            return self.predictor.predict(features).tolist(), [[] for _ in features]
        except PredictionError:
            if len(features) > 1:
                one_by_one = [self._predict([row]) for row in features]
                return [y_proba[0] for y_proba, _ in one_by_one], [flags[0] for _, flags in one_by_one]
            logger.exception("model version %s failed; answering with the baseline rate", self.version)
            return [self.bundle.card.climatology.rate(features[0])], [[FALLBACK]]


def _params(bundle: Bundle) -> Params:
    """The sections of params.yaml that the bundle carries: what features need, as they were when the model was trained."""
    stored = bundle.card.params
    sections: dict[str, Any] = {
        "problem": Problem.model_validate(stored["problem"]),
        "tables": {name: Table.model_validate(table) for name, table in stored["tables"].items()},
        "features": Features.model_validate(stored["features"]),
    }
    return Params.model_construct(**sections)
