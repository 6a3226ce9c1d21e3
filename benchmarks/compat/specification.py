"""OpenAI's own specification, narrowed to what a text model serves here, for schemathesis.

Other paths are removed, with the schemas that only they use. Requests are narrowed, never widened,
so that each is valid by the whole document too: to the served model, few tokens, and text.
Responses are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

POSTS = ("/chat/completions", "/completions")
GETS = ("/models", "/models/{model}")
_REFERENCE = "#/components/schemas/"
# Other media, other services, deprecated fields; and `echo`, with which the log-probability of the
# first token is null, at OpenAI too, though the specification does not allow it.
_REMOVED = {
    "audio",
    "function_call",
    "functions",
    "modalities",
    "moderation",
    "prediction",
    "suffix",
}
_REMOVED |= {"web_search_options", "store", "best_of", "echo"}
_FEW_TOKENS = {"type": "integer", "minimum": 1, "maximum": 8}
_TEXTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {
            "role": {"type": "string", "enum": ["system", "user", "assistant"]},
            "content": {"type": "string", "maxLength": 200},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}
_NARROWER = {
    "max_tokens": _FEW_TOKENS,
    "max_completion_tokens": _FEW_TOKENS,
    "messages": _TEXTS,
    "n": {"type": "integer", "minimum": 1, "maximum": 2},
    "prompt": {"type": "string", "minLength": 1, "maxLength": 200},
}


def narrow(document: Schema, model: str) -> Schema:
    """The specification of our routes, from OpenAI's; the document is changed in place."""
    schemas = document["components"]["schemas"]
    served = [(path, "post") for path in POSTS] + [(path, "get") for path in GETS]
    paths = {path: {method: document["paths"][path][method]} for path, method in served}
    for path, method in served:
        operation = paths[path][method]
        operation.pop("security", None)
        if method == "post":
            content = operation["requestBody"]["content"]["application/json"]
            content["schema"] = _narrow_request(content["schema"], schemas, model)
        for parameter in operation.get("parameters", []):
            parameter["schema"] = {"type": "string", "enum": [model]}
    return {
        "openapi": document["openapi"],
        "info": {"title": "OpenAI, narrowed", "version": document["info"]["version"]},
        "paths": paths,
        "components": {"schemas": _referenced(paths, schemas)},
    }


def _narrow_request(request: Schema, schemas: Schema, model: str) -> Schema:
    properties, required = _object(request, schemas)
    narrower = {**_NARROWER, "model": {"type": "string", "enum": [model]}}
    limit = "max_completion_tokens" if "messages" in properties else "max_tokens"
    return {
        "type": "object",
        "properties": {
            name: narrower.get(name, schema)
            for name, schema in properties.items()
            if name not in _REMOVED
        },
        "required": sorted(required | {limit}),
        "additionalProperties": False,
    }


def _object(schema: Schema, schemas: Schema) -> tuple[Schema, set[str]]:
    """Properties of an object and the required ones, through references and `allOf`."""
    if "$ref" in schema:
        return _object(schemas[schema["$ref"].removeprefix(_REFERENCE)], schemas)
    properties, required = dict(schema.get("properties", {})), set(schema.get("required", []))
    for part in schema.get("allOf", []):
        part_properties, part_required = _object(part, schemas)
        properties |= part_properties
        required |= part_required
    return properties, required


def _referenced(part: Any, schemas: Schema) -> Schema:
    """The schemas that a part of the document refers to, directly or indirectly."""
    found: Schema = {}
    pending = list(_references(part))
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = schemas[name]
            pending += _references(schemas[name])
    return found


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        target = part.get("$ref")
        if isinstance(target, str):
            yield target.removeprefix(_REFERENCE)
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from _references(value)
