"""The bodies of the Responses dialect: requests in, answers out, errors in the shape that its SDKs know.

``responses`` has the stream. Input comes as text, as items, or as Chat Completions messages and parts inside items, as
some clients send them; all become one user's text, what was said before it, and the items as they came.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, TypeVar

import msgspec

from ..errors import Conflict, InvalidInput, LegatoError, NotFound, QueueFull
from ..event import MessageCreated, SessionCreated
from ..items import (
    GIVEN_PARTS,
    KNOWN,
    OUTPUTS,
    SAID_PARTS,
    SYSTEM,
    Item,
    arguments_of,
    id_of,
    is_bare,
    is_call,
    is_output,
    is_reference,
    is_said,
    is_system,
    leading,
    output_of,
    present,
    spelled_out,
    text_of,
)
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


_ASKED = _last(role={"enum": ["user", *SYSTEM]}, content=_SPOKEN)
_ASKED["properties"]["type"] = {"const": "message"}
_ANSWERABLE: JsonObject = {
    "description": "The last of them that is not the assistant's is what is answered: a user's message, the output of "
    "a tool, or instructions. What the assistant says behind it begins the answer.",
}
"""For the document, of items."""


def _content(parts: Sequence[str]) -> JsonObject:
    part = {"type": "object", "properties": {"type": {"enum": list(parts)}}, "required": ["type"]}
    return {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": part}]}


_GIVEN = {"anyOf": [_WORDS, {**_content(GIVEN_PARTS)["anyOf"][1], "minItems": 1}]}
_INSTRUCTIONS = {"allOf": [_content(GIVEN_PARTS), _SPOKEN]}
_MESSAGES: list[JsonObject] = [
    {"properties": {"role": {"const": "assistant"}, "content": _content(SAID_PARTS)}, "required": ["role"]},
    {"properties": {"role": {"const": "user"}, "content": _GIVEN}, "required": ["role", "content"]},
    {"properties": {"role": {"enum": list(SYSTEM)}, "content": _INSTRUCTIONS}, "required": ["role", "content"]},
]
_NO_ROLE: JsonObject = {"not": {"required": ["role"]}}
_OTHERS = [kind for kind in KNOWN if kind != "message" and kind not in OUTPUTS]
_KNOWN_ITEM: JsonObject = {
    "description": "A message, or another item. An `item_reference` stands for one that is kept, by its `id`.",
    "anyOf": [
        *({**each, "properties": {**each["properties"], "type": {"enum": ["message", None]}}} for each in _MESSAGES),
        {**_NO_ROLE, "properties": {"type": {"enum": _OTHERS}}, "required": ["type"]},
        {
            **_NO_ROLE,
            "properties": {"type": {"enum": list(OUTPUTS)}, "output": _content(GIVEN_PARTS)},
            "required": ["type"],
        },
    ],
}
_KNOWN_MESSAGE: JsonObject = {
    "anyOf": [
        *_MESSAGES,
        {"properties": {"role": {"enum": ["tool", "function"]}, "content": _content(GIVEN_PARTS)},
         "required": ["role"]},
    ],
    "properties": {
        "audio": {"type": "null"},
        "tool_calls": {"items": {"type": "object", "properties": {"type": {"enum": ["function", "custom"]}}}},
    },
}  # fmt: skip
_ANSWERABLE_ITEMS: JsonObject = {
    **_ANSWERABLE,
    "minItems": 1,  # none are taken, too, if there are `instructions`
    "contains": {"anyOf": [_ASKED, _last(type={"enum": list(OUTPUTS)}, output=_SPOKEN)]},
}
_ANSWERABLE_MESSAGES: JsonObject = {
    **_ANSWERABLE,
    "minItems": 1,
    "contains": {"anyOf": [_ASKED, _last(role={"enum": ["tool", "function"]}, content=_SPOKEN)]},
}


Stop = str | Annotated[list[str], msgspec.Meta(max_length=16)]
_REFUSED = Annotated[Any, msgspec.Meta(extra_json_schema={"type": "null"})]
"""What cannot be had here."""
_Texts = list[Annotated[str, msgspec.Meta(extra_json_schema={"const": "text"})]]
_False = Annotated[bool, msgspec.Meta(extra_json_schema={"const": False})]


class FurtherSettings(ResponseSettings, kw_only=True, omit_defaults=True):
    """What the response does not say again, but the agent finds beside the rest."""

    stop: Stop | None = None
    seed: int | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = None
    prediction: JsonObject | None = None
    web_search_options: JsonObject | None = None
    prompt_cache_retention: str | None = None


class Create(FurtherSettings, kw_only=True):
    """A request for a response. Fields that are not named here are ignored.

    Attributes:
        model: the agent; the session's, or the default one, if it is not given.
        input: what to answer.
        conversation: the session to answer in.
    """

    model: str | None = None
    input: (
        Annotated[str, msgspec.Meta(extra_json_schema=SPOKEN)]
        | Annotated[
            list[Annotated[Item, msgspec.Meta(extra_json_schema=_KNOWN_ITEM)]],
            msgspec.Meta(extra_json_schema=_ANSWERABLE_ITEMS),
        ]
    )
    metadata: Metadata | None = None
    stream: bool | None = None
    conversation: str | JsonObject | None = None
    include: list[str] | None = None
    prompt: _REFUSED = None


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
        list[Annotated[Item, msgspec.Meta(extra_json_schema=_KNOWN_MESSAGE)]],
        msgspec.Meta(
            examples=[[{"role": "user", "content": "Hello"}]],
            extra_json_schema=_ANSWERABLE_MESSAGES,
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
    store: bool | None = None
    stop: Stop | None = None
    seed: int | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = None
    prediction: JsonObject | None = None
    web_search_options: JsonObject | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    logprobs: _False | None = None
    top_logprobs: Annotated[int, msgspec.Meta(extra_json_schema={"const": 0})] | None = None
    modalities: _Texts | None = None
    audio: _REFUSED = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None
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
        message, _, place = str(exc).replace("at `key` in `$", "at `$").partition(" - at `$")
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
    (r"Expected `array` of length <=", "array_above_max_length"),
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


def prompt(body: Create, field: str = "input") -> Prompt:
    """What ``body`` asks, whose items came in ``field``.

    Raises:
        BadRequest: nothing in it that could be answered, or too many messages.
        InvalidInput: nested too deep.
    """
    given = body.input
    items: list[Item] = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    begun = leading(items)
    system = [text for item in items[:begun] if (text := text_of(item.get("content")))]
    instructions = "\n\n".join([*([body.instructions] if body.instructions else []), *system])
    rest = items[begun:]
    begin = present(rest)
    text = _present_text(rest[begin:])
    if not text.strip() and (system or not rest):
        text = instructions
    if not text.strip():
        raise BadRequest(f"{field} ends with nothing to be answered: no text, no output of a tool.", param=field)
    metadata: JsonObject = msgspec.to_builtins(FurtherSettings(**_settings(body)))
    if system:
        metadata["instructions"] = instructions
    if not isinstance(given, str):
        metadata["input"] = given
    check_depth("metadata", metadata)
    said = earlier(rest[:begin])
    if len(said) > MAX_EARLIER:
        raise BadRequest(f"{field} may have {MAX_EARLIER} messages before what is asked, got {len(said)}.", param=field)
    return Prompt(text=text, earlier=said, metadata=metadata)


def _settings(body: Create) -> JsonObject:
    values = {name: getattr(body, name) for name in FurtherSettings.__struct_fields__}
    if body.tools is not None:
        values["tools"] = [_flat_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        values["tool_choice"] = flat_choice(body.tool_choice)
    return values


def flat_choice(choice: str | JsonObject) -> str | JsonObject:
    """Which tools are to be called, as the Responses API has it: what Chat Completions nest is not nested."""
    if isinstance(choice, str):
        return "required" if choice == "any" else choice
    kind = choice.get("type")
    if kind in ("auto", "none", "any", "required"):
        return "required" if kind == "any" else str(kind)
    inner = choice.get(kind) if isinstance(kind, str) else None
    flat = {"type": kind, **inner} if isinstance(inner, dict) else choice
    if kind == "allowed_tools" and isinstance(tools := flat.get("tools"), list):
        return {**flat, "tools": [_flat_tool(tool) for tool in tools if isinstance(tool, dict)]}
    return {**flat, "type": "function"} if kind == "tool" else flat


def _flat_tool(tool: JsonObject) -> JsonObject:
    function = tool.get("function")
    if isinstance(function, dict):
        return {"type": "function", **function}
    return tool if "type" in tool or "name" not in tool else {"type": "function", **tool}


def _kinds(content: Any) -> list[str]:
    return [str(part.get("type", "input")) for part in content if isinstance(part, dict)] if content else []


def _present_text(items: Sequence[Item]) -> str:
    """The text that is to be answered: the user's; else what tools gave, or who instructs says; else a name for what
    there is instead."""
    asked = [item for item in items if item.get("role") == "user"]
    texts = [text for item in asked if (text := text_of(item.get("content"))).strip()]
    if not texts:
        texts = [text for item in items if is_output(item) and (text := text_of(item.get("output"))).strip()]
    if not texts:
        texts = [
            f"[{kind}]" for item in asked if isinstance(item.get("content"), list) for kind in _kinds(item["content"])
        ]
        texts += ["[function_call_output]" for item in items if is_output(item)]
    if not texts:
        texts = [text for item in items if is_system(item) and (text := text_of(item.get("content")))]
    return "\n\n".join(texts)


class _Turn:
    """A message of the assistant: what it said between two messages of the user, in one step or in several."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.step = 1
        self._answered = False  # something has come of the calls of this step
        self._thoughts: list[str] = []  # which belong to what is said next

    def goes_on(self, item: Item) -> bool:
        """Whether ``item`` belongs to this message: two messages without a call between them are two."""
        return not (item.get("role") == "assistant" and self.parts and self._is_plain())

    def _is_plain(self) -> bool:
        return not any(isinstance(part, CallPart) and part.step == self.step for part in self.parts)

    def say(self, item: Item) -> CallPart | None:
        """Add an item of the assistant's; the call, if it is one."""
        call = is_call(item)
        if item.get("type") == "reasoning":
            self._thoughts += [text for _, text in _said(item.get("summary") or item.get("content"))]
            return None
        if not call and item.get("role") != "assistant":
            return None
        if self.parts and (self._answered or not (call or self._is_plain())):
            self.step, self._answered = self.step + 1, False
        self._think()
        if not call:
            self.parts += [kind(self.step, text) for kind, text in _said(item.get("content"))]
            return None
        by = item.get("by")
        made = CallPart(
            self.step,
            id_of(item),
            str(item.get("name") or ""),
            arguments_of(item),
            by=by if isinstance(by, str) else None,
        )
        self.parts.append(made)
        return made

    def _think(self) -> None:
        self.parts += [ThinkingPart(self.step, text) for text in self._thoughts]
        self._thoughts.clear()

    def answer(self, place: int, output: Any, *, success: bool) -> None:
        """Add what came of the call at ``place``."""
        call = self.parts[place]
        assert isinstance(call, CallPart)
        self.parts[place] = msgspec.structs.replace(call, output=output, success=success)
        self._answered = self._answered or call.step == self.step

    def message(self) -> MessageCreated:
        """All of it as one message."""
        self._think()
        last = [part for part in self.parts if isinstance(part, TextPart | RefusalPart)]
        text = "".join(part.text for part in last if part.step == last[-1].step)
        return MessageCreated("", "assistant", text, self.parts or None)


class _Calls:
    """The calls of one id in one step: those of which nothing has come, and that of which something came last."""

    def __init__(self, turn: _Turn, step: int) -> None:
        self.turn, self.step, self.last = turn, step, 0
        self.open: deque[int] = deque()


def earlier(items: Iterable[Item]) -> list[MessageCreated]:
    """What was said before, as messages without ids."""
    return _Earlier(spelled_out(items)).messages()


class _Earlier:
    """What was said before, as messages, in the order in which it stands there.

    What came of a call stands with the call, also where something else came in between.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._messages: list[MessageCreated | _Turn] = []
        self._open: dict[str, list[_Calls]] = {}  # by id, those of each step
        self._answered: dict[str, _Calls] = {}  # by id: of which something came last
        self._held: list[Item] = []  # instructions that stand before what comes next
        for item in items:
            if is_output(item):
                self._answer(item)
            elif is_said(item):
                self._say(item)
            elif is_system(item):
                self._held.append(item)
            elif item.get("role") == "user":
                self._ask(item)

    def messages(self) -> list[MessageCreated]:
        """All of them, without ids."""
        return [each.message() if isinstance(each, _Turn) else each for each in self._messages]

    def _ask(self, *items: Item) -> None:
        given, self._held = [*self._held, *items], []
        text = "\n\n".join(text for item in items if (text := text_of(item.get("content", item.get("output")))))
        plain = len(given) == 1 and given[0].get("role") == "user" and isinstance(given[0].get("content"), str)
        self._messages.append(MessageCreated("", "user", text, metadata=None if plain else {"input": given}))

    def _say(self, item: Item) -> None:
        if self._held:
            self._ask()
        last = self._messages[-1] if self._messages else None
        if not isinstance(last, _Turn) or not last.goes_on(item):
            last = _Turn()
            self._messages.append(last)
        if (call := last.say(item)) is not None:
            steps = self._open.setdefault(call.id, [])
            if not steps or (steps[-1].turn, steps[-1].step) != (last, call.step):
                steps.append(_Calls(last, call.step))
            steps[-1].open.append(len(last.parts) - 1)

    def _answer(self, item: Item) -> None:
        # Some count their calls anew in each step: it is of the newest, and there of the first that is open.
        id = id_of(item)
        if steps := self._open.get(id):
            calls = self._answered[id] = steps[-1]
            calls.last = calls.open.popleft()
            if not calls.open:
                steps.pop()
        elif id not in self._answered:
            self._ask(item)  # of a call that nobody knows: its words are said all the same
            return
        calls = self._answered[id]  # one that is repeated counts
        calls.turn.answer(calls.last, output_of(item), success=item.get("success") is not False)


_SAID_IN: dict[str, type[TextPart | RefusalPart]] = {"text": TextPart, "refusal": RefusalPart}


def _said(content: Any) -> Iterator[tuple[type[TextPart | RefusalPart], str]]:
    """What the assistant said, as kinds of parts with their texts; neighbours of one kind are one."""
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    said = [
        (kind, part[field])
        for part in parts
        if isinstance(part, dict)
        for field, kind in _SAID_IN.items()
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
        tools=body.tools if body.functions is None else [*(body.tools or ()), *body.functions],
        tool_choice=body.tool_choice if body.function_call is None else _old_choice(body.function_call),
        parallel_tool_calls=body.parallel_tool_calls,
        max_output_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        metadata=body.metadata,
        reasoning=None if body.reasoning_effort is None else {"effort": body.reasoning_effort},
        text=_text_settings(body),
        store=body.store,
        stop=body.stop,
        seed=body.seed,
        user=body.user,
        logit_bias=body.logit_bias,
        prediction=body.prediction,
        web_search_options=body.web_search_options,
        service_tier=body.service_tier,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        prompt_cache_retention=body.prompt_cache_retention,
    )


def _text_settings(body: CreateChat) -> JsonObject | None:
    form = {} if body.response_format is None else {"format": _flat_format(body.response_format)}
    words = {} if body.verbosity is None else {"verbosity": body.verbosity}
    return {**form, **words} or None


def _old_choice(choice: str | JsonObject | None) -> str | JsonObject | None:
    return {"type": "function", **choice} if isinstance(choice, dict) else choice


def _flat_format(given: JsonObject) -> JsonObject:
    """The form of an answer as the Responses API has it: the schema's fields are not nested."""
    schema = given.get("json_schema")
    return {"type": "json_schema", **schema} if isinstance(schema, dict) else given


def _chat_items(message: Item) -> list[Item]:
    role = message.get("role", "user")
    if role in ("tool", "function"):
        id = message.get("tool_call_id") if role == "tool" else message.get("name")
        return [
            {
                "type": "function_call_output",
                "call_id": id or "",
                "output": output_of({"output": message.get("content")}),
            }
        ]
    content, items = message.get("content"), []
    calls = _chat_calls(message) if role == "assistant" else []
    if role == "assistant" and message.get("refusal"):
        said = [{"type": "output_text", "text": content}] if isinstance(content, str) and content else content or []
        content = [*(said if isinstance(said, list) else []), {"type": "refusal", "refusal": message["refusal"]}]
    if role == "assistant" and isinstance(thought := message.get("reasoning_content"), str) and thought:
        items.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": thought}]})
    if content or not calls:
        items.append({"type": "message", "role": role, "content": content or ""})
    return items + calls


def _chat_calls(message: Item) -> list[Item]:
    given = message.get("tool_calls")
    calls = [call for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    functions = [(call.get("id"), function) for call in calls if isinstance(function := call.get("function"), dict)]
    if isinstance(old := message.get("function_call"), dict):  # as it was before there could be several
        functions.append((old.get("name"), old))
    custom = [
        {"type": "custom_tool_call", "call_id": call.get("id") or "", "name": tool.get("name", ""),
         "input": tool.get("input")}
        for call in calls if isinstance(tool := call.get("custom"), dict)
    ]  # fmt: skip
    return [
        {"type": "function_call", "call_id": id or "", "name": function.get("name", ""),
         "arguments": function.get("arguments", "")}
        for id, function in functions
    ] + custom  # fmt: skip


# What is known --------------------------------------------------------------------------------------------------------


def check_items(body: Create) -> bool:
    """Check that all of the input is known, and none of it passed over in silence.

    Returns:
        Whether some of it stands for what is kept.

    Raises:
        BadRequest: an item, or a part of one, is of no known type; ``param`` names the place.
    """
    referring = False
    for place, item in enumerate([] if isinstance(body.input, str) else body.input):
        if is_reference(item):
            referring = True
            continue
        referring = referring or is_bare(item)
        check_item(f"input[{place}]", item)
    return referring


def check_item(where: str, item: Item) -> None:
    """The same of one item, which is no reference.

    Raises:
        BadRequest: see ``check_items``.
    """
    kind = item.get("type")
    if kind is None and "role" not in item:
        raise BadRequest(f"{where} has neither a type nor a role.", code="missing_required_parameter",
                         param=f"{where}.type")  # fmt: skip
    if kind not in (None, *KNOWN):
        raise _unknown(f"{where}.type", kind, KNOWN)
    if kind in (None, "message"):
        _check_role(where, item, ("user", "assistant", *SYSTEM))
        _check_content(f"{where}.content", item.get("content"), item["role"])
    elif is_output(item):
        _check_content(f"{where}.output", item.get("output"), "tool")


def check_messages(body: CreateChat) -> None:
    """The same of the messages of a chat.

    Raises:
        BadRequest: see ``check_items``.
    """
    for place, message in enumerate(body.messages):
        where = f"messages[{place}]"
        _check_role(where, message, ("user", "assistant", "tool", "function", *SYSTEM))
        _check_content(f"{where}.content", message.get("content"), message["role"])
        if message.get("audio") is not None:
            raise BadRequest("What was said before is told as text; audio is not kept here.",
                             code="unsupported_parameter", param=f"{where}.audio")  # fmt: skip
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            kind = call.get("type") if isinstance(call, dict) else call
            if kind not in (None, "function", "custom"):
                raise _unknown(f"{where}.tool_calls[{number}].type", kind, ("function", "custom"))


# What is set ----------------------------------------------------------------------------------------------------------

CHAT_NAMES = {
    "max_output_tokens": "max_completion_tokens",
    "reasoning.effort": "reasoning_effort",
    "text.format": "response_format",
    "text.verbosity": "verbosity",
}
"""What a chat calls what a response calls otherwise."""


class UnsupportedParameter(BadRequest):
    """What is asked for cannot be had."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"Unsupported parameter: {name!r}. {why}", code="unsupported_parameter", param=name)


def check_settings(body: Create | CreateChat, own: Collection[str] = ()) -> None:
    """Check that what is set can be had from any agent; values that ask for nothing can.

    Args:
        body: the request.
        own: tools of the agent, which it runs itself.

    Raises:
        UnsupportedParameter: no log and no agent can give it.
        BadRequest: a tool is to be called that nobody has.
    """
    if isinstance(body, CreateChat):
        if body.logprobs or body.top_logprobs:
            name = "logprobs" if body.logprobs else "top_logprobs"
            raise UnsupportedParameter(name, "No probabilities are kept of what is said.")
        if body.audio is not None or set(body.modalities or ()) - {"text"}:
            name = "audio" if body.audio is not None else "modalities"
            raise UnsupportedParameter(name, "Answers are text.")
        tools = [*(body.tools or ()), *(body.functions or ())]
        choice = body.tool_choice if body.function_call is None else _old_choice(body.function_call)
        _check_choice("tool_choice" if body.function_call is None else "function_call", choice, tools, own)
        return
    if body.prompt is not None:
        raise UnsupportedParameter("prompt", "No templates are kept here.")
    if "message.output_text.logprobs" in (body.include or ()):
        raise UnsupportedParameter("include", "No probabilities are kept of what is said.")
    _check_choice("tool_choice", body.tool_choice, body.tools or [], own)


def _check_choice(
    where: str, choice: str | JsonObject | None, given: Sequence[JsonObject], own: Collection[str]
) -> None:
    tools = [_flat_tool(tool) for tool in given]
    for place, tool in enumerate(tools):
        if tool.get("type") == "custom":
            raise UnsupportedParameter(f"tools[{place}].type", "A call of a custom tool has no form here.")
    if choice is None:
        return
    flat = flat_choice(choice)
    if isinstance(flat, str):
        if flat not in _CHOICES:
            raise _unknown(where, choice, _CHOICES)
        return
    wanted = [flat]
    if flat.get("type") == "allowed_tools":
        if flat.get("mode") not in ("auto", "required"):
            raise _unknown(f"{where}.mode", flat.get("mode"), ("auto", "required"))
        if not isinstance(flat.get("tools"), list):
            raise BadRequest(f"{where}.tools is a list of tools.", code="invalid_type", param=where)
        wanted = flat["tools"]
    names = {*own, *(tool["name"] for tool in tools if isinstance(tool.get("name"), str))}
    kinds = [tool.get("type") for tool in tools]
    for each in wanted:
        name, kind = each.get("name"), each.get("type")
        found = (
            name in names
            if kind in ("function", "custom") and isinstance(name, str)
            else kind in kinds and kind != "function"
        )
        if not found:
            said = name if isinstance(name, str) else kind
            raise BadRequest(f"Tool choice {said!r:.200} not found in 'tools' parameter.", param=where)


_CHOICES = ("none", "auto", "required")


def _check_role(where: str, item: Item, roles: tuple[str, ...]) -> None:
    if "role" not in item:
        raise BadRequest(f"Missing required parameter: '{where}.role'.", code="missing_required_parameter",
                         param=f"{where}.role")  # fmt: skip
    if item["role"] not in roles:
        raise _unknown(f"{where}.role", item["role"], roles)


def _check_content(where: str, content: Any, role: str) -> None:
    known = SAID_PARTS if role == "assistant" else GIVEN_PARTS
    if content is not None and not isinstance(content, str | list):
        raise BadRequest(f"{where} is text or a list of parts.", code="invalid_type", param=where)
    for place, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            raise BadRequest(f"{where}[{place}] is an object with a type.", code="invalid_type",
                             param=f"{where}[{place}]")  # fmt: skip
        bare = part.get("type") is None and isinstance(part.get("text", part.get("refusal")), str)
        if not (bare or part.get("type") in known):
            raise _unknown(f"{where}[{place}].type", part.get("type"), known)


def _unknown(where: str, given: object, known: Sequence[str]) -> BadRequest:
    return BadRequest(f"Invalid value: {given!r:.100}. Supported values of {where} are: {', '.join(known)}.",
                      param=where)  # fmt: skip


# Requests to facts ----------------------------------------------------------------------------------------------------


def created(asked: Prompt, agent: str) -> SessionCreated:
    """What begins a session for a response that continues none."""
    title = asked.text.strip().partition("\n")[0][:80]
    return SessionCreated(title, agent)


# Answers --------------------------------------------------------------------------------------------------------------


_ITEM_ID = re.compile(r"[a-z]{1,9}_(.{1,250})_[0-9]{1,9}", re.ASCII)


def owner_of_item(id: str) -> str | None:
    """The run of the item of this id, or its message if that is no run's; None if no item can have it."""
    match = _ITEM_ID.fullmatch(id)
    return match[1] if match else None


def input_items(run: str, asked: MessageCreated) -> list[Item]:
    """The items of a request, each with an id."""
    given = (asked.metadata or {}).get("input")
    if not isinstance(given, list):
        given = [{"type": "message", "role": "user", "content": asked.text}]
    return [{"id": f"in_{run}_{place}", **whole_item(item)} for place, item in enumerate(given)]


def asked_items(run: str, asked: MessageCreated) -> list[Item]:
    """Those of ``input_items`` that were asked, without what was said before, which is messages of its own."""
    items = input_items(run, asked)
    return items[present(items) :]


def whole_item(item: Item) -> Item:
    """An item as it is shown, but for its id."""
    content = item.get("content")
    whole = {"status": "completed", **item, **({"type": item.get("type") or "message"} if "role" in item else {})}
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        whole["content"] = content = [{"type": kind, "text": content}]
    if isinstance(content, list):
        whole["content"] = [
            {**_OUTPUT_TEXT, **part} if isinstance(part, dict) and part.get("type") == "output_text" else part
            for part in content
        ]
    return whole


_OUTPUT_TEXT: JsonObject = {"annotations": [], "logprobs": []}
"""Fields that such a part has to have."""


def page(items: list[Item], *, limit: int, order: str, after: str | None) -> JsonObject:
    """One page of ``items``, which are oldest first.

    Raises:
        BadRequest: ``order`` is neither ``asc`` nor ``desc``, or there is no item ``after``.
    """
    check_order(order)
    if order == "desc":
        items = items[::-1]
    if after is not None:
        items = behind(items, after)
    return item_list(items[:limit], more=len(items) > limit)


def check_order(order: str) -> None:
    """Raise ``BadRequest`` if ``order`` is neither ``asc`` nor ``desc``."""
    if order not in ("asc", "desc"):
        raise BadRequest(f"order is 'asc' or 'desc', got {order[:60]!r}.", param="order")


def behind(items: list[Item], after: str) -> list[Item]:
    """The items that come after one.

    Raises:
        BadRequest: there is none of that id.
    """
    places = [place for place, item in enumerate(items) if item["id"] == after]
    if not places:
        raise BadRequest(f"There is no item {after[:200]!r}.", param="after")
    return items[places[0] + 1 :]


def item_list(shown: list[Item], *, more: bool) -> JsonObject:
    """A page of items as it is told."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }


_STRICT = re.compile(r"(?<![\w./-])(ai/[0-5]|ai-sdk/(openai|azure)/[0-2])\.", re.ASCII)
"""In the ``User-Agent`` of who fails at a whole response with a type of item that is new to it: the AI SDK up to 5."""


def bare(response: JsonObject, agent: str) -> JsonObject:
    """A response as this user agent can read it: without calls that are not its own, if it knows no such item."""
    if _STRICT.search(agent) is None:
        return response
    return {**response, "output": [item for item in response["output"] if item["type"] != "mcp_call"]}


def model(name: str) -> JsonObject:
    """An agent as the list of models shows it. Agents have no date, so ``created`` is 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "legato"}
