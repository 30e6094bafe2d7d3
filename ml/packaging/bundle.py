"""The bundle: everything needed to answer, in one archive named by its digest.

Members: ``model.onnx`` (typed features → calibrated probability), ``bundle.json`` (the card: names, order, request schema,
threshold, climatology, lineage), ``examples.json`` (recorded answers, for the parity probe) and ``profile.json`` (reference
profile, opaque here). Optional: ``explainer.tar`` (the fitted model itself, which tells how it came to an answer), read only when
an explanation is asked for; bundles of earlier versions have none. No pickle is in it, and none is read.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from ml import store
from ml.config import ColumnType
from ml.errors import IntegrityError, NotFoundError
from ml.features.definitions import Value
from ml.refs import Ref
from ml.training.climatology import Climatology

if TYPE_CHECKING:
    from ml.training.fit import Fitted

MODEL, CARD, EXAMPLES, PROFILE = ("model.onnx", "bundle.json", "examples.json", "profile.json")
EXPLAINER = "explainer.tar"
MAX_EXAMPLES = 64


class Example(Ref):
    """A recorded answer: the raw request, the features it had then, and what the model said to them."""

    request: dict[str, Any]
    features: dict[str, Value]
    probability: float = Field(ge=0, le=1)


class Card(Ref):
    """``bundle.json``."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    model_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    task: str
    numeric: list[str]
    text: list[str]
    threshold: float = Field(ge=0, le=1)
    request: dict[str, ColumnType] = Field(min_length=1)
    params: dict[str, Any]
    """Dump of the sections problem, tables, features and serving of params.yaml."""
    climatology: Climatology
    lineage: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory."""

    digest: str
    card: Card
    model: bytes
    examples: tuple[Example, ...]
    profile: bytes
    explainer: bytes | None = None
    """An archive of `ml.packaging.artifacts.dump`."""

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Bundle:
        """Checks the members of an archive and returns the bundle.

        Raises:
            IntegrityError: a member is missing or malformed, or the graph is not the one that the card names.
        """
        missing = [name for name in (MODEL, CARD, EXAMPLES, PROFILE) if name not in files]
        if missing:
            raise IntegrityError(f"bundle without {', '.join(missing)}; it has {', '.join(sorted(files))}", _CURE)
        try:
            card = Card.model_validate_json(files[CARD])
            examples = tuple(Example.model_validate(each) for each in json.loads(files[EXAMPLES]))
        except (ValidationError, ValueError, TypeError) as error:
            raise IntegrityError(f"bundle has a malformed {CARD} or {EXAMPLES}: {_first_line(error)}", _CURE) from None
        if (found := store.sha256(files[MODEL])) != card.model_digest:
            raise IntegrityError(f"{MODEL} has digest {found}, but {CARD} names {card.model_digest}", _CURE)
        if not card.numeric + card.text or len({*card.numeric, *card.text}) != len(card.numeric + card.text):
            raise IntegrityError(f"{CARD} must name at least one feature and none twice: {card.numeric + card.text}", _CURE)
        if len(examples) > MAX_EXAMPLES:
            raise IntegrityError(f"{EXAMPLES} has {len(examples)} rows, at most {MAX_EXAMPLES} are allowed", _CURE)
        digest = store.sha256(store.pack(dict(files)))
        return cls(digest, card, files[MODEL], examples, files[PROFILE], files.get(EXPLAINER))

    @classmethod
    def from_bytes(cls, archive: bytes) -> Bundle:
        """Opens an archive made by `build`.

        Raises:
            IntegrityError: it is not such an archive.
        """
        try:
            files = store.unpack(archive)
        except (tarfile.TarError, ValueError, OSError, EOFError) as error:
            raise IntegrityError(f"not a bundle archive ({len(archive):,} bytes): {_first_line(error)}", _CURE) from None
        return cls.from_files(files)

    @classmethod
    def load(cls, digest: str) -> Bundle:
        """Reads a bundle from the store; its bytes are verified against `digest`.

        Raises:
            NotFoundError: nothing is stored under the digest.
            IntegrityError: what is stored is damaged, or is no bundle.
        """
        return cls.from_bytes(store.get(digest))

    def request_columns(self) -> dict[str, tuple[ColumnType, bool]]:
        """Raw request fields: type, and whether null is refused (columns that name the row: key and id)."""
        problem = self.card.params.get("problem", {})
        table = self.card.params.get("tables", {}).get(problem.get("table"), {})
        required = {*problem.get("id", []), *table.get("key", [])}
        return {name: (kind, name in required) for name, kind in self.card.request.items()}

    def explainer_files(self) -> dict[str, bytes]:
        """The members of ``explainer.tar``; nothing is loaded of a model's library.

        Raises:
            NotFoundError: the bundle has none.
            IntegrityError: it is no archive.
        """
        if self.explainer is None:
            raise NotFoundError(f"bundle {self.digest[:12]} has no {EXPLAINER}: it was made before there was one", _ANEW)
        try:
            return store.unpack(self.explainer)
        except (tarfile.TarError, ValueError, OSError, EOFError) as error:
            raise IntegrityError(f"{EXPLAINER} of {self.digest[:12]} is no archive: {_first_line(error)}", _CURE) from None

    def fitted(self) -> Fitted:
        """The model itself, for explanations. Imports the model's library.

        Raises:
            NotFoundError: the bundle has none.
            IntegrityError: it cannot be read, or learned from other features than the card names.
        """
        files = self.explainer_files()
        from ml.packaging.artifacts import load  # imports XGBoost: a service that never explains must not pay for it

        try:
            found = load({**files, MODEL: self.model})
        except (KeyError, ValueError, TypeError) as error:  # libraries raise kinds of ValueError
            raise IntegrityError(f"{EXPLAINER} of {self.digest[:12]} is malformed: {_first_line(error)}", _CURE) from None
        if (found.encoding.numeric, found.encoding.text) != (self.card.numeric, self.card.text):
            raise IntegrityError(f"{EXPLAINER} of {self.digest[:12]} has other features than {CARD} names", _CURE)
        return found


def build(
    *,
    name: str,
    model: bytes,
    task: str,
    numeric: Sequence[str],
    text: Sequence[str],
    threshold: float,
    request: Mapping[str, ColumnType],
    params: Mapping[str, Any],
    climatology: Climatology,
    lineage: Mapping[str, str],
    examples: Sequence[Example],
    profile: bytes,
    explainer: Mapping[str, bytes] | None = None,
) -> bytes:
    """Packs a bundle: the same content gives the same bytes, and so the same digest.

    Args:
        model: an ONNX graph with inputs ``numeric`` float32 [N, F] and ``text`` string [N, C] (absent when C is 0) and
            output ``probability`` float32 [N, 1].
        numeric, text: feature names in the order of the graph's columns.
        request: raw request fields and their declared types.
        params: dump of the sections problem, tables, features, serving of params.yaml.
        examples: at most 64 recorded answers.
        explainer: what `ml.packaging.artifacts.dump` makes of the fitted model; without it, answers cannot be explained.

    Raises:
        IntegrityError: the parts do not fit together.
    """
    card = Card(
        name=name,
        model_digest=store.sha256(model),
        task=task,
        numeric=list(numeric),
        text=list(text),
        threshold=threshold,
        request=dict(request),
        params=dict(params),
        climatology=climatology,
        lineage=dict(lineage),
    )
    files = {
        MODEL: model,
        CARD: _canonical(card.model_dump(mode="json")),
        EXAMPLES: _canonical([each.model_dump(mode="json") for each in examples]),
        PROFILE: profile,
    } | ({EXPLAINER: store.pack(dict(explainer))} if explainer else {})
    Bundle.from_files(files)
    return store.pack(files)


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


_ANEW = "train and release a new version; its bundle will have one"
_CURE = "run the packaging step again; do not serve this bundle"
