"""The OpenAPI document, made from the operations and their msgspec types; ``web/docs.html`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec

from ..dialect import deva, mix
from .deva import STREAM_PARAMS as DEVA_PARAMS
from .deva import STREAM_PATH
from .operation import EventStream, Operation, Param

_REF = "#/components/schemas/{name}"

STREAM_PARAMS = [
    Param("sessionId", "query", "The session to follow.", required=True),
    Param("from", "query", "Where a reader without a cursor begins: `start`, `tail`, or an offset. Without it, at the "
          "running turn, or at the tail if nothing runs."),
    Param("client", "query", "Which client's event names to use, instead of what User-Agent tells: `legato`, "
          "`python-0.8.1`, `typescript-0.11.4` ..."),
    Param("Last-Event-ID", "header", "The id of the last event you have; the stream goes on exactly after it.",
          {"type": "string", "pattern": "^[0-9]{1,15}$"}),
]  # fmt: skip


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document for ``operations`` and the stream."""
    types: list[Any] = []
    for operation in operations:
        types += [type for type in (operation.body, operation.error, *operation.answers.values()) if type is not None]
        types += operation.stream.events if operation.stream is not None else ()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip([repr(type) for type in types], schemas, strict=True))
    for stream in [operation.stream for operation in operations if operation.stream is not None]:
        components[stream.name] = {"anyOf": [by_type[repr(type)] for type in stream.events]}
    paths: dict[str, dict[str, Any]] = {"/stream": {"get": _stream()}, STREAM_PATH: {"post": _answer_stream()}}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_type)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Legato",
            "version": version("legato"),
            "summary": "Durable, resumable answers from AI agents over Server-Sent Events.",
            "description": "What an agent says is stored before anyone sees it; every reader follows live and goes on "
            "exactly where it was. Answers that are not a success have the body `ErrorResponse`; those of the OpenAI "
            "dialects, below `/v1`, have `APIErrorResponse`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in dict.fromkeys(["streaming", *(o.tag for o in operations)])],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(operation: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
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
    for status in sorted({400, 413, 500, *operation.errors, *([503] if operation.body is not None else [])}):
        described["responses"].setdefault(str(status), _response(status, by_type[repr(operation.error)]))
    if operation.stream is not None:
        described["responses"]["200"]["content"]["text/event-stream"] = {"itemSchema": _frame(operation.stream)}
    return described


def _frame(stream: EventStream) -> dict[str, Any]:
    """One frame, its ``data`` a JSON text of the stream's events."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(name=stream.name)},
    }
    name: dict[str, Any] = {"event": {"type": "string", "description": "The `type` of the data."}}
    return {
        "type": "object",
        "required": ["data", *(name if stream.named and not stream.done else ())],
        "properties": {
            **(name if stream.named else {}),
            "data": {"anyOf": [data, {"const": "[DONE]"}]} if stream.done else data,
        },
    }


def _param(param: Param) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": param.where,
        "required": param.required,
        "description": param.description,
        "schema": param.schema,
    }


def _response(status: int, schema: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if schema is not None:
        described["content"] = {"application/json": {"schema": schema}}
    return described


def _error(status: int) -> dict[str, Any]:
    return _response(status, {"$ref": _REF.format(name="ErrorResponse")})


def _cursor_status(reset: str) -> dict[str, Any]:
    described = {
        "description": f"`exact`, or `reset` {reset}.",
        "schema": {"type": "string", "enum": ["exact", "reset"]},
    }
    return {"Legato-Cursor": described}


_ANSWER_FRAME: dict[str, Any] = {
    "description": "One frame of the stream.",
    "type": "object",
    "properties": {
        "event": {"enum": ["content", "completion", "response_message", "error"]},
        "data": {"type": "string", "description": "One line of JSON.", "contentMediaType": "application/json"},
        "id": {"type": "string", "pattern": deva.CURSOR_PATTERN},
        "retry": {"type": "integer", "description": "Milliseconds; with the first frame of a connection."},
    },
    "required": ["event", "data", "id"],
}


def _answer_stream() -> dict[str, Any]:
    return {
        "operationId": "streamAnswer",
        "tags": ["deva"],
        "summary": "Read the answer to a message",
        "description": "Attaches to the message's newest answer, from its start, however often it is asked for: "
        "nothing is generated twice. Frames: `content` (a JSON string, to be added to the text), then `completion` "
        "and `response_message` (the whole `Message`), or `error` (`code`, `message`, `retryable`) in place of both. "
        "A stream that ends without one of these two was cut: come back with `Last-Event-ID`.",
        "parameters": [_param(param) for param in DEVA_PARAMS],
        "responses": {
            "200": {
                "description": "The stream.",
                "headers": _cursor_status("when the cursor is none of this answer's, which then comes from its start"),
                "content": {"text/event-stream": {"itemSchema": _ANSWER_FRAME}},
            },
            **{str(status): _error(status) for status in (400, 404, 409, 429, 500, 503)},
        },
    }


_MIX_FRAME: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data", "id"],
    "properties": {
        "event": {"type": "string", "enum": sorted(mix.LEGATO.events)},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "retry": {"type": "integer", "description": "Milliseconds, in the first frame."},
    },
}


def _stream() -> dict[str, Any]:
    names = sorted(mix.LEGATO.events)
    return {
        "operationId": "streamEvents",
        "tags": ["streaming"],
        "summary": "Follow a session",
        "description": "Stays open over many messages. Each frame has `event`, one line of JSON as `data`, and as `id` "
        "the cursor to come back with. Starts with `connected`; `heartbeat` comes after silence. The end of the "
        "connection is not the end of the stream: come back with `Last-Event-ID`. Names: " + ", ".join(names) + ".",
        "parameters": [_param(param) for param in STREAM_PARAMS],
        "responses": {
            "200": {
                "description": "The stream.",
                "headers": _cursor_status("when the cursor lies beyond the end of this log"),
                "content": {"text/event-stream": {"itemSchema": _MIX_FRAME}},
            },
            **{str(status): _error(status) for status in (400, 404, 429, 500)},
        },
    }
