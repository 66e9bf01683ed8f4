"""The OpenAI Agents SDK: its agents as agents of Legato, its stream of events as Legato's.

    from agents import Agent
    from legato.agents.openai_agents import adapt

    agent = adapt(Agent(name="assistant", instructions="Be brief."))

``adapt`` is the whole way. ``translate`` is for an agent of your own that calls ``Runner.run_streamed`` itself; it
looks at what events are called, not at their classes, so it needs no import and bears other versions.

Tools with ``needs_approval`` ask the user by ``turn.ask_permission``; the SDK's run is then resumed with the answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Sequence
from typing import Any, Protocol

import msgspec

from ..agent import Agent, OnCrash, Turn
from ..errors import AgentError
from ..json import JsonObject
from ..yields import Refusal, Text, Thinking, Usage, Yielded
from .framework import (
    Calls,
    Options,
    Reasons,
    Wishes,
    adapted,
    as_words,
    ask,
    explained,
    json_text,
    lacks,
    load,
    messages,
    worded,
    words_of,
)
from .model import Words

EXTRA = "openai-agents"

logger = logging.getLogger("legato")


# What is looked at of the SDK's objects. Which of it is there depends on their type.


class _TokenUsage(Protocol):
    input_tokens: int
    output_tokens: int


class _EndedResponse(Protocol):
    usage: _TokenUsage | None
    model: str | None


class _RawEvent(Protocol):
    type: str
    delta: str
    summary_index: int
    output_index: int
    item: object
    response: _EndedResponse


class _RunItem(Protocol):
    agent: object
    raw_item: Any  # a model of the OpenAI SDK, or a dict


class _SdkEvent(Protocol):
    type: str
    data: _RawEvent
    name: str
    item: _RunItem


class _Interruption(Protocol):
    name: str | None
    arguments: str | None
    call_id: str


class _HaltedRun(Protocol):
    def approve(self, call: _Interruption) -> None: ...

    def reject(self, call: _Interruption) -> None: ...


class _StreamedRun(Protocol):
    interruptions: Sequence[_Interruption]

    def stream_events(self) -> AsyncGenerator[_SdkEvent, None]: ...

    def cancel(self) -> None: ...

    def to_state(self) -> _HaltedRun: ...


class _SdkRunner(Protocol):
    def run_streamed(self, agent: object, given: list[JsonObject] | _HaltedRun, **options: object) -> _StreamedRun: ...


_TOOL_FAILED = "An error occurred while running the tool"
"""How the SDK's own text for the model begins when a tool has raised; nothing else tells the two kinds apart."""


def adapt(
    agent: object,
    *,
    name: str | None = None,
    on_crash: OnCrash = "fail",
    description: str | None = None,
    options: Options | None = None,
    heeds: Collection[str] = (),
) -> Agent:
    """An agent of Legato that lets an agent of the OpenAI Agents SDK answer.

    Args:
        agent: an ``agents.Agent``.
        name: of the agent; the SDK's own name for it by default.
        on_crash: ``"fail"`` or ``"retry"``; a further attempt goes on after the last tools that gave a result.
        description: one sentence for people.
        options: further arguments of ``Runner.run_streamed`` for a turn, such as ``{"context": ..., "max_turns": 20}``.
            Not a ``session``: the conversation is in Legato's log. The ``model_settings`` of its ``run_config`` count
            before what the sender of a message sets.
        heeds: names of what a sender sets (``"temperature"``, ``"stop"`` ...) that ``options`` sees to; else they are
            told to the model, or refused.

    Raises:
        ImportError: the SDK is not installed.
        InvalidInput: ``on_crash`` is ``"resume"``.
    """
    runner = load("agents", EXTRA, "Runner").Runner  # now rather than at the first question

    async def answer(turn: Turn) -> AsyncGenerator[Yielded, None]:
        with explained(turn.run):
            given = dict(options(turn)) if options else {}
            wishes = Wishes.of(_words(agent, given), turn.message.metadata, heeds)
            async with contextlib.aclosing(_answer(runner, agent, turn, given, wishes)) as items:
                async for item in items:
                    yield item

    def lack(metadata: JsonObject) -> tuple[str, str] | None:
        choice = metadata.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and "tool_choice" not in heeds:
            return "tool_choice", "The Agents SDK knows of no choice among some tools."
        formed = getattr(agent, "output_type", None) is not None
        return lacks(_words(agent, {}), metadata, heeds, _tools(agent), formed)

    found = getattr(agent, "name", None)
    return adapted(
        answer,
        name=name,
        on_crash=on_crash,
        description=description,
        found=found,
        tools=lambda: _tools(agent),
        lacks=lack,
    )


def _tools(agent: object) -> list[str]:
    """The agent's tools, as far as they are known before it runs."""
    return [tool.name for tool in getattr(agent, "tools", None) or ()]


def _words(agent: Any, options: JsonObject) -> Words:
    config = options.get("run_config")
    try:
        model: Any = (config and _field(config, "model")) or agent.model
        if model is None or isinstance(model, str):
            provider = config and _field(config, "model_provider")
            model = (provider or load("agents", EXTRA, "MultiProvider").MultiProvider()).get_model(model)
        return words_of(model)
    except Exception as exc:  # the SDK will say what is wrong with it
        logger.debug("what the model calls its settings is not known: %s", exc)
    return "framework"


def _set(agent: Any, options: dict[str, Any], wishes: Wishes, first: bool) -> Any:
    """The agent that heeds the wishes, with the options, as far as these do not say otherwise.

    Args:
        first: whether no earlier attempt has got a tool to do something: only then must the model call one.
    """
    sdk: Any = load("agents", EXTRA, "RunConfig")
    named, body = wishes.named, wishes.body
    if named or body:
        config = options.get("run_config") or sdk.RunConfig()
        config = sdk.RunConfig(**config) if isinstance(config, dict) else config
        theirs = config.model_settings
        bodies = (agent.model_settings.extra_body, body, theirs and _field(theirs, "extra_body"))
        merged = {name: value for each in bodies if isinstance(each, dict) for name, value in each.items()}
        settings = sdk.ModelSettings(**named).resolve(theirs).resolve(sdk.ModelSettings(extra_body=merged or None))
        options["run_config"] = dataclasses.replace(config, model_settings=settings)
    choice = wishes.among[0] if wishes.among else wishes.choice
    if choice is None or (wishes.forces and not first):
        return agent
    # Of this agent alone: whom it hands over to may have no such tool. The SDK lets go of it once a tool was called.
    return agent.clone(model_settings=agent.model_settings.resolve(sdk.ModelSettings(tool_choice=choice)))


async def translate(events: AsyncIterable[Any]) -> AsyncGenerator[Yielded, None]:
    """Legato's events for those of ``stream_events()`` of a streamed run.

    A call's beginning, its arguments as they stream, and its result are told; of events that mean nothing to a reader,
    nothing is. Nothing is closed here: ``result.cancel()`` when you stop before the end.
    """
    translator = _SdkTranslator()
    async for event in events:
        for item in translator.take(event):
            yield item


async def _answer(
    runner: _SdkRunner, agent: object, turn: Turn, options: dict[str, Any], wishes: Wishes
) -> AsyncGenerator[Yielded, None]:
    translator = _SdkTranslator()
    told = messages(turn)
    agent = _set(agent, options, wishes, first=turn.attempt == 1 or told[-1]["role"] != "tool")
    given: list[JsonObject] | _HaltedRun = [item for message in told for item in _items(message)]
    while True:
        result = runner.run_streamed(agent, given, **options)
        async with contextlib.aclosing(result.stream_events()) as events:
            try:
                async for event in events:
                    for item in translator.take(event):
                        yield item
            except Exception:
                result.cancel()
                if not translator.cut:
                    translator.explain()
                    raise
                return  # what the model had said when it was stopped is the answer
            except BaseException:
                result.cancel()  # first: to close the stream alone would wait for the run's own end
                raise
        if not result.interruptions:
            for item in translator.conclude(getattr(result, "final_output", None)):
                yield item
            return
        given = state = result.to_state()
        for call in result.interruptions:
            if await ask(turn, call.name or "tool", _arguments(call.arguments)):
                state.approve(call)
                for item in translator.approve(call.call_id):
                    yield item
            else:
                state.reject(call)
                translator.reject(call.call_id)


def _arguments(text: str | None) -> object:
    try:
        return msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {"arguments": text}


def _items(message: JsonObject) -> list[JsonObject]:
    content = message["content"]
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": content}]
    if isinstance(content, list):
        content = [_part(part) for part in content]
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]} for call in message.get("tool_calls", ())
    ]
    return [*([{"role": message["role"], "content": content}] if content else []), *calls]


def _part(part: JsonObject) -> JsonObject:
    if part.get("type") == "text":
        return {"type": "input_text", "text": part["text"]}
    if part.get("type") == "image_url":
        image = part["image_url"]
        return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto")}
    return part


class _SdkTranslator:
    """From one event to what it means, over all of a run, also when it is resumed."""

    def __init__(self) -> None:
        self._calls = Calls()
        self._places: dict[int, str] = {}  # of the present response: its calls by the place of their item
        self._rejected: set[str] = set()
        self._spoken = False  # whether the present response has text
        self._silent = True  # whether nothing was said since a tool gave something
        self._thought: dict[int, str] = {}  # of the present response: how each item's thinking comes, which may be two
        self.cut = False  # the model was stopped before its end
        self._failed: object = None  # why the provider failed
        self._used = Usage()
        self._reasons = Reasons()

    def approve(self, call: str) -> list[Yielded]:
        return self._calls.start(call)

    def reject(self, call: str) -> None:
        self._rejected.add(call)

    def take(self, event: _SdkEvent) -> list[Yielded]:
        if event.type == "raw_response_event":
            raw = _RAW.get(event.data.type)
            return raw(self, event.data) if raw else []
        if event.type == "run_item_stream_event":
            item = _ITEMS.get(event.name)
            return item(self, event.item) if item else []
        return []

    def explain(self) -> None:
        """Raise what the provider has said of its failure, which the SDK's own error does not.

        Raises:
            AgentError: there is a word for it.
        """
        reason = worded(self._failed)
        if reason is not None:
            raise AgentError(reason[1], code=reason[0])

    def conclude(self, output: object) -> list[Yielded]:
        """The final output, if the run has ended with a tool's."""
        return [Text(text)] if self._silent and output is not None and (text := as_words(output)) else []

    # What the model says ----------------------------------------------------------------------------------------------

    def _created(self, data: _RawEvent) -> list[Yielded]:
        self._places, self._spoken, self._thought = {}, False, {}
        return []

    def _text(self, data: _RawEvent) -> list[Yielded]:
        self._spoken, self._silent = True, False
        return [Text(data.delta)]

    def _refusal(self, data: _RawEvent) -> list[Yielded]:
        self._spoken, self._silent = True, False
        return [Refusal(data.delta)]

    def _thinking(self, data: _RawEvent) -> list[Yielded]:
        # From some providers the same comes as a summary, too.
        told = self._thought.setdefault(getattr(data, "output_index", 0), data.type) == data.type
        return [Thinking(data.delta)] if told else []

    def _summary_part(self, data: _RawEvent) -> list[Yielded]:
        told = "response.reasoning_text.delta" not in self._thought.values()
        return [Thinking("\n\n")] if data.summary_index and told else []

    def _item_added(self, data: _RawEvent) -> list[Yielded]:
        call = _Called.of(data.item)
        if call is None:
            return []
        self._places[data.output_index] = call.id
        return self._calls.begin(call.id, call.name, "provider" if call.hosted else "server")

    def _arguments_delta(self, data: _RawEvent) -> list[Yielded]:
        return self._calls.arguments(self._places.get(data.output_index, ""), data.delta)

    def _item_done(self, data: _RawEvent) -> list[Yielded]:
        call = _Called.of(data.item)
        if call is None:
            return []
        begun = [] if data.output_index in self._places else self._item_added(data)
        begun += self._calls.complete(call.id, call.arguments)
        # What the model's provider executes itself is over when its item is.
        return begun + (self._calls.finish(call.id, call.output, call.success) if call.hosted else [])

    def _response_end(self, data: _RawEvent) -> list[Yielded]:
        response, used = data.response, self._used
        usage = response.usage
        if usage is not None:
            read = getattr(usage, "input_tokens_details", None)
            written = getattr(usage, "output_tokens_details", None)
            self._used = Usage(
                input_tokens=used.input_tokens + usage.input_tokens,
                output_tokens=used.output_tokens + usage.output_tokens,
                cached_tokens=used.cached_tokens + (getattr(read, "cached_tokens", 0) or 0),
                reasoning_tokens=used.reasoning_tokens + (getattr(written, "reasoning_tokens", 0) or 0),
                model=response.model or "",
            )
        cut = getattr(response, "incomplete_details", None)
        self.cut = data.type == "response.incomplete"
        self._failed = getattr(response, "error", None) if data.type == "response.failed" else None
        return [self._used, *self._reasons.take(getattr(cut, "reason", None) or "stop")]

    def _error(self, data: _RawEvent) -> list[Yielded]:
        self._failed = data
        return []

    # What the SDK does ------------------------------------------------------------------------------------------------

    def _message(self, item: _RunItem) -> list[Yielded]:
        if self._spoken:
            return []
        # A model that does not stream: all that comes is the whole.
        self._silent = False
        items: list[Yielded] = []
        for part in item.raw_item.content:
            items += [Text(text)] if (text := getattr(part, "text", None)) else []
            items += [Refusal(text)] if (text := getattr(part, "refusal", None)) else []
        return items

    def _called(self, item: _RunItem) -> list[Yielded]:
        call = _Called.of(item.raw_item)
        if call is None or call.hosted:
            return []
        begun = [] if call.id in self._calls else self._calls.begin(call.id, call.name)
        begun += self._calls.complete(call.id, call.arguments)
        return begun if _asks(item.agent, call.name) else begun + self._calls.start(call.id)

    def _output(self, item: _RunItem) -> list[Yielded]:
        id = _field(item.raw_item, "call_id") or ""
        output = getattr(item, "output", None)
        output = _field(item.raw_item, "output") if output is None else output
        self._silent = True
        failed = id in self._rejected or (isinstance(output, str) and output.startswith(_TOOL_FAILED))
        return self._calls.finish(id, output, not failed)


class _Called(msgspec.Struct, frozen=True):
    """What there is to say of an item that is a call."""

    id: str
    name: str
    arguments: str
    hosted: bool = False
    output: Any = None
    success: bool = True

    @classmethod
    def of(cls, item: Any) -> _Called | None:
        type = _field(item, "type") or ""
        if type == "function_call":
            return cls(_field(item, "call_id"), _field(item, "name"), _field(item, "arguments") or "{}")
        if not type.endswith("_call"):
            return None
        # Web search, file search, code, MCP: each has its own fields; those that all calls have are said already.
        whole = item if isinstance(item, dict) else item.model_dump(mode="json", exclude_none=True)
        about = {key: value for key, value in whole.items() if key not in ("id", "call_id", "type", "status", "name")}
        given = {key: about.pop(key) for key in ("action", "queries", "code", "arguments") if key in about}
        return cls(
            id=whole.get("call_id") or whole.get("id") or type,
            name=whole.get("name") or type.removesuffix("_call"),
            arguments=given["arguments"] if isinstance(given.get("arguments"), str) else json_text(given),
            hosted="call_id" not in whole,  # what has one is answered by the SDK's own output
            output=about or None,
            success=whole.get("status", "completed") == "completed" and not whole.get("error"),
        )


def _field(item: object, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else getattr(item, name, None)


def _asks(agent: object, tool: str) -> bool:
    """Whether ``tool`` may ask before it begins."""
    tools = getattr(agent, "tools", None) or ()
    return any(each.name == tool and getattr(each, "needs_approval", False) for each in tools)


_RAW: dict[str, Callable[[_SdkTranslator, _RawEvent], list[Yielded]]] = {
    "response.created": _SdkTranslator._created,
    "response.output_text.delta": _SdkTranslator._text,
    "response.refusal.delta": _SdkTranslator._refusal,
    "response.reasoning_text.delta": _SdkTranslator._thinking,
    "response.reasoning_summary_text.delta": _SdkTranslator._thinking,
    "response.reasoning_summary_part.added": _SdkTranslator._summary_part,
    "response.output_item.added": _SdkTranslator._item_added,
    "response.function_call_arguments.delta": _SdkTranslator._arguments_delta,
    "response.output_item.done": _SdkTranslator._item_done,
    "response.completed": _SdkTranslator._response_end,
    "response.incomplete": _SdkTranslator._response_end,
    "response.failed": _SdkTranslator._response_end,
    "error": _SdkTranslator._error,
    "response.error": _SdkTranslator._error,
}

_ITEMS: dict[str, Callable[[_SdkTranslator, _RunItem], list[Yielded]]] = {
    "message_output_created": _SdkTranslator._message,
    "tool_called": _SdkTranslator._called,
    "tool_output": _SdkTranslator._output,
    "handoff_requested": _SdkTranslator._called,
    "handoff_occured": _SdkTranslator._output,  # the SDK's own spelling
    "handoff_occurred": _SdkTranslator._output,
}
