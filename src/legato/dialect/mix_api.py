"""The Mix dialect's ordinary requests: their bodies, and how a session's log is folded into them.

Everything here is data and pure functions; ``server/mix.py`` does the I/O. Unknown fields of a request are ignored,
optional fields of an answer are left out rather than null (strict clients refuse null).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..errors import InvalidInput, LegatoError
from ..event import Draft, Event, Message, Offset
from ..log import SessionInfo
from ..transcript import history

Text = Annotated[str, Meta(max_length=1_000_000)]
Title = Annotated[str, Meta(max_length=1_000)]
# Without a dot in front, since clients resolve "/api/sessions/.." before they send it.
SessionId = Annotated[str, Meta(pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]


class _Wire(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """camelCase on the wire; what has its default is left out."""


# Errors ---------------------------------------------------------------------------------------------------------------

ErrorType = Literal["bad_request", "not_found", "internal_error", "unauthorized", "validation_error"]


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """What went wrong: ``code`` is the HTTP status, ``reason`` the machine's word for it."""

    code: int
    message: str
    type: ErrorType
    reason: str = ""
    detail: dict[str, Any] = {}


class ErrorResponse(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorBody


_TYPES: dict[int, ErrorType] = {400: "bad_request", 401: "unauthorized", 404: "not_found", 413: "validation_error"}


def error_response(status: int, message: str, reason: str, detail: dict[str, Any] | None = None) -> ErrorResponse:
    """The body for an answer with ``status``."""
    kind = _TYPES.get(status, "internal_error" if status >= 500 else "bad_request")
    return ErrorResponse(ErrorBody(code=status, message=message, type=kind, reason=reason, detail=detail or {}))


def describe(error: LegatoError) -> ErrorResponse:
    """The body for ``error``."""
    return error_response(error.status, error.message, error.code, error.detail)


# Requests -------------------------------------------------------------------------------------------------------------


class CreateSession(_Wire):
    """A new session. Fields of the Mix API that Legato has no use for are kept and given back.

    Attributes:
        title: for lists.
        id: your own id, if you want one; it cannot be used twice.
        agent: which agent answers here.
    """

    title: Title = ""
    id: SessionId | None = None
    agent: str | None = None
    prompt_mode: Literal["default", "append", "replace"] = "default"
    custom_system_prompt: str | None = None
    session_type: Literal["main", "subagent"] = "main"
    browser_mode: Literal["electron-embedded-browser", "local-browser-service", "remote-cdp-websocket"] = (
        "electron-embedded-browser"
    )


class StreamMessage(_Wire):
    """A message for ``/stream/{id}/message``: plain text, or JSON text of an object with ``text``."""

    content: Text


class SendMessage(_Wire):
    """A message; fields beyond these reach the agent as ``turn.message.metadata``."""

    text: Text
    agent: str | None = None


class Rewind(_Wire):
    """Forget everything after ``message_id``."""

    message_id: str
    cleanup_media: bool = True


class Fork(_Wire):
    """Copy a session up to and with the message at ``message_index``, counted from 0."""

    message_index: Annotated[int, Meta(ge=0)]
    title: Title = "Forked Session"
    id: SessionId | None = None


class Cancel(_Wire):
    """What to stop: one run, or without it all that is running or waiting in the session."""

    run_id: str | None = None


class Retry(_Wire):
    """Answer a message anew: with the run whose end was seen, it is safe to ask again."""

    run_id: str | None = None


class Respond(_Wire):
    """The answer to a notification."""

    type: Literal["acknowledge", "text", "choice"]
    value: Text | None = None


# Answers --------------------------------------------------------------------------------------------------------------


class SessionData(_Wire, omit_defaults=False):
    """A session as lists show it. Times are RFC 3339, cost is in the unit that agents report."""

    id: str
    title: str
    created_at: str
    updated_at: str
    user_message_count: int
    assistant_message_count: int
    tool_call_count: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    session_type: str
    browser_mode: str
    running: bool
    first_user_message: str | UnsetType = UNSET
    parent_session_id: str | UnsetType = UNSET
    agent: str | UnsetType = UNSET


class ToolCallData(_Wire, omit_defaults=False):
    """A tool call of an assistant's message; ``input`` is JSON text, ``result`` text (JSON text if it was not)."""

    id: str
    name: str
    input: str
    type: str
    finished: bool
    result: str | UnsetType = UNSET
    is_error: bool | UnsetType = UNSET


class BackendMessage(_Wire):
    """One message. As Mix has it, ``user_input`` holds the text whatever the role.

    Attributes:
        parts: of an assistant's message, everything it said in order, see ``legato.transcript.Transcript``.
        error: of a failed one, ``code`` and ``message``.
    """

    id: str
    session_id: str
    role: str
    user_input: str
    assistant_response: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallData] | UnsetType = UNSET
    parts: list[dict[str, Any]] | UnsetType = UNSET
    status: str | UnsetType = UNSET
    error: dict[str, Any] | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    created_at: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    cost: float | UnsetType = UNSET
    input_tokens: int | UnsetType = UNSET
    output_tokens: int | UnsetType = UNSET


class Broadcasted(_Wire):
    """A message was stored and will be answered. Opening the stream after ``cursor`` gives its turn from the start."""

    status: Literal["broadcasted"]
    session_id: str
    run_id: str
    message_id: str
    cursor: str


class Processing(_Wire):
    """A message was stored and will be answered. Opening the stream after ``cursor`` gives its turn from the start."""

    status: Literal["processing"]
    session_id: str
    run_id: str
    message_id: str
    cursor: str


class Cancelled(_Wire):
    """Whether anything was running that is now asked to stop."""

    cancelled: bool


class Granted(_Wire):
    """The answer that holds: the first that was given."""

    granted: bool


class Denied(_Wire):
    """The answer that holds: the first that was given."""

    denied: bool


class ExportedCall(_Wire, omit_defaults=False):
    """A tool call in an export."""

    id: str
    name: str
    input: str
    type: str
    finished: bool
    result: str | UnsetType = UNSET


class ExportedMessage(_Wire, omit_defaults=False):
    """A message in an export."""

    id: str
    role: str
    content: str
    created_at: str
    updated_at: str
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ExportedCall] | UnsetType = UNSET


class ExportSession(SessionData):
    """A session with all its messages."""

    messages: list[ExportedMessage] = []


class LoggedEvent(msgspec.Struct):
    """One event of the canonical log."""

    offset: int
    type: str
    run: str | None
    at: float
    data: dict[str, Any]


class EventPage(msgspec.Struct):
    """A page of the canonical log. ``next`` is the ``after`` of the next page, null when this one ends at ``head``."""

    events: list[LoggedEvent]
    head: int
    next: int | None


class Health(_Wire):
    """The server is up. ``agents`` are the names of its agents, the default one first."""

    status: Literal["ok"]
    timestamp: str
    version: str
    agents: list[str]


class Ready(_Wire):
    """Whether new messages are taken."""

    status: Literal["ready", "draining"]


class ApiKey(msgspec.Struct):
    """What Mix's examples send first. Not kept."""

    provider: str


class ApiKeyAnswer(msgspec.Struct):
    """What became of it."""

    status: Literal["ignored"]
    provider: str
    message: str


class SystemInfo(_Wire, omit_defaults=False):
    """What Mix's examples ask for."""

    storage_base_path: str


# Folds ----------------------------------------------------------------------------------------------------------------


def rfc3339(at: float, *, exact: bool = False) -> str:
    """``at``, seconds since the epoch, as UTC with milliseconds and Z; with microseconds if ``exact``."""
    precision = "microseconds" if exact else "milliseconds"
    return datetime.fromtimestamp(at, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def session_data(info: SessionInfo, events: Iterable[Event]) -> SessionData:
    """The session's summary, from its events without deltas."""
    messages = history(events)
    users = [message for message in messages if message.role == "user"]
    answers = [message for message in messages if message.role == "assistant"]
    meta = info.data.get("metadata", {})
    return SessionData(
        id=info.session,
        title=info.data.get("title", ""),
        created_at=rfc3339(info.created_at),
        updated_at=rfc3339(info.updated_at, exact=True),  # pages of sessions go on from it
        user_message_count=len(users),
        assistant_message_count=len(answers),
        tool_call_count=sum(part["type"] == "tool_call" for answer in answers for part in answer.parts),
        prompt_tokens=sum(answer.usage.get("input_tokens", 0) for answer in answers),
        completion_tokens=sum(answer.usage.get("output_tokens", 0) for answer in answers),
        cost=float(sum(answer.usage.get("cost", 0.0) for answer in answers)),
        session_type=meta.get("sessionType", "main"),
        browser_mode=meta.get("browserMode", "electron-embedded-browser"),
        running=bool(info.open_runs),
        first_user_message=users[0].text if users else UNSET,
        parent_session_id=info.data.get("forked_from", UNSET),
        agent=info.data.get("agent", UNSET),
    )


def backend_message(session: str, message: Message) -> BackendMessage:
    """One message of the history."""
    common = BackendMessage(
        id=message.id,
        session_id=session,
        role=message.role,
        user_input=message.text,
        created_at=rfc3339(message.at),
        run_id=message.run or UNSET,
    )
    if message.role == "user":
        return common
    usage = message.usage
    return msgspec.structs.replace(
        common,
        assistant_response=message.text,
        reasoning=_reasoning(message) or UNSET,
        tool_calls=[_tool_call(part) for part in message.parts if part["type"] == "tool_call"] or UNSET,
        parts=message.parts or UNSET,
        status=message.status,
        error=message.error or UNSET,
        model=usage.get("model", UNSET),
        cost=usage.get("cost", UNSET),
        input_tokens=usage.get("input_tokens", UNSET),
        output_tokens=usage.get("output_tokens", UNSET),
    )


def _reasoning(message: Message) -> str:
    return "".join(part["text"] for part in message.parts if part["type"] == "thinking")


def _tool_call(part: dict[str, Any]) -> ToolCallData:
    done = "success" in part
    return ToolCallData(
        id=part["id"],
        name=part["name"],
        input=part["arguments"],
        type="function",
        finished=done,
        result=_as_text(part["output"]) if done else UNSET,
        is_error=not part["success"] if done else UNSET,
    )


def _as_text(output: Any) -> str:
    return output if isinstance(output, str) else msgspec.json.encode(output).decode()


def export(data: SessionData, messages: Iterable[Message]) -> ExportSession:
    """The session with all its messages."""
    return ExportSession(**msgspec.structs.asdict(data), messages=[_exported(message) for message in messages])


def _exported(message: Message) -> ExportedMessage:
    calls = [_tool_call(part) for part in message.parts if part["type"] == "tool_call"]
    exported = [
        ExportedCall(id=c.id, name=c.name, input=c.input, type=c.type, finished=c.finished, result=c.result)
        for c in calls
    ]
    at = rfc3339(message.at)
    return ExportedMessage(
        id=message.id,
        role=message.role,
        content=message.text,
        created_at=at,
        updated_at=at,
        reasoning=_reasoning(message) or UNSET,
        tool_calls=exported or UNSET,
    )


def event_page(events: list[Event], head: Offset) -> EventPage:
    """A page of the canonical log."""
    logged = [LoggedEvent(offset=e.offset, type=e.type, run=e.run, at=e.at, data=e.data) for e in events]
    last = events[-1].offset if events else head
    return EventPage(events=logged, head=head, next=last if last < head else None)


# Requests to drafts ---------------------------------------------------------------------------------------------------


def created(request: CreateSession) -> Draft:
    """The event that begins a session."""
    kept: dict[str, Any] = {
        "promptMode": request.prompt_mode,
        "sessionType": request.session_type,
        "browserMode": request.browser_mode,
    }
    if request.custom_system_prompt:
        kept["customSystemPrompt"] = request.custom_system_prompt
    data: dict[str, Any] = {"title": request.title, "metadata": kept}
    if request.agent:
        data["agent"] = request.agent
    return Draft(type="session.created", data=data)


def forked(request: Fork, source: SessionInfo, messages: list[Message]) -> list[Draft]:
    """The events of a copy of a session, up to and with the message asked for.

    Raises:
        InvalidInput: there is no message of that index.
    """
    if request.message_index >= len(messages):
        raise InvalidInput(
            f"messageIndex counts from 0 and the session has {len(messages)} messages, got {request.message_index}.",
            messages=len(messages),
        )
    begin = {**source.data, "title": request.title, "forked_from": source.session}
    drafts = [Draft(type="session.created", data=begin)]
    for message in messages[: request.message_index + 1]:
        data: dict[str, Any] = {"id": message.id, "role": message.role, "text": message.text}
        data |= {k: v for k, v in (("parts", message.parts), ("metadata", message.metadata)) if v}
        drafts.append(Draft(type="message.created", data=data))
    return drafts


def stream_message(request: StreamMessage) -> tuple[str, dict[str, Any]]:
    """The text of a streaming message and what else it carries: its content may be JSON text of an object."""
    text = request.content
    if text.lstrip().startswith("{"):
        try:
            parsed = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text, {}
        if isinstance(parsed, dict) and isinstance(parsed.get("text"), str):
            return parsed.pop("text"), parsed
    return text, {}


_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


def idempotency_key(text: str | None, name: str = "Idempotency-Key") -> str | None:
    """The key in an ``Idempotency-Key`` header, or in what else is called ``name``.

    Raises:
        InvalidInput: not 1 to 255 visible ASCII characters.
    """
    if text is None:
        return None
    if _KEY.fullmatch(text) is None:
        raise InvalidInput(f"{name} is 1 to 255 visible ASCII characters.")
    return text
