"""What the events of the Responses API add up to. No I/O.

``ResponsesFold`` makes chunks of events and keeps the place (id and sequence number) from which a provider that keeps
its responses can continue; ``RawFold`` gives the events themselves and is the same otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

from ..check import whole as joined
from ..http.call import HttpCall
from ..items import words_of
from ..json import JsonObject
from ..sse import SSEMessage
from .assembly import as_json
from .chat_completions import reason_of
from .errors import (
    ProviderError,
    ResponseCancelled,
    ResponseIncomplete,
    StreamInterrupted,
    StreamMalformed,
    failed,
)
from .events import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    ItemEvent,
    LifecycleEvent,
    OutputItemEvent,
    PartEvent,
    ReasoningDeltaEvent,
    RefusalDeltaEvent,
    ResponseErrorEvent,
    ResponseEvent,
    TextDeltaEvent,
    TextDoneEvent,
    decode_event,
)
from .prompt import as_text
from .responses_requests import resume
from .result import StreamChunk, Tally, TokenUsage, spent

__all__ = ["ENDS", "RawFold", "ResponsesFold"]

ENDS: Final = {
    "completed": "response.completed",
    "failed": "response.failed",
    "incomplete": "response.incomplete",
    "cancelled": "response.cancelled",
}
"""The events that end a response, by the status that it has then."""


@dataclass(slots=True)
class _ItemState:
    """What was streamed of one item of the output; the pieces of a text are joined when it is whole.

    Attributes:
        kind: ``message``, ``function_call``, ``reasoning`` or another type of item.
        id, index: what its first event said of it.
        text, refusal, arguments: what came of it, in pieces.
        promised: what it began with; some say it again in deltas, some go on behind it, and some do neither.
        call: its index among the answer's calls, once it has begun there.
        asked, name: a call's id, and its tool.
        done: it is whole; deltas that come now were said before.
        raw: the whole item, as it came.
    """

    kind: str
    id: str = ""
    index: int | None = None
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    promised: str = ""
    thought: bool = False
    call: int | None = None
    asked: str = ""
    name: str = ""
    done: bool = False
    raw: JsonObject | None = None

    def claim(self, delta: str) -> str:
        """A first delta, with what it goes on with; what it only repeats is not said twice."""
        promised, self.promised = self.promised, ""
        repeated = not promised or promised.startswith(delta) or delta.startswith(promised)
        return delta if repeated else promised + delta

    def says(self, item: JsonObject) -> bool:
        """Whether it is all that the item is."""
        if self.kind == "function_call":
            return (self.name, "".join(self.arguments)) == (_text(item, "name"), as_json(item.get("arguments")))
        return "".join(self.text) == "".join(as_text(part) for part in _list(item, "content"))


@dataclass(slots=True)
class _ResponseState:
    """What the events of one response add up to.

    Attributes:
        tally: the answer so far.
        last: the sequence number of the last event; None before it, and from providers that do not number.
        resumable: whether the provider keeps the response, so that it can be continued.
        joined: whether this connection began in the middle, so that numbers are checked.
    """

    tally: Tally = field(default_factory=Tally)
    last: int | None = None
    resumable: bool = False
    joined: bool = False
    over: bool = False
    failure: ProviderError | None = None
    impatient: bool = True
    _items: list[_ItemState] = field(default_factory=list)
    _ids: dict[str, _ItemState] = field(default_factory=dict)
    _before: JsonObject | None = None  # the last event that had a number
    _counted: bool = False  # numbers have grown
    _thinking: tuple[object, ...] | None = None  # the part that is being thought

    @classmethod
    def joining(cls, id: str, last: int | None) -> Self:
        """That of a response which is read behind this event; None: from the first on."""
        fold = cls(last=last, resumable=True, joined=True)
        fold.tally.id = id
        return fold

    @property
    def enough(self) -> bool:
        """An end without a terminal event is none, but it shows what is wrong."""
        return bool(self._lost) and not self.resumable

    def done(self) -> tuple[()]:
        """See ``WireFold``. Only a terminal event ends a response."""
        if lost := self._lost:
            self.over = True
            self.failure = self.failure or StreamMalformed(f"Arguments came of no tool call: {lost[:200]!r}.")
        return ()

    @property
    def _lost(self) -> str:
        """Arguments of a call that nothing else has told of."""
        calls = (item for item in self._items if item.kind == "function_call" and item.call is None)
        return next((text for call in calls if (text := "".join(call.arguments)).strip()), "")

    def resume(self) -> HttpCall[object] | None:
        """See ``WireFold``."""
        if not self.resumable or self.tally.id is None or (self.last is None and not self.joined):
            return None
        self.joined = True
        return resume(self.tally.id, self.last)

    def _is_new(self, event: ResponseEvent) -> bool:
        """Whether the caller has not had it; events of a continued response follow without a gap."""
        number = event.sequence_number
        if self.joined and number is None:
            raise StreamMalformed(f"An event {event.type!r} of a continued response has no sequence number.")
        if self.joined and self.last is not None and number is not None:
            if number <= self.last:
                return False
            if number > self.last + 1:
                raise StreamInterrupted(f"The provider goes on with event {number} after event {self.last}.")
        if number is None:
            return True
        if number == self.last and self._counted and event.raw == self._before:
            return False  # said twice; some number all events with 0
        self._counted = self._counted or (self.last is not None and number > self.last)
        self.last, self._before = number, event.raw
        return True

    def take_event(self, event: ResponseEvent) -> list[StreamChunk]:
        """The chunks that an event adds."""
        tally = self.tally
        match event:
            case TextDeltaEvent(delta=delta):
                item = self._item(event, "message")
                if item.done:
                    return []
                if item.promised:
                    delta = item.claim(delta)
                item.text.append(delta)
                return tally.text(delta)
            case ReasoningDeltaEvent():
                return self._think(event)
            case ArgumentsDeltaEvent(delta=delta):
                item = self._item(event, _kind_of(event))
                return [] if item.done else self._argue(item, item.claim(delta))
            case ArgumentsDoneEvent(arguments=arguments):
                item = self._item(event, _kind_of(event))
                return [] if item.done else self._argue(item, _rest("".join(item.arguments), arguments))
            case RefusalDeltaEvent():
                item = self._item(event, "message")
                item.refusal.append("" if item.done else event.delta)
                return tally.refuse(item.refusal[-1])
            case TextDoneEvent(type="response.output_text.done"):
                item = self._item(event, "message")
                if not item.done and not item.text:  # some send no deltas
                    item.promised += _rest(item.promised, event.text)
            case PartEvent(type="response.content_part.added"):
                item = self._item(event, "message")
                if not item.done and not item.text:
                    item.promised += _rest(item.promised, as_text(event.part))
            case OutputItemEvent():
                whole = event.type == "response.output_item.done"
                return self._take_item(self._named(event.output_index, event.item, whole), event.item, whole)
            case LifecycleEvent():
                return self._take_state(event)
            case ResponseErrorEvent():
                self.failure = failed(event.raw)
        return []

    def _item(self, event: ItemEvent, kind: str) -> _ItemState:
        """The item that an event is about, by its id, else its place, else as the last of its kind."""
        id, index = event.item_id, event.output_index
        item = self._ids.get(id) if id else None
        if item is not None and item.kind == kind:
            if index is None or item.index in (index, None):
                return item
            return next((each for each in self._items if (each.id, each.index, each.kind) == (id, index, kind)), item)
        alike = [each for each in self._items if each.kind == kind]
        if index is not None:
            # Without an id; or with one that nobody has heard of, since some give each event another.
            alike = [each for each in alike if each.index in (index, None) and not (id and each.done)]
        elif id:
            alike = [each for each in alike if not each.id and not each.done]
        if alike:
            return next((each for each in reversed(alike) if not each.done), alike[-1])
        return self._new(kind, id or "", index)

    def _new(self, kind: str, id: str, index: int | None) -> _ItemState:
        item = _ItemState(kind, id, index)
        self._items.append(item)
        if id:
            self._ids[id] = item
        return item

    def _named(self, index: int | None, given: JsonObject, whole: bool) -> _ItemState:
        """The item that begins, or that is whole: by what its events have said of it, which may be little."""
        kind, id, asked = _text(given, "type"), _text(given, "id"), _text(given, "call_id")
        alike = [each for each in self._items if each.kind == kind and not (asked and each.asked not in ("", asked))]
        item = self._ids.get(id) if id else None
        if item is None or item not in alike:
            item = next((each for each in reversed(alike) if asked and each.asked == asked), None)
        if item is None:
            # What only deltas have told of has no name yet; and what is whole is what was begun.
            open = [each for each in alike if not each.done and (whole or not (each.name or each.promised))]
            if index is not None:
                open = [each for each in open if each.index in (index, None)]
            if not whole:
                open = [each for each in open if each.id in ("", id) and (each.text or each.arguments)]
            item = open[0] if open else None
        if item is None and whole and index is not None:
            item = next((each for each in alike if each.done and each.index == index and each.says(given)), None)
        if item is None:
            return self._new(kind, id, index)
        if id:
            self._ids[id] = item
        return item

    def _argue(self, item: _ItemState, arguments: str) -> list[StreamChunk]:
        """Take a piece of the arguments of a call, which may not have begun."""
        item.arguments.append(arguments)
        return [] if item.call is None else self.tally.add_arguments(item.call, arguments)

    def _think(self, event: ReasoningDeltaEvent) -> list[StreamChunk]:
        item = self._item(event, "reasoning")
        if item.done:
            return []
        item.thought = True
        part = (event.output_index, event.item_id, event.summary_index, event.content_index)
        return self._think_part(part, event.delta)

    def _think_part(self, part: tuple[object, ...], text: str) -> list[StreamChunk]:
        """Thinking, with a blank line where a new part begins."""
        if text and self.tally.thought and part != self._thinking:
            text = f"\n\n{text}"
        self._thinking = part
        return self.tally.think(text)

    def _take_item(self, state: _ItemState, item: JsonObject, whole: bool) -> list[StreamChunk]:
        """Take an item as it is now: what its deltas did not say is still to be said. Some servers send no deltas."""
        if state.done:
            return []
        state.done = whole
        state.raw = item if whole else None
        match state.kind:
            case "function_call":
                return self._take_call(state, item, whole)
            case kind if kind.endswith("_call") and "call_id" not in item:  # what has one is the caller's to answer
                return self._take_hosted(state, item, whole)
            case "message":
                return self._take_message(state, item, whole)
            case "function_call_output":
                return self.tally.answer_call(_text(item, "call_id"), as_text(item.get("output")))
            case "reasoning" if not state.thought:
                parts = _list(item, "summary") or _list(item, "content")
                thought = (self._think_part((id(state), place), as_text(part)) for place, part in enumerate(parts))
                chunks = [chunk for some in thought for chunk in some]
                state.thought = bool(chunks)
                return chunks
        return []

    def _take_call(self, state: _ItemState, item: JsonObject, whole: bool) -> list[StreamChunk]:
        chunks: list[StreamChunk] = []
        state.asked = state.asked or _text(item, "call_id")
        state.name = state.name or _text(item, "name")
        if state.call is None and (state.name or whole):
            state.call = self.tally.calls
            name = state.asked or _text(item, "id") or f"call_{state.call}"
            chunks += self.tally.begin_call(name, state.name, "".join(state.arguments))
        arguments = as_json(item.get("arguments"))
        if whole:
            state.promised = ""
            return chunks + self._argue(state, _rest("".join(state.arguments), arguments))
        if not state.arguments:
            state.promised = arguments
        return chunks

    def _take_hosted(self, state: _ItemState, item: JsonObject, whole: bool) -> list[StreamChunk]:
        """Take a call that the provider makes itself: of an MCP server's tool, a search, code that it runs."""
        chunks: list[StreamChunk] = []
        if state.call is None:
            state.name = _text(item, "name") or state.kind.removesuffix("_call")
            state.call = self.tally.calls
            id = state.id or _text(item, "id") or f"call_{state.call}"
            chunks += self.tally.begin_call(id, state.name, "".join(state.arguments), hosted=True)
        if not whole:
            return chunks
        given = {name: item[name] for name in _ASKED if item.get(name) is not None}
        arguments = as_json(item.get("arguments", given))
        chunks += self._argue(state, _rest("".join(state.arguments), arguments))
        output, success = _came_of(item)
        return chunks + self.tally.answer(state.call, output, success=success)

    def _take_message(self, state: _ItemState, item: JsonObject, whole: bool) -> list[StreamChunk]:
        parts = _list(item, "content")
        text = "".join(as_text(part) for part in parts)
        if not whole:
            state.promised = "" if state.text else text
            return []
        text = text or state.promised
        state.promised = ""
        refusals = (_text(part, "refusal") for part in parts if isinstance(part, dict))
        text = _rest("".join(state.text), text)
        refusal = _rest("".join(state.refusal), "".join(refusals))
        state.text.append(text)
        state.refusal.append(refusal)
        return self.tally.text(text) + self.tally.refuse(refusal)

    def take_output(self, response: JsonObject) -> list[StreamChunk]:
        """Take the output of a response that is over, as far as it was not streamed.

        In the final output, some providers leave out items, or give them other ids and places. So what was streamed is
        compared by what cannot be taken for another: the ids of calls, and whether there was any text.
        """
        chunks: list[StreamChunk] = []
        items = [item for item in _list(response, "output") if isinstance(item, dict)]
        if not self._items:
            for place, item in enumerate(items):
                chunks += self._take_item(self._new(_text(item, "type"), "", place), item, True)
            return chunks
        seen = {state.id for state in self._items if state.done}
        for item in items:
            kind, id = _text(item, "type"), _text(item, "id")
            if kind.endswith("_call") and "call_id" not in item and id and id not in seen:
                chunks += self._take_item(self._named(None, item, True), item, True)
            if item.get("type") == "function_call" and _text(item, "call_id"):
                chunks += self._take_item(self._known(item) or self._new("function_call", "", None), item, True)
        for state in self._items:
            if not state.done and state.promised:
                promised, state.promised, state.done = state.promised, "", True
                chunks += self._argue(state, promised) if state.kind == "function_call" else self.tally.text(promised)
        if not self.tally.spoken:
            for item in items:
                if item.get("type") == "message":
                    chunks += self._take_item(self._new("message", "", None), item, True)
        return chunks

    def _opaque(self, response: JsonObject) -> tuple[JsonObject, ...]:
        """What is wanted back of the output besides its texts and calls, in its place among them.

        Reasoning that can be read by its id only is left out, since ids are not kept for ever; so are then the ids of
        what stands behind it, which the API refuses without.
        """
        items = (item for item in _list(response, "output") if isinstance(item, dict))
        late = {_text(item, "id"): item for item in items if item.get("type") == "reasoning" and item.get("id")}
        pieces: list[JsonObject] = []
        kept = whole = True
        for state in self._items:
            raw = state.raw or {}
            if state.kind == "reasoning":
                raw = raw if raw.get("encrypted_content") else late.get(_text(raw, "id"), raw)
                kept = bool(raw.get("encrypted_content") or raw.get("content"))
                whole = whole and kept
                if kept:
                    pieces.append({"block": {name: value for name, value in raw.items() if name != "status"}})
            elif state.kind == "message":
                fields = {name: raw[name] for name in ("id", "phase") if isinstance(raw.get(name), str)}
                pieces.append({"text": len(joined("".join(state.text + state.refusal))), "fields": fields})
            elif state.kind == "function_call" and state.call is not None:
                fields = {"id": raw["id"]} if isinstance(raw.get("id"), str) else {}
                pieces.append({"call": self.tally.given(state.call)[0], "fields": fields})
        if not any("block" in piece or "phase" in piece.get("fields", ()) for piece in pieces):
            return ()
        if not whole or not any("block" in piece for piece in pieces):
            for piece in pieces:
                piece.get("fields", {}).pop("id", None)
        return tuple(pieces)

    def _known(self, item: JsonObject) -> _ItemState | None:
        """What was streamed of a call in the final output."""
        asked, name, arguments = _text(item, "call_id"), _text(item, "name"), as_json(item.get("arguments"))
        calls = [each for each in self._items if each.kind == "function_call"]
        return next((each for each in calls if each.asked == asked), None) or next(
            (each for each in calls if each.name in ("", name) and arguments.startswith("".join(each.arguments))), None
        )

    def _take_state(self, event: LifecycleEvent) -> list[StreamChunk]:
        response, tally = event.response, self.tally
        known, tally.id = tally.id, _text(response, "id") or tally.id
        tally.model = _text(response, "model") or tally.model
        chunks = [StreamChunk(id=tally.id)] if self.resumable and known is None and tally.id else []
        if event.type not in ENDS.values():
            return chunks
        self.over = True
        chunks += self.take_output(response)
        tally.opaque = self._opaque(response)
        kind = event.type
        if kind == "response.completed":
            # Its own status, or its error, says more than the event's name.
            kind = ENDS.get(str(response.get("status")), kind)
            kind = "response.failed" if response.get("error") else kind
        if kind == "response.completed":
            self.done()
        reason = "tool_calls" if tally.unanswered else "stop"
        if kind == "response.incomplete":
            details = response.get("incomplete_details")
            reason = _text(details, "reason") if isinstance(details, dict) else ""
            reason = reason_of(reason) or "incomplete"
            self.failure = self.failure or ResponseIncomplete(f"The model was stopped: {reason}.", reason=reason)
        elif kind != "response.completed":
            self.failure = self.failure or _failure(kind, response)
            reason = ""
        return chunks + tally.end(_usage(response.get("usage")), reason or None)


@dataclass(slots=True)
class ResponsesFold(_ResponseState):
    """A response as chunks.

    Attributes:
        hidden: chunks up to this sequence number are not given out.
    """

    hidden: int | None = None

    def take(self, message: SSEMessage) -> list[StreamChunk]:
        """See ``WireFold``."""
        event = decode_event(message)
        if not self._is_new(event):
            return []
        chunks = self.take_event(event)
        return [] if self._is_hidden(event) else chunks

    def _is_hidden(self, event: ResponseEvent) -> bool:
        number = event.sequence_number
        return self.hidden is not None and number is not None and number <= self.hidden


@dataclass(slots=True)
class RawFold(_ResponseState):
    """A response as its events; a failure waits for the terminal event behind it."""

    impatient: bool = False

    def take(self, message: SSEMessage) -> list[ResponseEvent]:
        """See ``WireFold``."""
        event = decode_event(message)
        if not self._is_new(event):
            return []
        self.take_event(event)
        return [event]


def _failure(kind: str, response: JsonObject) -> ProviderError:
    if kind == "response.cancelled" or response.get("status") == "cancelled":
        return ResponseCancelled("The response was cancelled.")
    return failed(response.get("error"))


def _kind_of(event: ResponseEvent) -> str:
    return "mcp_call" if event.type.startswith("response.mcp_call") else "function_call"


_ASKED: Final = ("action", "queries", "code", "prompt")
"""What a hosted call that has no arguments was asked for."""
_SAID_ALREADY: Final = ("id", "type", "status", "name", "arguments", "server_label", "approval_request_id", *_ASKED)


def _came_of(item: JsonObject) -> tuple[str, bool]:
    """What a hosted call gave, as text, and whether that is what was asked for."""
    if item.get("error"):
        return words_of(item["error"]), False
    success = item.get("status", "completed") not in ("failed", "incomplete")
    output = item.get("output")
    if output is not None:
        return words_of(output), success
    # Of a picture there may be megabytes.
    rest = {name: value for name, value in item.items() if name not in (*_SAID_ALREADY, "result") and value}
    return as_json(rest) if rest.keys() - {"output", "error"} else "", success


def _text(value: JsonObject, name: str) -> str:
    text = value.get(name)
    return text if isinstance(text, str) else ""


def _list(value: JsonObject, name: str) -> list[object]:
    items = value.get(name)
    return items if isinstance(items, list) else []


def _rest(begun: str, whole: str) -> str:
    """What is missing of the whole; nothing when the whole is another text."""
    return whole[len(begun) :] if whole.startswith(begun) else ""


def _usage(usage: object) -> TokenUsage | None:
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    return spent(
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        usage.get("total_tokens"),
        read.get("cached_tokens") if isinstance(read, dict) else None,
        written.get("reasoning_tokens") if isinstance(written, dict) else None,
    )
