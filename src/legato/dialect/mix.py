"""The Mix dialect on the wire: events to SSE messages, and a stream request to a place in the log.

One stored event gives at most one message, and its id is the event's offset, so a resume starts at the cursor. The
clients of this dialect stop for good at an event name they do not know, and the names changed from version to version;
a ``Profile`` is what one range of versions understands. An event without a name in a profile is left out for its
readers; the cursor passes over it.

The bodies of the ordinary requests are in ``mix_api``. ``docs/dialects/mix.md`` says what a client sees.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from .. import sse
from ..errors import InvalidInput
from ..event import (
    PIECES,
    AnyFact,
    CallCompleted,
    CallDelta,
    CallStarted,
    CancelRequested,
    Event,
    MessageCreated,
    NotificationCreated,
    NotificationResolved,
    Offset,
    PermissionRequested,
    PermissionResolved,
    RefusalDelta,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunWaiting,
    SessionCreated,
    SessionDeleted,
    SessionRewound,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolBegun,
    ToolCompleted,
)
from ..history import attached
from ..json import JsonObject, unbroken
from ..log import SessionInfo
from ..part import ThinkingPart, encode, encode_flat
from ..transcript import message_id
from .common import offset_cursor

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
_OWN = (
    "run_waiting",
    "run_started",
    "permission_resolved",
    "notification_resolved",
    "cancel_requested",
    "session_rewound",
)

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
CLIENT_PATTERN = r"legato|(?:python|typescript)-[0-9]{1,4}(?:\.[0-9]{1,4}){2}"
"""A client's name, for the document."""
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


class StreamRequest(msgspec.Struct, frozen=True):
    """What a request for a stream asks for, its form checked.

    Attributes:
        session: its id.
        cursor: the offset after which to go on, or None for a fresh reader.
        start: where a fresh reader begins: the running ``turn`` (else the tail), the ``start``, or the ``tail``.
    """

    session: str
    cursor: Offset | None
    start: Literal["turn", "start", "tail"]


def open_stream(query: Mapping[str, str], last_event_id: str | None) -> StreamRequest:
    """Check a stream request's form.

    Args:
        query: ``sessionId``, and if given ``lastEventId``, into which some libraries put what they cannot put into the
            header, and ``from`` (``start``, ``tail`` or an offset).
        last_event_id: the header; it wins over both, since an EventSource repeats its URL when it comes back.

    Raises:
        InvalidInput: no ``sessionId``.
        CursorInvalid: the cursor is not of the form that this dialect writes.
    """
    session = query.get("sessionId", "")
    if not session:
        raise InvalidInput("GET /stream needs a sessionId, for example /stream?sessionId=s_123.")
    where = query.get("from", "")
    if last_event_id:
        return StreamRequest(session, offset_cursor(last_event_id), "turn")
    if query.get("lastEventId"):
        return StreamRequest(session, offset_cursor(query["lastEventId"], "lastEventId"), "turn")
    if where in ("start", "tail"):
        return StreamRequest(session, None, where)  # type: ignore[arg-type]  # mypy does not narrow str by `in`
    if where:
        return StreamRequest(session, offset_cursor(where, "from"), "turn")
    return StreamRequest(session, None, "turn")


def position(opening: StreamRequest, info: SessionInfo, turn: Offset | None = None) -> tuple[Offset, bool]:
    """The offset after which the stream begins, and whether that is exactly what was asked for.

    Args:
        opening: what was asked for.
        info: of the session.
        turn: after which the turn begins that is running; None if there is none.

    A cursor beyond the end cannot be continued (the log is not the one it came from): such a reader gets what a fresh
    one would, and is told so.
    """
    if opening.cursor is not None and opening.cursor <= info.head:
        return opening.cursor, True
    exact = opening.cursor is None
    if opening.start == "start":
        return 0, exact
    if opening.start == "turn" and turn is not None:
        return turn, exact
    return info.head, exact


def asked(event: Event, session: str, profile: Profile, cursor: Offset) -> bytes:
    """The message of a turn that a stream begins in, where it stands before the place at which that begins: it waited
    while the answer before was given. Its id is the reader's own cursor, as it moves nobody."""
    said = messages(event, session, profile)
    return b"".join(sse.encode(msgspec.structs.replace(each, id=str(cursor))) for each in said)


# Events to messages ---------------------------------------------------------------------------------------------------

Named = tuple[str, JsonObject]


def frame(event: Event, session: str, profile: Profile) -> bytes:
    """The frame of ``event`` in ``profile``; empty when it has none there."""
    made = event.wire.get(profile.name)
    if made is None:
        fact: Any = event.fact
        kind: Any = type(fact)
        if kind in PIECES:
            # As ``messages`` has it but at a fifth of the price, since most frames are such. Each profile has its name.
            named = session if profile.session_ids else None
            before, between, after = _around(kind, event.run, fact.step, fact.part, named)
            text = encode_flat(fact.text)
            if not text.isascii():
                text = unbroken(text)
            # With the end in the pattern itself, Python finds it too long to be made in one go, which doubles the time.
            made = b"%b%b%b%d%b%d%b" % (before, text, between, fact.start, after, event.offset, b"\n\n")
        else:
            made = b"".join(map(sse.encode, messages(event, session, profile)))
        event.wire[profile.name] = made
    return made


@functools.lru_cache(4096)
def _around(
    kind: type[TextPiece], run: str | None, step: int, part: int, session: str | None
) -> tuple[bytes, bytes, bytes]:
    """What stands before the text of a part's pieces, between it and its place, and between that and the id: cut out
    of the frame of an empty piece."""
    empty = Event(kind(part, step, 0, ""), 0, 0.0, run)
    [message] = messages(empty, session or "", msgspec.structs.replace(LEGATO, session_ids=session is not None))
    before, text, rest = sse.encode(message).partition(b'"content":""')
    between, start, after = rest.rpartition(b'"start":0')
    return before + text[:-2], between + start[:-1], after.removesuffix(b"0\n\n")


def messages(event: Event, session: str, profile: Profile) -> list[sse.SSEMessage]:
    """The fold: what ``event`` is on this wire, nothing or one message."""
    encoder = _ENCODERS.get(type(event.fact))
    if encoder is None:  # silence to clients of this dialect, or a type from the future
        return []
    for name, data in encoder(event.fact, event, session):
        if name in profile.events:
            if profile.session_ids:
                data = {"sessionId": session, **data}
            text = unbroken(encode({"type": name, **data})).decode()
            return [sse.SSEMessage(data=text, event=name, id=str(event.offset))]
    return []


def connected(session: str, cursor: Offset, *, exact: bool, info: SessionInfo, retry: int) -> bytes:
    """The first frame of a stream, with the reader's own cursor. ``retry`` in milliseconds."""
    data: JsonObject = {"sessionId": session, "cursor": "exact" if exact else "reset"}
    if not exact:
        data |= {"earliest": 1, "latest": info.head}
    text = encode(data).decode()
    return sse.encode(sse.SSEMessage(data=text, event="connected", id=str(cursor), retry=retry))


def heartbeat(cursor: Offset) -> bytes:
    """The frame for a silence. Its id is the reader's own cursor: it moves nobody forward."""
    return sse.encode(sse.SSEMessage(data='{"type":"ping"}', event="heartbeat", id=str(cursor)))


def _assistant(fact: TextPiece | CallStarted | CallDelta | CallCompleted, run: str | None) -> JsonObject:
    return {"assistantMessageId": message_id(run or "", fact.step), "part": fact.part}


def _present(**fields: object) -> JsonObject:
    """``fields`` without those that are None: strict clients refuse null."""
    return {name: value for name, value in fields.items() if value is not None}


def _thinking(fact: ThinkingDelta, event: Event, session: str) -> list[Named]:
    return [("thinking", {"content": fact.text, **_assistant(fact, event.run), "start": fact.start})]


def _text(fact: TextDelta, event: Event, session: str) -> list[Named]:
    return [("content", {"content": fact.text, **_assistant(fact, event.run), "start": fact.start})]


def _refusal(fact: RefusalDelta, event: Event, session: str) -> list[Named]:
    # Clients of this dialect know no refusals: to them it is the answer.
    said = {"content": fact.text, **_assistant(fact, event.run), "start": fact.start, "refusal": True}
    return [("content", said)]


def _session_created(fact: SessionCreated, event: Event, session: str) -> list[Named]:
    return [("session_created", {"sessionId": session, "title": fact.title or "", "createdAt": int(event.at)})]


def _session_deleted(fact: SessionDeleted, event: Event, session: str) -> list[Named]:
    return [("session_deleted", {"sessionId": session})]


def _session_rewound(fact: SessionRewound, event: Event, session: str) -> list[Named]:
    return [("session_rewound", {"to": fact.to, **_present(runId=event.run)})]


def _message_created(fact: MessageCreated, event: Event, session: str) -> list[Named]:
    if fact.role != "user":
        return []
    about = _present(messageId=fact.id, content=fact.text, runId=event.run, files=attached(fact) or None)
    if fact.by:
        about["author"] = fact.by
    return [("user_message_created", about)]


def _run_waiting(fact: RunWaiting, event: Event, session: str) -> list[Named]:
    return [("run_waiting", {"for": "place", **_present(runId=event.run)})]


def _run_started(fact: RunStarted, event: Event, session: str) -> list[Named]:
    return [("run_started", {"agent": fact.agent, "attempt": fact.attempt, **_present(runId=event.run)})]


def _call_started(fact: CallStarted, event: Event, session: str) -> list[Named]:
    about = {"id": fact.id, "name": fact.name, **_assistant(fact, event.run)}
    return [("tool_use_start", about), ("tool", {**about, "input": "", "status": "running"})]


def _call_delta(fact: CallDelta, event: Event, session: str) -> list[Named]:
    about = {"toolCallId": fact.id, "input": fact.arguments, **_assistant(fact, event.run), "start": fact.start}
    return [("tool_use_parameter_delta", about), ("tool_parameter_delta", about)]


def _call_completed(fact: CallCompleted, event: Event, session: str) -> list[Named]:
    about = {"id": fact.id, "name": fact.name, "input": fact.arguments, **_assistant(fact, event.run)}
    return [("tool_use_parameter_streaming_complete", about), ("tool", {**about, "status": "completed"})]


def _tool_begun(fact: ToolBegun, event: Event, session: str) -> list[Named]:
    about = {"toolCallId": fact.id, "toolName": fact.name, "progress": fact.progress, "runId": event.run}
    return [("tool_execution_start", about)]


def _tool_completed(fact: ToolCompleted, event: Event, session: str) -> list[Named]:
    about = {"toolCallId": fact.id, "toolName": fact.name, "progress": fact.progress}
    return [("tool_execution_complete", {**about, "success": fact.success, **_present(output=fact.output)})]


def _permission(fact: PermissionRequested, event: Event, session: str) -> list[Named]:
    about = {"id": fact.id, "sessionId": session, "toolName": fact.tool, "description": fact.description}
    rest = _present(path=fact.path, params=fact.params, expiresAt=fact.expires_at)
    return [("permission", {**about, "action": fact.action, **rest, "runId": event.run})]


def _permission_resolved(fact: PermissionResolved, event: Event, session: str) -> list[Named]:
    about = {"id": fact.id, "granted": fact.granted, "by": fact.by}
    return [("permission_resolved", {**about, **_present(runId=event.run)})]


def _notification(fact: NotificationCreated, event: Event, session: str) -> list[Named]:
    about = {
        "id": fact.id,
        "sessionId": session,
        "notificationType": fact.kind,
        "title": fact.title,
        "message": fact.message,
        "responseType": fact.response,
        "timeout": int(fact.timeout),
        "createdAt": int(fact.created_at),
        "runId": event.run,
    }
    return [("notification", {**about, **_present(choices=fact.choices)})]


def _notification_resolved(fact: NotificationResolved, event: Event, session: str) -> list[Named]:
    given = _present(runId=fact.run, responseType=fact.response, value=fact.value)
    return [("notification_resolved", {"id": fact.id, "by": fact.by, **given})]


def _cancel_requested(fact: CancelRequested, event: Event, session: str) -> list[Named]:
    return [] if event.run is None else [("cancel_requested", {"runId": event.run})]


def _complete(fact: RunCompleted | RunCancelled, event: Event, session: str) -> list[Named]:
    said = fact.said
    reasoning = "".join(part.text for part in said.parts if isinstance(part, ThinkingPart))
    about = {
        "done": True,
        "content": said.text,
        "messageId": said.id,
        "runId": event.run,
        "finishReason": fact.finish_reason if isinstance(fact, RunCompleted) else "cancelled",
    }
    return [("complete", {**about, **_present(reasoning=reasoning or None, usage=fact.usage)})]


def _error(fact: RunFailed, event: Event, session: str) -> list[Named]:
    # Here ``type`` is the machine's word for what went wrong, not the event's name: so this dialect has it.
    return [("error", {"type": fact.code, "error": fact.message, "runId": event.run})]


_ENCODERS: dict[type[AnyFact], Callable[[Any, Event, str], list[Named]]] = {
    SessionCreated: _session_created,
    SessionDeleted: _session_deleted,
    SessionRewound: _session_rewound,
    MessageCreated: _message_created,
    RunWaiting: _run_waiting,
    RunStarted: _run_started,
    ThinkingDelta: _thinking,
    TextDelta: _text,
    RefusalDelta: _refusal,
    CallStarted: _call_started,
    CallDelta: _call_delta,
    CallCompleted: _call_completed,
    ToolBegun: _tool_begun,
    ToolCompleted: _tool_completed,
    PermissionRequested: _permission,
    PermissionResolved: _permission_resolved,
    NotificationCreated: _notification,
    NotificationResolved: _notification_resolved,
    CancelRequested: _cancel_requested,
    RunCompleted: _complete,
    RunFailed: _error,
    RunCancelled: _complete,
}
