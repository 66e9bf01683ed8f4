"""The events of a stream, typed: one class for each event name, with ``event``, ``id``, ``retry`` and ``data``.

``StreamEvent`` is their union, so both of these narrow for a type checker::

    match event:
        case ContentEvent(data=data): print(data.content)
        case CompleteEvent(): ...

    if event.event == "content": print(event.data.content)

Unknown fields are ignored and unknown event names decode to None, so a newer server never breaks a client. Fields
that a reader cannot do without are required; the others have defaults, because servers differ in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from ..http.errors import ResponseInvalid
from ..json import JsonObject, known
from ..sse import SSEMessage

__all__ = [
    "CancelRequestedEvent",
    "CompleteEvent",
    "ConnectedEvent",
    "ContentEvent",
    "ErrorEvent",
    "HeartbeatEvent",
    "NotificationEvent",
    "NotificationResolvedEvent",
    "PermissionEvent",
    "PermissionResolvedEvent",
    "RunStartedEvent",
    "RunWaitingEvent",
    "SessionCreatedEvent",
    "SessionDeletedEvent",
    "SessionRewoundEvent",
    "StreamEvent",
    "ThinkingEvent",
    "ToolExecutionCompleteEvent",
    "ToolExecutionStartEvent",
    "ToolUseParameterDeltaEvent",
    "ToolUseParameterStreamingCompleteEvent",
    "ToolUseStartEvent",
    "UserMessageCreatedEvent",
    "decode_event",
]


# The data ------------------------------------------------------------------------------------------------------------


class Data(msgspec.Struct, frozen=True, kw_only=True, rename="camel", repr_omit_defaults=True):
    """What all event data have.

    Attributes:
        type: the event's name, repeated (in an ``error`` event: its machine code).
        parent_tool_call_id: the tool call whose sub-agent made this event, if one did.
        run_id: the run it belongs to, on the events that say it.
        assistant_message_id: the message being written, ``"<run>~a<step>"``, on the events that say it.
    """

    type: str = ""
    parent_tool_call_id: str | None = None
    run_id: str | None = None
    assistant_message_id: str | None = None


class ConnectedData(Data, frozen=True, kw_only=True):
    """Of the first event of each connection.

    Attributes:
        session_id: the session.
        cursor: ``"exact"``: the stream goes on where it was left. ``"reset"``: it cannot, and starts as if new.
        earliest: after a reset, the first offset of the log.
        latest: after a reset, the last offset of the log.
    """

    session_id: str = ""
    cursor: str | None = None
    earliest: int | None = None
    latest: int | None = None

    @property
    def reset(self) -> bool:
        """Whether the cursor that was offered could not be continued."""
        return self.cursor == "reset"


class HeartbeatData(Data, frozen=True, kw_only=True):
    """Of a sign of life in a silence."""


class UserMessageCreatedData(Data, frozen=True, kw_only=True):
    """Of a user's message that was taken; ``author`` is who wrote it, where the server knows who asks."""

    message_id: str
    content: str
    author: str | None = None


class DeltaData(Data, frozen=True, kw_only=True):
    """Of a piece of text.

    Attributes:
        content: the piece.
        part: the part of the message that it belongs to.
        start: its first character's place in that part, in code points; None from servers that do not say.
        refusal: whether the model says here that it will not answer.
    """

    content: str
    part: int = 0
    start: int | None = None
    refusal: bool = False


class ToolUseStartData(Data, frozen=True, kw_only=True):
    """Of a tool call that the model begins; ``id`` is the call's."""

    id: str
    name: str


class ToolUseParameterDeltaData(Data, frozen=True, kw_only=True):
    """Of a piece of a call's arguments: JSON text, from character ``start`` on."""

    tool_call_id: str
    input: str
    start: int | None = None


class ToolUseParameterStreamingCompleteData(Data, frozen=True, kw_only=True):
    """Of a call's whole arguments, as JSON text."""

    id: str
    name: str
    input: str


class ToolExecutionStartData(Data, frozen=True, kw_only=True):
    """Of a tool that begins to work; ``progress`` is for a person."""

    tool_call_id: str
    tool_name: str = ""
    progress: str = ""


class ToolExecutionCompleteData(Data, frozen=True, kw_only=True):
    """Of a tool that is done; ``output`` is what it gave, or the error's text."""

    tool_call_id: str
    tool_name: str = ""
    progress: str = ""
    success: bool = True
    output: Any = None


class PermissionData(Data, frozen=True, kw_only=True):
    """Of a question whether something may be done; answer with ``client.permissions``.

    ``expires_at`` is in seconds since the epoch: nobody waits for the answer after it.
    """

    id: str
    session_id: str = ""
    tool_name: str = ""
    description: str = ""
    action: str = ""
    path: str | None = None
    params: JsonObject | None = None
    expires_at: float | None = None


class PermissionResolvedData(Data, frozen=True, kw_only=True):
    """Of a permission's answer; ``by`` is ``user``, ``timeout`` or ``run_ended``."""

    id: str
    granted: bool
    by: str | None = None


class NotificationData(Data, frozen=True, kw_only=True):
    """Of a message to the user, perhaps a question; answer with ``client.notifications``.

    Attributes:
        notification_type: ``info``, ``warning``, ``error`` or ``question``.
        response_type: ``acknowledge``, ``text`` or ``choice`` (of ``choices``).
        timeout: seconds after which nobody waits for the answer.
        created_at: seconds since the epoch.
    """

    id: str
    session_id: str = ""
    notification_type: str = "info"
    title: str = ""
    message: str = ""
    response_type: str = "acknowledge"
    timeout: int = 0
    created_at: int = 0
    choices: list[str] | None = None


class NotificationResolvedData(Data, frozen=True, kw_only=True):
    """Of a notification's answer; ``by`` is ``user`` or ``timeout``."""

    id: str
    response_type: str | None = None
    value: Any = None
    by: str | None = None


class CompleteData(Data, frozen=True, kw_only=True):
    """Of the end of a run that went well, or that was cancelled.

    Attributes:
        content: the text of the final assistant message.
        message_id: that message.
        reasoning_duration: milliseconds.
        finish_reason: ``"stop"``, ``"cancelled"``, or what the agent gave.
    """

    done: bool = True
    content: str | None = None
    message_id: str | None = None
    reasoning: str | None = None
    reasoning_duration: int | None = None
    finish_reason: str | None = None
    usage: JsonObject | None = None


class ErrorData(Data, frozen=True, kw_only=True):
    """Of the end of a run that failed.

    Attributes:
        error: the message, for a person.
        type: the machine code, for example ``"interrupted"``.
        retry_after: milliseconds.
    """

    error: str
    retry_after: int | None = None
    attempt: int | None = None
    max_attempts: int | None = None


class SessionCreatedData(Data, frozen=True, kw_only=True):
    """Of a new session; ``created_at`` is in seconds since the epoch."""

    session_id: str
    title: str = ""
    created_at: int = 0


class SessionDeletedData(Data, frozen=True, kw_only=True):
    """Of a session's end: nothing follows."""

    session_id: str = ""


class SessionRewoundData(Data, frozen=True, kw_only=True):
    """Of a rewind: ``to`` is the last message that the history keeps, ``""`` if it keeps none."""

    to: str


class RunWaitingData(Data, frozen=True, kw_only=True):
    """Of a run that waits, ``for_`` a ``"place"`` among those that the server runs at once."""

    for_: str = msgspec.field(default="place", name="for")


class RunStartedData(Data, frozen=True, kw_only=True):
    """Of an agent that begins to answer; ``attempt`` counts from 1."""

    agent: str = ""
    attempt: int = 1


class CancelRequestedData(Data, frozen=True, kw_only=True):
    """Of somebody's wish to cancel the run; the run ends a little later, with ``complete``."""


# The events ----------------------------------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What all events have.

    Attributes:
        id: where a reader that has this event stands; what ``last_event_id`` takes.
        retry: the reconnection time in milliseconds, if the server sent one with this event.
    """

    id: str = ""
    retry: int | None = None


class ConnectedEvent(Envelope, frozen=True, kw_only=True):
    """A connection was made: the first one, or one after a cut."""

    data: ConnectedData
    event: Literal["connected"] = "connected"


class HeartbeatEvent(Envelope, frozen=True, kw_only=True):
    """The connection lives, and there is nothing new."""

    data: HeartbeatData
    event: Literal["heartbeat"] = "heartbeat"


class UserMessageCreatedEvent(Envelope, frozen=True, kw_only=True):
    """A user's message was taken."""

    data: UserMessageCreatedData
    event: Literal["user_message_created"] = "user_message_created"


class RunWaitingEvent(Envelope, frozen=True, kw_only=True):
    """All places for runs are taken; the agent will be asked when there is one."""

    data: RunWaitingData
    event: Literal["run_waiting"] = "run_waiting"


class RunStartedEvent(Envelope, frozen=True, kw_only=True):
    """An agent begins to answer."""

    data: RunStartedData
    event: Literal["run_started"] = "run_started"


class ThinkingEvent(Envelope, frozen=True, kw_only=True):
    """A piece of the model's reasoning."""

    data: DeltaData
    event: Literal["thinking"] = "thinking"


class ContentEvent(Envelope, frozen=True, kw_only=True):
    """A piece of the answer."""

    data: DeltaData
    event: Literal["content"] = "content"


class ToolUseStartEvent(Envelope, frozen=True, kw_only=True):
    """The model begins to call a tool."""

    data: ToolUseStartData
    event: Literal["tool_use_start"] = "tool_use_start"


class ToolUseParameterDeltaEvent(Envelope, frozen=True, kw_only=True):
    """A piece of a tool call's arguments."""

    data: ToolUseParameterDeltaData
    event: Literal["tool_use_parameter_delta"] = "tool_use_parameter_delta"


class ToolUseParameterStreamingCompleteEvent(Envelope, frozen=True, kw_only=True):
    """A tool call's arguments are complete."""

    data: ToolUseParameterStreamingCompleteData
    event: Literal["tool_use_parameter_streaming_complete"] = "tool_use_parameter_streaming_complete"


class ToolExecutionStartEvent(Envelope, frozen=True, kw_only=True):
    """A tool begins to work."""

    data: ToolExecutionStartData
    event: Literal["tool_execution_start"] = "tool_execution_start"


class ToolExecutionCompleteEvent(Envelope, frozen=True, kw_only=True):
    """A tool is done."""

    data: ToolExecutionCompleteData
    event: Literal["tool_execution_complete"] = "tool_execution_complete"


class PermissionEvent(Envelope, frozen=True, kw_only=True):
    """The agent asks whether it may do something."""

    data: PermissionData
    event: Literal["permission"] = "permission"


class PermissionResolvedEvent(Envelope, frozen=True, kw_only=True):
    """A permission was answered."""

    data: PermissionResolvedData
    event: Literal["permission_resolved"] = "permission_resolved"


class NotificationEvent(Envelope, frozen=True, kw_only=True):
    """The agent tells or asks the user something."""

    data: NotificationData
    event: Literal["notification"] = "notification"


class NotificationResolvedEvent(Envelope, frozen=True, kw_only=True):
    """A notification was answered."""

    data: NotificationResolvedData
    event: Literal["notification_resolved"] = "notification_resolved"


class CancelRequestedEvent(Envelope, frozen=True, kw_only=True):
    """Somebody asked to cancel the run."""

    data: CancelRequestedData
    event: Literal["cancel_requested"] = "cancel_requested"


class CompleteEvent(Envelope, frozen=True, kw_only=True):
    """The run is over: done, or cancelled."""

    data: CompleteData
    event: Literal["complete"] = "complete"


class ErrorEvent(Envelope, frozen=True, kw_only=True):
    """The run is over: it failed."""

    data: ErrorData
    event: Literal["error"] = "error"


class SessionCreatedEvent(Envelope, frozen=True, kw_only=True):
    """The session began."""

    data: SessionCreatedData
    event: Literal["session_created"] = "session_created"


class SessionRewoundEvent(Envelope, frozen=True, kw_only=True):
    """The end of the history was taken back."""

    data: SessionRewoundData
    event: Literal["session_rewound"] = "session_rewound"


class SessionDeletedEvent(Envelope, frozen=True, kw_only=True):
    """The session is gone; a stream ends after it."""

    data: SessionDeletedData
    event: Literal["session_deleted"] = "session_deleted"


StreamEvent = (
    ConnectedEvent
    | HeartbeatEvent
    | UserMessageCreatedEvent
    | RunWaitingEvent
    | RunStartedEvent
    | ThinkingEvent
    | ContentEvent
    | ToolUseStartEvent
    | ToolUseParameterDeltaEvent
    | ToolUseParameterStreamingCompleteEvent
    | ToolExecutionStartEvent
    | ToolExecutionCompleteEvent
    | PermissionEvent
    | PermissionResolvedEvent
    | NotificationEvent
    | NotificationResolvedEvent
    | CancelRequestedEvent
    | CompleteEvent
    | ErrorEvent
    | SessionCreatedEvent
    | SessionRewoundEvent
    | SessionDeletedEvent
)
"""Any event of a stream."""


@cache
def _table() -> dict[str, tuple[Callable[..., StreamEvent], msgspec.json.Decoder[Data]]]:
    """Each event name with its class and the decoder of its data."""
    rows = {}
    for kind in get_args(StreamEvent):
        hints = get_type_hints(kind)
        # Not strict: numbers that a server wrote as text are taken too.
        rows[get_args(hints["event"])[0]] = (kind, msgspec.json.Decoder(known(hints["data"]), strict=False))
    return rows


def decode_event(message: SSEMessage) -> StreamEvent | None:
    """The typed event of a message; None when its name is not known.

    Raises:
        ResponseInvalid: the data is not JSON, or lacks what the event cannot do without.
    """
    row = _table().get(message.event)
    if row is None:
        return None
    kind, decoder = row
    try:
        data = decoder.decode(message.data)
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise ResponseInvalid(
            f"The data of a {message.event!r} event is not as documented: {exc}.", event=message.event, id=message.id
        ) from exc
    return kind(id=message.id, retry=message.retry, data=data)
