"""``/openapi.json``: the API of this server with the schema of the model that it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from model_server.worker import protocol, v2

if TYPE_CHECKING:
    from model_server.common.settings import Settings
    from model_server.worker.model import ServedModel

_JSON_TYPES: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "format": "date-time"},
}
_TABLE = {
    "dataframe_split": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "columns": {"type": "array", "items": {"type": ["string", "integer"]}},
            "index": {"type": "array"},
            "data": {"type": "array", "items": {"type": "array"}},
        },
        "additionalProperties": False,
    },
    "dataframe_records": {"type": "array", "items": {"type": "object"}},
}


_V2_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": [*v2.DTYPES, v2.BYTES]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}


def describe(settings: Settings, model: ServedModel | None) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Model server: {settings.model.name}",
            "version": model.version.version if model else "0",
            "description": "MLflow's scoring protocol and the Open Inference Protocol (V2), with readiness, metrics "
            "and a description of the model.",
        },
        "paths": {
            "/invocations": {"post": _invocations(settings, model)},
            "/model": {"get": _get("The model that is served.", _object(), unavailable=True)},
            "/ready": {"get": _get("A model is loaded and has answered its example.", _object(), unavailable=True)},
            "/ping": {"get": _get("The process answers.", _text("application/json"))},
            "/health": {"get": _get("The process answers.", _text("application/json"))},
            "/version": {"get": _get("MLflow's version.", _text("application/json"))},
            "/metrics": {"get": _get("Prometheus metrics.", _text("text/plain"))},
            "/openapi.json": {"get": _get("This document.", _object())},
            **_v2(settings, model),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error_code", "message", "request_id"],
                    "properties": {
                        "error_code": {"type": "string"},
                        "message": {"type": "string"},
                        "request_id": {"type": "string"},
                        "detail": {"type": "string"},
                    },
                },
                "V2Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}, "detail": {"type": "string"}},
                },
                "V2Tensor": _V2_TENSOR,
            }
        },
    }


def _invocations(settings: Settings, model: ServedModel | None) -> dict[str, Any]:
    shapes: dict[str, Any] = {"inputs": _inputs(model), "instances": {}, **_TABLE}
    params = {"type": ["object", "null"], "properties": _params(model)}
    variants = [
        {
            "type": "object",
            "required": [key],
            "properties": {key: shape, "params": params},
            "additionalProperties": False,
        }
        for key, shape in shapes.items()
    ]
    content: dict[str, Any] = {
        protocol.JSON: {"schema": {"oneOf": variants}},
        protocol.CSV: {"schema": {"type": "string"}},
        protocol.PARQUET: {"schema": {"type": "string", "format": "binary"}},
    }
    if model is not None and (example := model.example()) is not None:
        content[protocol.JSON]["example"] = example
    return {
        "summary": "Predict.",
        "tags": ["model"],
        "parameters": [{"name": "X-Request-Id", "in": "header", "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {
                "description": "One prediction per row.",
                "headers": {name: {"schema": {"type": "string"}} for name in ("X-Request-Id", "X-Model-Version")},
                "content": {
                    protocol.JSON: {
                        "schema": {"type": "object", "required": ["predictions"], "properties": {"predictions": {}}}
                    }
                },
            },
            "400": _failure("The body is malformed or does not fit the model's signature."),
            "413": _failure(f"More than {settings.max_body_bytes} bytes or {settings.max_rows} rows."),
            "415": _failure("Another content type."),
            "500": _failure("The model failed; the log has the reason under the request's id."),
            "503": _failure("No model yet, or the queue is full; Retry-After says when to try again."),
            "504": _failure(f"No prediction within {settings.request_timeout:g} s."),
        },
    }


def _v2(settings: Settings, model: ServedModel | None) -> dict[str, Any]:
    """The paths of the V2 protocol; each of a model is there with ``/versions/VERSION`` after its name too."""
    name = f"{v2.PATH}/models/{quote(settings.model.name)}"
    paths = {
        v2.PATH: _get("The server, and which extensions of the V2 protocol it has.", _object()),
        f"{v2.PATH}/health/live": _get("The process answers.", _object()),
        f"{v2.PATH}/health/ready": _get("A model is loaded.", _object(), unavailable=True),
        name: _get("The model's inputs and outputs as tensors.", _object(), unavailable=True),
        f"{name}/ready": _get("The model is loaded.", _object(), unavailable=True),
    }
    for operation in paths.values():
        if "503" in operation["responses"]:
            operation["responses"]["503"] = _failure("No model yet.", "V2Error")
    return {**{path: {"get": operation} for path, operation in paths.items()}, f"{name}/infer": _infer(settings, model)}


def _infer(settings: Settings, model: ServedModel | None) -> dict[str, Any]:
    tensors = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/V2Tensor"}}
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    content: dict[str, Any] = {
        protocol.JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "parameters": {"type": "object", "properties": _params(model)},
                    "inputs": tensors,
                    "outputs": {"type": "array", "items": wanted},
                },
            }
        },
        v2.OCTETS: {"schema": {"type": "string", "format": "binary"}},
    }
    if model is not None and (example := model.form.example()) is not None:
        content[protocol.JSON]["example"] = example
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": tensors,
        },
    }
    responses = {
        status: _failure(response["description"], "V2Error")
        for status, response in _invocations(settings, model)["responses"].items()
        if status != "200"
    }
    responses["200"] = {
        "description": "The outputs.",
        "content": {
            protocol.JSON: {"schema": answer},
            v2.OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    }
    return {
        "post": {
            "summary": "Predict, in the V2 protocol.",
            "tags": ["model"],
            "requestBody": {"required": True, "content": content},
            "responses": responses,
        }
    }


def _inputs(model: ServedModel | None) -> dict[str, Any]:
    """What ``inputs`` may be: narrowed for one scalar column, open for everything else MLflow reads."""
    schema = model and model.pyfunc.metadata.get_input_schema()
    if not schema or schema.is_tensor_spec() or len(schema.inputs) != 1:
        return {}
    kind = getattr(schema.inputs[0].type, "name", None)
    return {"type": "array", "minItems": 1, "items": _JSON_TYPES[kind]} if kind in _JSON_TYPES else {}


def _params(model: ServedModel | None) -> dict[str, Any]:
    schema = model and model.pyfunc.metadata.get_params_schema()
    described = {}
    for param in schema.params if schema else []:
        scalar = _JSON_TYPES.get(getattr(param.dtype, "name", ""), {})
        described[param.name] = scalar if param.shape is None else {"type": "array", "items": scalar}
    return described


def _get(summary: str, content: dict[str, Any], *, unavailable: bool = False) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": content}}
    if unavailable:
        responses["503"] = _failure("No model yet.")
    return {"summary": summary, "tags": ["model" if unavailable else "server"], "responses": responses}


def _text(media_type: str) -> dict[str, Any]:
    return {media_type: {}}


def _object() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}}


def _failure(description: str, schema: str = "Error") -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
