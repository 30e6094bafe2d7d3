"""The request and the answer, typed: the request's model is generated from the bundle's declared raw fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ml.packaging.bundle import Bundle
from ml.refs import naive_utc

INT64 = Field(ge=-(2**63), lt=2**63)


class Answer(BaseModel):
    """The answer to one row."""

    probability: float = Field(ge=0, le=1, description="probability of label 1")
    decision: int = Field(ge=0, le=1, description="1 when the probability reaches the model's threshold")
    entity_id: str = Field(description="the row's name: id columns and event time")
    model_version: str = Field(description="the registered version that answered")
    cohort: str = Field(description="who was asked: champion, canary, baseline (of the canary), or experiment:<arm>")
    request_id: str = Field(description="the same for all rows of a request")
    flags: list[str] = Field(
        description="features_missing, features_expired, features_stale, features_ahead, fallback_champion, fallback_previous, "
        "fallback_baseline, deadline, explanation_missing; empty: all is well"
    )


class Contribution(BaseModel):
    """One feature's share in an answer."""

    feature: str = Field(description="name; (others): all that are not named, added up")
    value: float | str | None = Field(description="what the model was given; null: missing, or (others)")
    contribution: float = Field(description="above 0 it speaks for label 1, below 0 against")


class Explanation(BaseModel):
    """How an answer came about: base and contributions add up to its margin."""

    base: float = Field(description="margin before anything is known of the row")
    contributions: list[Contribution] = Field(description="largest first, (others) last")
    unit: str = Field(description="of base and contributions: log-odds")


class Explained(Answer):
    """The answer to one row of a request with ``explain=true``."""

    explanation: Explanation | None = Field(description="null when there is none; then the flag explanation_missing is set")


class RequestError(Exception):
    """The request is at fault. `status` is the HTTP status, `detail` is shown to the caller."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(str(detail))
        self.status, self.detail = status, detail


class RequestSchema:
    """Parses request bodies for one bundle: one row or a list of rows.

    A field that is unknown, missing or of the wrong type is refused and named; null is allowed but for the columns that name the
    row. Timestamps are ISO 8601, without a zone or with one; the model sees UTC.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.max_batch = int(bundle.card.params.get("serving", {}).get("max_batch", 1))
        columns = bundle.request_columns()
        fields: dict[str, Any] = {
            name: (_TYPES[kind] if needed else _TYPES[kind] | None, Field(...)) for name, (kind, needed) in columns.items()
        }
        example = bundle.examples[0].request if bundle.examples else {}
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"example": example})
        self.row = create_model(f"{bundle.card.name}_row", __config__=config, **fields)
        self._row = TypeAdapter(self.row)
        self._rows = TypeAdapter(list[self.row])  # type: ignore[name-defined]

    def parse(self, body: bytes) -> tuple[list[dict[str, Any]], bool]:
        """Rows of a request body, and whether it was a list.

        Raises:
            RequestError: 422 naming the fields that are wrong; 413 when there are more rows than the limit.
        """
        many = body.lstrip(b" \t\r\n")[:1] == b"["
        if many and len(document := _document(body)) > self.max_batch:
            raise RequestError(413, f"{len(document)} rows in one request, at most {self.max_batch} are allowed")
        try:
            rows = self._rows.validate_json(body) if many else [self._row.validate_json(body)]
        except ValidationError as error:
            _document(body)  # one that is no JSON is told without the words of a schema
            found = error.errors(include_url=False, include_context=False, include_input=False)
            problems = [{**problem, "loc": ["body", *problem["loc"]]} for problem in found]
            raise RequestError(422, problems) from None
        return [row.__dict__ for row in rows], many


def _document(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(422, [{"loc": ["body"], "msg": f"not JSON: {error}", "type": "json_invalid"}]) from None


_TYPES: dict[str, Any] = {
    "string": Annotated[str, Field(max_length=256)],
    "int": Annotated[int, INT64],
    "float": float,
    "bool": bool,
    "timestamp": Annotated[datetime, AfterValidator(naive_utc)],
}
