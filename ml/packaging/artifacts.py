"""A fitted model at rest: one archive, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import xgboost as xgb

from ml import store
from ml.packaging.graph import export
from ml.training.baseline import Logistic
from ml.training.climatology import Climatology
from ml.training.encoding import Encoding
from ml.training.fit import Fitted
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
        return cls(fitted, winner, export(fitted.encoding, fitted.booster), profile)

    def files(self) -> dict[str, bytes]:
        """Name → bytes; the same model gives the same bytes."""
        return {
            "model.onnx": self.onnx,
            "booster.ubj": bytes(self.fitted.booster.save_raw("ubj")),
            "encoding.json": self.fitted.encoding.model_dump_json().encode(),
            "climatology.json": self.fitted.climatology.model_dump_json().encode(),
            "logistic.json": self.fitted.logistic.model_dump_json().encode(),
            "tuning.json": json.dumps(asdict(self.winner), sort_keys=True).encode(),
            "profile.json": self.profile,
        }

    @classmethod
    def load(cls, digest: str) -> Artifacts:
        """Reads the archive `digest` from the store."""
        files = store.unpack(store.get(digest))
        fitted = Fitted(
            booster=xgb.Booster(model_file=bytearray(files["booster.ubj"])),
            encoding=Encoding.model_validate_json(files["encoding.json"]),
            climatology=Climatology.model_validate_json(files["climatology.json"]),
            logistic=Logistic.model_validate_json(files["logistic.json"]),
        )
        return cls(fitted, Winner(**json.loads(files["tuning.json"])), files["model.onnx"], files["profile.json"])
