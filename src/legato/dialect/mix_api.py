"""The Mix dialect's ordinary requests: their bodies, and how a session's log is folded into them.

Everything here is data and pure functions; ``server/mix.py`` does the I/O. Unknown fields of a request are ignored,
optional fields of an answer are left out rather than null (strict clients refuse null).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..event import Event, MessageCreated, MessageRevised, Offset, SessionCreated, SessionRewound, Terminal
from ..history import answer_place, changed, rewound, told
from ..json import LARGE, JsonObject, decode_in_pieces
from ..log import SessionInfo
from ..part import Attachment, CallPart, Message, Part, ThinkingPart, Usage, encode, to_builtins
from .common import SessionId, Spoken, Text, Title, rfc3339


class _Wire(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """camelCase on the wire; what has its default is left out."""


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

    content: Spoken


class SendMessage(_Wire):
    """A message; fields beyond these reach the agent as ``turn.message.metadata``."""

    text: Spoken
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


RespondBody = Annotated[
    Respond,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"properties": {"type": {"const": "acknowledge"}}},
                {"properties": {"value": {"type": "string"}}, "required": ["value"]},
            ]
        }
    ),
]
"""For the document: what is no mere acknowledgement has a value."""


# Answers --------------------------------------------------------------------------------------------------------------


class SessionData(_Wire, omit_defaults=False):
    """A session as lists show it. Times are RFC 3339, cost is in the unit that agents report. Of one that is
    ``damaged``, what it holds is not known. ``owner`` is whose it is, if it is another's; ``may`` is what the caller
    may do besides reading it (``send``, ``cancel``, ``answer``, ``change``), if it is another's or not all of that.
    ``you`` is who asks, of one session that is read by itself, where the server knows that."""

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
    damaged: bool | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    may: list[str] | UnsetType = UNSET
    you: str | UnsetType = UNSET


class ExportedCall(_Wire, omit_defaults=False):
    """A tool call in an export."""

    id: str
    name: str
    input: str
    type: str
    finished: bool
    result: str | UnsetType = UNSET


class ToolCallData(ExportedCall):
    """A tool call of an assistant's message; ``input`` is JSON text, ``result`` text (JSON text if it was not)."""

    is_error: bool | UnsetType = UNSET


class BackendMessage(_Wire):
    """One message. As Mix has it, ``user_input`` holds the text whatever the role.

    Attributes:
        parts: of an assistant's message, everything it said in order, see ``legato.transcript.Transcript``.
        finish_reason: of a completed one: ``"stop"``, ``"length"`` ...
        error: of a failed one, ``code`` and ``message``.
        files: of a user's: what came with it.
        author: of a user's: who wrote it, where the server knows who asks.
    """

    id: str
    session_id: str
    role: str
    user_input: str
    assistant_response: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallData] | UnsetType = UNSET
    parts: list[JsonObject] | UnsetType = UNSET
    status: str | UnsetType = UNSET
    finish_reason: str | UnsetType = UNSET
    error: JsonObject | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    files: list[Attachment] | UnsetType = UNSET
    author: str | UnsetType = UNSET
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
    data: JsonObject


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
    """Whether new messages are taken: not while the server stops, or waits for its store to start, nor while that can
    keep nothing; ``reason`` then is the code of the error that messages are refused with."""

    status: Literal["ready", "starting", "draining", "store"]
    reason: str = ""


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

BRIEF_CHARACTERS = 200
"""What a summary holds of a session's first message."""


def take_brief(messages: list[Message], event: Event) -> None:
    """Go on with a session's messages, but for what no summary tells: so a list costs no more than it shows."""
    fact = event.fact
    if isinstance(fact, MessageCreated):
        messages.append(_brief(told(event)))
    elif isinstance(fact, Terminal):
        place = answer_place(messages, event.run)
        if place is not None:
            messages.insert(place, _brief(told(event)))
    elif isinstance(fact, SessionRewound):
        messages[:] = rewound(messages, fact, event.offset)
    elif isinstance(fact, MessageRevised):
        messages[:] = map(_brief, changed(messages, fact))


def _brief(message: Message) -> Message:
    calls = [part for part in message.parts if isinstance(part, CallPart)]
    empty: list[Part] = [msgspec.structs.replace(call, arguments="", output=UNSET) for call in calls]
    return msgspec.structs.replace(
        message, text=message.text[:BRIEF_CHARACTERS], parts=empty, metadata={}, error=None, opaque=[]
    )


def damaged_session(info: SessionInfo) -> SessionData:
    """What is known of a session whose log cannot be read."""
    return msgspec.structs.replace(session_data(info, ()), damaged=True)


def session_data(info: SessionInfo, messages: Iterable[Message]) -> SessionData:
    """The session's summary, from its messages; ``take_brief`` leaves all that it takes."""
    messages = list(messages)
    users = [message for message in messages if message.role == "user"]
    answers = [message for message in messages if message.role == "assistant"]
    used = [answer.usage for answer in answers if answer.usage is not None]
    given = settings(info.created)
    return SessionData(
        id=info.session,
        title=info.created.title or "",
        created_at=rfc3339(info.created_at),
        updated_at=rfc3339(info.updated_at, exact=True),  # pages of sessions go on from it
        user_message_count=len(users),
        assistant_message_count=len(answers),
        tool_call_count=sum(isinstance(part, CallPart) for answer in answers for part in answer.parts),
        prompt_tokens=sum(usage.input_tokens for usage in used),
        completion_tokens=sum(usage.output_tokens for usage in used),
        cost=float(sum(usage.cost for usage in used)),
        session_type=given.session_type,
        browser_mode=given.browser_mode,
        running=bool(info.open_runs),
        first_user_message=users[0].text[:BRIEF_CHARACTERS] if users else UNSET,
        parent_session_id=info.created.forked_from or UNSET,
        agent=info.created.agent or UNSET,
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
        files=message.files or UNSET,
        author=message.author or UNSET,
    )
    if message.role == "user":
        return common
    usage = message.usage or Usage()
    return msgspec.structs.replace(
        common,
        assistant_response=message.text,
        reasoning=_reasoning(message) or UNSET,
        tool_calls=[_tool_call(part) for part in message.parts if isinstance(part, CallPart)] or UNSET,
        parts=_plain(message.parts) or UNSET,
        status=message.status,
        finish_reason=message.finish_reason or UNSET,
        error=to_builtins(message.error) if message.error else UNSET,
        model=usage.model or UNSET,
        cost=usage.cost or UNSET,
        input_tokens=usage.input_tokens or UNSET,
        output_tokens=usage.output_tokens or UNSET,
    )


def _plain(parts: list[Part]) -> list[JsonObject]:
    plain: list[JsonObject] = to_builtins(parts)
    return plain


def _reasoning(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, ThinkingPart))


def _tool_call(part: CallPart) -> ToolCallData:
    return ToolCallData(
        id=part.id,
        name=part.name,
        input=part.arguments,
        type="function",
        finished=part.done,
        result=_as_text(part.output) if part.done else UNSET,
        is_error=not part.success if part.done else UNSET,
    )


def _as_text(output: object) -> str:
    return output if isinstance(output, str) else encode(output).decode()


def export(data: SessionData, messages: Iterable[Message]) -> ExportSession:
    """The session with all its messages."""
    return ExportSession(**msgspec.structs.asdict(data), messages=[_exported(message) for message in messages])


def _exported(message: Message) -> ExportedMessage:
    calls = [_tool_call(part) for part in message.parts if isinstance(part, CallPart)]
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


LOG_BYTES = 4 * 1024 * 1024
"""Bytes of events' data in a page of the canonical log at most; one event in any case."""


def event_page(events: list[Event], head: Offset) -> EventPage:
    """A page of the canonical log: these events, as far as they fit."""
    room = LOG_BYTES
    for count, event in enumerate(events):
        room -= len(event.json)
        if room < 0 and count:
            events = events[:count]
            break
    logged = [LoggedEvent(offset=e.offset, type=e.type, run=e.run, at=e.at, data=e.shown) for e in events]
    last = events[-1].offset if events else head
    return EventPage(events=logged, head=head, next=last if last < head else None)


# Requests to facts ----------------------------------------------------------------------------------------------------


class MixSettings(_Wire, omit_defaults=False):
    """What a session keeps for this dialect, in the ``metadata`` of its ``session.created``. Others do not look."""

    prompt_mode: str = "default"
    session_type: str = "main"
    browser_mode: str = "electron-embedded-browser"
    custom_system_prompt: str | UnsetType = UNSET


def settings(begin: SessionCreated) -> MixSettings:
    """What a session keeps for this dialect; the defaults, if it was begun in another one."""
    try:
        return msgspec.convert(begin.metadata or {}, MixSettings)
    except msgspec.ValidationError:
        return MixSettings()


def created(request: CreateSession) -> SessionCreated:
    """What begins a session."""
    kept = MixSettings(
        request.prompt_mode, request.session_type, request.browser_mode, request.custom_system_prompt or UNSET
    )
    return SessionCreated(request.title, request.agent or None, metadata=msgspec.to_builtins(kept))


def stream_message(request: StreamMessage) -> tuple[str, JsonObject]:
    """The text of a streaming message and what else it carries: its content may be JSON text of an object."""
    text = request.content
    if text.lstrip().startswith("{"):
        try:
            raw = text.encode()
            parsed = decode_in_pieces(raw, Any) if len(raw) > LARGE else msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return text, {}
        if isinstance(parsed, dict) and isinstance(parsed.get("text"), str):
            return parsed.pop("text"), parsed
    return text, {}
