"""OpenAI's own specification, cut to what a text model serves here, for schemathesis.

Paths that are not served are left out, and what then nothing refers to. Requests are narrowed,
never widened, so each is valid in the whole document, too: to the model that is there, to few
tokens, to text. Answers are left as they are. Knows nothing of where the document comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

POSTS = ("/chat/completions", "/completions")
GETS = ("/models", "/models/{model}")
_REFERENCE = "#/components/schemas/"
# Other media, other services, what OpenAI calls deprecated; and `echo`: the first token has null
# for a log-probability, at OpenAI, too, though the specification does not say so.
_LEFT_OUT = {
    "audio",
    "function_call",
    "functions",
    "modalities",
    "moderation",
    "prediction",
    "suffix",
}
_LEFT_OUT |= {"web_search_options", "store", "best_of", "echo"}
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


def cut(document: Schema, model: str) -> Schema:
    """The specification of our routes, out of OpenAI's; the document is changed."""
    schemas = document["components"]["schemas"]
    served = [(path, "post") for path in POSTS] + [(path, "get") for path in GETS]
    paths = {path: {method: document["paths"][path][method]} for path, method in served}
    for path, method in served:
        operation = paths[path][method]
        operation.pop("security", None)
        if method == "post":
            content = operation["requestBody"]["content"]["application/json"]
            content["schema"] = _narrowed(content["schema"], schemas, model)
        for parameter in operation.get("parameters", []):
            parameter["schema"] = {"type": "string", "enum": [model]}
    return {
        "openapi": document["openapi"],
        "info": {"title": "OpenAI, cut", "version": document["info"]["version"]},
        "paths": paths,
        "components": {"schemas": _reached(paths, schemas)},
    }


def _narrowed(request: Schema, schemas: Schema, model: str) -> Schema:
    properties, required = _object(request, schemas)
    narrower = {**_NARROWER, "model": {"type": "string", "enum": [model]}}
    limit = "max_completion_tokens" if "messages" in properties else "max_tokens"
    return {
        "type": "object",
        "properties": {
            name: narrower.get(name, schema)
            for name, schema in properties.items()
            if name not in _LEFT_OUT
        },
        "required": sorted(required | {limit}),
        "additionalProperties": False,
    }


def _object(schema: Schema, schemas: Schema) -> tuple[Schema, set[str]]:
    """Properties of an object and the names of those it must have, over references and `allOf`."""
    if "$ref" in schema:
        return _object(schemas[schema["$ref"].removeprefix(_REFERENCE)], schemas)
    properties, required = dict(schema.get("properties", {})), set(schema.get("required", []))
    for part in schema.get("allOf", []):
        more_properties, more_required = _object(part, schemas)
        properties |= more_properties
        required |= more_required
    return properties, required


def _reached(part: Any, schemas: Schema) -> Schema:
    """The schemas that a part of the document refers to, over any number of steps."""
    reached: Schema = {}
    waiting = list(_references(part))
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = schemas[name]
            waiting += _references(schemas[name])
    return reached


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        target = part.get("$ref")
        if isinstance(target, str):
            yield target.removeprefix(_REFERENCE)
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from _references(value)
