"""The OpenAPI document, made from the operations and their msgspec types; ``web/docs.html`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

import legato

from ..dialect.common import ErrorBody
from ..json import JsonObject
from .operation import Frames, Operation, Param

_REF = "#/components/schemas/{name}"


def document(operations: Sequence[Operation], *, signs_in: bool = False) -> JsonObject:
    """The document for ``operations``; with ``signs_in`` of a server that wants to know who asks."""
    operations = [operation for operation in operations if operation.documented]
    types: list[object] = [ErrorBody]
    for operation in operations:
        types += [type for type in (operation.body, operation.error, *operation.answers.values()) if type is not None]
        types += operation.stream.events if operation.stream is not None else ()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip([repr(type) for type in types], schemas, strict=True))
    for stream in [operation.stream for operation in operations if operation.stream is not None]:
        if stream.name:
            components[stream.name] = {"anyOf": [by_type[repr(type)] for type in stream.events]}
    paths: dict[str, JsonObject] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_type)
    secured: JsonObject = {}
    if signs_in:
        components = {"schemas": components, "securitySchemes": _SCHEMES}
        secured = {"security": [{name: []} for name in _SCHEMES]}
        for operation in operations:
            if operation.public or operation.probe:
                paths[operation.path][operation.method.lower()]["security"] = []
    else:
        components = {"schemas": components}
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Legato",
            "version": legato.__version__,
            "summary": "Durable, resumable answers from AI agents over Server-Sent Events.",
            "description": "What an agent says is stored before anyone sees it; every reader follows live and goes on "
            "exactly where it was. Answers that are not a success have the body `ErrorBody`; those of the OpenAI "
            "dialects, below `/v1`, have `APIErrorResponse`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": components,
        **secured,
    }


_BYTES = msgspec.json.schema(bytes)
_SCHEMES: JsonObject = {
    "token": {"type": "http", "scheme": "bearer", "description": "A key, or another token that the server believes."},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "legato", "description": "Of `POST /api/auth/sign-in`."},
}


def _operation(operation: Operation, by_type: JsonObject) -> JsonObject:
    described: JsonObject = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [_param(param) for param in operation.params],
        "responses": {
            str(status): _response(status, None if type is None else by_type[repr(type)])
            for status, type in operation.answers.items()
        },
    }
    doc = operation.description or operation.handler.__doc__
    if doc:
        described["description"] = doc
    if operation.body is not None:
        body = {"schema": by_type[repr(operation.body)]}
        described["requestBody"] = {"required": operation.body_required, "content": {"application/json": body}}
    # 403 and 421 are the guard's, 401 is of who signs callers in.
    sent = {400, 401, 403, 421, 500, 503} | ({408, 413, 415} if operation.body is not None else set())
    sent |= {507} if operation.method != "GET" else set()
    for status in sorted(sent.union(operation.errors)):
        described["responses"].setdefault(str(status), _response(status, by_type[repr(operation.error)]))
    if operation.stream is not None:
        well = described["responses"].setdefault("200", {"description": "The stream.", "content": {}})
        well["content"]["text/event-stream"] = {"itemSchema": operation.stream.frame or _frame(operation.stream)}
        if operation.stream.reset:
            well["headers"] = _cursor_status(operation.stream.reset)
    return described


def _frame(stream: Frames) -> JsonObject:
    """One frame, its ``data`` a JSON text of the stream's events."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(name=stream.name)},
    }
    name: JsonObject = {"event": {"type": "string", "description": "The `type` of the data."}}
    return {
        "type": "object",
        "required": ["data", *(name if stream.named and not stream.done else ())],
        "properties": {
            **(name if stream.named else {}),
            "data": {"anyOf": [data, {"const": "[DONE]"}]} if stream.done else data,
        },
    }


def _param(param: Param) -> JsonObject:
    return {
        "name": param.name,
        "in": param.where,
        "required": param.required,
        "description": param.description,
        "schema": param.schema,
    }


def _response(status: int, schema: object) -> JsonObject:
    described: JsonObject = {"description": HTTPStatus(status).phrase}
    if schema is not None:
        files = schema == _BYTES  # of any kind
        described["content"] = {"*/*": {}} if files else {"application/json": {"schema": schema}}
    return described


def _cursor_status(reset: str) -> JsonObject:
    described = {
        "description": f"`exact`, or `reset` {reset}.",
        "schema": {"type": "string", "enum": ["exact", "reset"]},
    }
    return {"Legato-Cursor": described}
