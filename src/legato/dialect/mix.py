"""The Mix dialect on the wire: events to SSE messages, and a stream request to a place in the log.

One stored event gives at most one message, and its id is the event's offset, so a resume starts at the cursor. The
clients of this dialect stop for good at an event name they do not know, and the names changed from version to version;
a ``Profile`` is what one range of versions understands. An event without a name in a profile is left out for its
readers; the cursor passes over it.

The bodies of the ordinary requests are in ``mix_api``. ``docs/dialects/mix.md`` says what a client sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from .. import sse
from ..errors import CursorInvalid, InvalidInput
from ..event import Event, Offset
from ..log import SessionInfo
from ..transcript import message_id

Version = tuple[int, int, int]


class Profile(msgspec.Struct, frozen=True):
    """What a range of client versions understands.

    Attributes:
        name: the same name, the same bytes; readers of one profile share them.
        events: the names that may be sent.
        answer_at_once: whether a sent message is answered with 202 at once, or with 200 when the turn is over.
        session_ids: whether every event must name its session.
    """

    name: str
    events: frozenset[str]
    answer_at_once: bool = True
    session_ids: bool = False


_ALWAYS = ("connected", "heartbeat", "thinking", "content", "tool_execution_start", "tool_execution_complete",
           "permission", "complete", "error")  # fmt: skip
_TOOL_USE = ("tool_use_start", "tool_use_parameter_delta", "tool_use_parameter_streaming_complete")
_OWN = ("run_started", "permission_resolved", "notification_resolved", "cancel_requested", "session_rewound")

_NEVER: Version = (999, 0, 0)
_FIRST: Version = (0, 0, 0)

# For each name: from which version on, and before which version, a client knows it. (contracts: measured on the
# published packages.)
_NAMES: dict[str, dict[str, tuple[Version, Version]]] = {
    "python": {
        "session_created": ((0, 5, 6), _NEVER),
        "session_deleted": ((0, 5, 6), _NEVER),
        "tool": (_FIRST, (0, 7, 4)),
        "tool_parameter_delta": ((0, 6, 6), (0, 7, 4)),
        "user_message_created": ((0, 7, 0), _NEVER),
        **dict.fromkeys(_TOOL_USE, ((0, 8, 0), _NEVER)),
        "notification": ((0, 8, 0), _NEVER),
    },
    "typescript": {
        "session_created": ((0, 6, 9), _NEVER),
        "session_deleted": ((0, 6, 9), _NEVER),
        "tool": (_FIRST, (0, 9, 2)),
        "tool_parameter_delta": ((0, 7, 5), (0, 9, 2)),
        "user_message_created": ((0, 8, 7), _NEVER),
        **dict.fromkeys(_TOOL_USE, ((0, 10, 0), _NEVER)),
        "notification": ((0, 11, 2), _NEVER),
    },
}
_AT_ONCE: dict[str, Version] = {"python": (0, 6, 5), "typescript": (0, 7, 4)}
_SESSION_IDS = {("typescript", (0, 7, 7))}  # this one release demands sessionId where no other has it

LEGATO = Profile(
    name="legato",
    events=frozenset((*_ALWAYS, *_TOOL_USE, *_OWN, "session_created", "session_deleted", "user_message_created",
                      "notification")),
)  # fmt: skip
"""Everything: what Legato's own client and page read."""

_profiles: dict[str, Profile] = {"legato": LEGATO}

_CLIENT = re.compile(r"(python|typescript)-(\d{1,4})\.(\d{1,4})\.(\d{1,4})", re.ASCII)
_USER_AGENT = re.compile(r"speakeasy-sdk/(python|typescript) (\d{1,4}\.\d{1,4}\.\d{1,4}) .*mix-", re.ASCII)


def profile(client: str) -> Profile:
    """The profile of a client such as ``"legato"``, ``"python-0.8.1"`` or ``"typescript-0.11.4"``.

    Raises:
        InvalidInput: not of that form.
    """
    if client in _profiles:
        return _profiles[client]
    match = _CLIENT.fullmatch(client)
    if match is None:
        raise InvalidInput(
            f"client is 'legato', 'python-X.Y.Z' or 'typescript-X.Y.Z', got {client[:60]!r}.", client=client[:60]
        )
    language, *numbers = match.groups()
    version: Version = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
    known = {name for name, (since, before) in _NAMES[language].items() if since <= version < before}
    events = frozenset((*_ALWAYS, *known))
    made = Profile(client, events, version >= _AT_ONCE[language], (language, version) in _SESSION_IDS)
    for other in _profiles.values():  # versions that understand the same share one profile, and so their bytes
        if msgspec.structs.replace(made, name=other.name) == other:
            return other
    _profiles[client] = made  # there are no more of them than rows in the tables above, whatever clients ask for
    return made


def negotiate(user_agent: str, override: str | None, default: Profile) -> Profile:
    """Which profile a request is served in: the override, else what its User-Agent tells, else the default."""
    if override:
        return profile(override)
    if user_agent.startswith("legato"):
        return LEGATO
    match = _USER_AGENT.match(user_agent)
    return profile(f"{match[1]}-{match[2]}") if match else default


# A request to a place in the log --------------------------------------------------------------------------------------


class Opening(msgspec.Struct, frozen=True):
    """What a request for a stream asks for, its form checked.

    Attributes:
        session: its id.
        cursor: the offset after which to go on, or None for a fresh reader.
        start: where a fresh reader begins: the running ``turn`` (else the tail), the ``start``, or the ``tail``.
    """

    session: str
    cursor: Offset | None
    start: Literal["turn", "start", "tail"]


def open_stream(query: Mapping[str, str], last_event_id: str | None) -> Opening:
    """Check a stream request's form.

    Args:
        query: ``sessionId``, and ``from`` (``start``, ``tail`` or an offset) if given.
        last_event_id: the header; it wins over ``from``, since an EventSource repeats its URL when it comes back.

    Raises:
        InvalidInput: no ``sessionId``.
        CursorInvalid: the cursor is not of the form that this dialect writes.
    """
    session = query.get("sessionId", "")
    if not session:
        raise InvalidInput("GET /stream needs a sessionId, for example /stream?sessionId=s_123.")
    where = query.get("from", "")
    if last_event_id:
        return Opening(session, _cursor(last_event_id, "Last-Event-ID"), "turn")
    if where in ("start", "tail"):
        return Opening(session, None, where)  # type: ignore[arg-type]  # mypy does not narrow str by `in`
    if where:
        return Opening(session, _cursor(where, "from"), "turn")
    return Opening(session, None, "turn")


def _cursor(text: str, name: str) -> Offset:
    if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) is None:
        raise CursorInvalid(f"{name} is a number such as '42', as it stood in the stream's ids; got {text[:60]!r}.")
    return int(text)


def position(opening: Opening, info: SessionInfo) -> tuple[Offset, bool]:
    """The offset after which the stream begins, and whether that is exactly what was asked for.

    A cursor beyond the end cannot be continued (the log is not the one it came from): such a reader gets what a fresh
    one would, and is told so.
    """
    if opening.cursor is not None and opening.cursor <= info.head:
        return opening.cursor, True
    exact = opening.cursor is None
    if opening.start == "start":
        return 0, exact
    if opening.start == "turn" and info.open_runs:
        return info.open_runs[0].offset - 1, exact
    return info.head, exact


# Events to messages ---------------------------------------------------------------------------------------------------

Named = tuple[str, dict[str, Any]]


def encode(event: Event, session: str, profile: Profile) -> bytes:
    """The frame of ``event`` in ``profile``; empty when it has none there."""
    frame = event.wire.get(profile.name)
    if frame is None:
        frame = b""
        for message in messages(event, session, profile):
            frame = sse.encode(message)
        event.wire[profile.name] = frame
    return frame


def messages(event: Event, session: str, profile: Profile) -> list[sse.Message]:
    """The fold: what ``event`` is on this wire, nothing or one message."""
    for name, data in _ENCODERS[event.type](event, session):
        if name in profile.events:
            if profile.session_ids:
                data = {"sessionId": session, **data}
            text = msgspec.json.encode({"type": name, **data}).decode()
            return [sse.Message(data=text, event=name, id=str(event.offset))]
    return []


def connected(session: str, cursor: Offset, *, exact: bool, info: SessionInfo, retry: int) -> bytes:
    """The first frame of a stream, with the reader's own cursor. ``retry`` in milliseconds."""
    data: dict[str, Any] = {"sessionId": session, "cursor": "exact" if exact else "reset"}
    if not exact:
        data |= {"earliest": 1, "latest": info.head}
    text = msgspec.json.encode(data).decode()
    return sse.encode(sse.Message(data=text, event="connected", id=str(cursor), retry=retry))


def heartbeat(cursor: Offset) -> bytes:
    """The frame for a silence. Its id is the reader's own cursor: it moves nobody forward."""
    return sse.encode(sse.Message(data='{"type":"ping"}', event="heartbeat", id=str(cursor)))


def _assistant(event: Event) -> dict[str, Any]:
    data = event.data
    return {"assistantMessageId": message_id(event.run or "", data["step"]), "part": data["part"]}


def _present(**fields: Any) -> dict[str, Any]:
    """``fields`` without those that are None: strict clients refuse null."""
    return {name: value for name, value in fields.items() if value is not None}


def _delta(name: str) -> Callable[[Event, str], list[Named]]:
    def encode_delta(event: Event, session: str) -> list[Named]:
        return [(name, {"content": event.data["text"], **_assistant(event), "start": event.data["start"]})]

    return encode_delta


def _refusal(event: Event, session: str) -> list[Named]:
    # Clients of this dialect know no refusals: to them it is the answer.
    return [(name, {**data, "refusal": True}) for name, data in _delta("content")(event, session)]


def _session_created(event: Event, session: str) -> list[Named]:
    title = event.data.get("title", "")
    return [("session_created", {"sessionId": session, "title": title, "createdAt": int(event.at)})]


def _message_created(event: Event, session: str) -> list[Named]:
    data = event.data
    if data["role"] != "user":
        return []
    return [("user_message_created", _present(messageId=data["id"], content=data["text"], runId=event.run))]


def _call_started(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"id": data["id"], "name": data["name"], **_assistant(event)}
    return [("tool_use_start", about), ("tool", {**about, "input": "", "status": "running"})]


def _call_delta(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"toolCallId": data["id"], "input": data["arguments"], **_assistant(event), "start": data["start"]}
    return [("tool_use_parameter_delta", about), ("tool_parameter_delta", about)]


def _call_completed(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"id": data["id"], "name": data["name"], "input": data["arguments"], **_assistant(event)}
    return [("tool_use_parameter_streaming_complete", about), ("tool", {**about, "status": "completed"})]


def _tool_started(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"toolCallId": data["id"], "toolName": data["name"], "progress": data["progress"], "runId": event.run}
    return [("tool_execution_start", about)]


def _tool_completed(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"toolCallId": data["id"], "toolName": data["name"], "progress": data["progress"]}
    return [("tool_execution_complete", {**about, "success": data["success"], **_present(output=data["output"])})]


def _permission(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {"id": data["id"], "sessionId": session, "toolName": data["tool"], "description": data["description"]}
    rest = _present(path=data.get("path"), params=data.get("params"), expiresAt=data.get("expires_at"))
    return [("permission", {**about, "action": data["action"], **rest, "runId": event.run})]


def _notification(event: Event, session: str) -> list[Named]:
    data = event.data
    about = {
        "id": data["id"],
        "sessionId": session,
        "notificationType": data["kind"],
        "title": data["title"],
        "message": data["message"],
        "responseType": data["response"],
        "timeout": int(data["timeout"]),
        "createdAt": int(data["created_at"]),
        "runId": event.run,
    }
    return [("notification", {**about, **_present(choices=data.get("choices"))})]


def _notification_resolved(event: Event, session: str) -> list[Named]:
    data = event.data
    given = _present(runId=data.get("run"), responseType=data.get("response"), value=data.get("value"))
    return [("notification_resolved", {"id": data["id"], "by": data["by"], **given})]


def _complete(event: Event, session: str) -> list[Named]:
    data = event.data
    cancelled = event.type == "run.cancelled"
    said = data["partial" if cancelled else "message"]
    reasoning = "".join(part["text"] for part in said["parts"] if part["type"] == "thinking")
    about = {
        "done": True,
        "content": said["text"],
        "messageId": said["id"],
        "runId": event.run,
        "finishReason": "cancelled" if cancelled else data["finish_reason"],
    }
    return [("complete", {**about, **_present(reasoning=reasoning or None, usage=data.get("usage"))})]


def _error(event: Event, session: str) -> list[Named]:
    # Here ``type`` is the machine's word for what went wrong, not the event's name: so this dialect has it.
    data = event.data
    return [("error", {"type": data["code"], "error": data["message"], "runId": event.run})]


def _own(name: str, *fields: str) -> Callable[[Event, str], list[Named]]:
    def encode_own(event: Event, session: str) -> list[Named]:
        about = {field: event.data[field] for field in fields if field in event.data}
        return [(name, about | _present(runId=event.run))]

    return encode_own


_ENCODERS: dict[str, Callable[[Event, str], list[Named]]] = {
    "session.created": _session_created,
    "session.deleted": lambda event, session: [("session_deleted", {"sessionId": session})],
    "session.rewound": _own("session_rewound", "to"),
    "session.run_withdrawn": lambda event, session: [],  # to this dialect, which knows no responses, nothing changes
    "message.created": _message_created,
    "run.started": _own("run_started", "agent", "attempt"),
    "thinking.delta": _delta("thinking"),
    "text.delta": _delta("content"),
    "refusal.delta": _refusal,
    "tool_call.started": _call_started,
    "tool_call.delta": _call_delta,
    "tool_call.completed": _call_completed,
    "tool.started": _tool_started,
    "tool.completed": _tool_completed,
    "permission.requested": _permission,
    "permission.resolved": _own("permission_resolved", "id", "granted", "by"),
    "notification.created": _notification,
    "notification.resolved": _notification_resolved,
    "agent.checkpoint": lambda event, session: [],
    "run.cancel_requested": _own("cancel_requested"),
    "run.completed": _complete,
    "run.failed": _error,
    "run.cancelled": _complete,
}
