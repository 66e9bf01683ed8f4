"""The bodies of the Responses dialect: requests in, answers out, errors in the shape that its SDKs know.

``responses`` has the stream. Input comes as text, as items, or as Chat Completions messages and parts inside items, as
some clients send them; all become one user's text, what was said before it, and the items as they came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    is_output,
    is_system,
    leading,
    output_of,
    present,
    text_of,
)
from ..json import LARGE, JsonObject, decode_in_pieces
from ..part import check_depth
from .common import SPOKEN, decode_json
from .earlier import earlier
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
        values["tools"] = [flat_tool(tool) for tool in body.tools]
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
        return {**flat, "tools": [flat_tool(tool) for tool in tools if isinstance(tool, dict)]}
    return {**flat, "type": "function"} if kind == "tool" else flat


def flat_tool(tool: JsonObject) -> JsonObject:
    """The same of a tool."""
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


def from_chat(body: CreateChat) -> Create:
    """A chat request as a request for a response."""
    return Create(
        model=body.model,
        input=[item for message in body.messages for item in _chat_items(message)],
        tools=body.tools if body.functions is None else [*(body.tools or ()), *body.functions],
        tool_choice=body.tool_choice if body.function_call is None else old_choice(body.function_call),
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


def old_choice(choice: str | JsonObject | None) -> str | JsonObject | None:
    """Which function is to be called, as it was said before there were tools."""
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


# Requests to facts ----------------------------------------------------------------------------------------------------


def created(asked: Prompt, agent: str) -> SessionCreated:
    """What begins a session for a response that continues none."""
    title = asked.text.strip().partition("\n")[0][:80]
    return SessionCreated(title, agent)


# Answers --------------------------------------------------------------------------------------------------------------


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
