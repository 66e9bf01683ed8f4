"""pydantic-ai: its agents as agents of Legato, its stream of events as Legato's.

    from pydantic_ai import Agent
    from legato.agents.pydantic_ai import adapt

    agent = adapt(Agent("openai:gpt-5"))

``adapt`` is the whole way. ``translate`` is for an agent of your own that calls ``run_stream_events`` itself; it looks
at what events are called, not at their classes, so it needs no import and bears other versions.

Tools that need approval (``requires_approval``, ``ApprovalRequired``) ask the user by ``turn.ask_permission``, within
the same run of pydantic-ai: ``DeferredToolRequests`` need not be among the agent's output types.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..agent import Agent, OnCrash, Turn
from ..json import JsonObject
from ..provider.last_pass import NOT_KEPT, Addressee, arranged
from ..yields import Opaque, Text, Thinking, Usage, Yielded
from .framework import (
    Calls,
    Options,
    Wishes,
    adapted,
    ask,
    explained,
    finish,
    json_text,
    jsonable,
    lacks,
    load,
    messages,
    words_of,
)
from .model import Words

EXTRA = "pydantic-ai"

logger = logging.getLogger("legato")


# What is looked at of pydantic-ai's objects. Which of it is there depends on their kind.


class _MessagePart(Protocol):
    part_kind: str
    content: Any
    tool_call_id: str
    tool_name: str
    args: str | JsonObject | None


class _PartDelta(Protocol):
    part_delta_kind: str
    content_delta: str
    args_delta: str | JsonObject | None


class _PartEvent(Protocol):
    index: int
    part: _MessagePart


class _DeltaEvent(Protocol):
    index: int
    delta: _PartDelta


class _CallEvent(Protocol):
    part: _MessagePart


class _ResultEvent(Protocol):
    part: _MessagePart
    result: _MessagePart


class _FinalEvent(Protocol):
    tool_name: str | None


class _TokenCounts(Protocol):
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int


class _LastResponse(Protocol):
    model_name: str | None
    finish_reason: str | None


class _RunResult(Protocol):
    output: object
    usage: Any  # a property, or once a method
    response: _LastResponse


class _EndEvent(Protocol):
    result: _RunResult


class _Approvals(Protocol):
    approvals: Mapping[str, object]


class _ApprovalEvent(Protocol):
    results: _Approvals


class _AskedCall(Protocol):
    tool_call_id: str
    tool_name: str

    def args_as_dict(self) -> JsonObject: ...


class _Requests(Protocol):
    approvals: Sequence[_AskedCall]

    def build_results(self, *, approvals: Mapping[str, bool]) -> object: ...


class _RequestEvent(Protocol):
    event_kind: str
    requests: _Requests


class _StreamingAgent(Protocol):
    def run_stream_events(
        self, prompt: object, **options: object
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterable[_RequestEvent]]: ...


def adapt(
    agent: Any,
    *,
    name: str | None = None,
    on_crash: OnCrash = "fail",
    description: str | None = None,
    options: Options | None = None,
    heeds: Collection[str] = (),
) -> Agent:
    """An agent of Legato that lets a pydantic-ai agent answer.

    Args:
        agent: a ``pydantic_ai.Agent``, or anything with its ``run_stream_events``.
        name: of the agent; pydantic-ai's own name for it by default, else ``"agent"``.
        on_crash: ``"fail"`` or ``"retry"``; a further attempt goes on after the last tools that gave a result.
        description: one sentence for people.
        options: further arguments of ``run_stream_events`` for a turn, such as ``{"deps": ...}``. Its
            ``model_settings`` count before what the sender of a message sets.
        heeds: names of what a sender sets (``"temperature"``, ``"stop"`` ...) that ``options`` sees to; else they are
            told to the model, or refused.

    Raises:
        ImportError: pydantic-ai is not installed, or too old.
        InvalidInput: ``on_crash`` is ``"resume"``.
    """
    # Now rather than at the first question. Without this event, a question would wait for ever.
    if not hasattr(load("pydantic_ai.messages", EXTRA), "DeferredToolRequestsEvent"):
        raise ImportError(f"This pydantic-ai is too old for the adapter: pip install -U 'legato[{EXTRA}]'")

    async def answer(turn: Turn) -> AsyncGenerator[Yielded, None]:
        with explained(turn.run):
            given = dict(options(turn)) if options else {}
            async with contextlib.aclosing(_answer(agent, turn, given, heeds)) as items:
                async for item in items:
                    yield item

    def lack(metadata: JsonObject) -> tuple[str, str] | None:
        formed = getattr(agent, "output_type", str) is not str
        return lacks(_words(agent, {}), metadata, heeds, _tools(agent), formed)

    found = getattr(agent, "name", None)
    return adapted(
        answer,
        name=name,
        on_crash=on_crash,
        description=description,
        found=found,
        tools=lambda: _tools(agent).keys(),
        lacks=lack,
    )


async def translate(events: AsyncIterable[object]) -> AsyncGenerator[Yielded, None]:
    """Legato's events for those of ``run_stream_events``, or of an ``event_stream_handler``.

    A call's beginning, its arguments as they stream, and its result are told; of events that mean nothing to a reader,
    nothing is. Nothing is closed here: leave the block in which ``events`` was opened.
    """
    translator = _PydanticTranslator()
    async for event in events:
        for item in translator.take(event):
            yield item


async def _answer(
    agent: _StreamingAgent, turn: Turn, options: dict[str, Any], heeds: Collection[str]
) -> AsyncGenerator[Yielded, None]:
    model = _model(agent, options)
    conversation = messages(turn, model.owner if model else "")
    # Not among the messages, where a system prompt would take the place of the agent's own.
    options["instructions"] = [
        *_listed(options.get("instructions")),
        *(message["content"] for message in conversation if message["role"] == "system"),
    ]
    conversation = [message for message in conversation if message["role"] != "system"]
    # The prompt is given apart, so that tools find it where they look; after finished steps there is none to give.
    last = conversation[-1]["role"] if conversation else ""
    prompt = _content(conversation.pop()["content"]) if last == "user" else None
    history = _history(conversation, model)
    wishes = Wishes.of(_words(agent, options), turn.message.metadata, heeds)
    _set(options, wishes, first=turn.attempt == 1 or last != "tool")
    told_of: set[str] = set()
    told = asyncio.Event()

    async def approve(context: object, requests: _Requests) -> object:
        # What was said before the question may still be on its way through the stream: the question comes after it.
        while not told_of.issuperset(call.tool_call_id for call in requests.approvals):
            told.clear()
            await told.wait()
        calls = requests.approvals
        granted = {call.tool_call_id: await ask(turn, call.tool_name, call.args_as_dict()) for call in calls}
        return requests.build_results(approvals=granted) if granted else None

    options["capabilities"] = [*options.get("capabilities", ()), *_capabilities(approve)]
    options["message_history"] = [*options.get("message_history", ()), *history]
    translator = _PydanticTranslator(_asking(agent), model.owner if model else "")
    async with agent.run_stream_events(prompt, **options) as events:
        async for event in events:
            for item in translator.take(event):
                yield item
            if event.event_kind == "deferred_tool_requests":
                told_of |= {call.tool_call_id for call in event.requests.approvals}
                told.set()


def _capabilities(approve: Callable[[object, _Requests], Awaitable[object]]) -> list[object]:
    capabilities = load("pydantic_ai.capabilities", EXTRA)
    # An agent's system prompt is otherwise left out as soon as there is a history.
    return [capabilities.ReinjectSystemPrompt(), capabilities.HandleDeferredToolCalls(handler=approve)]


def _set(options: dict[str, Any], wishes: Wishes, first: bool) -> None:
    """Have the run heed the wishes, as far as the options do not say otherwise.

    Args:
        first: whether no earlier attempt has got a tool to do something: only then must the model call one.
    """
    settings: dict[str, Any] = {**wishes.named, **({"extra_body": wishes.body} if wishes.body else {})}
    choice: dict[str, Any] = {}
    if wishes.among is not None and not wishes.forces:
        settings["tool_choice"] = load("pydantic_ai.settings", EXTRA, "ToolOrOutput").ToolOrOutput(wishes.among)
    elif wishes.choice == "none":
        settings["tool_choice"] = "none"
    elif wishes.forces and first:
        choice = {"tool_choice": "required" if wishes.among is None else wishes.among}
    if not settings and not choice:
        return
    given = options.get("model_settings")

    def model_settings(context: Any) -> dict[str, Any]:
        own = {**settings, **(choice if context.run_step <= 1 else {})}
        theirs = (given(context) if callable(given) else given) or {}
        before = context.model_settings or {}  # the agent's
        bodies = [each.get("extra_body") for each in (before, own, theirs)]
        body = {name: value for each in bodies if isinstance(each, Mapping) for name, value in each.items()}
        return {**own, **theirs, **({"extra_body": body} if body else {})}

    options["model_settings"] = model_settings


def _tools(agent: object) -> dict[str, object]:
    """The agent's tools, as far as they are known before it runs."""
    named = (getattr(toolset, "tools", None) for toolset in getattr(agent, "toolsets", ()))
    return {name: tool for tools in named if isinstance(tools, Mapping) for name, tool in tools.items()}


def _asking(agent: object) -> frozenset[str]:
    """The tools that are known to ask before they begin."""
    return frozenset(name for name, tool in _tools(agent).items() if getattr(tool, "requires_approval", False))


def _asked(agent: object, options: Mapping[str, object]) -> Any:
    """The model that is asked, or None.

    Raises:
        Exception: whatever pydantic-ai says of a name for it.
    """
    model: Any = options.get("model") or getattr(agent, "model", None)
    return load("pydantic_ai.models", EXTRA).infer_model(model) if isinstance(model, str) else model


def _words(agent: object, options: Mapping[str, object]) -> Words:
    try:
        return words_of(_asked(agent, options))
    except Exception as exc:  # pydantic-ai will say what is wrong with it
        logger.debug("what the model calls its settings is not known: %s", exc)
    return "framework"


def _model(agent: object, options: Mapping[str, object]) -> Addressee | None:
    """The model that is asked, as far as pydantic-ai says; it decides whose what is opaque is."""
    try:
        model = _asked(agent, options)
        if model is not None and isinstance(system := model.system, str) and system:
            return Addressee(system, str(model.base_url or ""), str(model.model_name))
    except Exception as exc:  # pydantic-ai will say what is wrong with it
        logger.debug("what the model's provider wants back is not kept: %s", exc)
    return None


_KEPT = ("id", "signature", "provider_name", "provider_details")
"""Fields of pydantic-ai's parts that their provider wants back."""
_WANTED = frozenset(_KEPT) - {"provider_name"}


def _kept(part: object) -> JsonObject:
    return {name: value for name in _KEPT if (value := getattr(part, name, None)) is not None}


def _pieces(response: Sequence[_MessagePart], ids: Mapping[str, str]) -> list[JsonObject]:
    """What the provider wants back of a response, as pieces; see ``provider.last_pass``. None: nothing."""
    pieces: list[JsonObject] = []
    for part in response:
        fields = _kept(part)
        if part.part_kind == "thinking" and fields.keys() & _WANTED:
            pieces.append({"block": {"content": part.content, **fields}})
        elif part.part_kind == "text":
            pieces.append({"text": len(part.content), "fields": fields})
        elif part.part_kind == "tool-call" and part.tool_call_id in ids:
            pieces.append({"call": ids[part.tool_call_id], "fields": fields})
    return pieces if any("block" in piece or piece["fields"].keys() & _WANTED - {"id"} for piece in pieces) else []


def _response(message: JsonObject, model: Addressee | None) -> object:
    """An assistant's message as pydantic-ai has it, with what its provider wants back."""
    parts = load("pydantic_ai.messages", EXTRA)
    made = []
    if model and model.wire == "deepseek" and not message.get("opaque"):  # which refuses what has no thinking
        filler = {"content": NOT_KEPT, "id": "reasoning_content", "provider_name": model.wire}
        made.append(_part_of(parts.ThinkingPart, filler))
    for kind, piece in arranged(message):
        fields = piece.get("fields", {})
        match kind:
            case "block":
                made.append(_part_of(parts.ThinkingPart, piece))
            case "text":
                made.append(_part_of(parts.TextPart, {"content": piece["text"], **fields}))
            case "call":
                called = {"tool_name": piece["name"], "args": msgspec.json.decode(piece["arguments"])}
                made.append(_part_of(parts.ToolCallPart, {**called, "tool_call_id": piece["id"], **fields}))
    known = model if message.get("opaque") else None
    return _part_of(
        parts.ModelResponse,
        {"parts": made, **({"provider_name": known.wire, "provider_url": known.base_url} if known else {})},
    )


def _part_of(kind: Any, fields: JsonObject) -> object:
    """An object of pydantic-ai's with those fields that this version of it has."""
    return kind(**{name: value for name, value in fields.items() if name in kind.__dataclass_fields__})


def _history(conversation: list[JsonObject], model: Addressee | None) -> list[object]:
    parts = load("pydantic_ai.messages", EXTRA)
    names: dict[str, str] = {}
    history: list[object] = []
    for message in conversation:
        content = message["content"]
        if message["role"] == "assistant":
            calls = message.get("tool_calls", ())
            names.update({call["id"]: call["function"]["name"] for call in calls})
            history.append(_response(message, model))
        elif message["role"] == "tool":
            id = message["tool_call_id"]
            history.append(parts.ModelRequest(parts=[parts.ToolReturnPart(names[id], content, id)]))
        else:
            history.append(parts.ModelRequest(parts=[parts.UserPromptPart(_content(content))]))
    return history


def _listed(instructions: object) -> list[object]:
    if instructions is None:
        return []
    return [*instructions] if isinstance(instructions, list | tuple) else [instructions]


def _content(content: str | list[JsonObject]) -> str | list[object]:
    """A user's text, or texts and images."""
    if isinstance(content, str):
        return content
    return [read for part in content if (read := _part(part)) is not None]


def _part(part: JsonObject) -> object:
    if part.get("type") == "text":
        return part["text"]
    if part.get("type") != "image_url":
        return None
    parts, url = load("pydantic_ai.messages", EXTRA), part["image_url"]["url"]
    return parts.BinaryContent.from_data_uri(url) if url.startswith("data:") else parts.ImageUrl(url)


class _PydanticTranslator:
    """From one event to what it means.

    Args:
        asking: tools whose call does not mean yet that they begin.
        owner: of what the model's provider wants back; without one that is not kept.
    """

    def __init__(self, asking: frozenset[str] = frozenset(), owner: str = "") -> None:
        self._asking = asking
        self._owner = owner
        self._response: list[_MessagePart] = []  # the parts of the present response that are whole
        self._calls = Calls()
        self._parts: dict[int, str] = {}  # the call that each part of the present response is
        self._spoken = False  # whether the present response has text
        self._by_tool = False  # whether its output came as the arguments of a tool

    def take(self, event: object) -> list[Yielded]:
        kind = getattr(event, "event_kind", "")
        handler = _HANDLERS.get(kind)
        within = kind in _WITHIN and not (kind == "part_start" and getattr(event, "index", 0) == 0)
        sealed = [] if within else self._sealed()
        return [*sealed, *(handler(self, event) if handler else [])]

    def _sealed(self) -> list[Yielded]:
        """What is wanted back of the response that is whole now."""
        response, self._response = self._response, []
        pieces = _pieces(response, self._calls.ids) if self._owner else []
        return [Opaque(self._owner, jsonable(pieces))] if pieces else []

    def _part_start(self, event: _PartEvent) -> list[Yielded]:
        part = event.part
        if event.index == 0:
            self._spoken = self._by_tool = False
        if part.part_kind == "text":
            return self._text(part.content)
        if part.part_kind == "thinking":
            return [Thinking(part.content)] if part.content else []
        if part.part_kind == "builtin-tool-return":
            return self._returned(part)
        if part.part_kind not in ("tool-call", "builtin-tool-call"):
            return []
        self._parts[event.index] = part.tool_call_id
        hosted = part.part_kind == "builtin-tool-call"
        begun = self._calls.begin(part.tool_call_id, part.tool_name, "provider" if hosted else "server")
        return begun + self._calls.arguments(part.tool_call_id, part.args if isinstance(part.args, str) else "")

    def _part_delta(self, event: _DeltaEvent) -> list[Yielded]:
        delta = event.delta
        if delta.part_delta_kind == "text":
            return self._text(delta.content_delta)
        if delta.part_delta_kind == "thinking":
            return [Thinking(delta.content_delta)] if delta.content_delta else []
        if delta.part_delta_kind == "tool_call" and isinstance(delta.args_delta, str):
            return self._calls.arguments(self._parts.get(event.index, ""), delta.args_delta)
        return []

    def _part_end(self, event: _PartEvent) -> list[Yielded]:
        part = event.part
        self._response.append(part)
        if part.part_kind in ("tool-call", "builtin-tool-call"):
            return self._calls.complete(part.tool_call_id, json_text(part.args))
        return []

    def _call(self, event: _CallEvent) -> list[Yielded]:
        part = event.part
        begun = [] if part.tool_call_id in self._calls else self._calls.begin(part.tool_call_id, part.tool_name)
        begun += self._calls.complete(part.tool_call_id, json_text(part.args))
        executed = getattr(event, "args_valid", True) and part.tool_name not in self._asking
        return begun + (self._calls.start(part.tool_call_id) if executed else [])

    def _approved(self, event: _ApprovalEvent) -> list[Yielded]:
        # An answer is a mere bool or an object; of these only a denial has a message.
        granted = [id for id, answer in event.results.approvals.items() if answer and not hasattr(answer, "message")]
        return [item for id in granted for item in self._calls.start(id)]

    def _result(self, event: _ResultEvent) -> list[Yielded]:
        return self._returned(event.part if hasattr(event, "part") else event.result)  # 1.x called it the result

    def _returned(self, part: _MessagePart) -> list[Yielded]:
        success = getattr(part, "outcome", "success") == "success" and part.part_kind != "retry-prompt"
        return self._calls.finish(part.tool_call_id, part.content, success)

    def _end(self, event: _EndEvent) -> list[Yielded]:
        result = event.result
        unsaid = result.output is not None and (self._by_tool or not self._spoken)
        said = self._text(json_text(result.output)) if unsaid else []
        usage: _TokenCounts = result.usage if hasattr(result.usage, "input_tokens") else result.usage()
        response = result.response
        used = Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cache_read_tokens,
            cost=float(getattr(usage, "cost", None) or 0),
            reasoning_tokens=(getattr(usage, "details", None) or {}).get("reasoning_tokens", 0),
            model=response.model_name or "",
        )
        return [*said, used, *finish(response.finish_reason)]

    def _final(self, event: _FinalEvent) -> list[Yielded]:
        self._by_tool = event.tool_name is not None
        return []

    def _text(self, text: str) -> list[Yielded]:
        self._spoken = self._spoken or bool(text)
        return [Text(text)] if text else []


_WITHIN = ("part_start", "part_delta", "part_end", "final_result")
"""Events that come while a response does."""

_HANDLERS: dict[str, Callable[[_PydanticTranslator, Any], list[Yielded]]] = {
    "part_start": _PydanticTranslator._part_start,
    "part_delta": _PydanticTranslator._part_delta,
    "part_end": _PydanticTranslator._part_end,
    "final_result": _PydanticTranslator._final,
    "function_tool_call": _PydanticTranslator._call,
    "function_tool_result": _PydanticTranslator._result,
    "output_tool_call": _PydanticTranslator._call,
    "output_tool_result": _PydanticTranslator._result,
    "deferred_tool_results": _PydanticTranslator._approved,
    "agent_run_result": _PydanticTranslator._end,
}
