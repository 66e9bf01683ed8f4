"""LangGraph and LangChain: their graphs as agents of Legato, their stream as Legato's events.

    from langchain.agents import create_agent
    from legato.agents.langgraph import adapt

    agent = adapt(create_agent("openai:gpt-5", tools=[...]))

``adapt`` is the whole way for a graph whose state has ``messages``. ``translate`` is for an agent of your own that
calls ``graph.astream`` itself; it looks at what messages are called, not at their classes, so it needs no import.

A node that calls ``interrupt`` asks the user by ``turn.ask_permission``; the graph needs a checkpointer for that, as
LangGraph says. Each run has a thread of its own there, which is deleted when the run has ended: the conversation is in
Legato's log. Set ``thread`` when the graph keeps more than messages from one turn to the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..agent import Agent, OnCrash, Turn
from ..errors import AgentError, InvalidInput
from ..json import JsonObject
from ..yields import Refusal, Text, Thinking, ToolResult, Usage, Yielded
from .framework import (
    Calls,
    Options,
    Reasons,
    adapted,
    arguments_of,
    as_words,
    ask,
    explained,
    json_text,
    jsonable,
    lacks,
    load,
    messages,
)

EXTRA = "langgraph"

MODES = ("messages", "updates", "tasks", "custom")
"""The ``stream_mode`` that ``translate`` makes the most of; ``messages`` alone is enough for text and calls."""

OnInterrupt = Callable[[Turn, Any], Awaitable[object]]
"""Given the turn and the value of an interrupt, what to resume the graph with."""


# What is looked at of LangGraph's and LangChain's objects. Which of it a message has depends on its type.


class _ChatMessage(Protocol):
    id: str | None
    type: str
    content: str | list[str | JsonObject]
    content_blocks: Iterable[JsonObject]
    tool_calls: Sequence[JsonObject]
    tool_call_chunks: Iterable[JsonObject]
    usage_metadata: JsonObject | None
    response_metadata: JsonObject | None
    tool_call_id: str
    status: str


class _Interrupt(Protocol):
    id: str
    value: object


class _Task(Protocol):
    interrupts: Sequence[_Interrupt]


class _GraphState(Protocol):
    next: Sequence[str]
    tasks: Sequence[_Task]
    values: object


class _Checkpointer(Protocol):
    async def adelete_thread(self, thread: str) -> None: ...


class _Graph(Protocol):
    def astream(self, given: object, config: JsonObject, **options: object) -> AsyncGenerator[object, None]: ...

    async def aget_state(self, config: JsonObject) -> _GraphState: ...


async def permitted(turn: Turn, value: object) -> object:
    """What to resume an interrupt with, by asking the user for permission.

    An interrupt of LangChain's ``HumanInTheLoopMiddleware`` is asked for call by call, and its decisions are to approve
    or to reject. Any other is one question, whose answer is True or False.
    """
    requests = value.get("action_requests") if isinstance(value, Mapping) else None
    if not requests:
        return await ask(turn, "interrupt", value if isinstance(value, Mapping) else {}, about=_question(value))
    decisions = [
        {"type": "approve"}
        if await ask(turn, request.get("name", "tool"), request.get("args", {}))
        else {"type": "reject", "message": "The user does not want this."}
        for request in requests
    ]
    return {"decisions": decisions}


def adapt(
    graph: Any,
    *,
    name: str | None = None,
    on_crash: OnCrash = "fail",
    description: str | None = None,
    options: Options | None = None,
    heeds: Collection[str] = (),
    thread: Callable[[Turn], str] | None = None,
    on_interrupt: OnInterrupt = permitted,
) -> Agent:
    """An agent of Legato that lets a graph answer.

    Args:
        graph: a compiled graph whose state has ``messages``, such as ``create_agent`` gives.
        name: of the agent; the graph's own by default, unless it is LangGraph's ``"LangGraph"``.
        on_crash: ``"fail"`` or ``"retry"``; a further attempt goes on after the last tools that gave a result, or
            where the graph's checkpointer is, if that survives the process.
        description: one sentence for people.
        options: further arguments of ``astream`` for a turn, such as ``{"context": ...}``; ``config`` is merged.
        heeds: names of what the sender of a message sets (``"temperature"``, ``"stop"`` ...) that ``options`` hands on
            from the message's metadata, so that the graph sees to it. LangGraph has no way to tell a model for one
            run, so everything else is refused.
        thread: the checkpointer's thread for a turn, for example ``lambda turn: turn.session``. The graph then keeps
            the conversation itself, and is given the new message only.
        on_interrupt: what to resume an interrupt with; by default a permission.

    Raises:
        ImportError: LangGraph is not installed.
        InvalidInput: ``on_crash`` is ``"resume"``; or the graph asks the user, and has no checkpointer to wait with.
    """
    load("langgraph", EXTRA)  # now rather than at the first question
    asking = _asking(graph) if getattr(graph, "checkpointer", None) is None else None
    if asking is not None:
        raise InvalidInput(f"{asking} interrupts the graph, which needs a checkpointer for it: {_CHECKPOINTER}.")

    async def answer(turn: Turn) -> AsyncGenerator[Yielded, None]:
        passage = _GraphRun(graph, turn, dict(options(turn)) if options else {}, thread)
        with explained(turn.run):
            async with contextlib.aclosing(passage.go(on_interrupt)) as items:
                async for item in items:
                    yield item

    found = getattr(graph, "name", None)
    found = None if found == "LangGraph" else found
    return adapted(
        answer,
        name=name,
        on_crash=on_crash,
        description=description,
        found=found,
        tools=lambda: _tools(graph),
        lacks=lambda metadata: lacks("none", metadata, heeds, _tools(graph)),
    )


def _tools(graph: object) -> list[str]:
    """The tools of the graph, as far as they are known before it runs."""
    bound = (getattr(node, "bound", None) for node in getattr(graph, "nodes", {}).values())
    named = (getattr(each, "tools_by_name", None) for each in bound)
    return [name for tools in named if isinstance(tools, Mapping) for name in tools]


_CHECKPOINTER = "compile it with checkpointer=InMemorySaver(), for example"


def _asking(graph: object) -> str | None:
    """What in a graph is known to interrupt it; None when nothing is."""
    if getattr(graph, "interrupt_before_nodes", None) or getattr(graph, "interrupt_after_nodes", None):
        return "A breakpoint"
    interrupt = load("langgraph.types", EXTRA).interrupt
    for name, node in getattr(graph, "nodes", {}).items():
        bound = getattr(node, "bound", None)
        if isinstance(getattr(bound, "nodes", None), Mapping) and _asking(bound) is not None:  # a graph in the graph
            return f"The node {name!r}"
        tools = getattr(bound, "tools_by_name", {})
        holders = [bound, *(tools.values() if isinstance(tools, Mapping) else ())]
        functions = [getattr(each, kind, None) for each in holders for kind in ("func", "afunc", "coroutine")]
        if "HumanInTheLoopMiddleware" in name or any(_calls(each, interrupt) for each in functions):
            return f"The node {name!r}"
    return None


def _calls(function: object, wanted: object) -> bool:
    """Whether a function names ``wanted``, be it in its module or by an import of its own."""
    code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    names = code.co_names if code is not None else ()
    module = getattr(wanted, "__module__", "")
    named = any(scope.get(name) is wanted for name in names)
    return named or (
        getattr(wanted, "__name__", "") in names
        and any(name == module or getattr(scope.get(name), "__name__", "") == module for name in names)
    )


async def translate(parts: AsyncIterable[object]) -> AsyncGenerator[Yielded, None]:
    """Legato's events for the parts of ``graph.astream``, with any ``stream_mode`` that has ``"messages"`` in it.

    Of ``custom`` parts, texts and Legato's own events are told. Also takes the bare messages of a chat model's
    ``astream``. A call's beginning, its arguments as they stream, and its result are told; of parts that mean nothing
    to a reader, nothing is.
    """
    translator = _GraphTranslator()
    async for part in parts:
        for item in translator.take(part):
            yield item
    for item in translator.flush():
        yield item


class _GraphRun:
    """A run of a graph, from its input to its end, through its interrupts."""

    def __init__(
        self, graph: _Graph, turn: Turn, options: dict[str, Any], thread: Callable[[Turn], str] | None
    ) -> None:
        config = dict(options.pop("config", None) or {})
        configurable = dict(config.get("configurable") or {})
        if thread is not None:
            configurable["thread_id"] = thread(turn)
        self._keeps = "thread_id" in configurable
        config["configurable"] = {"thread_id": turn.run, **configurable}
        self._graph, self._turn, self._options, self._config = graph, turn, options, config
        # True is a subgraph's way to say: my parent's.
        checkpointer = getattr(graph, "checkpointer", None)
        self._checkpointer: _Checkpointer | None = None if isinstance(checkpointer, bool) else checkpointer

    async def go(self, on_interrupt: OnInterrupt) -> AsyncGenerator[Yielded, None]:
        translator = _GraphTranslator()
        options = {"stream_mode": [*MODES, "values"], "subgraphs": True}
        if self._checkpointer is not None:
            options["durability"] = "sync"  # a step begins when the one before it is kept, so none is paid for twice
        options |= self._options
        try:
            given = await self._input()
            if given is None and (kept := await self._state()) is not None:
                for item in translator.remember(kept):
                    yield item
            while True:
                try:
                    async with contextlib.aclosing(self._graph.astream(given, self._config, **options)) as parts:
                        async for part in parts:
                            state = _state_in(part)
                            for item in translator.take(part) if state is None else translator.reach(state):
                                yield item
                except Exception:
                    for item in translator.flush():  # what was said, is said
                        yield item
                    raise
                for item in translator.flush():
                    yield item
                if translator.halted and self._checkpointer is None:
                    raise AgentError(
                        f"The graph asks something, but cannot wait: {_CHECKPOINTER}.", code="no_checkpointer"
                    )
                kept = await self._state()
                if kept is None or not kept.next:
                    for item in translator.conclude():
                        yield item
                    return
                given = await self._answers(kept, on_interrupt)
                if given is False:
                    return
        finally:
            await self._forget()

    async def _input(self) -> object:
        if self._turn.attempt > 1:
            state = await self._state()
            if state is not None and state.next:
                return None  # the checkpointer knows where the graph was
        told = messages(self._turn)
        if self._keeps:
            asked = next((message for message in reversed(told) if message["role"] == "user"), told[-1])
            told = [{**asked, "id": self._turn.message.id}]
        convert = load("langchain_core.messages", EXTRA).convert_to_messages
        return {"messages": convert([_plain(message) for message in told])}

    async def _state(self) -> _GraphState | None:
        return None if self._checkpointer is None else await self._graph.aget_state(self._config)

    async def _answers(self, state: _GraphState, on_interrupt: OnInterrupt) -> object:
        """What a graph that has stopped before its end goes on with; False when the user does not want it to."""
        interrupts = [interrupt for task in state.tasks for interrupt in task.interrupts]
        if not interrupts:  # a breakpoint: there is nothing to answer, the graph just waits
            return None if await permitted(self._turn, f"Go on with {', '.join(state.next)}?") else False
        answers = {each.id: await on_interrupt(self._turn, each.value) for each in interrupts}
        return load("langgraph.types", EXTRA).Command(resume=answers)

    async def _forget(self) -> None:
        if self._checkpointer is not None and not self._keeps and not self._turn.left_open:
            with contextlib.suppress(NotImplementedError):  # not all can
                await self._checkpointer.adelete_thread(self._turn.run)


def _question(value: object) -> str:
    if isinstance(value, Mapping):
        named = (value.get(key) for key in ("question", "message", "description", "prompt"))
        value = next((text for text in named if isinstance(text, str) and text), value)
    return value if isinstance(value, str) and value else f"May it go on? {json_text(value)}"


def _plain(message: JsonObject) -> JsonObject:
    """A message as LangChain reads it: as in Chat Completions, with calls in its own form."""
    calls = [
        {"type": "tool_call", "id": call["id"], "name": call["function"]["name"], "args": arguments_of(call)}
        for call in message.get("tool_calls", ())
    ]
    plain = {**message, "content": message["content"] or ""}
    return {**plain, "tool_calls": calls} if calls else plain


class _GraphTranslator:
    """From one part of a stream to what it means, over all of a run.

    Nodes that run beside each other may have models that speak at the same time. They are told one after the other:
    what comes of a second message waits until the first is over.
    """

    def __init__(self) -> None:
        self._calls = Calls()
        self._streamed: set[str] = set()  # messages of which pieces came; the whole is no news then
        self._names: dict[str, str] = {}  # of ids that a message was given later: its first
        self._open: dict[str, object] = {}  # messages that are not over, and their nodes
        self._places: dict[tuple[str, object], str] = {}  # calls by message and index
        self._latest: dict[str, str] = {}  # the call of each message that was begun last
        self._hosted: set[str] = set()  # calls that the model's provider has made, within a message
        self._used = Usage()
        self._reasons = Reasons()
        self._speaker = ""  # the message that is being told
        self._waiting: dict[str, list[Yielded]] = {}  # what came of others meanwhile
        self._over: set[str] = set()  # those of them that are whole
        self._texted = ""  # the message that has had text since the last result of a tool
        self._said = ""  # all text
        self._spoken = False  # whether there has been any since the last result of a tool
        self._first: Mapping[str, object] | None = None  # the graph's state in the beginning
        self._last: Mapping[str, object] = {}  # and as it is now
        self.halted = False  # the graph waits for an answer

    def take(self, part: object) -> list[Yielded]:
        mode, data = _mode(part)
        handler = _MODES.get(mode)
        return handler(self, data) if handler else []

    def flush(self) -> list[Yielded]:
        """What still waits, now that the stream has ended."""
        self._over |= self._waiting.keys()
        return self._pass_on()

    def remember(self, state: _GraphState) -> list[Yielded]:
        """The calls without a result in the state that a run is resumed from: their results will come."""
        kept = _messages_of(state.values)
        done = {message.tool_call_id for message in kept if message.type == "tool"}
        pending = [message for message in kept if message.type == "ai" and message.tool_calls][-1:]
        self._streamed |= {message.id or "" for message in kept}
        return [item for message in pending for item in self._whole(message, without=done)]

    # The state --------------------------------------------------------------------------------------------------------

    def reach(self, state: Mapping[str, object]) -> list[Yielded]:
        """The graph's state after a step: messages of the assistant in it that no stream had are told.

        Nodes may return messages as dicts, tuples or texts, which LangGraph makes messages of, but does not stream.
        """
        self._last, self.halted = state, "__interrupt__" in state
        kept = _messages_of(state)
        if self._first is None:
            self._first = state
            self._streamed |= {message.id or "" for message in kept}
            return []
        items: list[Yielded] = []
        for message in kept:
            if message.type == "ai" and message.id and message.id not in self._streamed:
                self._streamed.add(message.id)
                text = _text_of(message)
                if not (text and text in self._said) and not self._begun(message):  # by another id
                    told = [*self._content(message), *self._whole(message), *self._end(message)]
                    items += self._tell(message.id, told, over=True)
        return items

    def _begun(self, message: _ChatMessage) -> bool:
        return any((call.get("id") or "") in self._calls for call in message.tool_calls)

    def conclude(self) -> list[Yielded]:
        """The text of the final state, if there has been none since a tool gave something."""
        if self._spoken or self._first is None:
            return []
        if (structured := self._last.get("structured_response")) is not None:
            return [Text(as_words(jsonable(structured)))]
        before, now = _all_messages(self._first), _all_messages(self._last)
        ids = {message.id or (message.type, _text_of(message)) for message in before}
        # A state may add messages to those that it had, or be those that the last node returned.
        added = now[len(before) :] or now
        new = [each for each in added if (each.id or (each.type, _text_of(each))) not in ids or len(now) > len(before)]
        if new:
            return [Text(text)] if (text := _text_of(new[-1])) else []
        # A graph of one's own, whose answer is no message.
        fresh = [
            value for name, value in self._last.items() if isinstance(value, str) and value != self._first.get(name)
        ]
        return [Text(fresh[-1])] if fresh and fresh[-1] else []

    # Turns at speaking ------------------------------------------------------------------------------------------------

    def _tell(self, about: str, items: list[Yielded], *, over: bool) -> list[Yielded]:
        """``items`` of the message ``about`` when it is its turn; if it is ``over``, the turn passes on."""
        self._speaker = self._speaker or about
        if about != self._speaker:
            self._waiting.setdefault(about, []).extend(items)
            self._over |= {about} if over else set()
            return []
        items = self._apart(about, items)
        return items + self._pass_on() if over else items

    def _pass_on(self) -> list[Yielded]:
        items: list[Yielded] = []
        self._speaker = ""
        while self._waiting and not self._speaker:
            about = next(iter(self._waiting))
            items += self._apart(about, self._waiting.pop(about))
            self._speaker = "" if about in self._over else about
        return items

    def _behind(self, items: list[Yielded]) -> list[Yielded]:
        """``items`` of no message: behind all that waits, since it may be about that."""
        if not self._waiting or not items:
            return self._apart("", items)
        self._waiting[next(reversed(self._waiting))].extend(items)
        return []

    def _apart(self, about: str, items: list[Yielded]) -> list[Yielded]:
        """``items``, with a blank line before a text that would run into another message's."""
        spaced: list[Yielded] = []
        for item in items:
            if isinstance(item, ToolResult) and item.id not in self._hosted:
                self._texted = ""
                self._spoken = False
            elif isinstance(item, str | Text | Refusal):
                self._said += item if isinstance(item, str) else item.text
                self._spoken = True
                if about:
                    spaced += [Text("\n\n")] if self._texted not in ("", about) else []
                    self._texted = about
            spaced.append(item)
        return spaced

    # The modes --------------------------------------------------------------------------------------------------------

    def _message(self, data: Any) -> list[Yielded]:
        message: _ChatMessage = data[0] if isinstance(data, tuple | list) else data
        about = self._name(message, data[1] if isinstance(data, tuple | list) and len(data) > 1 else None)
        if message.type == "tool":
            finished = self._calls.finish(message.tool_call_id, _output(message), message.status != "error")
            return self._behind(finished)
        if message.type == "AIMessageChunk":
            self._streamed.add(about)
            items = [*self._content(message), *self._pieces(message, about), *self._end(message)]
            over = getattr(message, "chunk_position", None) == "last"
            if over:
                self._close(about)
            return self._tell(about, items, over=over)
        if message.type != "ai" or about in self._streamed:
            return []
        self._streamed.add(about)
        return self._tell(about, [*self._content(message), *self._whole(message), *self._end(message)], over=True)

    def _name(self, message: _ChatMessage, about: object) -> str:
        """One id for a message. Over some APIs LangChain changes it in the middle: from the provider's to that of the
        call of the model, or back. The same node has one of each kind then, and the first is not over."""
        id = message.id or ""
        if message.type != "AIMessageChunk" or id in self._names or not id:
            return self._names.get(id, id)
        node = about.get("langgraph_checkpoint_ns") if isinstance(about, Mapping) else None
        for other, where in self._open.items():
            if where == node and _is_call(other) != _is_call(id):
                self._names[id] = other
                return other
        if id not in self._streamed:
            self._open[id] = node
        return id

    def _close(self, about: str) -> None:
        self._open.pop(about, None)

    def _content(self, message: _ChatMessage) -> list[Yielded]:
        items: list[Yielded] = []
        for block in message.content_blocks:
            if block["type"] == "text":
                items += [Text(block["text"])] if block.get("text") else []
            elif block["type"] == "reasoning":
                items += [Thinking(block["reasoning"])] if block.get("reasoning") else []
            elif block["type"] in ("server_tool_call", "server_tool_call_chunk"):
                items += self._hosted_call(message.id or "", block)
            elif block["type"] == "server_tool_result":
                came = self._calls.finish(block["tool_call_id"], block.get("output"), block.get("status") != "error")
                self._hosted |= {item.id for item in came if isinstance(item, ToolResult)}
                items += came
            elif block["type"] == "non_standard" and isinstance(refusal := block["value"].get("refusal"), str):
                items += [Refusal(refusal)] if refusal else []
        return items

    def _hosted_call(self, about: str, block: JsonObject) -> list[Yielded]:
        """A call that the model's provider makes by itself, whole or a piece of it."""
        place = (about, f"hosted {block.get('index')}")
        key = block.get("id") or self._places.get(place)
        if key is None:
            return []
        begun: list[Yielded] = []
        if key not in self._calls:
            self._places[place] = key
            name = (block.get("extras") or {}).get("tool_name") or block.get("name") or "tool"
            begun = self._calls.begin(key, name, "provider")
        if block["type"] == "server_tool_call":
            return begun + self._calls.complete(key, json_text(block.get("args")))
        return begun + self._calls.arguments(key, block.get("args") or "")

    def _pieces(self, message: _ChatMessage, about: str) -> list[Yielded]:
        items: list[Yielded] = []
        for piece in message.tool_call_chunks:
            place = (about, piece.get("index"))
            key = self._places.get(place) if piece.get("index") is not None else self._latest.get(about)
            if key is None or (piece.get("id") and piece["id"] != key):
                key = piece.get("id") or f"{about}-{len(self._places)}"
                self._places[place] = self._latest[about] = key
                items += self._calls.begin(key, piece.get("name") or "tool")
            items += self._calls.arguments(key, piece.get("args") or "")
        return items

    def _whole(self, message: _ChatMessage, without: Collection[str] = ()) -> list[Yielded]:
        items: list[Yielded] = []
        for call in [*message.tool_calls, *getattr(message, "invalid_tool_calls", ())]:
            key = call.get("id") or f"{message.id}-{call['name']}"
            if key not in without:
                items += [*self._calls.begin(key, call["name"]), *self._calls.complete(key, json_text(call["args"]))]
        return items

    def _end(self, message: _ChatMessage) -> list[Yielded]:
        """What a message, or the last piece of one, says of tokens and of why it ended."""
        items: list[Yielded] = []
        about = message.response_metadata or {}
        if message.usage_metadata:
            usage, used = message.usage_metadata, self._used
            cached = (usage.get("input_token_details") or {}).get("cache_read") or 0
            reasoned = (usage.get("output_token_details") or {}).get("reasoning") or 0
            self._used = Usage(
                input_tokens=used.input_tokens + usage["input_tokens"],
                output_tokens=used.output_tokens + usage["output_tokens"],
                cached_tokens=used.cached_tokens + cached,
                reasoning_tokens=used.reasoning_tokens + reasoned,
                model=about.get("model_name") or about.get("model") or used.model,
            )
            items.append(self._used)
        cut = about.get("incomplete_details")
        reason = about.get("finish_reason") or about.get("stop_reason") or about.get("done_reason")
        reason = reason or (cut.get("reason") if isinstance(cut, Mapping) else None)
        reason = reason or about.get("status")
        return items + self._reasons.take(reason if isinstance(reason, str) else None)

    def _update(self, data: object) -> list[Yielded]:
        """A node is done: so are its messages, and their calls are complete."""
        items: list[Yielded] = []
        updates = data.values() if isinstance(data, Mapping) else ()
        for message in [message for update in updates for message in _messages_of(update)]:
            if message.type == "tool":
                items += self._message(message)
            elif message.type == "ai":
                completed = [
                    item
                    for call in message.tool_calls
                    for item in self._calls.complete(call.get("id") or "", json_text(call["args"]))
                ]
                about = self._names.get(message.id or "", message.id or "")
                self._close(about)
                items += self._tell(about, completed, over=True) if about in self._unfinished() else completed
        return items

    def _unfinished(self) -> set[str]:
        return ({self._speaker, *self._waiting} - self._over) - {""}

    def _task(self, data: object) -> list[Yielded]:
        """A task begins; when it is a tool's, it has its calls as input."""
        given = data.get("input") if isinstance(data, Mapping) else None
        if isinstance(given, Mapping) and "tool_call" in given:
            given = [given["tool_call"]]
        calls = given if isinstance(given, list) else []
        ids = [call["id"] for call in calls if isinstance(call, Mapping) and call.get("type") == "tool_call"]
        return self._behind([item for id in ids if isinstance(id, str) for item in self._calls.start(id)])

    def _custom(self, data: object) -> list[Yielded]:
        return self._behind([data]) if isinstance(data, Yielded) else []


def _mode(part: object) -> tuple[str, object]:
    """What a part of a stream is, in all the forms in which LangGraph and LangChain give them."""
    if isinstance(part, Mapping):
        return (part["type"], part["data"]) if {"type", "data"} <= part.keys() else ("updates", part)
    if isinstance(part, tuple) and len(part) > 1:
        if isinstance(part[-2], str):  # (mode, data), or (namespace, mode, data)
            return part[-2], part[-1]
        if isinstance(part[0], tuple):  # (namespace, data), of one mode
            return _mode(part[1])
    return "messages", part


def _state_in(part: object) -> Mapping[str, object] | None:
    """The state of the whole graph, if that is what a part is."""
    match part:
        case ((), "values", Mapping() as state):
            return state
    return None


def _is_call(id: str) -> bool:
    """Whether an id is that of a call of a model, as LangChain draws it."""
    return id.startswith(("lc_run-", "run-"))


def _text_of(message: _ChatMessage) -> str:
    output = _output(message)
    return output if isinstance(output, str) else ""


def _messages_of(update: object) -> list[_ChatMessage]:
    given = update.get("messages") if isinstance(update, Mapping) else None
    listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    return [message for message in listed if hasattr(message, "type")]


def _all_messages(state: Mapping[str, object]) -> list[_ChatMessage]:
    """The messages of a state, also those that a node has put there as dicts, tuples or texts."""
    given = state.get("messages")
    convert = load("langchain_core.messages", EXTRA).convert_to_messages
    return list(convert(given if isinstance(given, list | tuple) else [] if given is None else [given]))


def _output(message: _ChatMessage) -> object:
    content = message.content
    if isinstance(content, str):
        return content
    given = [block if isinstance(block, str) else block.get("text") for block in content]
    texts = [text for text in given if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(given) else content


_MODES: dict[str, Callable[[_GraphTranslator, object], list[Yielded]]] = {
    "messages": _GraphTranslator._message,
    "updates": _GraphTranslator._update,
    "tasks": _GraphTranslator._task,
    "custom": _GraphTranslator._custom,
}
