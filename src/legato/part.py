"""Messages and what they are made of, as a log, an agent and a history page see them.

A *part* is a piece of a message. Its kinds are structs with the tag ``type``; a kind that this version does not know is
an ``OtherPart``, and is given on as it came. JSON is read and written here and nowhere else (``decoder``, ``encode``),
so that nothing of it is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .errors import InvalidInput
from .json import JsonObject, known

T = TypeVar("T")

DEPTH = 200
"""How deep others' JSON may be nested. A reader in Python gives up at about 1,000, wherever it begins to count."""


class Part:
    """A piece of a message: ``TextPart``, ``ThinkingPart``, ``RefusalPart``, ``CallPart``, or ``OtherPart``.

    Attributes:
        type: its kind, a word.
        step: the message of the model that it belongs to, from 1.
    """

    __slots__ = ()
    type: str
    step: int


class TextPart(Part, msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A stretch of the answer, or of what the user wrote."""

    type = "text"
    step: int
    text: str


class ThinkingPart(Part, msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """A stretch of the model's reasoning."""

    type = "thinking"
    step: int
    text: str


class RefusalPart(Part, msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """A stretch of the model's explanation why it does not answer."""

    type = "refusal"
    step: int
    text: str


class CallPart(Part, msgspec.Struct, frozen=True, tag_field="type", tag="tool_call", omit_defaults=True):
    """A call of a tool.

    Attributes:
        id: unique in its run.
        arguments: the JSON text, as far as it came.
        success: whether the tool could do it; unset while nothing has come of the call.
        output: any JSON value; unset as long as ``success`` is.
        by: who runs it, see ``CallStarted``.
    """

    type = "tool_call"
    step: int
    id: str
    name: str
    arguments: str
    success: bool | UnsetType = UNSET
    output: Any = UNSET
    by: str | None = None

    @property
    def done(self) -> bool:
        """Whether something has come of it."""
        return self.success is not UNSET


class Opaque(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a model's provider wants back with what the model has said, as it came; nobody else is to see it.

    Agents yield it behind one message of the model, and have it again with that message in ``Turn.history``.

    Attributes:
        owner: to whom it is told, and to nobody else: the API and its address.
        data: any JSON value.
        step: the message of the model that it belongs to, from 1; the run sees to it.
    """

    owner: str
    data: Any
    step: int = 1


class OtherPart(Part):
    """A part of a kind that this version does not know.

    Attributes:
        data: the whole JSON object.
    """

    __slots__ = ("data", "step", "type")

    def __init__(self, data: JsonObject) -> None:
        self.data = data
        self.type = str(data.get("type", ""))
        self.step = data["step"] if isinstance(data.get("step"), int) else 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OtherPart) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # data is a dict

    def __repr__(self) -> str:
        return f"OtherPart({self.data!r})"


PARTS: dict[str, type[TextPart | ThinkingPart | RefusalPart | CallPart]] = {
    part.type: part for part in (TextPart, ThinkingPart, RefusalPart, CallPart)
}
"""The kinds that this version knows."""

TEXTS = (TextPart, ThinkingPart, RefusalPart)
"""The kinds that are text."""


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens and cost so far; the last one a run yields stands in its terminal event.

    Cached tokens are part of the input, reasoning tokens of the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    model: str = ""


class RunError(msgspec.Struct, frozen=True, gc=False):
    """Why a run failed: ``code`` for programs, ``message`` for people."""

    code: str
    message: str


class Attachment(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A file that came with a message, or one that it only has the address of.

    Attributes:
        type: what the sender called it, such as ``image/png``; "" if nothing.
        name: what the sender calls it; "" if nothing.
        bytes: how many it has; 0: nobody knows.
        hash: under which it is to be had; "": it is not kept beside the log.
        url: its address, or all of it (``data:``) if it is small; "" if it has a hash.
    """

    type: str = ""
    name: str = ""
    bytes: int = 0
    hash: str = ""
    url: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole message of a conversation, as an agent and a history page see it.

    Attributes:
        id: unique in its session.
        role: ``"user"`` or ``"assistant"``.
        text: the user's text, or the text of the assistant's final step, a refusal included.
        parts: of an assistant: its thinking, text, refusals and tool calls in order, see ``Transcript``.
        metadata: of a user: what the sender added, for example ``{"plan_mode": true}``.
        run: the run that answers it, or that it came from.
        offset: the event that holds it.
        at: when it was stored, seconds since the epoch.
        status: of an assistant: ``"completed"``, ``"failed"`` or ``"cancelled"``.
        finish_reason: of a completed assistant's message, why it ended: ``"stop"``, ``"length"`` ...; else "".
        usage: of an assistant, if it told.
        error: of a failed assistant's message.
        opaque: of an assistant: what providers want back with it.
        files: what came with it, of a user's message that is read as part of a history.
        author: of a user's: the subject of who wrote it, "" for nobody in particular.
    """

    id: str
    role: str
    text: str
    parts: list[Part] = []
    metadata: JsonObject = {}
    run: str | None = None
    offset: int = 0
    at: float = 0.0
    status: str = "completed"
    usage: Usage | None = None
    error: RunError | None = None
    opaque: list[Opaque] = []
    finish_reason: str = ""
    files: list[Attachment] = []
    author: str = ""


# JSON -----------------------------------------------------------------------------------------------------------------


def _read(type: type, value: Any) -> Any:
    if type is not Part:
        raise NotImplementedError(f"{type} is no type of a log")
    return read_part(value)


def read_part(value: JsonObject) -> Part:
    """The part that a JSON object is; an ``OtherPart`` also if it is of a known kind and does not fit."""
    kind = PARTS.get(value.get("type", "")) if isinstance(value, dict) else None
    if kind is not None:
        try:
            return msgspec.convert(value, known(kind))
        except msgspec.ValidationError:
            pass
    return OtherPart(value if isinstance(value, dict) else {"value": value})


def _write(value: object) -> JsonObject:
    if isinstance(value, OtherPart):
        return value.data
    raise NotImplementedError(f"Objects of type {type(value).__name__} are not JSON")


for _kind in (*PARTS.values(), Usage):
    known(_kind)  # before there are threads that read logs

_encoder = msgspec.json.Encoder(enc_hook=_write)
encode_flat: Callable[[object], bytes] = msgspec.json.Encoder().encode
"""As ``encode``, for what holds no parts; a call less, for what is done for each token."""


def decoder(type: type[T]) -> msgspec.json.Decoder[T]:
    """What reads JSON as ``type``, parts of any kind included."""
    return msgspec.json.Decoder(known(type), dec_hook=_read)


def convert(value: object, type: type[T], *, strict: bool = True) -> T:
    """A JSON value as ``type``, parts of any kind included.

    Raises:
        msgspec.ValidationError: it does not fit.
    """
    return msgspec.convert(value, known(type), strict=strict, dec_hook=_read)


def encode(value: object) -> bytes:
    """``value`` as JSON.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: it is not made of JSON values.
    """
    try:
        return _encoder.encode(value)
    except NotImplementedError as exc:
        raise TypeError(str(exc)) from None


def to_builtins(value: object) -> Any:
    """``value`` as what JSON is made of."""
    return msgspec.to_builtins(value, enc_hook=_write)


def as_json(name: str, value: object) -> Any:
    """What JSON makes of ``value`` (lists for tuples, text for dates), and a copy that nobody else can change.

    Raises:
        InvalidInput: it is not made of JSON values, or they are nested deeper than ``DEPTH``; the text begins with
            ``name``.
    """
    try:
        json = encode(value)
        made = msgspec.json.decode(json)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise InvalidInput(f"{name} must be made of JSON values: {exc}") from exc
    if json.count(b"[") + json.count(b"{") > DEPTH:
        check_depth(name, made)
    return made


def check_depth(name: str, value: object) -> None:
    """Raise ``InvalidInput``, which begins with ``name``, if a JSON value is nested deeper than ``DEPTH``."""
    if _deeper(value, DEPTH):
        raise InvalidInput(f"{name} must not be nested deeper than {DEPTH}.")


def _deeper(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            each
            for one in level
            if isinstance(one, list | dict)
            for each in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, list | dict) for one in level)
