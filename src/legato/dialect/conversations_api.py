"""Conversations and their items: the bodies of ``/v1/conversations``.

A conversation is a session, and an item is a message of it or a piece of one. What a client has added is kept as it
came, in the message's metadata; what was asked and answered is told as the response does. An item that was deleted is
no longer told to anybody, and the others keep their ids: so they are counted in what the message said first, and its
last revision says which of them are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET

from ..errors import NotFound
from ..event import (
    CallCompleted,
    CallStarted,
    Event,
    Fact,
    MessageCreated,
    MessageRevised,
    RefusalDelta,
    RunCompleted,
    Said,
    TextDelta,
    ThinkingDelta,
    ToolCompleted,
)
from ..items import GIVEN_PARTS, KNOWN, SAID_PARTS, SYSTEM, Item, is_call, is_output, is_said, text_of
from ..json import JsonObject
from ..part import PARTS, CallPart, Message, Part, RefusalPart, TextPart, ThinkingPart, check_depth
from .earlier import earlier
from .responses import ResponseFold
from .responses_api import BadRequest
from .responses_items import asked_items, whole_item
from .responses_known import check_item

INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
"""What a client may ask to have included in items. Nothing here has any of it but images, which are there anyway."""

_PREFIX = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "mcp_call": "mcp",
}
"""What the id of an item begins with, by its type; ``item`` for all else."""
# Bodies ---------------------------------------------------------------------------------------------------------------

ConversationMetadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]
"""What a client keeps with a conversation: up to 16 pairs, keys of 64 characters, values of 512."""


class ItemNotFound(NotFound):
    """There is no such item: it never was, or it has been deleted."""

    code = "item_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"Item with id '{id[:200]}' not found in this conversation.", param="item_id")


def _words(parts: Sequence[str]) -> JsonObject:
    part: JsonObject = {"type": "object", "properties": {"type": {"enum": list(parts)}}, "required": ["type"]}
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}


def _said(roles: Sequence[str], parts: Sequence[str]) -> JsonObject:
    fields: JsonObject = {"type": {"enum": ["message", None]}, "role": {"enum": list(roles)}, "content": _words(parts)}
    return {"properties": fields, "required": ["role", "content"]}


_PLAIN = ("message", "function_call", "function_call_output")
_ITEM: JsonObject = {
    "anyOf": [
        _said(["user", *SYSTEM], GIVEN_PARTS),
        _said(["assistant"], SAID_PARTS),
        {
            "properties": {"type": {"const": "function_call"}, "call_id": {"type": "string"},
                           "name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["type", "call_id", "name", "arguments"],
        },
        {
            "properties": {"type": {"const": "function_call_output"}, "call_id": {"type": "string"},
                           "output": _words(GIVEN_PARTS)},
            "required": ["type", "call_id", "output"],
        },
        {"properties": {"type": {"enum": [each for each in KNOWN if each not in _PLAIN]}},
         "required": ["type"]},
    ]
}  # fmt: skip
Items = Annotated[list[Annotated[Item, msgspec.Meta(extra_json_schema=_ITEM)]], msgspec.Meta(max_length=20)]
"""What comes in one request, as many as OpenAI takes."""


class CreateConversation(msgspec.Struct, kw_only=True):
    """A request for a conversation, with what was said in it already."""

    items: Items | None = None
    metadata: ConversationMetadata | None = None


class UpdateConversation(msgspec.Struct, kw_only=True):
    """A request to replace a conversation's metadata."""

    metadata: ConversationMetadata | None


class CreateItems(msgspec.Struct, kw_only=True):
    """A request to add to a conversation what was said elsewhere."""

    items: Items


class ConversationObject(msgspec.Struct, tag="conversation", tag_field="object"):
    """A conversation."""

    id: str
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(msgspec.Struct):
    """What is left of a conversation."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: bool


FIELD = "conversation"
"""The field of a session's metadata with that of the conversation."""


def conversation_object(session: str, created_at: float, metadata: JsonObject) -> JsonObject:
    """A session as a conversation."""
    given = metadata.get(FIELD)
    return {"id": session, "object": "conversation", "created_at": int(created_at),
            "metadata": given if isinstance(given, dict) else {}}  # fmt: skip


# Items to messages ----------------------------------------------------------------------------------------------------


def added(items: Sequence[Item]) -> list[MessageCreated]:
    """What a client says to have been said, as messages without ids: neighbouring items of the assistant are one, with
    the outputs of its calls.

    Raises:
        BadRequest: an item that is none. InvalidInput: nested too deep.
    """
    for place, item in enumerate(items):
        _check(item, f"items[{place}]")
    check_depth("items", items)
    return [_message(group, mine=is_said(group[0])) for group in _groups(items)]


def _check(item: Item, name: str) -> None:
    check_item(name, item)
    for field in _REQUIRED.get(item.get("type") or "message", ()):
        if not isinstance(item.get(field), str | list if field in ("content", "output") else str):
            raise BadRequest(f"Missing required parameter: '{name}.{field}'.", code="missing_required_parameter",
                             param=f"{name}.{field}")  # fmt: skip


_REQUIRED = {
    "message": ("content",),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


def _groups(items: Iterable[Item]) -> list[list[Item]]:
    """The items of each message. After an output comes the next of the assistant's."""
    groups: list[list[Item]] = []
    calls: set[str] = set()  # of the last group, if it is the assistant's
    for item in items:
        mine = str(item.get("call_id")) in calls if is_output(item) else is_said(item)
        if not mine:
            groups.append([item])
            calls = set()
        elif groups and is_said(groups[-1][0]) and (is_output(item) or not is_output(groups[-1][-1])):
            groups[-1].append(item)
        else:
            groups.append([item])
            calls = set()
        if is_call(item):
            calls.add(str(item.get("call_id")))
    return groups


def _message(items: list[Item], *, mine: bool) -> MessageCreated:
    """What these items are as one message, the assistant's or not; it has them in its metadata."""
    if mine:
        said = next(iter(earlier(items)), MessageCreated("", "assistant", ""))
        return msgspec.structs.replace(said, metadata={"items": items})
    texts = [text_of(item.get("output" if is_output(item) else "content")) for item in items]
    return MessageCreated("", "user", "\n\n".join(filter(None, texts)), metadata={"input": items})


# Messages to items ----------------------------------------------------------------------------------------------------


def items(message: Message, revision: MessageRevised | None = None) -> list[Item]:
    """The items of a message, each with its id.

    Args:
        message: as it was said first.
        revision: its last.
    """
    deleted = () if revision is None else revision.deleted or ()
    return [item for item in _first(message) if item["id"] not in deleted]


def _first(message: Message) -> list[Item]:
    given = message.metadata.get(_field(message))
    if message.run is not None and message.role == "user":
        return asked_items(message.run, MessageCreated("", "user", message.text, metadata=message.metadata))
    if message.run is None and isinstance(given, list):
        return _given(message.id, given)
    if message.role == "user":
        return _given(message.id, [{"role": "user", "content": message.text}])
    return _output(message.run or message.id, message)


def _field(message: Message) -> str:
    """The field of a message's metadata that has its items as they came."""
    return "input" if message.role == "user" else "items"


def _given(message: str, given: Sequence[Item]) -> list[Item]:
    whole = [whole_item(item) for item in given if isinstance(item, dict)]
    return [
        {**item, "id": f"{_PREFIX.get(str(item.get('type')), 'item')}_{message}_{place}"}
        for place, item in enumerate(whole)
    ]


def _output(run: str, message: Message) -> list[Item]:
    """What an assistant's message is as the output of a response."""
    fold = ResponseFold("", run, agent="")
    for offset, fact in enumerate(_facts(message.parts, message.text), 1):
        fold.feed(Event(fact, offset, 0.0, run))
    output: list[Item] = fold.response()["output"]
    return output


def _facts(parts: Sequence[Part], text: str) -> Iterable[Fact]:
    """What could have been said to make these parts, without beginning."""
    outputs: list[Fact] = []
    step = 0
    for place, part in enumerate(parts or ([TextPart(1, text)] if text else [])):
        if part.step != step:
            yield from outputs
            outputs, step = [], part.step
        match part:
            case TextPart():
                yield TextDelta(place, step, 0, part.text)
            case ThinkingPart():
                yield ThinkingDelta(place, step, 0, part.text)
            case RefusalPart():
                yield RefusalDelta(place, step, 0, part.text)
            case CallPart():
                yield CallStarted(place, step, part.id, part.name, part.by)
                yield CallCompleted(place, step, part.id, part.name, part.arguments)
                if part.done:
                    outputs.append(ToolCompleted(part.id, part.name, "", part.success is True, part.output))
    yield from outputs
    yield RunCompleted("stop", Said("", "", []))


def without(message: Message, revision: MessageRevised | None, id: str) -> MessageRevised:
    """The next revision of a message: without one more of its items.

    Args:
        message: as it was said first.
        revision: its last.
        id: of the item.

    Raises:
        ItemNotFound: it has none of this id (any more).
    """
    left = items(message, revision)
    if all(item["id"] != id for item in left):
        raise ItemNotFound(id)
    deleted = [*([] if revision is None else revision.deleted or ()), id]
    if len(left) == 1:
        return MessageRevised(message.id, gone=True, deleted=deleted)
    field = _field(message)
    given = message.metadata.get(field)
    if isinstance(given, list):
        places = {int(gone.rpartition("_")[2]) for gone in deleted}
        rest = [item for place, item in enumerate(given) if place not in places]
        now = _message(rest, mine=message.role == "assistant")
        metadata = {**message.metadata, field: rest}
        return MessageRevised(message.id, text=now.text, parts=now.parts, metadata=metadata, deleted=deleted)
    parts = _left(message, set(deleted))
    return MessageRevised(message.id, text=_final(parts), parts=parts, metadata=message.metadata, deleted=deleted)


def _left(message: Message, deleted: set[str]) -> list[Part]:
    """The parts of an answer without those of deleted items: each has one, and an output is the end of its call's."""
    output = _first(message)
    bare = {item["call_id"] for item in output if is_output(item) and item["id"] in deleted}
    gone = [item["id"] in deleted for item in output if not is_output(item)]
    known = [part for part in message.parts if part.type in PARTS]
    out = {id(part) for part, is_gone in zip(known, gone, strict=True) if is_gone}
    return [
        msgspec.structs.replace(part, success=UNSET, output=UNSET)
        if isinstance(part, CallPart) and part.id in bare
        else part
        for part in message.parts
        if id(part) not in out
    ]


def _final(parts: Sequence[Part]) -> str:
    """The text of the last step that has any."""
    texts: dict[int, str] = {}
    for part in parts:
        if isinstance(part, TextPart | RefusalPart):
            texts[part.step] = texts.get(part.step, "") + part.text
    return texts[max(texts)] if texts else ""


def message_of(id: str) -> tuple[str, bool] | None:
    """Of an item's id: the id of its message, or of the run that the message is of, and whether it asked that run."""
    prefix, _, rest = id.partition("_")
    of, _, place = rest.rpartition("_")
    return (of, prefix == "in") if of and place.isascii() and place.isdigit() else None


def metadata(given: dict[str, str] | None) -> JsonObject:
    """What a session keeps of a conversation's own."""
    return {FIELD: given or {}}
