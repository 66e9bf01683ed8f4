"""Operations: one table row per route, from which both the router and the OpenAPI document are made; and dialects, the
rows of the table above them.

A handler gets a ``Request`` and returns a reply or raises a ``LegatoError``.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec
from starlette.types import Scope

from ..dialect.common import KEY_PATTERN, ErrorBody, describe
from ..errors import Draining, InvalidInput, LegatoError, NotFound, SessionNotFound
from ..json import JsonObject
from .reply import Body, Reply, View
from .request import Request


class Param(msgspec.Struct, frozen=True):
    """A parameter of an operation, for the document; handlers read it by its name."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: JsonObject = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


INCARNATION_PARAM = Param(
    "Legato-Incarnation", "header",
    "That of the answer from which the cursor is. After a backup was restored, the same id may be another event's: a "
    "cursor whose events are not in the log any more is then answered with a reset.",
)  # fmt: skip


ONCE_PARAM = Param(
    "Idempotency-Key", "header",
    "Under the same key it is done once, however late it comes again: it meets nothing that has come since.",
    {"type": "string", "pattern": KEY_PATTERN},
)  # fmt: skip


Handler = Callable[[Request], Awaitable[Reply]]


class Frames(msgspec.Struct, frozen=True):
    """A reply as ``text/event-stream``, for the document.

    Attributes:
        name: of the schema of its events' data; "" if the frame's own schema says all.
        events: the types of that data.
        named: whether frames have their event's type as their name.
        done: whether the last frame's data is ``[DONE]``.
        frame: the schema of a frame, where it is not made from the rest.
        reset: what ``Legato-Cursor: reset`` means; "" if the stream has no cursors.
    """

    name: str = ""
    events: Sequence[Any] = ()
    named: bool = True
    done: bool = False
    frame: JsonObject | None = None
    reset: str = ""


class Absence(msgspec.Struct, frozen=True):
    """Of a life: the application does not run.

    Attributes:
        why: what requests are answered with.
        starting: it is about to.
        agents: names of the application's agents, the default one first.
    """

    why: Draining
    starting: bool
    agents: Sequence[str]


class Operation(msgspec.Struct, frozen=True):
    """One route.

    Attributes:
        answers: by status, the type of the body, or None for an empty one.
        body_required: whether a request without a body is refused.
        errors: the statuses at which an ``error`` can come, besides those of all: 400, 401, 403, 421, 500, 503, with a
            body 408, 413 and 415, and 507 where something is written.
        error: the type of an error's body.
        stream: what a 200 may be, or is if ``answers`` has none, as a stream.
        documented: False of a second path to the same.
        without_life: answers while the application does not run; without it, ``Absence.why`` is the answer.
        public: nobody is asked who they are.
        probe: so it is where ``auth`` signs callers in, since what starts and balances servers has nobody to sign in.
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
    error: Any = ErrorBody
    stream: Frames | None = None
    documented: bool = True
    without_life: Callable[[Absence], Body] | None = None
    public: bool = False
    probe: bool = False


def refuse(error: LegatoError) -> Body:
    """An error in the form of the dialects that have none of their own."""
    return Body(error.status, describe(error))


def no_view(name: str) -> View | None:
    """Of a dialect that the inspector does not show."""
    return None


class Dialect(msgspec.Struct, frozen=True):
    """One family of clients: a row of the table of dialects.

    Attributes:
        name: for the inspector, and for people.
        operations: its routes.
        refuse: an error in its form.
        view: what the inspector shows under a name such as ``"mix/python-0.8.1"``; None if it is none of its names.
        views: such names, for people.
        roots: first segments of paths that are this dialect's, also where it has no route.
    """

    name: str
    operations: Sequence[Operation]
    refuse: Callable[[LegatoError], Body] = refuse
    view: Callable[[str], View | None] = no_view
    views: Sequence[str] = ()
    roots: Sequence[str] = ()


def path_within(scope: Scope) -> str:
    """The path within this application, also where it is mounted."""
    path: str = scope["path"]
    within = path.removeprefix(scope.get("root_path", ""))
    return within if within.startswith("/") else "/" if not within else path


class NoSuchRoute(NotFound):
    """No operation has this path."""

    code = "no_such_route"

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            f"{scope['method']} {path_within(scope)[:200]} is not part of this API; GET /openapi.json lists what is."
        )


class WrongMethod(LegatoError):
    """The path has operations, and none of this method."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, scope: Scope, allowed: str) -> None:
        super().__init__(f"{scope['method']} {path_within(scope)[:200]} is not part of this API; use {allowed} here.")
        self.allowed = allowed


_SESSION_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)


def session_id(text: str) -> str:
    """``text``, from a path, if it can name a session; else ``SessionNotFound``, so that nothing odd goes further."""
    if _SESSION_ID.fullmatch(text) is None:
        raise SessionNotFound(text)
    return text


def new_session_id(id: str | None) -> str:
    """The id for a new session: the caller's own, its form checked, or one that nobody can guess."""
    if id is None:
        return f"s_{secrets.token_urlsafe(16)}"
    if _SESSION_ID.fullmatch(id) is None:  # the body's type has checked it, but for an LF at the end
        raise InvalidInput("id is 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with a dot.")
    return id


RETRY_AFTER = {429: "5", 503: "2", 507: "30"}
"""Seconds after which to try again, by status."""


def retry_after(error: LegatoError) -> str | None:
    """Seconds after which to try again, for the field of that name."""
    if error.retry_after is not None:
        return str(math.ceil(error.retry_after))
    return RETRY_AFTER.get(error.status)
