"""The OpenAPI document of what serves now: the request's fields are the served model's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from ml.serving.explaining import MAX_EXPLAINED
from ml.serving.inference import DATATYPES, NUMERIC, OUTPUT
from ml.serving.schema import Answer, Explained
from ml.serving.service import Service

_EXPLAIN = (
    f"true: each answer also has `explanation`, the features' shares in it; at most {MAX_EXPLAINED} rows in one request. An "
    "answer that cannot be explained has the flag `explanation_missing` instead."
)
_PREFIX = "#/components/schemas/"


class Problem(BaseModel):
    """What is wrong with a request."""

    detail: Any = Field(description="a sentence, or a list of fields (loc) and what is wrong with each (msg)")


class InferenceProblem(BaseModel):
    """What is wrong with a request of the Open Inference Protocol."""

    error: str


class Tensor(BaseModel):
    """A tensor; `data` is flat or has a list for each row."""

    name: str
    datatype: str
    shape: list[int] = Field(min_length=2, max_length=2)
    data: list[Any]


class InferenceRequest(BaseModel):
    """Features of n rows: `numeric` FP32 [n, F], `text` BYTES [n, C]."""

    id: str | None = None
    inputs: list[Tensor]


class InferenceAnswer(BaseModel):
    """`probability` FP32 [n, 1]."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


_ERRORS = {
    "400": "the body is cut off",
    "401": "a bearer token is needed",
    "404": "there is no such model",
    "408": "the body comes too slowly",
    "413": "more rows or bytes than the limit",
    "422": "a field is unknown, missing or of the wrong type, it is named; or too many rows to explain",
    "503": "no model is loaded, or too many requests wait",
}
_INFERENCE_ERRORS = {
    "400": "an input is missing or wrong, it is named",
    "401": "a bearer token is needed",
    "404": "there is no such model or version",
    "408": "the body comes too slowly",
    "413": "more rows or bytes than the limit",
    "500": "the model gave no probability",
    "503": "no model is loaded",
    "504": "the model did not answer in time",
}


def document(app: FastAPI, service: Service, asks_for_token: bool) -> dict[str, Any]:
    """The document; of the routes that `ml.serving.front` answers, and of the app's own."""
    made = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    models = [
        (each, "serialization") for each in (Answer, Explained, Problem, InferenceProblem, InferenceRequest, InferenceAnswer)
    ]
    _, found = models_json_schema(models, ref_template=_PREFIX + "{model}")  # type: ignore[arg-type]  # list is invariant
    schemas = found["$defs"]
    row: dict[str, Any] = {"type": "object"}
    most = None
    if (serving := service.serving) is not None:
        row, most = serving.schema.row.model_json_schema(), serving.schema.max_batch
        schemas["InferenceRequest"]["example"] = _example(serving.bundle.card.numeric, serving.bundle.card.text)
    schemas["Row"] = row
    many = {"type": "array", "items": _ref("Row")} | ({"maxItems": most} if most else {})
    body = _json({"anyOf": [_ref("Row"), many]}) | {"required": True}
    query = {"name": "explain", "in": "query", "description": _EXPLAIN, "schema": {"type": "boolean", "default": False}}
    name = _parameter("name", service.default or "model")
    explained = {"anyOf": [_ref("Explained"), {"type": "array", "items": _ref("Explained")}]}
    either = {"anyOf": [*explained["anyOf"], _ref("Answer"), {"type": "array", "items": _ref("Answer")}]}
    predict: dict[str, Any] = {"summary": "The probability for one row, or for each row of a list.", "requestBody": body}
    predict |= {"responses": {"200": _told("the answers", either)} | _refusals(_ERRORS, "Problem")}
    explain = predict | {"summary": "The same as /predict with explain=true."}
    explain |= {"responses": predict["responses"] | {"200": _told("the answers, explained", explained)}}
    made["paths"] |= {
        "/predict": {"post": predict | {"parameters": [query]}},
        "/explain": {"post": explain},
        "/models/{name}/predict": {"post": predict | {"parameters": [name, query]}},
        "/models/{name}/explain": {"post": explain | {"parameters": [name]}},
    } | _inference(name)
    made.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    if asks_for_token:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
    return made


def _inference(name: dict[str, Any]) -> dict[str, Any]:
    anything = _told("as the protocol says", {"type": "object"})
    refusals = _refusals(_INFERENCE_ERRORS, "InferenceProblem")
    version = _parameter("version", "1")
    infer = {
        "summary": "Probabilities of rows whose features are given (Open Inference Protocol v2). Nothing is logged.",
        "requestBody": _json(_ref("InferenceRequest")) | {"required": True},
        "responses": {"200": _told("the probabilities", _ref("InferenceAnswer"))} | refusals,
    }

    def get(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
        told = {"responses": {"200": anything} | {code: refusals[code] for code in ("401", "404", "503")}}
        return {"get": {"summary": summary, "parameters": list(parameters)} | told}

    paths = {
        "/v2": get("The server."),
        "/v2/health/live": get("The process answers."),
        "/v2/health/ready": get("A model is loaded."),
    }
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        paths[path] = get("The model's inputs and outputs.", *parameters)
        paths[f"{path}/ready"] = get("The model is loaded.", *parameters)
        paths[f"{path}/infer"] = {"post": infer | {"parameters": parameters}}
    return paths


def _example(numeric: list[str], text: list[str]) -> dict[str, Any]:
    sizes = {name: len(names) for name, names in zip(DATATYPES, (numeric, text), strict=True) if names}
    return {
        "id": "mine",
        "inputs": [
            {"name": name, "datatype": DATATYPES[name], "shape": [1, size], "data": [0.0 if name == NUMERIC else ""] * size}
            for name, size in sizes.items()
        ],
        "outputs": [{"name": OUTPUT}],
    }


def _parameter(name: str, example: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}


def _refusals(errors: dict[str, str], schema: str) -> dict[str, Any]:
    return {code: _told(why, _ref(schema)) for code, why in errors.items()}


def _told(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description} | _json(schema)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _PREFIX + name}
