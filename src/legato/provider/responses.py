"""The Responses API: its requests, and what its events add up to. No I/O.

``ResponsesFold`` makes chunks of events and keeps the place (id and sequence number) from which a provider that keeps
its responses can continue; ``RawFold`` gives the events themselves and is the same otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import quote

from ..errors import InvalidInput
from ..http.call import HttpCall
from ..json import JsonObject
from ..sse import SSEMessage
from .errors import ProviderError, ResponseCancelled, ResponseIncomplete, StreamInterrupted, StreamMalformed, failed
from .events import (
    ArgumentsDeltaEvent,
    ItemEvent,
    LifecycleEvent,
    OutputItemEvent,
    ReasoningDeltaEvent,
    RefusalDeltaEvent,
    ResponseErrorEvent,
    ResponseEvent,
    TextDeltaEvent,
    decode_event,
)
from .prompt import FunctionTool, as_text, read_tool, tool_calls
from .result import ChatResult, StreamChunk, Tally, TokenUsage
from .stream import STREAM_HEADERS, FoldedCall

__all__ = [
    "RawFold",
    "Response",
    "ResponsesFold",
    "ResponsesWire",
    "cancel",
    "create",
    "resume",
    "retrieve",
    "stream",
]


# Requests ------------------------------------------------------------------------------------------------------------


def create(
    message: str | Sequence[JsonObject], model: str | None, options: Mapping[str, object]
) -> HttpCall[JsonObject]:
    """Ask for a whole response."""
    return HttpCall("POST", "/responses", JsonObject, body=_body(message, model, options, False))


def stream(
    message: str | Sequence[JsonObject], model: str | None, options: Mapping[str, object]
) -> HttpCall[JsonObject]:
    """Ask for a response's events."""
    body = _body(message, model, options, True)
    return HttpCall("POST", "/responses", JsonObject, body=body, headers=STREAM_HEADERS)


def _body(
    message: str | Sequence[JsonObject], model: str | None, options: Mapping[str, object], streamed: bool
) -> JsonObject:
    return {"model": model, **options, "input": message, "stream": streamed}


def retrieve(id: str) -> HttpCall[JsonObject]:
    """Ask for a response that the provider has kept."""
    return HttpCall("GET", _path(id), JsonObject)


def cancel(id: str) -> HttpCall[JsonObject]:
    """Ask for the end of a background response."""
    return HttpCall("POST", f"{_path(id)}/cancel", JsonObject)


def resume(id: str, starting_after: int | None) -> HttpCall[JsonObject]:
    """Ask for the events of a response behind the one of this number; None: from the first on.

    Raises:
        InvalidInput: a number below 0.
    """
    if starting_after is not None and starting_after < 0:
        raise InvalidInput(f"Sequence numbers start at 0, unlike {starting_after}.")
    query = {"stream": True, "starting_after": starting_after}
    return HttpCall("GET", _path(id), JsonObject, query=query, headers=STREAM_HEADERS)


def _path(id: str) -> str:
    if not id:
        raise InvalidInput("A response's id is expected, not an empty text.")
    return f"/responses/{quote(id, safe='')}"


# Answers -------------------------------------------------------------------------------------------------------------

_ENDS: Final = {
    "completed": "response.completed",
    "failed": "response.failed",
    "incomplete": "response.incomplete",
    "cancelled": "response.cancelled",
}


@dataclass(frozen=True, slots=True)
class Response:
    """A response as the provider keeps it.

    Attributes:
        raw: all its fields, as they were sent.
        result: what they say.
        failure: why it did not succeed; None when it did, or is not over.
    """

    raw: JsonObject
    result: ChatResult
    failure: ProviderError | None = None

    @classmethod
    def read(cls, raw: JsonObject) -> Response:
        """The response that a JSON object is.

        Raises:
            StreamMalformed: it is none.
        """
        if not isinstance(raw.get("output"), list):
            raise StreamMalformed(f"A response with a list as its output was expected, not {raw!r:.200}.")
        fold = ResponsesFold()
        fold.take_event(LifecycleEvent(type=_ENDS.get(str(raw.get("status", "completed")), ""), response=raw))
        if not fold.over:
            fold.take_output(raw)
        result = fold.tally.result()
        if fold.failure is not None:
            fold.failure.partial = result
        return cls(raw, result, fold.failure)

    @property
    def id(self) -> str | None:
        """Its id."""
        return self.result.id

    @property
    def model(self) -> str | None:
        """The model that answered."""
        return self.result.model

    @property
    def status(self) -> str:
        """``completed``, ``failed``, ``incomplete``, ``cancelled``, ``queued`` or ``in_progress``."""
        return str(self.raw.get("status", "completed"))

    @property
    def text(self) -> str:
        """All its text."""
        return self.result.text

    def succeeded(self) -> Response:
        """This response.

        Raises:
            ProviderError: it failed, or was stopped before its end.
        """
        if self.failure is not None:
            raise self.failure
        return self


@dataclass(slots=True)
class _ItemState:
    """What was streamed of one item of the output; the pieces of a text are joined when it is whole."""

    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    thought: bool = False
    call: int | None = None


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
    _items: dict[int | str, _ItemState] = field(default_factory=dict)
    _thinking: tuple[object, ...] | None = None  # the part that is being thought

    @classmethod
    def joining(cls, id: str, last: int | None) -> Self:
        """That of a response which is read behind this event; None: from the first on."""
        fold = cls(last=last, resumable=True, joined=True)
        fold.tally.id = id
        return fold

    @property
    def enough(self) -> bool:
        """An end without a terminal event is none."""
        return False

    def done(self) -> None:
        """See ``WireFold``. Only a terminal event ends a response."""

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
        self.last = self.last if number is None else number
        return True

    def take_event(self, event: ResponseEvent) -> list[StreamChunk]:
        """The chunks that an event adds."""
        tally = self.tally
        match event:
            case TextDeltaEvent():
                self._item(event).text.append(event.delta)
                return tally.text(event.delta)
            case ReasoningDeltaEvent():
                return self._think(event)
            case ArgumentsDeltaEvent():
                call = self._item(event).call
                if call is None:
                    raise StreamMalformed("Arguments of a tool call came that had not begun.")
                return tally.add_arguments(call, event.delta)
            case RefusalDeltaEvent():
                self._item(event).refusal.append(event.delta)
                return tally.refuse(event.delta)
            case OutputItemEvent():
                return self._take_item(_key(event.output_index, event.item), event.item)
            case LifecycleEvent():
                return self._take_state(event)
            case ResponseErrorEvent():
                self.failure = failed(event.raw)
        return []

    def _item(self, event: ItemEvent) -> _ItemState:
        key = _key(event.output_index, {"id": event.item_id})
        return self._items.get(key) or self._items.setdefault(key, _ItemState())

    def _think(self, event: ReasoningDeltaEvent) -> list[StreamChunk]:
        item = self._item(event)
        item.thought = True
        part = (event.output_index, event.item_id, event.summary_index, event.content_index)
        return self._think_part(part, event.delta)

    def _think_part(self, part: tuple[object, ...], text: str) -> list[StreamChunk]:
        """Thinking, with a blank line where a new part begins."""
        if text and self.tally.thought and part != self._thinking:
            text = f"\n\n{text}"
        self._thinking = part
        return self.tally.think(text)

    def _take_item(self, key: int | str, item: JsonObject) -> list[StreamChunk]:
        """Take an item as it is now: what its deltas did not say is still to be said. Some servers send no deltas."""
        state = self._items.setdefault(key, _ItemState())
        match item.get("type"):
            case "function_call":
                return self._take_call(state, item)
            case "message":
                return self._take_message(state, item)
            case "function_call_output":
                return self.tally.answer_call(_text(item, "call_id"), as_text(item.get("output")))
            case "reasoning" if not state.thought:
                parts = _list(item, "summary") or _list(item, "content")
                thought = (self._think_part((key, place), as_text(part)) for place, part in enumerate(parts))
                chunks = [chunk for some in thought for chunk in some]
                state.thought = bool(chunks)
                return chunks
        return []

    def _take_call(self, state: _ItemState, item: JsonObject) -> list[StreamChunk]:
        arguments = _text(item, "arguments")
        if state.call is None:
            state.call = self.tally.calls
            return self.tally.begin_call(_text(item, "call_id") or _text(item, "id"), _text(item, "name"), arguments)
        return self.tally.add_arguments(state.call, _rest(self.tally.arguments(state.call), arguments))

    def _take_message(self, state: _ItemState, item: JsonObject) -> list[StreamChunk]:
        parts = _list(item, "content")
        refusals = (_text(part, "refusal") for part in parts if isinstance(part, dict))
        text = _rest("".join(state.text), "".join(as_text(part) for part in parts))
        refusal = _rest("".join(state.refusal), "".join(refusals))
        state.text.append(text)
        state.refusal.append(refusal)
        return self.tally.text(text) + self.tally.refuse(refusal)

    def take_output(self, response: JsonObject) -> list[StreamChunk]:
        """Take the whole output, if nothing of it was streamed.

        Not otherwise: in the final output, some providers leave out items, so its places are not those of the events.
        """
        if self._items:
            return []
        items = [item for item in _list(response, "output") if isinstance(item, dict)]
        return [chunk for place, item in enumerate(items) for chunk in self._take_item(place, item)]

    def _take_state(self, event: LifecycleEvent) -> list[StreamChunk]:
        response, tally = event.response, self.tally
        known, tally.id = tally.id, _text(response, "id") or tally.id
        tally.model = _text(response, "model") or tally.model
        chunks = [StreamChunk(id=tally.id)] if self.resumable and known is None and tally.id else []
        if event.type not in _ENDS.values():
            return chunks
        self.over = True
        chunks += self.take_output(response)
        reason = "tool_calls" if tally.unanswered else "stop"
        if event.type == "response.incomplete":
            details = response.get("incomplete_details")
            reason = _text(details, "reason") if isinstance(details, dict) else ""
            reason = {"max_output_tokens": "length", "": "incomplete"}.get(reason, reason)
            self.failure = self.failure or ResponseIncomplete(f"The model was stopped: {reason}.", reason=reason)
        elif event.type != "response.completed":
            self.failure = self.failure or _failure(event.type, response)
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


def _key(output_index: int | None, item: JsonObject) -> int | str:
    """What tells an item from the others: its place, or from providers that do not say it, its id."""
    return _text(item, "id") if output_index is None else output_index


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
    read, written = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    return TokenUsage(
        read,
        written,
        _count(usage, "total_tokens") or read + written,
        _count(usage.get("input_tokens_details"), "cached_tokens"),
        _count(usage.get("output_tokens_details"), "reasoning_tokens"),
    )


def _count(value: object, name: str) -> int:
    count = value.get(name) if isinstance(value, dict) else None
    return count if type(count) is int else 0


# The two verbs -------------------------------------------------------------------------------------------------------


class ResponsesWire:
    """Chats over the Responses API."""

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""
        return create(_input(messages), None, _options(options))

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""
        fold = ResponsesFold(resumable=options.get("background") is True)
        return FoldedCall(stream(_input(messages), None, _options(options)), fold)

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object.

        Raises:
            ProviderError: it failed, or it is no answer.
        """
        return Response.read(raw).succeeded().result


def _options(options: Mapping[str, object]) -> JsonObject:
    made: JsonObject = dict(options)
    made.setdefault("max_output_tokens", made.pop("max_tokens", None))
    if made.get("tools") is not None:
        made["tools"] = [_tool(read_tool(tool)) for tool in made["tools"]]
    return made


def _tool(tool: FunctionTool | JsonObject) -> JsonObject:
    if isinstance(tool, dict):
        return tool
    more = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {"type": "function", "name": tool.name, **{name: value for name, value in more.items() if value is not None}}


def _input(messages: Sequence[JsonObject]) -> list[JsonObject]:
    return [item for message in messages for item in _items(message)]


def _items(message: JsonObject) -> list[JsonObject]:
    """The input items that a message of a chat is; what is such an item already stays as it is."""
    role, content = message.get("role"), message.get("content")
    if role is None or message.get("type") is not None:
        return [message]
    if role == "tool":
        return [
            {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": as_text(content)},
        ]
    if role == "assistant":
        text = as_text(content)
        parts = [{"type": "output_text", "text": text}]
        said = [{"type": "message", "role": role, "content": parts}] if text else []
        calls = [
            {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
            for call in tool_calls(message)
        ]
        return said + calls
    if isinstance(content, list):
        content = [_part(part) for part in content]
    return [{"type": "message", "role": role, "content": "" if content is None else content}]


def _part(part: object) -> object:
    """A part of a message, from the form that Chat Completions has for it."""
    match part:
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **more}}:
            return {"type": "input_image", "image_url": url, "detail": more.get("detail", "auto")}
        case {"type": "image_url", "image_url": str(url)}:
            return {"type": "input_image", "image_url": url, "detail": "auto"}
    return part
