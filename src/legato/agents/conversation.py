"""What a model is told of a turn: the whole conversation, in the form of Chat Completions, which every provider takes.

A fold of whole messages: no model, no network. The rule: every tool call of the assistant is followed by exactly one
output, since providers refuse a conversation in which a call stays open. Thinking is not told again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ..agent import Turn
from ..items import (
    INTERRUPTED,
    arguments_of,
    id_of,
    is_call,
    is_output,
    is_system,
    leading,
    present,
    said_in,
    spelled_out,
)
from ..json import JsonObject
from ..part import CallPart, Message, Opaque, Part, RefusalPart, TextPart, ThinkingPart
from ..provider.last_pass import tells_calls

NOT_CARRIED_OUT = "This call was not carried out."
"""What a model is told of a call that came to nothing: the client did not answer it."""


def conversation(turn: Turn, instructions: str = "") -> list[JsonObject]:
    """The messages before the turn's, and the turn's own.

    Args:
        turn: with its history. What the sender set as ``instructions`` is added to these.
        instructions: for the model, before all else.
    """
    given = turn.message.metadata.get("instructions")
    system = "\n\n".join(text for text in (instructions, given) if isinstance(text, str) and text)
    messages = [{"role": "system", "content": system}] if system else []
    for message in turn.history:
        messages += asked(message) if message.role == "user" else said(message.parts, message.text, message.opaque)
    return answered([*messages, *asked(turn.message, instructed=True)])


def asked(message: Message, *, instructed: bool = False) -> list[JsonObject]:
    """What a user's message is: its text; or its items, when it came as such with images, outputs of tools or the
    beginning of the answer.

    Args:
        message: the user's.
        instructed: the model is told its instructions anyway, so those with which it begins are left out.
    """
    given = message.metadata.get("input")
    items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    begin = leading(items) if instructed else 0
    messages = [read for item in spelled_out(items[max(begin, present(items)) :]) for read in _item(item)]
    if not messages and isinstance(given, list) and begin == len(items) and message.metadata.get("instructions"):
        return []  # there is nothing but instructions
    return messages or [{"role": "user", "content": message.text}]


def _item(item: JsonObject) -> list[JsonObject]:
    if is_output(item):
        return [tool_output(id_of(item), _words(item.get("output")), success=item.get("success") is not False)]
    if is_call(item):
        called = tool_call(id_of(item), str(item.get("name") or ""), arguments_of(item))
        return [{"role": "assistant", "content": None, "tool_calls": [called]}]
    content = item.get("content")
    if is_system(item) or item.get("role") == "assistant":
        role = "assistant" if item["role"] == "assistant" else "system"
        return [{"role": role, "content": text}] if (text := said_in(content)) else []
    if item.get("role") != "user":
        return []
    if isinstance(content, list):
        content = [_part(part) for part in content if isinstance(part, dict)]
    return [{"role": "user", "content": content}] if content else []


def _part(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "input_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail") or "auto"}}
    return part  # a provider's own kind, or that of Chat Completions already


def _words(output: object) -> str:
    """A tool's output as a model reads it."""
    if isinstance(output, str):
        return output
    if isinstance(output, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in output
    ):
        return "".join(part["text"] for part in output)
    return msgspec.json.encode(output).decode()


def tool_output(id: str, output: object, *, success: bool = True) -> JsonObject:
    """The message that answers the tool call ``id``."""
    words = _words(output)
    return {"role": "tool", "tool_call_id": id, "content": words if success else f"Error: {words}"}


def said(parts: Sequence[Part], text: str = "", opaque: Sequence[Opaque] = ()) -> list[JsonObject]:
    """What an assistant's message is: for each of its steps what it said and called, then what the tools gave.

    With it goes what its provider wants back, and what it may want back, its thinking: the last pass tells neither to
    anybody else.
    """
    steps: dict[int, list[Part]] = {}
    for part in parts:
        steps.setdefault(part.step, []).append(part)
    if not steps:
        return [{"role": "assistant", "content": text}] if text else []
    last = max(steps)  # an answer may end with a call that its provider has made, behind which nothing was said
    return [
        message
        for number, step in steps.items()
        for message in _step(
            step,
            [
                sealed
                for sealed in opaque
                if sealed.step == number or (number == last < sealed.step and tells_calls(sealed.data))
            ],
        )
    ]


def _step(parts: Sequence[Part], opaque: Sequence[Opaque]) -> list[JsonObject]:
    text = "".join(part.text for part in parts if isinstance(part, TextPart | RefusalPart))
    calls = [part for part in parts if isinstance(part, CallPart) and _is_object(part.arguments)]
    if not text and not calls:
        return []
    message: JsonObject = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [tool_call(call.id, call.name, call.arguments) for call in calls]
    if opaque:
        message["thinking"] = "".join(part.text for part in parts if isinstance(part, ThinkingPart))
        message["opaque"] = [{"owner": sealed.owner, "data": sealed.data} for sealed in opaque]
    known = [call for call in calls if call.done or call.by in ("server", "provider")]
    return [message, *map(_output, known)]


def _output(call: CallPart) -> JsonObject:
    if call.done:
        return tool_output(call.id, call.output, success=call.success is True)
    return tool_output(call.id, INTERRUPTED, success=False)


def tool_call(id: str, name: str, arguments: str) -> JsonObject:
    """A call as it stands in an assistant's message; without the arguments if providers would refuse them."""
    arguments = arguments if arguments and _is_object(arguments) else "{}"
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _is_object(arguments: str) -> bool:
    """Whether the arguments are whole: those of a call that was cut off are not, and some models write anything."""
    try:
        msgspec.json.decode(arguments or "{}", type=JsonObject)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def answered(messages: Iterable[JsonObject]) -> list[JsonObject]:
    """The messages, each call with one output behind it, also where something else came in between; an output without
    its call is the user's to say."""
    kept: list[list[JsonObject]] = []  # each with what came of its calls
    open_calls: dict[str, list[list[JsonObject]]] = {}  # by id: where what comes of them is to stand
    for message in messages:
        if message["role"] == "tool":
            if places := open_calls.get(message["tool_call_id"]):
                places.pop().append(message)
                continue
            message = {"role": "user", "content": message["content"]}
        kept.append([message])
        ids = Counter(call["id"] for call in message.get("tool_calls", ()))  # some have one id for several
        open_calls |= {id: [kept[-1]] * times for id, times in ids.items()}
    for group in kept:
        ids = Counter(call["id"] for call in group[0].get("tool_calls", ()))
        ids.subtract(message["tool_call_id"] for message in group[1:])
        group += [_not_carried_out(id) for id in ids.elements()]
    return [message for group in kept for message in group]


def _not_carried_out(id: str) -> JsonObject:
    return tool_output(id, NOT_CARRIED_OUT, success=False)
