"""The Responses dialect on the wire: the events of one run, folded into the events of one response.

A response is a run, and its id is the run's, so any node finds it without an index. Its events are numbered from 0
over the whole response, which one event cannot know by itself; so this fold has a state. It is pure nonetheless: the
same events of the run give the same numbers and the same bytes, for ever. A resume folds again from the run's first
event and leaves out what the client has.

Each part of the answer is one output item. Items are told one after another, also where an agent streams the
arguments of several tool calls at once: clients of this dialect credit a delta to the item that was added last. What
belongs to a later item waits until the earlier one is done, or, if it is a call, until its arguments are.

A client runs each ``function_call`` that it sees. So only a call that is the client's to run is one; what runs here, or
at the model's provider, is an ``mcp_call``, which has its output in itself. A log that does not say who runs a call
(of an earlier version) is told as it was then.

The bodies of requests are in ``responses_api``, Chat Completions in ``chat``. ``docs/dialects/responses.md`` says what
a client sees.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from .. import sse
from ..event import (
    AnyFact,
    CallCompleted,
    CallDelta,
    CallStarted,
    Event,
    MessageCreated,
    Offset,
    RefusalDelta,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunWaiting,
    SessionDeleted,
    Terminal,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolCompleted,
)
from ..json import JsonObject, unbroken
from ..part import Usage
from .responses_output import CALLS, ItemKind, OutputItem, Payload, sound
from .trail import Trail

DONE = b"data: [DONE]\n\n"
"""The last frame of a stream whose response has ended."""

HEARTBEAT = b": ping\n\n"
"""The frame for a silence. A whole block: parsers that split at blank lines would take a lone comment line for a part
of the next event. Streams of this dialect have no ids, so no decoder makes an event of it."""

_ID = re.compile(r"resp_(([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})~[0-9a-f]{1,64})", re.ASCII)
ID_PATTERN = r"^resp_[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}~[0-9a-f]{1,64}$"
"""A response's id, for the document."""


def response_id(run: str) -> str:
    """The id of the response that ``run`` is."""
    return f"resp_{run}"


def parse_id(id: str) -> tuple[str, str] | None:
    """Session and run of a response's id; None if no response can have it."""
    match = _ID.fullmatch(id)
    return (match[2], match[1]) if match else None


# What a request may set -----------------------------------------------------------------------------------------------

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ResponseSettings(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a request sets besides its input: the agent finds it in ``turn.message.metadata``, by these names.

    The response says it again. None is the same as not given.
    """

    instructions: str | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    reasoning: JsonObject | None = None
    text: JsonObject | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": ID_PATTERN})] | None = None


_DEFAULTS: JsonObject = {
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "metadata": {},
    "background": False,
    "store": True,
    "service_tier": "default",
    "safety_identifier": None,
    "prompt_cache_key": None,
    "previous_response_id": None,
}
"""What a response says of what was not set. Strict clients want every field, and numbers where there are numbers."""


def settings(metadata: JsonObject) -> ResponseSettings:
    """What was set, from a message's metadata; nothing if that came from another dialect and does not fit."""
    try:
        return msgspec.convert(metadata, ResponseSettings)
    except msgspec.ValidationError:
        return ResponseSettings()


def _echo(metadata: JsonObject) -> JsonObject:
    given = {name: value for name, value in msgspec.structs.asdict(settings(metadata)).items() if value is not None}
    echo = {**_DEFAULTS, **given}
    for field in ("reasoning", "text"):
        echo[field] = {**_DEFAULTS[field], **echo[field]}
    whole: JsonObject = {"description": None, "parameters": None, "strict": None}
    echo["tools"] = [{**(whole if tool.get("type") == "function" else {}), **tool} for tool in echo["tools"]]
    return echo


CLIENTS = (None, "client")
"""Who runs a call that is left to the client; None in old logs, where nobody says."""
_KINDS: dict[type[TextPiece], ItemKind] = {
    TextDelta: "message",
    RefusalDelta: "refusal",
    ThinkingDelta: "reasoning",
}

# The fold -------------------------------------------------------------------------------------------------------------

_INCOMPLETE = {"length": "max_output_tokens", "max_output_tokens": "max_output_tokens",
               "content_filter": "content_filter"}  # fmt: skip
"""Why an answer that was not failed is not complete, by the run's ``finish_reason``."""


class ResponseFold:
    """What the events of one run are in this dialect.

    Args:
        session, run: ids.
        agent: who answers, as far as the session knows; what the run's own events say wins.

    Attributes:
        ended: whether the terminal event has been told.
        sequence: the number of the next event.
        thin: pieces were joined since (see ``thin``), so the numbers are not those that earlier readers have.
    """

    def __init__(self, session: str, run: str, *, agent: str) -> None:
        self.ended = self.thin = False
        self.sequence = 0
        self._session = session
        self._run = run
        self._agent = agent
        self._status = "queued"
        self._created = self._completed = 0.0
        self._error: JsonObject | None = None
        self._incomplete: JsonObject | None = None
        self._usage: JsonObject | None = None
        self._echo = _DEFAULTS
        self._items: list[OutputItem] = []
        self._told = 0  # items that are done; all before the one that is being told, but for those that run
        self._running: set[int] = set()  # places of calls whose arguments have been told, and whose result is to come
        self._calls: dict[str, int] = {}  # of calls that are not the client's the places of their items
        self._parts: dict[int, int] = {}  # of parts the places of their items
        self._restarted = False
        self._out: list[Payload] = []
        # Numbers and offsets go on side by side: where their distance changes, the number there and the distance.
        self._distances: Trail[tuple[int, int]] = Trail([])
        self._distance: int | None = None

    def copy(self) -> ResponseFold:
        """The same fold as far as it has come. Items that are done are shared: nothing changes them any more."""
        copy = ResponseFold(self._session, self._run, agent=self._agent)
        copy.ended, copy.sequence, copy._status = self.ended, self.sequence, self._status
        copy.thin = self.thin
        copy._created, copy._completed, copy._error = self._created, self._completed, self._error
        copy._incomplete, copy._usage, copy._echo = self._incomplete, self._usage, self._echo
        copy._items = [*self._items[: self._told], *(item.copy() for item in self._items[self._told :])]
        for place in self._running:
            copy._items[place] = self._items[place].copy()
        copy._running, copy._calls = set(self._running), dict(self._calls)
        copy._told, copy._parts, copy._restarted = self._told, dict(self._parts), self._restarted
        copy._distances, copy._distance = self._distances.copy(), self._distance
        return copy

    def feed(self, event: Event) -> list[Payload]:
        """The events of the response that ``event`` makes, each with its number. Those of other runs make none."""
        if event.run != self._run or self.ended:
            return []
        self._out = []
        handler = _HANDLERS.get(type(event.fact))
        if handler is not None:
            handler(self, event.fact, event.at)
        for number in range(self.sequence - len(self._out), self.sequence):
            if event.offset - number != self._distance:
                self._distance = event.offset - number
                self._distances.append((number, self._distance))
        return self._out

    def place(self, number: int) -> tuple[Offset, int]:
        """Where the event of this number stands: the offset that it comes from, and how many up to it come from there.

        Raises:
            IndexError: there is no event of that number yet.
        """
        if not 0 <= number < self.sequence:
            raise IndexError(number)
        offset, first = self._offset(number), number
        while first and self._offset(first - 1) == offset:
            first -= 1
        return offset, number - first + 1

    def count(self, before: Offset) -> int:
        """How many events of the response come from before an offset."""
        return bisect_left(range(self.sequence), before, key=self._offset)

    def _offset(self, number: int) -> Offset:
        place = bisect_right(self._distances, number, key=lambda each: each[0])
        return number + self._distances[place - 1][1]

    def response(self) -> JsonObject:
        """The response as it is now."""
        return {
            "id": response_id(self._run),
            "object": "response",
            "created_at": int(self._created),
            "completed_at": int(self._completed) if self._status == "completed" else None,
            "status": self._status,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "model": self._agent,
            "conversation": {"id": self._session},
            "output": [item.data() for item in self._items],
            "usage": self._usage,
            **self._echo,
        }

    def _emit(self, *payloads: Payload) -> None:
        for payload in payloads:
            self._out.append({"type": payload["type"], "sequence_number": self.sequence, **payload})
            self.sequence += 1

    def _lifecycle(self, name: str) -> None:
        self._emit({"type": f"response.{name}", "response": self.response()})

    def _message(self, fact: MessageCreated, at: float) -> None:
        self._created = at
        self._agent = fact.agent or self._agent
        self._echo = _echo(fact.metadata or {})
        if self._echo["background"]:
            self._lifecycle("created")
            self._lifecycle("queued")
        else:
            self._status = "in_progress"
            self._lifecycle("created")

    def _waiting(self, fact: RunWaiting, at: float) -> None:
        if self._status != "queued":  # else it has been told
            self._status = "queued"
            self._lifecycle("queued")

    def _started(self, fact: RunStarted, at: float) -> None:
        self._agent = fact.agent
        self._status = "in_progress"
        self._restarted = fact.attempt > 1
        self._lifecycle("in_progress")

    def _text(self, fact: TextPiece, at: float) -> None:
        if fact.part not in self._parts:
            self._open(_KINDS[type(fact)], fact.part)
        self._extend(fact.part, fact.start, fact.text)

    def _call_started(self, fact: CallStarted, at: float) -> None:
        if fact.part not in self._parts:
            kind: ItemKind = "function_call" if fact.by in CLIENTS else "mcp_call"
            item = self._open(kind, fact.part, call=fact.id, name=fact.name)
            if kind == "mcp_call":
                self._calls[fact.id] = item.index
            self._tell()

    def _call_delta(self, fact: CallDelta, at: float) -> None:
        self._extend(fact.part, fact.start, fact.arguments)

    def _call_completed(self, fact: CallCompleted, at: float) -> None:
        place = self._parts.get(fact.part, -1)
        if place >= self._told:  # else it has been told, and a copy may share it; or it never began
            item = self._items[place]
            item.replace(sound(fact.arguments) if item.kind == "mcp_call" else fact.arguments)
            item.status = "calling" if item.kind == "mcp_call" else "completed"
        self._tell()

    def _tool_completed(self, fact: ToolCompleted, at: float) -> None:
        output = fact.output if isinstance(fact.output, str) else msgspec.json.encode(fact.output).decode()
        if fact.id in self._calls:
            self._returned(self._items[self._calls[fact.id]], fact, output)
            return
        item = self._open("function_call_output", None, call=fact.id)
        item.extend(0, output)
        item.status = "completed" if fact.success else "incomplete"
        self._tell()

    def _returned(self, item: OutputItem, fact: ToolCompleted, output: str) -> None:
        if item.over:
            return  # its attempt died, and that has been told
        output = "" if fact.output is None else output
        if fact.success:
            item.status, item.output = "completed", output
        else:
            item.status, item.error = "failed", output or "The tool failed."
        self._over(item)
        self._tell()

    def _over(self, item: OutputItem) -> None:
        """Tell the end of a call that is running; of any other, ``_tell`` does."""
        if item.index in self._running:
            self._running.remove(item.index)
            self._emit(*item.done())

    def _open(self, kind: ItemKind, part: int | None, *, call: str = "", name: str = "") -> OutputItem:
        for other in self._items[self._told :]:
            if other.status == "in_progress" and self._restarted:
                other.cut()  # its attempt died, and the next one begins anew
            elif other.status == "in_progress" and other.kind not in CALLS:
                other.status = "completed"
        self._restarted = False
        item = OutputItem(kind, self._run, len(self._items), call=call, name=name)
        self._items.append(item)
        if part is not None:
            self._parts[part] = item.index
        return item

    def _extend(self, part: int, start: int, text: str) -> None:
        self._restarted = False
        self.thin = self.thin or not text
        place = self._parts.get(part, -1)
        if place >= self._told:
            self._items[place].extend(start, text)
        self._tell()

    def _tell(self) -> None:
        while self._told < len(self._items):
            item = self._items[self._told]
            about = {"output_index": item.index}
            if not item.begun:
                item.begun = True
                whole = item.kind == "function_call_output"
                added = {"type": "response.output_item.added", **about, "item": item.data(empty=not whole)}
                self._emit(added, *item.begin())
            if text := item.take():
                self._emit(*item.delta(text))
            if item.status == "in_progress":
                return
            self._emit(*item.end())
            self._told += 1
            if item.over:
                self._emit(*item.done())
            else:
                self._running.add(item.index)

    def _terminal(self, fact: Terminal, at: float) -> None:
        completed = isinstance(fact, RunCompleted)
        reason = _INCOMPLETE.get(fact.finish_reason) if isinstance(fact, RunCompleted) else None
        running = [self._items[place] for place in sorted(self._running)]
        for item in (*running, *(item for item in self._items[self._told :] if not item.over)):
            cut = not completed or item.kind == "mcp_call" or (reason is not None and item is self._items[-1])
            if cut:
                item.cut()
            else:
                item.status = "completed"
            self._over(item)
        self._tell()
        self._usage = _usage(fact.used or Usage())
        self._completed = at
        self.ended = True
        if reason is not None:
            self._status, self._incomplete = "incomplete", {"reason": reason}
            self._lifecycle("incomplete")
        elif isinstance(fact, RunFailed):
            self._status = "failed"
            self._error = {"code": fact.code, "message": fact.message}
            self._emit(error_payload(fact.code, fact.message))
            self._lifecycle("failed")
        elif completed:
            self._status = "completed"
            self._lifecycle("completed")
        else:  # cancelled; this dialect has no event of that name
            self._status = "cancelled"
            self._lifecycle("failed")


_HANDLERS: dict[type[AnyFact], Callable[[ResponseFold, Any, float], None]] = {
    MessageCreated: ResponseFold._message,
    RunWaiting: ResponseFold._waiting,
    RunStarted: ResponseFold._started,
    TextDelta: ResponseFold._text,
    RefusalDelta: ResponseFold._text,
    ThinkingDelta: ResponseFold._text,
    CallStarted: ResponseFold._call_started,
    CallDelta: ResponseFold._call_delta,
    CallCompleted: ResponseFold._call_completed,
    ToolCompleted: ResponseFold._tool_completed,
    RunCompleted: ResponseFold._terminal,
    RunFailed: ResponseFold._terminal,
    RunCancelled: ResponseFold._terminal,
}


def error_payload(code: str, message: str) -> Payload:
    """An ``error`` event. It carries both shapes that clients know: flat, and nested, at which the SDKs raise."""
    about = {"code": code, "message": message, "param": None}
    return {"type": "error", **about, "error": {"type": "server_error", **about}}


def _usage(usage: Usage) -> JsonObject:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


# Bytes ----------------------------------------------------------------------------------------------------------------


def frame(payload: Payload) -> bytes:
    """One event as bytes. No id: after one, decoders of this dialect's clients take a heartbeat for an event."""
    return sse.encode(sse.SSEMessage(data=unbroken(msgspec.json.encode(payload)).decode(), event=payload["type"]))


class ResponseEncoder:
    """The bytes of one reader's stream, event by event.

    Args:
        fold: new; it must be given the run from its first event on.
        after: leave out events up to and with this number; None for all.

    Attributes:
        fold: as far as it has come.
        over: nothing can follow.
    """

    def __init__(self, fold: ResponseFold, *, after: int | None = None) -> None:
        self.over = False
        self.fold = fold
        self._after = -1 if after is None else after

    def copy(self) -> ResponseEncoder:
        """See ``Fold``."""
        copy = ResponseEncoder(self.fold.copy(), after=self._after)
        copy.over = self.over
        return copy

    def encode(self, event: Event) -> bytes:
        """What the reader is sent for ``event``: whole frames, or nothing."""
        if self.over:
            return b""
        if isinstance(event.fact, SessionDeleted):
            self.over = True
            return _gone(self.fold.sequence)
        payloads = [each for each in self.fold.feed(event) if each["sequence_number"] > self._after]
        self.over = self.fold.ended
        frames = b"".join(frame(each) for each in payloads)
        return frames + DONE if self.over and frames else frames

    def gone(self, place: tuple[Offset, int]) -> bytes:
        """What a reader is told, instead of the rest, who has everything before an offset and so many frames there."""
        return _gone(self.fold.count(place[0]) + place[1])

    def heartbeat(self, cursor: Offset) -> bytes:
        """The frame for a silence."""
        return HEARTBEAT


def _gone(sequence: int) -> bytes:
    gone = error_payload("response_deleted", "The response was deleted while it was being read.")
    return frame({"type": "error", "sequence_number": sequence, **gone})
