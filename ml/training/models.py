"""Model families behind one face: boosted trees (XGBoost, LightGBM) and a linear model, on encoded matrices.

A matrix is float32 (n, columns) with NaN for missing. Answers are the probability of 1, shape (n,), for task ``binary``; one
probability per class, (n, classes), for ``multiclass``; a number, (n,), for ``regression``. No pickle: a model is bytes of its
library's own format, or JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import xgboost as xgb

from ml.config import FamilyName, Task, Train
from ml.errors import ConfigError

Settings = Mapping[str, Any]


class Model(Protocol):
    """What every family can do once it is fitted."""

    @property
    def family(self) -> FamilyName: ...

    @property
    def task(self) -> Task: ...

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Answers, shape (n,) or (n, classes)."""

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        """Shares of each column in the margin (log-odds; the number itself for regression), shape (n, columns + 1) or, for
        multiclass, (n, classes, columns + 1). The last column is the base; a row's sum is its margin. Trees: SHAP values
        (Lundberg et al. 2020, Nature Machine Intelligence 2:56); linear: weight × distance from the mean.
        """

    def thresholds(self) -> list[tuple[int, float]]:
        """Every distinct (column, split threshold), for the parity check."""

    def used(self) -> set[int]:
        """Columns that the model asks about."""

    @property
    def leaves(self) -> int:
        """Size: leaves of all trees, or weights."""

    def dump(self) -> bytes: ...


@dataclass(frozen=True)
class XGBoost:
    """Gradient-boosted trees of XGBoost (Chen and Guestrin 2016)."""

    booster: xgb.Booster
    task: Task
    family: FamilyName = "xgboost"

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(xgb.DMatrix(matrix)), dtype=np.float64)

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(xgb.DMatrix(matrix), pred_contribs=True), dtype=np.float64)

    def thresholds(self) -> list[tuple[int, float]]:
        splits = self._splits
        return [(int(f[1:]), float(t)) for f, t in zip(splits["Feature"], splits["Split"], strict=True)]

    def used(self) -> set[int]:
        return {int(f[1:]) for f in self._splits["Feature"]}

    @property
    def leaves(self) -> int:
        return int((self._trees["Feature"] == "Leaf").sum())

    def dump(self) -> bytes:
        return bytes(self.booster.save_raw("ubj"))

    @cached_property
    def _trees(self) -> Any:
        return self.booster.trees_to_dataframe()

    @cached_property
    def _splits(self) -> Any:
        return self._trees[self._trees["Feature"] != "Leaf"].drop_duplicates(["Feature", "Split"])

    @classmethod
    def load(cls, raw: bytes, task: Task) -> Self:
        return cls(xgb.Booster(model_file=bytearray(raw)), task)

    @classmethod
    def fit(cls, X: np.ndarray, y_true: np.ndarray, settings: Settings, rounds: int, task: Task) -> Self:
        """Fits a fixed number of rounds on everything it is given."""
        matrix = xgb.QuantileDMatrix(X, y_true, max_bin=int(settings.get("max_bin", 256)), nthread=int(settings["nthread"]))
        return cls(xgb.train(dict(settings), matrix, rounds, verbose_eval=False), task)


@dataclass(frozen=True)
class LightGBM:
    """Gradient-boosted trees of LightGBM (Ke et al. 2017); thresholds are float32, so that its ONNX graph decides alike."""

    text: str
    task: Task
    family: FamilyName = "lightgbm"

    @cached_property
    def booster(self) -> Any:
        return lightgbm_module().Booster(model_str=self.text)

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(matrix), dtype=np.float64)

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        found = np.asarray(self.booster.predict(matrix, pred_contrib=True), dtype=np.float64)
        return found.reshape(len(matrix), -1, matrix.shape[1] + 1) if self.task == "multiclass" else found

    def thresholds(self) -> list[tuple[int, float]]:
        splits = self._splits
        return [(int(f.split("_")[1]), float(t)) for f, t in zip(splits["split_feature"], splits["threshold"], strict=True)]

    def used(self) -> set[int]:
        return {column for column, _ in self.thresholds()}

    @property
    def leaves(self) -> int:
        return int(self._trees["split_feature"].isna().sum())

    def dump(self) -> bytes:
        return self.text.encode()

    @cached_property
    def _trees(self) -> Any:
        return self.booster.trees_to_dataframe()

    @cached_property
    def _splits(self) -> Any:
        return self._trees.dropna(subset=["split_feature"]).drop_duplicates(["split_feature", "threshold"])

    @classmethod
    def load(cls, raw: bytes, task: Task) -> Self:
        return cls(raw.decode(), task)

    @classmethod
    def of(cls, booster: Any, task: Task) -> Self:
        """Moves each threshold to a quarter above the float32 below it. For float32 inputs no comparison changes; as a float32, which
        ONNX makes of it, it is that one; and LightGBM's reader, which is not exact, cannot push it across. A threshold that parts
        zero from the rest moves away from it, because LightGBM takes anything up to 1e-35 for zero.
        """
        lines = booster.model_to_string().split("\n")
        made = [
            "threshold=" + " ".join(repr(_safe(float(t))) for t in line[10:].split()) if line.startswith("threshold=") else line
            for line in lines
        ]
        return cls("\n".join(line for line in made if not line.startswith("tree_sizes=")), task)

    @classmethod
    def fit(cls, X: np.ndarray, y_true: np.ndarray, settings: Settings, rounds: int, task: Task) -> Self:
        lightgbm = lightgbm_module()
        dataset = lightgbm.Dataset(X, y_true, params={"max_bin": settings.get("max_bin", 255), "verbosity": -1})
        return cls.of(lightgbm.train(dict(settings), dataset, rounds), task)


@dataclass(frozen=True)
class Linear:
    """Logistic, multinomial or ridge regression: missing → median, standardised, clipped at ±5 standard deviations.

    `weights` are (outputs, columns), `intercepts` (outputs,); binary and regression have one output.
    """

    medians: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    task: Task
    family: FamilyName = "linear"

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        margins = standardise(matrix, self.medians, self.means, self.scales) @ self.weights.T + self.intercepts
        if self.task == "multiclass":
            powers = np.exp(margins - margins.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.asarray(1 / (1 + np.exp(-margins[:, 0])) if self.task == "binary" else margins[:, 0])

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        made = standardise(matrix, self.medians, self.means, self.scales)[:, None, :] * self.weights[None]
        base = np.broadcast_to(self.intercepts[None, :, None], (*made.shape[:2], 1))
        whole = np.concatenate([made, base], axis=2)
        return whole if self.task == "multiclass" else whole[:, 0]

    def thresholds(self) -> list[tuple[int, float]]:
        return []

    def used(self) -> set[int]:
        return set(np.flatnonzero(np.any(self.weights != 0, axis=0)).tolist())

    @property
    def leaves(self) -> int:
        return int(np.count_nonzero(self.weights))

    def dump(self) -> bytes:
        return json.dumps({name: getattr(self, name).tolist() for name in _ARRAYS}, sort_keys=True).encode()

    @classmethod
    def load(cls, raw: bytes, task: Task) -> Self:
        stored = json.loads(raw)
        return cls(*(np.array(stored[name]) for name in _ARRAYS), task=task)

    @classmethod
    def fit(cls, X: np.ndarray, y_true: np.ndarray, settings: Settings, rounds: int, task: Task) -> Self:
        """Fits on an encoded matrix; a column without any value counts as 0. `rounds` has no meaning here."""
        from sklearn.linear_model import LogisticRegression, Ridge

        seen = ~np.isnan(X).all(axis=0)
        medians = np.zeros(X.shape[1])
        medians[seen] = np.nanmedian(X[:, seen], axis=0)
        filled = np.where(np.isnan(X), medians, X).astype(np.float64)
        means, scales = filled.mean(axis=0), filled.std(axis=0)
        scales[scales == 0] = 1.0
        seed = int(settings["seed"])
        model = Ridge(random_state=seed) if task == "regression" else LogisticRegression(max_iter=500, random_state=seed)
        model.fit(standardise(X, medians, means, scales), y_true)
        return cls(medians, means, scales, np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_), task)


ZERO = 1e-30
"""Thresholds of LightGBM are at least so far from zero."""
CLIP = 5.0
"""Standard deviations from the mean at which the linear model's inputs are cut off."""
FAMILIES: dict[FamilyName, type[XGBoost] | type[LightGBM] | type[Linear]] = {
    "xgboost": XGBoost,
    "lightgbm": LightGBM,
    "linear": Linear,
}
_ARRAYS = ("medians", "means", "scales", "weights", "intercepts")
_OBJECTIVES: dict[FamilyName, dict[Task, dict[str, str]]] = {
    "xgboost": {
        "binary": {"objective": "binary:logistic", "eval_metric": "logloss"},
        "multiclass": {"objective": "multi:softprob", "eval_metric": "mlogloss"},
        "regression": {"objective": "reg:squarederror", "eval_metric": "rmse"},
    },
    "lightgbm": {
        "binary": {"objective": "binary", "metric": "binary_logloss"},
        "multiclass": {"objective": "multiclass", "metric": "multi_logloss"},
        "regression": {"objective": "regression", "metric": "l2"},
    },
}


def settings_of(
    family: FamilyName, task: Task, classes: int, params: Train, chosen: Mapping[str, float], integers: set[str], threads: int,
    seed: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All of a family's settings: objective, fixed ones of params.yaml, chosen ones, seed and threads.

    Args:
        classes: number of classes; 0 unless the task is multiclass.
        integers: names among `chosen` that are whole numbers.
        seed: instead of `train.seed`.
    """
    seed = params.seed if seed is None else seed
    if family == "linear":
        return {"seed": seed}
    tuned = {name: int(value) if name in integers else value for name, value in chosen.items()}
    made: dict[str, Any] = {**_OBJECTIVES[family][task], "seed": seed}
    if task == "multiclass":
        made["num_class"] = classes
    if family == "xgboost":
        return made | {"nthread": threads} | params.xgboost | tuned
    fixed = {"num_threads": threads, "deterministic": True, "force_row_wise": True, "verbosity": -1, "bagging_freq": 1}
    return made | fixed | params.lightgbm | tuned


def standardise(matrix: np.ndarray, medians: np.ndarray, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Missing → median, then distance from the mean in standard deviations, clipped at ±`CLIP`."""
    filled = np.where(np.isnan(matrix), medians, matrix)
    return np.asarray(np.clip((filled - means) / scales, -CLIP, CLIP))


def _safe(threshold: float) -> float:
    """A quarter of the way from the largest float32 that is not above `threshold` to the next one."""
    if abs(threshold) < ZERO:
        threshold = math.copysign(ZERO, threshold)
    near = np.float32(threshold)
    below = near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))
    return float(below) + (float(np.nextafter(below, np.float32(np.inf))) - float(below)) / 4


def lightgbm_module() -> Any:
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise ConfigError(
            "family 'lightgbm' is wanted, and LightGBM is not installed", "pip install 'evergreen[lightgbm]'"
        ) from None
    return lightgbm
