"""One turn of an agent that asks a model: the loop of call, tools and answer, and the way back into it after a crash.

A turn is a row of *steps*: in each the model is
asked once, what it says is handed on as it comes, and the tools it calls are run; the last one calls none.

What must hold when the process dies at any moment: the model is paid once for each step, and no tool runs twice unless
it says that it may. Two things see to it. The first is the id under which a provider that writes in the background
keeps its answer: it is in the log, as a checkpoint, before anything of the answer is, and with it how far the answer
had come; what the log has behind the last checkpoint is not said again. The second is that ``tool.started`` is stored
before a tool begins (``turn.stored``), so a call that may have had an effect can be told from one that had none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from ..agent import Turn
from ..check import ID_CHARACTERS, NAME_CHARACTERS, PORTS
from ..errors import AgentError, InvalidInput
from ..event import (
    CallCompleted,
    CallDelta,
    CallStarted,
    CheckpointNoted,
    OpaqueNoted,
    RefusalDelta,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolBegun,
    ToolCompleted,
)
from ..json import JsonObject
from ..part import as_json
from ..provider import (
    AsyncStream,
    ChatResult,
    ProviderError,
    ProviderRefused,
    Response,
    ResponseFailed,
    ResponseIncomplete,
    StreamChunk,
    ToolCallDelta,
)
from ..provider.last_pass import RULES, is_plain, learned, told_name
from ..provider.prompt import read_tool
from ..provider.result import TokenUsage, count
from ..provider.wire import untagged
from ..tool import Tool
from ..traces import asking, named
from ..transcript import fold
from ..yields import (
    Checkpoint,
    Finish,
    Opaque,
    Refusal,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    Usage,
    Yielded,
)
from .call import Call, perform
from .connected import ConnectedModel, words_of
from .conversation import conversation, said, tool_call, tool_output
from .failure import failure
from .model import allowed, relax

logger = logging.getLogger("legato")

NOTE_EVERY = 64
"""Chunks after which the place in a background answer is noted again; no more than these are compared after a crash."""
EVENT_AROUND = 4096
"""Bytes of an event besides a tool's output: what a provider's tool gave is cut to what one event holds."""
POLL = 2.0
"""Seconds between looks at a background answer that can no longer be read as a stream."""

Items = AsyncGenerator[Yielded, None]


class _Note(msgspec.Struct, omit_defaults=True):
    """What a checkpoint says: where the run is. Most fields are those of ``_Step``.

    ``ours`` has the ids of the calls that are left to us, each with the provider's own id of it.
    """

    step: int
    response: str | None
    sequence_number: int | None
    before: dict[str, int]
    calls_before: int
    usage: Usage
    over: bool = False
    finish: str = "stop"
    ours: dict[str, str] = {}


@dataclass(slots=True)
class _Step:
    """One time that the model is asked.

    Attributes:
        number: from 1.
        response: the provider's id of a background answer; None before it is known, and of others.
        sequence_number: of the last event of it that the log had at the last checkpoint.
        before: characters, by kind, that the run had said before this step.
        calls_before: tool calls of the run before this step.
        had: characters, by kind and call, that the log has behind the last checkpoint: they come again.
        calls: by their index in the answer.
        over: the model has said all.
        cut: a limit, or a filter, has ended it: its calls may lack their ends.
    """

    number: int = 1
    response: str | None = None
    sequence_number: int | None = None
    before: Counter[str] = field(default_factory=Counter)
    calls_before: int = 0
    had: Counter[str] = field(default_factory=Counter)
    calls: dict[int, Call] = field(default_factory=dict)
    over: bool = False
    cut: bool = False


_CUTS = ("length", "content_filter", "incomplete")

_KINDS: dict[type[TextPiece], str] = {ThinkingDelta: "thinking", TextDelta: "text", RefusalDelta: "refusal"}


class ModelTurn:
    """One turn, step by step."""

    def __init__(self, upstream: ConnectedModel, turn: Turn) -> None:
        self._upstream = upstream
        self._turn = turn
        self._tools = dict(upstream.tools)
        self._theirs = _client_tools(turn.message.metadata.get("tools"), self._tools)
        self._names = {told_name(name): name for name in (*self._tools, *self._theirs)}
        self._step = _Step()
        self._usage = Usage(model=upstream.model.name)
        self._finish = "stop"
        self._result = ChatResult()  # what the model said in this step
        self._sealed: list[JsonObject] = []  # what its provider wants back with that
        self._messages: list[JsonObject] = []  # what the model is told next
        self._previous: str | None = None  # the background answer that the next one continues
        self._said: Counter[str] = Counter()  # characters of the whole run, by kind and call
        self._ids: list[str] = []  # of the calls of the whole run, in order
        self._cut_off: set[str] = set()  # calls that were running when the process died
        self._paused: Sequence[JsonObject] | None = None  # what the provider wants back, to go on
        self._left: dict[str, Call] = {}  # by the provider's id: calls that it has still to make
        self._chunks = 0
        self._taken_up = 0  # the step in which an earlier attempt was

    async def steps(self) -> Items:
        """Everything the run is to say."""
        self._take_up()
        if self._step.over:
            yield self._usage  # so far: perhaps the model is not asked again
        while True:
            if not self._step.over:
                with self._asking():
                    async with contextlib.aclosing(self._ask()) as items:
                        async for item in items:
                            yield item
            async with contextlib.aclosing(perform(self._due(), self._tools, self._turn, self._cut_off)) as items:
                async for item in items:
                    yield item
            calls = [call for call in self._step.calls.values() if call.ours]
            if any(call.result is None for call in calls):
                self._finish = "tool_calls"  # the client's own: its next message brings what came of them
            elif calls or self._paused is not None:
                self._advance(calls)
                continue
            if self._finish != "stop":
                yield Finish(self._finish)
            return

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        model = self._upstream.model
        provider = "anthropic" if model.wire == "messages" else "openai"
        url = urlsplit(model.base_url)
        port = url.port or PORTS.get(url.scheme)
        with asking(request_model=model.name, provider=provider, server=url.hostname, port=port) as span:
            yield
            if span is not None:
                result, used = self._result, self._result.usage or TokenUsage()
                attributes = named(
                    response=result.id,
                    response_model=result.model,
                    finish=None if result.finish_reason is None else [result.finish_reason],
                    input=used.input_tokens or None,
                    output=used.output_tokens or None,
                    cached=used.cached_tokens or None,
                    reasoning=used.reasoning_tokens or None,
                )
                span.set_attributes(attributes)

    def _due(self) -> list[Call]:
        """The calls that are to be made now: not those of the client's own tools."""
        return [
            call
            for call in self._step.calls.values()
            if call.ours and call.result is None and call.name not in self._theirs
        ]

    def _advance(self, calls: Sequence[Call]) -> None:
        step, limit = self._step, self._upstream.max_steps
        if step.number >= limit:
            raise AgentError(f"The model was asked {limit} times, and still calls tools.", code="too_many_steps")
        whole = self._paused is None and step.response is None  # the provider keeps nothing: it is told all
        outputs = [tool_output(call.id if whole else call.given, call.result.output, success=call.result.success)
                   for call in calls if call.result is not None]  # fmt: skip
        self._previous = step.response
        if self._paused is not None:
            outputs = [*self._messages, {"role": "assistant", "content": list(self._paused)}, *outputs]
        elif whole:
            asked = [tool_call(call.id, call.name, call.arguments) for call in calls]
            outputs.insert(0, {"role": "assistant", "content": self._result.text + self._result.refusal or None,
                               "thinking": self._result.thinking, "tool_calls": asked,
                               "opaque": [{"owner": self._upstream.owner, "data": self._sealed}]})  # fmt: skip
            outputs = [*self._messages, *outputs]
        self._messages = outputs
        self._paused = None
        self._finish = "stop"  # why one step ended says nothing of the next
        self._step = _Step(step.number + 1, before=self._told, calls_before=len(self._ids))

    # After a crash ----------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Begin, or go on where an earlier attempt was.

        Raises:
            AgentError: something was said that cannot be continued.
        """
        turn = self._turn
        note = None if turn.checkpoint is None else msgspec.convert(turn.checkpoint, _Note)
        asked = not self._upstream.model.background or any(isinstance(event.fact, TextPiece) for event in turn.events)
        if note is None and (turn.attempt == 1 or not asked):
            self._messages = conversation(turn, self._upstream.instructions)
            return
        if note is None or (note.response is None and not note.over):
            raise AgentError(
                "The server stopped while the answer was being given. What came is kept.", code="interrupted"
            )
        before = Counter(note.before)
        self._step = step = _Step(
            note.step, note.response, note.sequence_number, before, note.calls_before, over=note.over
        )
        self._usage, self._finish, self._taken_up = note.usage, note.finish, note.step
        started: set[str] = set()
        for event in turn.events:
            match event.fact:
                case CheckpointNoted():
                    step.had.clear()
                case (ThinkingDelta() | TextDelta() | RefusalDelta()) as piece:
                    self._count(step, _KINDS[type(piece)], len(piece.text))
                case CallStarted(id=id):
                    self._ids.append(id)
                case CallDelta(id=id, arguments=arguments):
                    self._count(step, id, len(arguments))
                case ToolBegun(id=id):
                    started.add(id)
        if note.over:
            self._take_calls(step, note.ours, started)
        if note.response is None:
            self._take_messages(note.step)

    def _count(self, step: _Step, key: str, size: int) -> None:
        self._said[key] += size
        step.had[key] += size

    def _take_calls(self, step: _Step, ours: Mapping[str, str], started: set[str]) -> None:
        """The calls of a step in which the model has said all, with what came of them."""
        calls = {id: Call(id, given, "") for id, given in ours.items()}
        for event in self._turn.events:
            match event.fact:
                case CallCompleted(id=id, name=name, arguments=arguments) if id in calls:
                    calls[id].name, calls[id].arguments = name, arguments
                case ToolCompleted(id=id, output=output, success=success) if id in calls:
                    calls[id].result = ToolResult(id, output, success)
        step.calls = dict(enumerate(calls.values()))
        self._cut_off = {id for id in started if id in calls and calls[id].result is None}

    def _take_messages(self, step: int) -> None:
        """What the model was told up to this step, and what it said in it. What stands in the log before it was asked
        for the step, was said before."""
        events = self._turn.events
        begins = (place for place, event in enumerate(events)
                  if isinstance(event.fact, CheckpointNoted) and event.fact.data.get("step") == step)  # fmt: skip
        begin = next(begins) if step > 1 else 0
        before = fold(events[:begin]).message(self._turn.run)
        earlier = said(before.parts, before.text, before.opaque)
        self._messages = [*conversation(self._turn, self._upstream.instructions), *earlier]
        texts = dict.fromkeys(_KINDS.values(), "")
        for fact in (event.fact for event in events[begin:]):
            if isinstance(fact, TextPiece):
                texts[_KINDS[type(fact)]] += fact.text
            elif isinstance(fact, OpaqueNoted):
                self._sealed = fact.data
        self._result = ChatResult(texts["text"], refusal=texts["refusal"], thinking=texts["thinking"])

    # The model --------------------------------------------------------------------------------------------------------

    async def _ask(self) -> Items:
        """Have the model speak, and hand on what it says."""
        step = self._step
        result = ChatResult()
        refused = False  # what the model says, by the runner: it passes a limit
        try:
            while True:
                background = self._upstream.background
                if not background and (self._upstream.model.background or step.number > 1):
                    # What comes cannot be continued: a further attempt is to know that it was paid for.
                    yield self._note(None)
                    await self._turn.stored()
                stream = self._open()
                try:
                    async with stream:
                        async for chunk in stream:
                            for item in self._items(chunk, stream):
                                yield item
                    result = stream.partial
                    break
                except ProviderRefused as exc:
                    if step.response is not None or not (self._upstream.learn(exc, background) or self._unseal(exc)):
                        raise
        except ResponseIncomplete as exc:
            result = exc.partial
            self._cut(exc)
        except ProviderError as exc:
            if step.response is None or isinstance(exc, ResponseFailed):
                raise self._failure(exc) from exc
            kept = await self._kept(exc)
            if isinstance(kept.failure, ResponseIncomplete):
                self._cut(kept.failure)
            elif kept.failure is not None:
                raise self._failure(kept.failure) from kept.failure
            result = untagged(kept.result, self._upstream.think_tag)
            step.had = self._said - step.before
            for chunk in _chunks(result):
                for item in self._items(chunk):
                    yield item
        except GeneratorExit:
            refused = True
            raise
        finally:
            # Whoever is stopped for good says so to the provider, or it would write, and be paid, to the end.
            if step.response is not None and (refused or self._turn.cancelled) and not self._turn.left_open:
                self._upstream.end(step.response)
        for item in self._conclude(result):
            yield item

    def _unseal(self, refusal: ProviderRefused) -> bool:
        """Whether to ask again without what this conversation has for the provider: it takes it no more."""
        if learned(words_of(refusal), RULES[:-1]) is None or not any("opaque" in message for message in self._messages):
            return False
        logger.warning("run %s: the provider takes back no more what it gave: %s", self._turn.run, refusal)
        self._messages = [
            {name: value for name, value in message.items() if name != "opaque"} for message in self._messages
        ]
        return True

    def _cut(self, error: ResponseIncomplete) -> None:
        self._finish = error.reason
        self._step.cut = error.reason in _CUTS

    def _open(self) -> AsyncStream[StreamChunk]:
        step, upstream = self._step, self._upstream
        tag = upstream.think_tag
        if step.response is not None:
            return upstream.keeper.chat_resume(step.response, starting_after=step.sequence_number, think_tag=tag)
        settings = {**upstream.model.settings(self._turn.message.metadata), **upstream.options}
        known = [*(tool.definition for tool in self._tools.values()), *self._theirs.values()]
        if not isinstance(settings.get("tool_choice"), dict) or settings["tool_choice"].get("type") != "allowed_tools":
            known = allowed(known, self._turn.message.metadata.get("tool_choice"))
        tools = [_told_tool(tool) for tool in known]
        if not tools:
            settings.pop("tool_choice", None)
        elif step.number > 1 and _forces(settings.get("tool_choice")):
            # Called for once: else the model would call for ever, and never answer.
            relaxed = relax(settings.pop("tool_choice", None))
            settings |= {} if relaxed is None else {"tool_choice": relaxed}
        if "tool_choice" in settings:
            settings["tool_choice"] = _told_choice(settings["tool_choice"])
        if upstream.background:
            settings["background"] = True
        elif upstream.unstored:
            settings.setdefault("store", False)
        if upstream.sealed:
            settings.setdefault("include", ["reasoning.encrypted_content"])
        if self._previous is not None:
            settings["previous_response_id"] = self._previous
        return upstream.provider.chat_stream(
            model=upstream.model.name,
            messages=self._messages,
            tools=tools or None,
            # Asked again before the id of the answer was in the log, a provider that knows keys gives the same answer.
            headers={"idempotency-key": f"{self._turn.run}~m{step.number}"},
            think_tag=tag,
            **settings,
        )

    async def _kept(self, reason: ProviderError) -> Response:
        """A background answer whose stream is to be had no more, once it is whole."""
        assert self._step.response is not None
        logger.info("response %s is asked for until it is whole: %s", self._step.response, reason)
        try:
            while True:
                kept = await self._upstream.keeper.retrieve(self._step.response)
                if kept.status not in ("queued", "in_progress"):
                    return kept
                await asyncio.sleep(POLL)
        except ProviderError as exc:
            raise self._failure(exc) from exc

    def _failure(self, error: ProviderError) -> AgentError:
        status = error.status_code if isinstance(error, ProviderRefused) else 0
        self._upstream.figures.errors.add(type(error).__name__, str(status))
        return failure(error, self._upstream.model.api_key)

    def _items(self, chunk: StreamChunk, stream: AsyncStream[StreamChunk] | None = None) -> Iterator[Yielded]:
        """What a chunk is in our words, without what the log has already."""
        step = self._step
        if chunk.id is not None:
            step.response = chunk.id
            yield self._note(stream)
        if thought := self._new("thinking", chunk.thinking):
            yield Thinking(thought)
        if text := self._new("text", chunk.delta):
            yield text
        if refusal := self._new("refusal", chunk.refusal):
            yield Refusal(refusal)
        if chunk.tool_call_delta is not None:
            yield from self._called(chunk.tool_call_delta, stream)
        if chunk.tool_output is not None:
            if stream is not None and chunk.tool_output.index not in step.calls:
                yield from self._call_before(chunk.tool_output.index, stream)
            made = chunk.tool_output
            yield from self._made(step.calls[made.index], made.output, success=made.success)
        self._chunks += 1
        if step.response is not None and not self._chunks % NOTE_EVERY and not +step.had:
            yield self._note(stream)

    def _new(self, key: str, text: str) -> str:
        """What of a text the log does not have."""
        had = min(self._step.had[key], len(text))
        self._step.had[key] -= had
        self._said[key] += len(text) - had
        return text[had:]

    def _called(self, delta: ToolCallDelta, stream: AsyncStream[StreamChunk] | None) -> Iterator[Yielded]:
        step = self._step
        if delta.index not in step.calls:
            if delta.hosted and delta.id in self._left:
                step.calls[delta.index] = self._left.pop(delta.id)
            elif stream is not None and delta.id is None:
                yield from self._call_before(delta.index, stream)
            else:
                yield from self._call(delta.index, delta.id or "", delta.name, hosted=delta.hosted)
        if arguments := self._new(step.calls[delta.index].id, delta.arguments):
            yield ToolArguments(step.calls[delta.index].id, arguments)

    def _call_before(self, index: int, stream: AsyncStream[StreamChunk]) -> Iterator[Yielded]:
        """Take a call whose beginning was noted before the crash, and is not given out again."""
        whole = stream.partial.tool_calls[index]
        yield from self._call(index, whole.id, whole.name, hosted=whole.hosted)

    def _call(self, index: int, given: str, name: str, *, hosted: bool) -> Iterator[Yielded]:
        """Take a call that begins; said only if the log does not have it."""
        step = self._step
        place = step.calls_before + index
        if place < len(self._ids):
            step.calls[index] = Call(self._ids[place], given, self._names.get(name, name), ours=not hosted)
            return
        name = self._names.get(name, name)[:NAME_CHARACTERS]
        # Some servers count their calls anew in each answer, some give them no id at all, and some hide a book in it.
        id = given if len(given) <= ID_CHARACTERS // 2 else ""
        if not id or id in self._ids:
            id = f"{id or 'call'}~{place}"
        self._ids.append(id)
        step.calls[index] = Call(id, given or id, name, ours=not hosted)
        yield ToolCall(id, name, by="provider" if hosted else "client" if name in self._theirs else "server")

    def _made(self, call: Call, output: str, *, success: bool = True) -> Iterator[Yielded]:
        """Take what came of a call that is not left to us: the provider has made it itself, or it was cut off."""
        call.ours = False
        if len(output) * 6 > self._turn.max_event_bytes - EVENT_AROUND:  # a character takes at most 6 bytes of JSON
            output = output[: (self._turn.max_event_bytes - EVENT_AROUND) // 6]
        if call.result is None:
            call.result = ToolResult(call.id, output, success=success)
            if not self._has_result(call.id):
                yield call.result

    def _has_result(self, id: str) -> bool:
        return any(isinstance(event.fact, ToolCompleted) and event.fact.id == id for event in self._turn.events)

    def _conclude(self, result: ChatResult) -> Iterator[Yielded]:
        """Take note that the model has said all of this step."""
        step = self._step
        for index, whole in enumerate(result.tool_calls):
            if index not in step.calls:  # told, and stored, before the crash
                yield from self._call(index, whole.id, whole.name, hosted=whole.hosted)
            call = step.calls[index]
            call.arguments = whole.arguments
            if whole.output is not None:
                yield from self._made(call, whole.output, success=whole.success)
            elif whole.hosted and result.finish_reason == "pause_turn":
                self._left[whole.id] = call
                yield ToolReady(call.id)
            elif (step.cut or whole.hosted) and call.result is None:
                yield from self._made(call, "The call was cut off.", success=False)
            else:
                yield ToolReady(call.id)
        if result.finish_reason != "pause_turn":
            for call in self._left.values():
                yield from self._made(call, "The call was cut off.", success=False)
            self._left.clear()
        self._result, self._sealed = result, self._pieces(result)
        yield from self._opaque()
        if result.usage is not None:
            old, new = self._usage, result.usage
            self._usage = Usage(
                input_tokens=count(old.input_tokens + new.input_tokens),
                output_tokens=count(old.output_tokens + new.output_tokens),
                cached_tokens=count(old.cached_tokens + new.cached_tokens),
                reasoning_tokens=count(old.reasoning_tokens + new.reasoning_tokens),
                model=(result.model or old.model or "")[:NAME_CHARACTERS],
            )
            yield self._usage
        if result.finish_reason == "pause_turn" and result.content:
            self._paused = result.content
        elif self._finish == "stop" and result.finish_reason not in (None, "stop", "tool_calls"):
            self._finish = str(result.finish_reason)[:NAME_CHARACTERS]
        step.over = True
        if step.response is not None or (self._paused is None and self._due()):
            yield self._note(None)  # from here on a further attempt goes on: with the tools, and what they give

    def _pieces(self, result: ChatResult) -> list[JsonObject]:
        """What the provider wants back of this step, in JSON, its calls by their ids in the log."""
        calls = self._step.calls
        told = {piece.get("call") for piece in result.opaque if "block" in piece}
        made = (whole for whole in result.tool_calls if whole.hosted or whole.output is not None)
        if self._step.cut or any(whole.id not in told for whole in made):
            return []  # it is not whole, or not of one step
        ids: dict[object, list[str]] = {}
        for index, whole in enumerate(result.tool_calls):
            ids.setdefault(whole.id, []).append(calls[index].id)
        pieces: list[JsonObject] = []
        for piece in result.opaque:
            left = ids.get(piece.get("call"))
            pieces.append({**piece, "call": left[0] if "block" in piece else left.pop(0)} if left else piece)
        # Its ids too, where they are told to others in another form: some models read them.
        own = (call for call in calls.values() if call.given != call.id or not is_plain(call.given))
        return [*pieces, *({"call": call.id, "id": call.given} for call in own)]

    def _opaque(self) -> Iterator[Opaque]:
        """What is to be in the log of it, unless it is there."""
        if not self._sealed:
            return
        try:
            data = as_json("Opaque.data", self._sealed)
        except InvalidInput as exc:
            logger.warning("run %s: what the provider wants back cannot be kept: %s", self._turn.run, exc)
            return
        noted: list[object] = []
        for fact in (event.fact for event in self._turn.events if self._step.number == self._taken_up):
            if isinstance(fact, CheckpointNoted) and fact.data.get("step") != self._taken_up:
                noted.clear()  # that was of a step before
            elif isinstance(fact, OpaqueNoted):
                noted.append(fact.data)
        if data not in noted:
            yield Opaque(self._upstream.owner, data)

    def _note(self, stream: AsyncStream[StreamChunk] | None) -> Checkpoint:
        step = self._step
        number = step.sequence_number if stream is None else stream.sequence_number
        ours = {call.id: call.given for call in step.calls.values() if call.ours} if step.over else {}
        return Checkpoint(
            msgspec.to_builtins(
                _Note(step.number, step.response, number, dict(step.before), step.calls_before, self._usage, step.over,
                      self._finish, ours)
            )
        )  # fmt: skip

    @property
    def _told(self) -> Counter[str]:
        return Counter({kind: self._said[kind] for kind in _KINDS.values()})


def _client_tools(given: object, own: Mapping[str, Tool]) -> dict[str, JsonObject]:
    """The client's tools, by name, without those that are called like one of ours.

    Raises:
        InvalidInput: a function without a name.
    """
    tools: dict[str, JsonObject] = {}
    for tool in given if isinstance(given, list) else ():
        if isinstance(tool, dict):
            read = read_tool(tool)
            # A provider's own kind of tool has no name by which it would be left to anybody.
            tools[f"<{len(tools)}>" if isinstance(read, dict) else read.name] = tool
    return {name: tool for name, tool in tools.items() if name not in own}


def _told_tool(tool: JsonObject) -> JsonObject:
    """A tool under a name that every API takes."""
    read = read_tool(tool)
    if isinstance(read, dict) or (name := told_name(read.name)) == read.name:
        return tool
    return {**msgspec.to_builtins(read), "name": name}


def _told_choice(choice: object) -> object:
    """A choice of one tool, by the name that it is told under."""
    if not isinstance(choice, dict):
        return choice
    if isinstance(choice.get("function"), dict):
        return {**choice, "function": _told_choice(choice["function"])}
    return {**choice, "name": told_name(choice["name"])} if isinstance(choice.get("name"), str) else choice


def _forces(choice: object) -> bool:
    """Whether the model has to call a tool, in the words of any API."""
    if isinstance(choice, dict):  # {"type": "allowed_tools", "mode": "auto", ...}, {"type": "function", ...}
        choice = choice.get("mode", choice.get("type"))
    return choice not in ("auto", "none")


def _chunks(result: ChatResult) -> Iterator[StreamChunk]:
    """A whole answer as it could have come."""
    yield StreamChunk(thinking=result.thinking)
    yield StreamChunk(delta=result.text)
    yield StreamChunk(refusal=result.refusal)
    for index, call in enumerate(result.tool_calls):
        yield StreamChunk(tool_call_delta=ToolCallDelta(index, call.id, call.name, call.arguments, call.hosted))
