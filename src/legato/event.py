"""Events: the facts a session's log is made of.

A *fact* is what an event says: one struct for each type, in the table ``EVENTS``, and ``OtherFact`` for a type that
this version does not know, which passes through every store and reader as it came. The type is not part of the JSON: it
stands beside it in the log. The one rule: a fact never changes, and whatever a reader needs of an answer stands in its
facts.

A *delta* names its part and its character offset (Unicode code points) in it, so that applying it twice does no harm.
``MessageCreated`` and the terminal facts carry whole messages, so history is a read of the log without its deltas.

This module knows the vocabulary and nothing of stores, wires or clocks.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .check import MOST_AMOUNT, MOST_COUNT
from .errors import InvalidInput
from .json import JsonObject
from .logs import logger
from .part import Opaque, Part, Usage, convert, decoder, encode, encode_flat

Offset = int
"""An event's number in its session: dense, from 1, given by the store; 0 is before the first."""


class Said(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A whole message of the assistant, as far as it came.

    Attributes:
        id: of the message.
        text: of the final step; the words of a refusal included, so that who knows no refusals sees one as the answer.
        parts: everything, in order.
        opaque: what providers want back with it.
    """

    id: str
    text: str
    parts: list[Part]
    opaque: list[Opaque] = []


class BlobRef(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where the rest of a text is that stands in a message: bytes that were sent in it, see ``blobs``.

    Attributes:
        at: the way to that text, from the fact: ``["metadata", "input", 0, "content", 1, "image_url"]``.
        hash: SHA-256 of the bytes, in hexadecimal.
        size: how many there are.
        type: what the sender called them, such as ``image/png``; "" if nothing.
        plain: they are the text's own, as UTF-8; else it was base64.
        place: the offset in the session's log of blobs at which they begin.
        outside: they are not there, but in the folder or bucket.
    """

    at: list[str | int]
    hash: str
    size: int
    type: str = ""
    plain: bool = False
    place: Offset = 0
    outside: bool = False

    @property
    def characters(self) -> int:
        """Of the text that is not in the log."""
        return self.size if self.plain else -(-self.size // 3) * 4


class Fact(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an event says. Fields that are not given are not in its JSON.

    Attributes:
        type: the name under which it stands in a log, a key of ``EVENTS``.
        delta: whether what it says stands again, whole, in a later event of the same run.
        terminal: whether it ends its run; each run has exactly one such.
        open: whether it holds lists or JSON of others, which are to be copied before they are kept.
    """

    type: ClassVar[str]
    delta: ClassVar[bool] = False
    terminal: ClassVar[bool] = False
    open: ClassVar[bool] = False


# Of a session ---------------------------------------------------------------------------------------------------------


class SessionCreated(Fact, frozen=True):
    """The first event of a session.

    Attributes:
        owner: the subject of the caller who created it; nobody in particular, if there is none.
        metadata: of a dialect, which alone knows it.
        forked_from: the session that it began as a copy of.
    """

    type = "session.created"
    open = True
    title: str | None = None
    agent: str | None = None
    owner: str | None = None
    metadata: JsonObject | None = None
    forked_from: str | None = None


class SessionDeleted(Fact, frozen=True):
    """The last event of a session, and from then on its only one."""

    type = "session.deleted"


class SessionRewound(Fact, frozen=True):
    """The history ends earlier now.

    Attributes:
        to: the id of the last message that it keeps, or "" for none.
        until: what has a greater offset than this stays, too; without it, nothing after ``to`` does.
    """

    type = "session.rewound"
    to: str
    until: Offset | None = None


class SessionUpdated(Fact, frozen=True):
    """The session's metadata has changed.

    Attributes:
        metadata: of a dialect, which alone knows it; by name, all that is different from ``session.created``.
    """

    type = "session.updated"
    open = True
    metadata: JsonObject


class RunWithdrawn(Fact, frozen=True):
    """A run is no longer to be had by its id (a response that was deleted); the history keeps it."""

    type = "session.run_withdrawn"
    run: str


# Of a run -------------------------------------------------------------------------------------------------------------


class MessageCreated(Fact, frozen=True):
    """A message of a user, which its run answers; or, without a run, one that was said before.

    Attributes:
        role: ``user``; ``assistant`` of what was said before.
        caller: the subject of who sent it, or had it answered anew.
        author: the subject of who wrote it, where that is another; "" if nobody in particular did.
        key: the idempotency key that it came with.
        retries: the run whose answer is to be given anew, None if there was none; the message stands in the log once
            before. Unset: it is new.
        opaque: of an assistant: what providers want back with it.
        trace: the span in which it was sent, as a W3C ``traceparent``, where somebody traces.
        blobs: what of ``parts`` and ``metadata`` stands beside the log. Only ``Sessions`` writes it.
    """

    type = "message.created"
    open = True
    id: str
    role: str
    text: str
    parts: list[Part] | None = None
    agent: str | None = None
    metadata: JsonObject | None = None
    caller: str | None = None
    key: str | None = None
    retries: str | UnsetType | None = UNSET
    opaque: list[Opaque] | None = None
    trace: str | None = None
    blobs: list[BlobRef] | None = None
    author: str | None = None

    @property
    def by(self) -> str:
        """The subject of who wrote it, "" for nobody in particular."""
        return (self.caller or "") if self.author is None else self.author


class MessageRevised(Fact, frozen=True):
    """A message of the history says something else now. Readers of the stream have had what it said before.

    Attributes:
        id: of the message.
        gone: it is no longer part of the history; the rest says nothing then.
        text, parts, metadata: all that it says now, as ``MessageCreated`` has them.
        deleted: which of its items have been taken out, by all revisions so far, in the words of a dialect.
        blobs: see ``MessageCreated``.
    """

    type = "message.revised"
    open = True
    id: str
    gone: bool = False
    text: str = ""
    parts: list[Part] | None = None
    metadata: JsonObject | None = None
    deleted: list[str] | None = None
    blobs: list[BlobRef] | None = None


class RunWaiting(Fact, frozen=True):
    """All places for runs are taken, so the run waits for one."""

    type = "run.waiting"


class RunStarted(Fact, frozen=True):
    """An agent is asked, for the ``attempt``-th time (from 1). ``trace`` is the span of that, where somebody traces."""

    type = "run.started"
    agent: str
    attempt: int
    trace: str | None = None


class ThinkingDelta(Fact, frozen=True):
    """A piece of the model's reasoning."""

    type = "thinking.delta"
    delta = True
    part: int
    step: int
    start: int
    text: str


class TextDelta(Fact, frozen=True):
    """A piece of the answer."""

    type = "text.delta"
    delta = True
    part: int
    step: int
    start: int
    text: str


class RefusalDelta(Fact, frozen=True):
    """A piece of the explanation why the model does not answer."""

    type = "refusal.delta"
    delta = True
    part: int
    step: int
    start: int
    text: str


class CallStarted(Fact, frozen=True):
    """The model begins to call a tool.

    Attributes:
        by: who runs it: ``server`` (this process), ``client`` (who asked, and brought the tool), ``provider`` (the
            model's own side). None in logs of versions that did not say it.
    """

    type = "tool_call.started"
    part: int
    step: int
    id: str
    name: str
    by: str | None = None


class CallDelta(Fact, frozen=True):
    """A piece of the JSON text of a call's arguments."""

    type = "tool_call.delta"
    delta = True
    part: int
    step: int
    id: str
    start: int
    arguments: str


class CallCompleted(Fact, frozen=True):
    """A call's arguments are whole."""

    type = "tool_call.completed"
    part: int
    step: int
    id: str
    name: str
    arguments: str


class OpaqueNoted(Fact, frozen=True):
    """What the model's provider wants back with the model's message, as it came. Readers do not see it.

    Attributes:
        place: its number in the run, from 0, so that applying it twice does no harm.
        step, owner, data: see ``Opaque``.
    """

    type = "model.opaque"
    open = True
    place: int
    step: int
    owner: str
    data: Any


class ToolBegun(Fact, frozen=True):
    """A tool begins to work. ``progress`` is a sentence for the reader."""

    type = "tool.started"
    id: str
    name: str
    progress: str


class ToolCompleted(Fact, frozen=True):
    """A tool is done. ``output`` is any JSON value."""

    type = "tool.completed"
    open = True
    id: str
    name: str
    progress: str
    success: bool
    output: Any


class PermissionRequested(Fact, frozen=True):
    """The agent asks the user whether a tool may act.

    Attributes:
        call: the tool call that it is for.
        expires_at: when it is taken for refused, seconds since the epoch.
    """

    type = "permission.requested"
    open = True
    id: str
    tool: str
    description: str
    action: str
    path: str | None = None
    params: JsonObject | None = None
    call: str | None = None
    expires_at: float | None = None


class PermissionResolved(Fact, frozen=True):
    """The one answer to a permission. ``by`` is ``user``, ``timeout`` or ``run_ended``."""

    type = "permission.resolved"
    id: str
    granted: bool
    by: str


class NotificationCreated(Fact, frozen=True):
    """The agent tells the user something, or asks.

    Attributes:
        response: the kind of answer: ``acknowledge``, ``text`` or ``choice``.
        timeout: seconds from ``created_at`` in which it can be answered.
    """

    type = "notification.created"
    open = True
    id: str
    kind: str
    title: str
    message: str
    response: str
    timeout: float
    created_at: float
    choices: list[str] | None = None


class NotificationResolved(Fact, frozen=True):
    """The one answer to a notification, an event of the session: the run that asked may have ended.

    Attributes:
        run: that asked.
        by: ``user`` or ``timeout``.
    """

    type = "notification.resolved"
    id: str
    by: str
    run: str | None = None
    response: str | None = None
    value: str | None = None


class CheckpointNoted(Fact, frozen=True):
    """An agent's note to itself, any JSON value. Readers do not see it."""

    type = "agent.checkpoint"
    open = True
    data: Any


class CancelRequested(Fact, frozen=True):
    """Somebody wants the run to stop; of no run: whatever was running, and nothing was."""

    type = "run.cancel_requested"
    reason: str | None = None


class Ended(Fact, frozen=True):
    """What the facts have in common that end a run. ``usage`` is as the log has it, ``used`` as far as it is known."""

    terminal = True
    open = True

    @property
    def said(self) -> Said:
        """The whole message, as far as it came."""
        raise NotImplementedError

    @property
    def used(self) -> Usage | None:
        """What it cost, if the agent told."""
        usage: JsonObject | None = getattr(self, "usage", None)
        return None if usage is None else read_usage(usage)


class RunCompleted(Ended, frozen=True):
    """The run ended well. ``finish_reason`` says why: ``stop``, ``length`` ..."""

    type = "run.completed"
    finish_reason: str
    message: Said
    usage: JsonObject | None = None

    @property
    def said(self) -> Said:
        """The whole message."""
        return self.message


class RunFailed(Ended, frozen=True):
    """The run failed. ``code`` is for programs, ``message`` for people."""

    type = "run.failed"
    code: str
    message: str
    partial: Said
    usage: JsonObject | None = None
    detail: JsonObject | None = None

    @property
    def said(self) -> Said:
        """The whole message, as far as it came."""
        return self.partial


class RunCancelled(Ended, frozen=True):
    """The run was stopped because somebody wanted it."""

    type = "run.cancelled"
    partial: Said
    usage: JsonObject | None = None
    reason: str | None = None

    @property
    def said(self) -> Said:
        """The whole message, as far as it came."""
        return self.partial


class OtherFact(msgspec.Struct, frozen=True, gc=False):
    """A fact of a type that this version does not know. It moves no state, and is kept and given on as it is."""

    delta: ClassVar[bool] = False
    terminal: ClassVar[bool] = False
    open: ClassVar[bool] = True
    type: str
    data: JsonObject


AnyFact = Fact | OtherFact
Delta = ThinkingDelta | TextDelta | RefusalDelta | CallDelta
TextPiece = ThinkingDelta | TextDelta | RefusalDelta
PIECES: frozenset[type] = frozenset(typing.get_args(TextPiece))
"""As ``TextPiece``, for where it is asked for each token."""
Terminal = RunCompleted | RunFailed | RunCancelled

EVENTS: dict[str, type[Fact]] = {
    fact.type: fact
    for fact in (
        *(SessionCreated, SessionUpdated, SessionDeleted, SessionRewound, RunWithdrawn),
        *(MessageCreated, MessageRevised, RunWaiting, RunStarted),
        *(ThinkingDelta, TextDelta, RefusalDelta, CallStarted, CallDelta, CallCompleted, OpaqueNoted),
        *(ToolBegun, ToolCompleted),
        *(PermissionRequested, PermissionResolved, NotificationCreated, NotificationResolved),
        *(CheckpointNoted, CancelRequested, RunCompleted, RunFailed, RunCancelled),
    )
}
"""Every type of fact that this version knows."""

TERMINAL = frozenset(name for name, fact in EVENTS.items() if fact.terminal)
"""The types that end a run; each run has exactly one."""

DELTAS = frozenset(name for name, fact in EVENTS.items() if fact.delta)
"""The types whose content stands again, whole, in a later event of the same run."""


# Facts and JSON -------------------------------------------------------------------------------------------------------

# At once, and not when the first is read: several threads read (see ``json.known``).
_decoders = {name: decoder(fact).decode for name, fact in EVENTS.items()}
_object = decoder(JsonObject).decode


def read_fact(type: str, json: bytes | str) -> AnyFact:
    """The fact that was stored under ``type``. What does not fit (another version wrote it) is read as far as it does.

    Raises:
        msgspec.DecodeError: it is no JSON object.
    """
    decode = _decoders.get(type)
    if decode is None:
        return OtherFact(type, _object(json))
    try:
        return decode(json)
    except msgspec.ValidationError:
        return _mended(EVENTS[type], _object(json))


DAMAGED: JsonObject = {"damaged": True}
"""What is shown of an event whose JSON cannot be read."""
DAMAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading such JSON raises."""
_DAMAGED = encode(DAMAGED)


def damaged(type: str) -> tuple[AnyFact, bytes]:
    """What stands for an event of ``type`` that cannot be read: a fact that says as little as one can, and JSON."""
    return fact(type, DAMAGED), _DAMAGED


_told: set[tuple[str, Offset]] = set()
_MOST_TOLD = 10_000


def length(event: Event) -> int:
    """Bytes of what an event says: its JSON, with what of it stands beside the log."""
    fact = event.fact
    if isinstance(fact, MessageCreated | MessageRevised) and fact.blobs:
        return len(event.json) + sum(ref.characters for ref in fact.blobs)
    return len(event.json)


def read_stored(session: str, offset: Offset, type: str, json: bytes) -> tuple[AnyFact, bytes]:
    """What an event says, and its JSON. One that cannot be read is shown as damaged, and named in the log once."""
    try:
        return read_fact(type, json), json
    except DAMAGE as exc:
        if (session, offset) not in _told and len(_told) < _MOST_TOLD:
            _told.add((session, offset))
            logger.error("session %s: event %d (%s) is damaged: %s", session, offset, type, exc)
        return damaged(type)


def fact(type: str, data: JsonObject) -> AnyFact:
    """The fact of ``type`` that says ``data``, read as ``read_fact`` reads it."""
    known = EVENTS.get(type)
    if known is None:
        return OtherFact(type, data)
    try:
        return convert(data, known)
    except msgspec.ValidationError:
        return _mended(known, data)


def read_usage(usage: JsonObject) -> Usage:
    """What of a run's usage is known. A figure that no agent can yield, as older versions have stored some, is 0."""
    try:
        used = convert(usage, Usage)
    except msgspec.ValidationError:
        used = _mended(Usage, usage if isinstance(usage, dict) else {})
    counts = (used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens)
    if min(counts) >= 0 and max(counts) <= MOST_COUNT and 0 <= used.cost <= MOST_AMOUNT:
        return used
    known = [count if 0 <= count <= MOST_COUNT else 0 for count in counts]
    cost = used.cost if 0 <= used.cost <= MOST_AMOUNT else 0.0
    return Usage(known[0], known[1], known[2], known[3], cost, used.model)


F = TypeVar("F", bound=msgspec.Struct)


def _mended(struct: type[F], data: JsonObject) -> F:
    """``data`` as a ``struct``, field by field: what does not fit, or is missing, has its field's least value."""
    fields: JsonObject = {}
    for field, kind in _kinds(struct).items():
        try:
            if field in data:
                fields[field] = convert(data[field], kind)
                continue
        except msgspec.ValidationError:
            logger.warning("a stored %s does not fit: %s is %r", struct.__name__, field, type(data[field]).__name__)
            if isinstance(data[field], dict) and (nested := _struct_of(kind)):
                fields[field] = _mended(nested, data[field])
                continue
        if field in _required(struct):
            fields[field] = _least(kind)
    return struct(**fields)


@functools.cache
def _kinds(struct: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(struct)
    return {field: hints[field] for field in struct.__struct_fields__}


@functools.cache
def _required(struct: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(struct) if field.required)


def _struct_of(kind: object) -> type[msgspec.Struct] | None:
    kinds = [each for each in (kind, *typing.get_args(kind)) if isinstance(each, type)]
    return next((each for each in kinds if issubclass(each, msgspec.Struct)), None)


_LEAST: dict[Any, Callable[[], Any]] = {str: str, int: int, float: float, bool: bool, Any: lambda: None}


def _least(kind: Any) -> Any:
    """What stands for a value that is not there."""
    if kind in _LEAST:
        return _LEAST[kind]()
    nested = _struct_of(kind)
    return _mended(nested, {}) if nested is not None else typing.get_origin(kind)()


def settle(fact: AnyFact) -> tuple[AnyFact, bytes]:
    """``fact`` as it is read from a log, and its JSON: nobody can change it any more, and it is made of JSON values.

    Raises:
        InvalidInput: it is not.
    """
    try:
        if not fact.open:
            return fact, encode_flat(fact)
        said: object = fact
        if isinstance(fact, OtherFact):
            said = fact.data
            if not isinstance(said, dict):
                raise InvalidInput(f"The data of {fact.type} must be a dict, not {type(said).__name__}.")
            if fact.type in EVENTS:
                raise InvalidInput(f"{fact.type} is no unknown type; it is a {EVENTS[fact.type].__name__}.")
        json = encode(said)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise InvalidInput(f"The data of {fact.type} cannot be stored as JSON: {exc}.", type=fact.type) from exc
    return read_fact(fact.type, json), json


def settled(drafts: Iterable[Draft]) -> list[Draft]:
    """The same drafts, as a store would settle them; where that takes long, it is done before, in a thread.

    Raises:
        InvalidInput: see ``settle``.
    """
    found = []
    for draft in drafts:
        fact, json = settle(draft.fact)
        found.append(Draft(fact, draft.run, json))
    return found


_OPAQUE = ("owner", "data")


class Event(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One stored fact of a session.

    Attributes:
        fact: what it says. Never change what is in it: all readers share it.
        offset: the event's number in its session, from 1.
        at: when it was stored, seconds since the epoch.
        run: the run it belongs to, or None for an event of the session itself.
        json: the fact as it is stored, fields included that this version does not know.
        wire: the event's encoded bytes by dialect, made once and shared by all readers (filled in by the server).
    """

    fact: AnyFact
    offset: Offset
    at: float
    run: str | None = None
    json: bytes = b""
    wire: dict[str, bytes] = msgspec.field(default_factory=dict)

    @property
    def type(self) -> str:
        """The fact's type, a key of ``EVENTS`` if this version knows it."""
        return self.fact.type

    @property
    def data(self) -> JsonObject:
        """The fact as a JSON object, made anew each time."""
        try:
            return _object(self.json or settle(self.fact)[1])
        except DAMAGE:  # in a field that the fact does not have
            return dict(DAMAGED)

    @property
    def shown(self) -> JsonObject:
        """``data`` as readers may see it: without what is for a model's provider alone."""
        data = self.data
        if isinstance(self.fact, OpaqueNoted):
            return {name: value for name, value in data.items() if name not in _OPAQUE}
        if isinstance(self.fact, MessageCreated | Ended):
            for place in (data, data.get("message"), data.get("partial")):
                if isinstance(place, dict):
                    place.pop("opaque", None)
        return data

    def __eq__(self, other: object) -> bool:
        # Without ``wire``: what has been encoded so far is not part of the fact.
        if not isinstance(other, Event):
            return NotImplemented
        mine, theirs = ((e.offset, e.type, e.run, e.at) for e in (self, other))
        return mine == theirs and self.data == other.data

    def __ne__(self, other: object) -> bool:
        return not self == other  # else msgspec would answer, by identity

    __hash__ = None  # type: ignore[assignment]  # a fact may hold a dict


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event that has not been stored: the store gives it its offset and time.

    Attributes:
        json: of ``fact``, if that is as ``settle`` gives it; the store need not make it then.
    """

    fact: AnyFact
    run: str | None = None
    json: bytes = b""

    @property
    def type(self) -> str:
        """The fact's type."""
        return self.fact.type
