"""One model, ready to answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ml.config import Features, Params, Problem, Table
from ml.errors import IntegrityError
from ml.features.assembly import NOTHING, Assembled, Assembler
from ml.features.definitions import FeatureModule, Value, load_module
from ml.features.online import SQLiteStore
from ml.packaging.bundle import Bundle
from ml.serving.explaining import MISSING, Explainer
from ml.serving.log import Entry
from ml.serving.predictor import PredictionError, Predictor
from ml.serving.schema import RequestError, RequestSchema

FALLBACK = "fallback_baseline"
WARM = 8
NO_STORE = SQLiteStore(Path("/nonexistent/online.db"))
"""Reads as a store that was never written: declared defaults, flagged."""
Answered = dict[str, Any]
"""What `ml.serving.schema.Answer` describes, as it is sent."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Serving:
    """One model, ready to answer. Immutable: a swap replaces the whole."""

    version: str
    manifest_version: int
    """Of the manifest that brought it."""
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
        since, params = datetime.now(UTC).replace(tzinfo=None), _params(bundle)
        assembler = _assembler(json.dumps(_sections(bundle), sort_keys=True), load_module(params))
        computed = {name for feature in assembler.module.features for name in (feature.name, *feature.formerly)}
        if absent := [name for name in [*bundle.card.numeric, *bundle.card.text] if name not in computed]:
            raise IntegrityError(
                f"bundle {bundle.digest[:12]} needs features {absent} that this code does not compute",
                "serve it with the code it was made with (its Bento), or train a new version",
            )
        serving = cls(version, manifest_version, since, bundle, predictor, RequestSchema(bundle), assembler)
        serving._warm()
        return serving

    def _warm(self) -> None:
        """Answers recorded requests, so that the first real one does not pay for calendars and caches."""
        try:
            for example in self.bundle.examples[:WARM]:
                (row,), _ = self.schema.parse(json.dumps(example.request).encode())
                assembled = self.assembler.complete([self.assembler.prepare(row)], [NOTHING])
                self.predictor.run(self.feed(assembled), 1)
        except (RequestError, PredictionError) as error:
            problem = f"bundle {self.bundle.digest[:12]} cannot answer its own recorded request: {error}"
            raise IntegrityError(problem, "package the model again") from error

    def feed(self, made: Assembled, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The graph's inputs, of these rows alone where they are given."""
        numbers, texts = (made.numbers, made.texts) if rows is None else (made.numbers[:, rows], made.texts[:, rows])
        return self.predictor.feed(numbers[self._numbers], texts[self._texts])

    @cached_property
    def _numbers(self) -> list[int]:
        return [self.assembler.numbers.index(name) for name in self.predictor.numeric]

    @cached_property
    def _texts(self) -> list[int]:
        return [self.assembler.texts.index(name) for name in self.predictor.text]

    def baseline(self, features: dict[str, Value]) -> float:
        """The rate of the row's group: the last resort."""
        rate = self.bundle.card.climatology.rate(features)
        assert isinstance(rate, float)  # a list is of a multiclass label, whose graph has no output ``probability``
        return rate

    def explain(self, answers: Sequence[Answered], entries: Sequence[Entry]) -> list[Answered]:
        """The same answers, each with its explanation, or with the flag that it has none: the baseline rate cannot be explained.

        Args:
            answers, entries: of rows that this model answered, or that fell back on its baseline rates; they stay as they are.
        """
        by_model = [i for i, answer in enumerate(answers) if FALLBACK not in answer["flags"]]
        found = self._explainer.explain([entries[i] for i in by_model]) if by_model else []
        explanations = dict(zip(by_model, found, strict=True))
        return [
            answer
            | {
                "flags": answer["flags"] + ([] if explanations.get(i) else [MISSING]),
                "explanation": explanations.get(i),
            }
            for i, answer in enumerate(answers)
        ]

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.bundle)


def _sections(bundle: Bundle) -> dict[str, Any]:
    return {name: bundle.card.params[name] for name in ("problem", "tables", "features")}


@lru_cache(8)
def _assembler(sections: str, _: FeatureModule) -> Assembler:
    """One for all models that are asked the same way: a row is prepared once, whichever of them answers."""
    return Assembler(_made(json.loads(sections)))


def _params(bundle: Bundle) -> Params:
    """The sections of params.yaml that the bundle carries: what features need, as they were when the model was trained."""
    return _made(_sections(bundle))


def _made(stored: dict[str, Any]) -> Params:
    sections: dict[str, Any] = {
        "problem": Problem.model_validate(stored["problem"]),
        "tables": {name: Table.model_validate(table) for name, table in stored["tables"].items()},
        "features": Features.model_validate(stored["features"]),
    }
    return Params.model_construct(**sections)
