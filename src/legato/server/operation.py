"""Operations: one table row per route, from which both the router and the OpenAPI document are made.

A handler gets a ``Request`` and returns an ``Answer`` or raises a ``LegatoError``; how that becomes HTTP is said here,
once. Bodies are read up to a bound, and decoded and checked by msgspec against the row's type.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import Scope

from ..dialect import mix_api
from ..errors import InvalidInput, LegatoError, SessionNotFound, TooLarge

T = TypeVar("T")


class Param(msgspec.Struct, frozen=True):
    """A parameter of an operation, for the document; handlers read it by its name."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What a handler answers: a status, a body that msgspec can encode (or None), and headers."""

    status: int
    body: Any = None
    headers: dict[str, str] = {}


class Request:
    """One request to an operation.

    Attributes:
        path, query, headers: as sent; header names in lower case.
        prefix: under which the application is mounted, for links to itself; empty if it is not.
    """

    def __init__(self, http: HTTPRequest, max_body: int) -> None:
        self.path: dict[str, str] = http.path_params
        self.query = http.query_params
        self.headers = http.headers
        self.prefix: str = http.scope.get("root_path", "")
        self._http = http
        self._max_body = max_body

    async def body(self, type: type[T], *, default: T | None = None) -> T:
        """The JSON body, checked; ``default`` when there is none.

        Raises:
            TooLarge: over the bound; the rest is not read.
            InvalidInput: not JSON, or not of the type; the text names the place.
        """
        raw = await self.raw_body()
        if not raw and default is not None:
            return default
        try:
            return msgspec.json.decode(raw, type=type)
        except msgspec.ValidationError as exc:
            raise InvalidInput(f"The body does not fit: {exc}.") from exc
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
            raise InvalidInput(f"The body must be a JSON object: {exc}.") from exc

    async def left(self) -> None:
        """Wait until whoever asked has gone. For when the body has been read."""
        while (await self._http.receive())["type"] != "http.disconnect":
            pass

    async def raw_body(self) -> bytes:
        """The body's bytes, up to the bound."""
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in self._http.stream():
                size += len(chunk)
                if size > self._max_body:
                    raise TooLarge(f"A body may have {self._max_body} bytes.", limit=self._max_body)
                chunks.append(chunk)
        except ClientDisconnect:
            raise InvalidInput("The connection ended in the middle of the body.") from None
        return b"".join(chunks)

    def number(self, name: str, *, default: int, least: int, most: int) -> int:
        """A whole number from the query.

        Raises:
            InvalidInput: not a number, or out of bounds.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 16 and least <= int(text) <= most):
            raise InvalidInput(f"{name} is a whole number from {least} to {most}, got {text[:60]!r}.")
        return int(text)


Handler = Callable[[Request], Awaitable[Any]]
"""Gives an ``Answer``, or what else its router can send."""


class EventStream(msgspec.Struct, frozen=True):
    """An answer as ``text/event-stream``, for the document.

    Attributes:
        name: of the schema of its events' data.
        events: the types of that data.
        named: whether frames have their event's type as their name.
        done: whether the last frame's data is ``[DONE]``.
    """

    name: str
    events: Sequence[Any]
    named: bool = True
    done: bool = False


class Operation(msgspec.Struct, frozen=True):
    """One route.

    Attributes:
        answers: by status, the type of the body, or None for an empty one.
        body_required: whether a request without a body is refused.
        errors: the statuses at which an ``error`` can come, besides 400, 413, 500 and 503.
        error: the type of an error's body.
        stream: what a 200 may be instead, as a stream.
    """

    id: str
    method: str
    path: str
    tag: str
    summary: str
    handler: Handler
    answers: dict[int, Any]
    params: Sequence[Param] = ()
    body: Any = None
    body_required: bool = True
    errors: tuple[int, ...] = ()
    description: str = ""
    error: Any = mix_api.ErrorResponse
    stream: EventStream | None = None


_SESSION_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)


def session_id(text: str) -> str:
    """``text``, from a path, if it can name a session; else ``SessionNotFound``, so that nothing odd goes further."""
    if _SESSION_ID.fullmatch(text) is None:
        raise SessionNotFound(text)
    return text


def new_session(id: str | None) -> str:
    """The id for a new session: the caller's own, its form checked, or one that nobody can guess."""
    if id is None:
        return f"s_{secrets.token_urlsafe(16)}"
    if _SESSION_ID.fullmatch(id) is None:  # the body's type has checked it, but for an LF at the end
        raise InvalidInput("id is 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with a dot.")
    return id


def path_within(scope: Scope) -> str:
    """The path within this application, also where it is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def respond(answer: Answer) -> Response:
    """``answer`` as a response."""
    if answer.body is None:
        return Response(status_code=answer.status, headers=answer.headers)
    content = msgspec.json.encode(answer.body)
    headers = {"cache-control": "no-store", **answer.headers}
    return Response(content, status_code=answer.status, headers=headers, media_type="application/json")


RETRY_AFTER = {429: "5", 503: "2", 507: "30"}
"""Seconds after which to try again, by status."""


def respond_error(error: LegatoError) -> Response:
    """``error`` as a response in the documented shape."""
    return error_answer(error.status, mix_api.describe(error))


def error_answer(status: int, body: mix_api.ErrorResponse) -> Response:
    """An error's body as a response; says when to try again where that may help."""
    headers = {"retry-after": RETRY_AFTER[status]} if status in RETRY_AFTER else {}
    return respond(Answer(status, body, headers))
