"""The bodies of the Responses dialect: requests in, answers out, errors in the shape that its SDKs know.

``responses`` has the stream. Input comes as text, as items, or as Chat Completions messages and parts inside items, as
some clients send them; all become one user's text, what was said before it, and the items as they came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, TypeVar

import msgspec

from ..errors import Conflict, InvalidInput, LegatoError, NotFound, QueueFull
from ..event import MessageCreated, SessionCreated
from ..json import LARGE, JsonObject, decode_in_pieces
from ..part import CallPart, Part, RefusalPart, TextPart, ThinkingPart, check_depth
from .common import SPOKEN, decode_json
from .responses import Count, Penalty, ResponseSettings, Share, Temperature

T = TypeVar("T")

# Errors ---------------------------------------------------------------------------------------------------------------


class BadRequest(InvalidInput):
    """A request that does not fit, with what clients of this dialect look at: ``code`` and ``param``."""

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class ResponseNotFound(NotFound):
    """There is no such response: it never was, it was not to be kept, or it has been deleted."""

    code = "response_not_found"

    def __init__(self, id: str) -> None:
        super().__init__(f"Response with id '{id[:200]}' not found.", param="response_id")


class ModelNotFound(NotFound):
    """There is no agent of that name."""

    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model[:100]}' does not exist; GET /models lists what does.", param="model")


_TYPES = {401: "authentication_error", 403: "permission_error", 409: "conflict_error", 429: "too_many_requests"}


def error_body(status: int, message: str, code: str, param: str | None = None) -> JsonObject:
    """The body of an answer that is not a success."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def describe(error: LegatoError) -> JsonObject:
    """The body for ``error``."""
    return error_body(error.status, error.message, error.code, error.detail.get("param"))


def is_final(error: LegatoError) -> bool:
    """Whether sending the request again would be in vain, although the SDKs do so by themselves at its status."""
    return isinstance(error, Conflict) and not isinstance(error, QueueFull)


MAX_EARLIER = 5_000
"""Messages that one request may say to have been said before; neighbouring items of the assistant are one."""

# Requests -------------------------------------------------------------------------------------------------------------

Item = JsonObject
Metadata = Annotated[dict[str, str], msgspec.Meta(max_length=256)]
"""What a client says of its own, and is told again in each of the larger events: OpenAI lets it have 16 fields."""

_WORDS: JsonObject = {"type": "string", **SPOKEN}
_SPOKEN: JsonObject = {
    "anyOf": [
        _WORDS,
        {"type": "array", "contains": {"type": "object", "properties": {"text": _WORDS}, "required": ["text"]}},
    ]
}


def _last(**properties: JsonObject) -> JsonObject:
    return {"type": "object", "properties": properties, "required": list(properties)}


_ASKED = _last(role={"const": "user"}, content=_SPOKEN)
_ANSWERABLE: JsonObject = {
    "minItems": 1,
    "contains": {"anyOf": [_ASKED, _last(type={"const": "function_call_output"}, output=_SPOKEN)]},
    "description": "The last of them that is not the assistant's is what is answered: a user's message, or the output "
    "of a tool.",
}
"""For the document, of items: there is something to answer."""


class Create(ResponseSettings, kw_only=True):
    """A request for a response. Fields that are not named here are ignored.

    Attributes:
        model: the agent; the session's, or the default one, if it is not given.
        input: what to answer.
        conversation: the session to answer in.
    """

    model: str | None = None
    input: (
        Annotated[str, msgspec.Meta(extra_json_schema=SPOKEN)]
        | Annotated[list[Item], msgspec.Meta(extra_json_schema=_ANSWERABLE)]
    )
    metadata: Metadata | None = None
    stream: bool | None = None
    conversation: str | JsonObject | None = None


CreateBody = Annotated[
    Create,
    msgspec.Meta(
        extra_json_schema={
            "not": {
                "required": ["conversation", "previous_response_id"],
                "properties": {
                    "conversation": {"not": {"type": "null"}},
                    "previous_response_id": {"not": {"type": "null"}},
                },
            }
        }
    ),
]
"""For the document: not both of what it may go on with."""


def conversation(body: Create) -> str | None:
    """The session that ``body`` names, as text or as an object with an ``id``."""
    given = body.conversation
    return str(given.get("id", "")) if isinstance(given, dict) else given


class StreamOptions(msgspec.Struct):
    """What a chat stream is to have."""

    include_usage: bool | None = None


class CreateChat(msgspec.Struct, kw_only=True):
    """A request for a chat completion. Fields that are not named here are ignored."""

    messages: Annotated[
        list[Item],
        msgspec.Meta(
            examples=[[{"role": "user", "content": "Hello"}]],
            extra_json_schema={
                **_ANSWERABLE,
                "contains": {"anyOf": [_ASKED, _last(role={"const": "tool"}, content=_SPOKEN)]},
            },
        ),
    ]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    metadata: Metadata | None = None
    reasoning_effort: str | None = None
    response_format: JsonObject | None = None
    n: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": 1})] | None = None


def decode(raw: bytes, type: type[T]) -> T:
    """The JSON body, checked.

    Raises:
        BadRequest: not JSON, or not of the type; ``param`` names the place.
    """
    try:
        return decode_in_pieces(raw, type) if len(raw) > LARGE else decode_json(raw, type)
    except msgspec.ValidationError as exc:
        message, _, place = str(exc).partition(" - at `$")
        param = place.rstrip("`").removeprefix(".")
        if missing := re.search(r"missing required field `(\w+)`", message):
            param = ".".join(filter(None, [param, missing[1]]))
            code, message = "missing_required_parameter", f"Missing required parameter: '{param}'"
        else:
            code, message = _code(message), f"{message}{f' ({param})' if param else ''}"
        raise BadRequest(f"{message}.", code=code, param=param or None) from exc
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise BadRequest(f"The body must be a JSON object: {exc}.", code="invalid_json") from exc


_CODES = [
    (r"Expected `float` >=", "decimal_below_min_value"),
    (r"Expected `float` <=", "decimal_above_max_value"),
    (r"Expected `int` >=", "integer_below_min_value"),
    (r"Expected `int` <=", "integer_above_max_value"),
    (r"Expected `.*`, got", "invalid_type"),
]
"""What msgspec says of a value, and the code that this API has for it."""


def _code(message: str) -> str:
    return next((code for pattern, code in _CODES if re.match(pattern, message)), "invalid_value")


class Prompt(msgspec.Struct, frozen=True):
    """What a request asks, in the words of Legato.

    Attributes:
        text: what the user wrote last, or what the client's own tools gave.
        earlier: what was said before; without ids.
        metadata: for the agent: the settings, and the ``input`` as it came unless it was text.
    """

    text: str
    earlier: list[MessageCreated]
    metadata: JsonObject


def prompt(body: Create) -> Prompt:
    """What ``body`` asks.

    Raises:
        BadRequest: nothing in it that could be answered, or too many messages.
        InvalidInput: nested too deep.
    """
    given = body.input
    items: list[Item] = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    system, rest = _without_system(items)
    begin = max([place + 1 for place, item in enumerate(rest) if _is_said(item)], default=0)
    text = _present_text(rest[begin:])
    if not text.strip():
        raise BadRequest("input ends with nothing to be answered: no text, no output of a tool.", param="input")
    metadata: JsonObject = msgspec.to_builtins(ResponseSettings(**_settings(body)))
    if system:
        metadata["instructions"] = "\n\n".join([*([body.instructions] if body.instructions else []), *system])
    if not isinstance(given, str):
        metadata["input"] = given
    check_depth("metadata", metadata)
    earlier = _earlier(rest[:begin])
    if len(earlier) > MAX_EARLIER:
        raise BadRequest(
            f"input may have {MAX_EARLIER} messages before what is asked, got {len(earlier)}.", param="input"
        )
    return Prompt(text=text, earlier=earlier, metadata=metadata)


def _settings(body: Create) -> JsonObject:
    values = {name: getattr(body, name) for name in ResponseSettings.__struct_fields__}
    if body.tools is not None:
        values["tools"] = [_flat_tool(tool) for tool in body.tools]
    return values


def _flat_tool(tool: JsonObject) -> JsonObject:
    function = tool.get("function")
    return {"type": "function", **function} if isinstance(function, dict) else tool


def _without_system(items: Iterable[Item]) -> tuple[list[str], list[Item]]:
    system: list[str] = []
    rest: list[Item] = []
    for item in items:
        if item.get("role") in ("system", "developer"):
            system.append(_text(item.get("content")))
        else:
            rest.append(item)
    return system, rest


def _is_said(item: Item) -> bool:
    """Whether an item is of the assistant."""
    return item.get("role") == "assistant" or item.get("type") in ("function_call", "reasoning")


def _is_output(item: Item) -> bool:
    return item.get("type") == "function_call_output"


def _text(content: Any) -> str:
    """The text of a message's content, or of a tool's output: a string, or parts with texts."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _kinds(content: Any) -> list[str]:
    return [str(part.get("type", "input")) for part in content if isinstance(part, dict)] if content else []


def _present_text(items: Sequence[Item]) -> str:
    """The text that is to be answered: the user's; else what tools gave; else a name for what there is instead."""
    asked = [item for item in items if item.get("role") == "user"]
    texts = [text for item in asked if (text := _text(item.get("content")))]
    if not texts:
        texts = [text for item in items if _is_output(item) and (text := _text(item.get("output")))]
    if not texts:
        texts = [
            f"[{kind}]" for item in asked if isinstance(item.get("content"), list) for kind in _kinds(item["content"])
        ]
        texts += ["[function_call_output]" for item in items if _is_output(item)]
    return "\n\n".join(texts)


class _Turn:
    """What the assistant said between two messages of the user, and what came of its calls."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._outputs: dict[str, tuple[int, str]] = {}  # by call, the last one, and how many parts it came after

    def say(self, item: Item) -> None:
        """Add an item of the assistant's."""
        if item.get("type") == "function_call":
            name, arguments = str(item.get("name", "")), str(item.get("arguments", ""))
            self.parts.append(CallPart(1, str(item.get("call_id", "")), name, arguments))
            return
        reasoning = item.get("type") == "reasoning"
        for kind, text in _said(item.get("summary" if reasoning else "content")):
            self.parts.append(ThinkingPart(1, text) if reasoning else kind(1, text))

    def answer(self, item: Item) -> None:
        """Add what came of a call, if it is one of these."""
        if isinstance(id := item.get("call_id"), str):
            self._outputs[id] = len(self.parts), _text(item.get("output"))

    def message(self) -> MessageCreated:
        """All of it as one message."""
        text = "".join(part.text for part in self.parts if isinstance(part, TextPart | RefusalPart))
        parts = [self._answered(place, part) for place, part in enumerate(self.parts)]
        return MessageCreated("", "assistant", text, parts or None)

    def _answered(self, place: int, part: Part) -> Part:
        if isinstance(part, CallPart):
            before, output = self._outputs.get(part.id, (0, ""))
            if place < before:
                return msgspec.structs.replace(part, output=output, success=True)
        return part


def _earlier(items: Iterable[Item]) -> list[MessageCreated]:
    """What was said before, as messages: neighbouring items of the assistant are one."""
    said: list[MessageCreated | _Turn] = []
    for item in items:
        last = said[-1] if said else None
        if _is_output(item):
            if isinstance(last, _Turn):
                last.answer(item)
        elif _is_said(item):
            if not isinstance(last, _Turn):
                last = _Turn()
                said.append(last)
            last.say(item)
        elif item.get("role") == "user":
            content = item.get("content")
            given = None if isinstance(content, str) else {"input": [item]}
            said.append(MessageCreated("", "user", _text(content), metadata=given))
    return [each.message() if isinstance(each, _Turn) else each for each in said]


_SAID: dict[str, type[TextPart | RefusalPart]] = {"text": TextPart, "refusal": RefusalPart}


def _said(content: Any) -> Iterator[tuple[type[TextPart | RefusalPart], str]]:
    """What the assistant said, as kinds of parts with their texts; neighbours of one kind are one."""
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    said = [
        (kind, part[field])
        for part in parts
        if isinstance(part, dict)
        for field, kind in _SAID.items()
        if isinstance(part.get(field), str)
    ]
    for kind, group in groupby(said, key=lambda each: each[0]):
        if text := "".join(text for _, text in group):
            yield kind, text


def from_chat(body: CreateChat) -> Create:
    """A chat request as a request for a response."""
    return Create(
        model=body.model,
        input=[item for message in body.messages for item in _chat_items(message)],
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        max_output_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        metadata=body.metadata,
        reasoning=None if body.reasoning_effort is None else {"effort": body.reasoning_effort},
        text=None if body.response_format is None else {"format": _flat_format(body.response_format)},
    )


def _flat_format(given: JsonObject) -> JsonObject:
    """The form of an answer as the Responses API has it: the schema's fields are not nested."""
    schema = given.get("json_schema")
    return {"type": "json_schema", **schema} if isinstance(schema, dict) else given


def _chat_items(message: Item) -> list[Item]:
    if message.get("role") == "tool":
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id", ""),
                 "output": _text(message.get("content"))}]  # fmt: skip
    items: list[Item] = []
    content = message.get("content")
    if content or not (message.get("tool_calls") or message.get("refusal")):
        items.append({"type": "message", "role": message.get("role", "user"), "content": content or ""})
    if message.get("refusal") and message.get("role") == "assistant":
        refusal = {"type": "refusal", "refusal": message["refusal"]}
        items.append({"type": "message", "role": "assistant", "content": [refusal]})
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            items.append({"type": "function_call", "call_id": call.get("id", ""), "name": function.get("name", ""),
                          "arguments": function.get("arguments", "")})  # fmt: skip
    return items


# Requests to facts ----------------------------------------------------------------------------------------------------


def created(asked: Prompt, agent: str) -> SessionCreated:
    """What begins a session for a response that continues none."""
    title = asked.text.strip().partition("\n")[0][:80]
    return SessionCreated(title, agent)


# Answers --------------------------------------------------------------------------------------------------------------


def input_items(run: str, asked: MessageCreated) -> list[Item]:
    """The items of a request, each with an id."""
    given = (asked.metadata or {}).get("input")
    if not isinstance(given, list):
        given = [{"type": "message", "role": "user", "content": asked.text}]
    return [{"id": f"in_{run}_{place}", "status": "completed", **_whole_item(item)} for place, item in enumerate(given)]


def _whole_item(item: Item) -> Item:
    content = item.get("content")
    whole = {"type": "message", **item} if "role" in item else dict(item)
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        whole["content"] = [{"type": kind, "text": content}]
    return whole


def page(items: list[Item], *, limit: int, order: str, after: str | None) -> JsonObject:
    """One page of ``items``, which are oldest first.

    Raises:
        BadRequest: ``order`` is neither ``asc`` nor ``desc``, or there is no item ``after``.
    """
    if order not in ("asc", "desc"):
        raise BadRequest(f"order is 'asc' or 'desc', got {order[:60]!r}.", param="order")
    if order == "desc":
        items = items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise BadRequest(f"There is no item {after[:200]!r}.", param="after")
        items = items[places[0] + 1 :]
    shown = items[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > len(shown),
    }


def model(name: str) -> JsonObject:
    """An agent as the list of models shows it. Agents have no date, so ``created`` is 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "legato"}
