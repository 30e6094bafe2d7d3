"""Explanations of answers, by the fitted model in the bundle. It is loaded when the first one is asked for, and never before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ml.packaging.bundle import Bundle
from ml.serving.log import Entry
from ml.serving.schema import Contribution, Explanation

if TYPE_CHECKING:
    from ml.training.fit import Fitted

MAX_EXPLAINED = 100
"""Rows of one request that are explained: each costs many times what its answer costs."""
NAMED = 10
"""Features that an explanation names; the rest are added up."""
MISSING = "explanation_missing"
TOLERANCE = 1e-4
"""Largest difference between the model's answer and the one that was given; parity allows less when the bundle is made."""

logger = logging.getLogger(__name__)


class Explainer:
    """Explains answers of one bundle. Not for several threads at once.

    Args:
        bundle: a verified bundle, with or without ``explainer.tar``.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def explain(self, entries: Sequence[Entry]) -> list[Explanation | None]:
        """Explains rows that the model has answered, n ≥ 1; None for a row where that is not possible, and the log says why."""
        if self.bundle.explainer is None:
            return [None] * len(entries)
        try:
            return self._explained(entries)
        except Exception:  # the answers are good all the same
            logger.exception("bundle %s cannot explain %d answers", self.bundle.digest[:12], len(entries))
            return [None] * len(entries)

    def _explained(self, entries: Sequence[Entry]) -> list[Explanation | None]:
        import pandas as pd

        from ml.evaluation import explain

        encoding = self._fitted.encoding
        X = pd.DataFrame([entry.features for entry in entries], columns=[*encoding.numeric, *encoding.text])
        X = X.astype(dict.fromkeys(encoding.numeric, float))  # a column of None has no numbers by itself
        unit, found = explain.UNITS[self._fitted.task], explain.rows(self._fitted, X, NAMED)
        made: list[Explanation | None] = []
        for entry, row in zip(entries, found, strict=True):
            if not abs(row["answer"] - entry.probability) <= TOLERANCE:  # that would explain another answer; NaN too
                logger.error("explainer and graph answer %s to %s", (row["answer"], entry.probability), entry.entity_id)
                made.append(None)
                continue
            parts = [Contribution(**part) for part in row["contributions"]]
            made.append(Explanation(base=row["base"], contributions=parts, unit=unit))
        return made

    @cached_property
    def _fitted(self) -> Fitted:
        return self.bundle.fitted()
