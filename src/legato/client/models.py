"""What the plain requests answer with. Unknown fields are ignored; a field that a server leaves out has its default."""

from __future__ import annotations

from typing import Any

import msgspec

from ..json import JsonObject

__all__ = [
    "BackendMessage",
    "CancelResult",
    "EventPage",
    "ExportMessage",
    "ExportSession",
    "Health",
    "LogEvent",
    "PermissionResult",
    "SendResult",
    "SessionData",
    "ToolCallData",
]


class CamelModel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", repr_omit_defaults=True):
    """snake_case here, camelCase on the wire."""


class SessionData(CamelModel, frozen=True, kw_only=True):
    """A session.

    Attributes:
        created_at: RFC 3339, as ``updated_at``.
        cost: in the unit that the agents report.
        running: whether an answer is being given, or waits to be.
        damaged: the server cannot read what it holds.
        owner: whose it is, where it is another's that the server shares with the caller.
        you: who asks, of one session that is read by itself, where the server knows that.
    """

    id: str
    title: str = ""
    created_at: str = ""
    updated_at: str | None = None
    running: bool | None = None
    user_message_count: int = 0
    assistant_message_count: int = 0
    tool_call_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    session_type: str = "main"
    agent: str | None = None
    browser_mode: str | None = None
    first_user_message: str | None = None
    parent_session_id: str | None = None
    parent_tool_call_id: str | None = None
    subagent_type: str | None = None
    callbacks: list[Any] | None = None
    cdp_url: str | None = None
    model_id: str | None = None
    provider: str | None = None
    damaged: bool = False
    owner: str | None = None
    you: str | None = None


class SendResult(CamelModel, frozen=True, kw_only=True):
    """A message was taken; the answer comes on the stream.

    Attributes:
        status: ``"processing"`` or ``"broadcasted"``.
        session_id: the session.
        run_id: the run that answers it; the events of the answer name it.
        message_id: the user's message.
        cursor: a stream opened with this as ``last_event_id`` has the whole answer.
    """

    status: str
    session_id: str
    run_id: str | None = None
    message_id: str | None = None
    cursor: str | None = None


class ToolCallData(CamelModel, frozen=True, kw_only=True):
    """A tool call in a stored message; ``input`` is JSON text."""

    id: str
    name: str = ""
    input: str = ""
    type: str = ""
    finished: bool = False
    result: str | None = None
    is_error: bool | None = None
    screenshot_urls: list[str] | None = None


class BackendMessage(CamelModel, frozen=True, kw_only=True):
    """A stored message.

    Attributes:
        role: ``"user"`` or ``"assistant"``.
        user_input: the text, whoever wrote it.
        assistant_response: the text again, of an assistant's message.
        reasoning_duration: milliseconds.
        status: of an assistant's message: ``completed``, ``failed`` or ``cancelled``.
        run_id: the run that it belongs to.
        author: of a user's message: who wrote it, where the server knows who asks.
        created_at: RFC 3339.
    """

    id: str
    session_id: str
    role: str
    user_input: str = ""
    assistant_response: str | None = None
    reasoning: str | None = None
    reasoning_duration: int | None = None
    tool_calls: list[ToolCallData] | None = None
    callback_results: list[Any] | None = None
    status: str | None = None
    run_id: str | None = None
    author: str | None = None
    created_at: str | None = None
    model: str | None = None
    cost: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_tokens: int | None = None
    cache_read_tokens: int | None = None


class ExportMessage(CamelModel, frozen=True, kw_only=True):
    """A message of an exported session; the times are RFC 3339."""

    id: str
    role: str
    content: str = ""
    created_at: str = ""
    updated_at: str = ""


class ExportSession(CamelModel, frozen=True, kw_only=True):
    """A whole session, to keep elsewhere."""

    id: str
    title: str = ""
    messages: list[ExportMessage] = []


class LogEvent(CamelModel, frozen=True, kw_only=True):
    """An event as the server's log has it.

    Attributes:
        offset: its number in the session, from 1.
        type: for example ``"text.delta"``.
        at: seconds since the epoch.
        run: the run it belongs to; None for the session itself.
    """

    offset: int
    type: str
    at: float = 0.0
    run: str | None = None
    data: JsonObject = {}


class EventPage(CamelModel, frozen=True, kw_only=True):
    """A page of a session's log.

    Attributes:
        events: in order.
        head: the offset of the log's last event.
        next: what ``after`` must be for the next page; None at the end.
    """

    events: list[LogEvent]
    head: int = 0
    next: int | None = None


class CancelResult(msgspec.Struct, frozen=True):
    """Whether there was a run to cancel; of a Mix server, only its ``status``."""

    cancelled: bool | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        _check_any(self.cancelled, self.status)


class PermissionResult(msgspec.Struct, frozen=True):
    """What was decided; the first answer to a permission counts, so it may not be what was asked for now. Of a Mix
    server, only its ``status``."""

    granted: bool | None = None
    denied: bool | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        _check_any(self.granted, self.denied, self.status)


def _check_any(*values: object) -> None:
    if all(value is None for value in values):  # somebody else's JSON
        raise ValueError("none of the documented fields is there")


class Health(msgspec.Struct, frozen=True):
    """A sign of life of the server."""

    status: str = ""
    timestamp: str | int | float | None = None
    version: str | None = None
