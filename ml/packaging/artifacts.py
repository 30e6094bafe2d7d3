"""A fitted model at rest: one archive, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ml import store
from ml.packaging.brought import FAMILY, Brought
from ml.packaging.parity import check_parity
from ml.refs import Decision, Recipe
from ml.training.climatology import Climatology
from ml.training.encoding import Encoding
from ml.training.fit import Fitted, Learned
from ml.training.models import FAMILIES, Linear

if TYPE_CHECKING:
    import pandas as pd

    from ml.config import Params
    from ml.training.tuning import Winner


@dataclass(frozen=True)
class Artifacts:
    """The parts of a model, and the graph made of them. `profile` is the reference profile (opaque here)."""

    fitted: Fitted
    winner: Winner
    onnx: bytes
    profile: bytes

    @classmethod
    def make(cls, fitted: Fitted, winner: Winner, profile: bytes) -> Artifacts:
        from ml.packaging.graph import export  # converters and, below, Optuna: a service that explains has neither

        return cls(fitted, winner, export(fitted), profile)

    def simple(self, reason: str) -> Artifacts:
        """The linear model that was fitted beside, on the same rows, as a model of its own."""
        fitted = replace(self.fitted, members=(self.fitted.linear,))
        winner = self.winner.model_copy(update={"recipe": Recipe(family="linear", params={}), "rounds": 1, "reason": reason})
        return Artifacts.make(fitted, winner, self.profile)

    def parity(self, X: pd.DataFrame, params: Params) -> Decision:
        """Whether the graph answers as the model does, on rows with one column per feature; of a brought graph, whether its
        answers hold.
        """
        limits = params.gates
        if isinstance(self.fitted, Brought):
            return self.fitted.holds(X, limits.parity_tolerance)
        return check_parity(self.onnx, self.fitted, X, limits.parity_tolerance, params.serving.threshold)

    def files(self) -> dict[str, bytes]:
        """Name → bytes; the same model gives the same bytes."""
        return {
            "model.onnx": self.onnx,
            "tuning.json": self.winner.model_dump_json().encode(),
            "profile.json": self.profile,
        } | dump(self.fitted)

    @classmethod
    def load(cls, digest: str) -> Artifacts:
        """Reads the archive `digest` from the store."""
        from ml.training.tuning import Winner

        files = store.unpack(store.get(digest))
        return cls(load(files), Winner.model_validate_json(files["tuning.json"]), files["model.onnx"], files["profile.json"])


def dump(fitted: Fitted) -> dict[str, bytes]:
    """The files of what was learned."""
    about = {"family": fitted.family, "task": fitted.task, "members": len(fitted.members)}
    if isinstance(fitted, Brought):
        own = fitted.dump()
    else:
        own = {f"member-{i}.bin": member.dump() for i, member in enumerate(fitted.members)}
    return {
        "family.json": json.dumps(about, sort_keys=True).encode(),
        "encoding.json": fitted.encoding.model_dump_json().encode(),
        "climatology.json": fitted.climatology.model_dump_json().encode(),
        "linear.json": fitted.linear.dump(),
        "learned.json": fitted.learned.model_dump_json().encode(),
    } | own


def load(files: Mapping[str, bytes]) -> Fitted:
    """The inverse of `dump`; of a brought model `files` has the graph, too."""
    about = json.loads(files["family.json"])
    family = FAMILIES.get(about["family"])  # none made the graph that was brought, which has no members
    fitted = Fitted(
        members=tuple(family.load(files[f"member-{i}.bin"], about["task"]) for i in range(about["members"])) if family else (),
        encoding=Encoding.model_validate_json(files["encoding.json"]),
        climatology=Climatology.model_validate_json(files["climatology.json"]),
        linear=Linear.load(files["linear.json"], about["task"]),
        learned=Learned.model_validate_json(files["learned.json"]),
    )
    return Brought.load(files, fitted) if about["family"] == FAMILY else fitted
