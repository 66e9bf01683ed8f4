"""The raw events of the Responses API, typed: one class for each shape, and ``decode_event``. No I/O.

Providers differ in the fields they send, so only what a reader cannot do without is required. What an event was sent
with is always whole in ``raw``, and an event of an unknown type is a plain ``ResponseEvent``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ..json import JsonObject, known
from ..sse import SSEMessage
from .assembly import as_json
from .errors import StreamMalformed, confessed
from .loose import fitted, loose

__all__ = [
    "ArgumentsDeltaEvent",
    "ArgumentsDoneEvent",
    "LifecycleEvent",
    "OutputItemEvent",
    "PartEvent",
    "ReasoningDeltaEvent",
    "RefusalDeltaEvent",
    "ResponseErrorEvent",
    "ResponseEvent",
    "TextDeltaEvent",
    "TextDoneEvent",
    "decode_event",
    "decode_object",
]


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """An event of any type; those of a type that is not known here are of this class.

    Attributes:
        type: the event's name.
        sequence_number: its place in the response, from 0; None from providers that do not number.
        raw: all fields, as they were sent.
    """

    type: str
    sequence_number: int | None = None
    raw: JsonObject = {}


class LifecycleEvent(ResponseEvent, frozen=True, kw_only=True):
    """``response.created``, ``queued``, ``in_progress``, ``completed``, ``failed``, ``incomplete``, ``cancelled``.

    Attributes:
        response: the response as it is now.
    """

    response: JsonObject


class OutputItemEvent(ResponseEvent, frozen=True, kw_only=True):
    """``response.output_item.added`` and ``.done``: a message, a tool call or a reasoning begins, or is whole.

    Attributes:
        item: as it is now.
        output_index: its place in the output.
    """

    item: JsonObject
    output_index: int | None = None


class ItemEvent(ResponseEvent, frozen=True, kw_only=True):
    """What all events about the inside of an item have.

    Attributes:
        item_id: the item.
        output_index: its place in the output.
        content_index: the part of the item, if it is about one.
        summary_index: the part of the summary, if it is about one.
    """

    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None


class PartEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.content_part`` or ``.reasoning_summary_part``, ``.added`` and ``.done``; ``part`` is the part."""

    part: JsonObject


class TextDeltaEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.output_text.delta``; ``delta`` is a piece of text."""

    delta: str


class TextDoneEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.output_text.done``, and that of each kind of reasoning; ``text`` is the whole of the part."""

    text: str


class ReasoningDeltaEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.reasoning_summary_text.delta``, ``.reasoning_text.delta`` or ``.reasoning.delta``."""

    delta: str


class RefusalDeltaEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.refusal.delta``; ``delta`` is a piece of the refusal."""

    delta: str


class ArgumentsDeltaEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.function_call_arguments.delta``, ``.mcp_call_arguments.delta``; ``delta`` is a piece of JSON text."""

    delta: str


class ArgumentsDoneEvent(ItemEvent, frozen=True, kw_only=True):
    """``response.function_call_arguments.done``, ``.mcp_call_arguments.done``; ``arguments`` is the whole JSON text."""

    arguments: str


class ResponseErrorEvent(ResponseEvent, frozen=True, kw_only=True):
    """``error``: the provider failed. The reason stands at the top level, or inside of ``error``: see ``raw``."""


_CLASSES: Final[dict[str, type[ResponseEvent]]] = {
    "error": ResponseErrorEvent,
    **dict.fromkeys(
        [f"response.{state}" for state in ("created", "queued", "in_progress", "completed", "failed", "incomplete")],
        LifecycleEvent,
    ),
    "response.cancelled": LifecycleEvent,
    "response.error": ResponseErrorEvent,
    "response.output_item.added": OutputItemEvent,
    "response.output_item.done": OutputItemEvent,
    "response.content_part.added": PartEvent,
    "response.content_part.done": PartEvent,
    "response.reasoning_summary_part.added": PartEvent,
    "response.reasoning_summary_part.done": PartEvent,
    "response.output_text.delta": TextDeltaEvent,
    "response.output_text.done": TextDoneEvent,
    # OpenAI's summaries; raw thinking as OpenAI, OpenRouter, DeepSeek, LM Studio name it; and as Open Responses does.
    "response.reasoning_summary_text.delta": ReasoningDeltaEvent,
    "response.reasoning_summary_text.done": TextDoneEvent,
    "response.reasoning_text.delta": ReasoningDeltaEvent,
    "response.reasoning_text.done": TextDoneEvent,
    "response.reasoning.delta": ReasoningDeltaEvent,
    "response.reasoning.done": TextDoneEvent,
    "response.refusal.delta": RefusalDeltaEvent,
    "response.function_call_arguments.delta": ArgumentsDeltaEvent,
    "response.function_call_arguments.done": ArgumentsDoneEvent,
    "response.mcp_call_arguments.delta": ArgumentsDeltaEvent,
    "response.mcp_call_arguments.done": ArgumentsDoneEvent,
}


_OBJECT: Final = msgspec.json.Decoder(JsonObject)
"""Made once: for another type than a struct, ``msgspec.json.decode`` makes one each time, which takes longer."""


def decode_object(message: SSEMessage) -> JsonObject:
    """The JSON object that a message carries; of a list that tells of an error, the object that does.

    Raises:
        StreamMalformed: it carries none.
    """
    try:
        return _OBJECT.decode(message.data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    try:
        raw = loose(message.data)
    except ValueError as exc:
        raise StreamMalformed(f"A JSON object was expected, not {message.data[:200]!r}: {exc}.") from exc
    if isinstance(raw, list):
        raw = next((each for each in raw if isinstance(each, dict) and confessed(each)), raw)
    if not isinstance(raw, dict):
        raise StreamMalformed(f"A JSON object was expected, not {message.data[:200]!r}.")
    return raw


def decode_event(message: SSEMessage) -> ResponseEvent:
    """The event that a message carries; its type is its own field's, else the message's, else what its form says.

    Raises:
        StreamMalformed: no JSON object, or one without what its type must have.
    """
    raw = decode_object(message)
    kind = raw.get("type")
    if raw.get("object") == "error":
        kind = "error"
    elif not isinstance(kind, str):
        kind = message.event
        if kind not in _CLASSES:
            if isinstance(raw.get("output"), list):  # a whole response
                kind = f"response.{raw.get('status') or 'completed'}"
                raw = {"type": kind, "response": raw}
            elif confessed(raw):
                kind = "error"
    if kind == "response.done" and isinstance(response := raw.get("response"), dict):  # of servers that know one end
        said = f"response.{response.get('status')}"
        kind = said if said in _CLASSES else "response.completed"
    cls = _CLASSES.get(kind, ResponseEvent)
    fields = raw if raw.get("type") == kind else {**raw, "type": kind}
    if cls is ArgumentsDeltaEvent or cls is ArgumentsDoneEvent:
        fields = {**fields, **{name: as_json(fields[name]) for name in ("delta", "arguments") if name in fields}}
    try:
        event = msgspec.convert(fields, known(cls))
    except (msgspec.ValidationError, UnicodeError):
        try:
            event = fitted(fields, cls)
        except ValueError as exc:
            raise StreamMalformed(f"An event {kind!r:.64} is not as documented: {exc}.") from exc
    msgspec.structs.force_setattr(event, "raw", raw)  # convert() would copy all of it
    return event
