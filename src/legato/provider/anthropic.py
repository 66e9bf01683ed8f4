"""The Anthropic Messages API: its requests, and what its events add up to. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..check import whole
from ..errors import InvalidInput
from ..http.call import HttpCall
from ..items import words_of
from ..json import JsonObject
from ..sse import SSEMessage
from .assembly import as_json
from .chat_completions import reason_of
from .errors import ProviderError, ResponseFailed, ResponseIncomplete, StreamMalformed, confessed, failed
from .last_pass import EARLIER, arranged
from .loose import decoded, exactly, fitted, loose
from .prompt import FunctionTool, as_text, tool_calls, with_tools
from .result import ChatResult, StreamChunk, Tally, TokenUsage, spent
from .stream import STREAM_HEADERS, FoldedCall

__all__ = ["AnthropicFold", "AnthropicWire"]

VERSION: Final = "2023-06-01"

MAX_TOKENS: Final = 4096
"""This API wants a limit; this one when the caller gives none. Every model allows it."""

_STOPPED: Final = ("length", "content_filter")


class _MessageUsage(msgspec.Struct, omit_defaults=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def over(self, older: _MessageUsage) -> _MessageUsage:
        """This one, with what only the older one says: numbers are totals, and not all are repeated."""
        return _MessageUsage(
            *(new if new is not None else old for new, old in zip(_values(self), _values(older), strict=True))
        )

    def total(self) -> TokenUsage:
        """What it says, in our terms: their input leaves out what came from, or went to, the cache."""
        fresh, written, cached, kept = (value or 0 for value in _values(self))
        read = fresh + cached + kept
        return spent(read, written, None, cached)


def _values(usage: _MessageUsage) -> tuple[int | None, ...]:
    return msgspec.structs.astuple(usage)


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str = ""
    name: str = ""
    input: object = None
    tool_use_id: str = ""
    content: object = None
    is_error: object = None


class _BlockDelta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    signature: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: _MessageUsage | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


class _MessageEvent(msgspec.Struct):
    type: str
    object: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _BlockDelta | None = None
    usage: _MessageUsage | None = None


class _Failure(msgspec.Struct):
    type: str = ""
    object: str = ""


@dataclass(slots=True)
class AnthropicFold:
    """What the events of one answer add up to."""

    tally: Tally = field(default_factory=Tally)
    over: bool = False
    failure: ProviderError | None = None
    impatient: bool = True
    last: int | None = None
    _usage: _MessageUsage = field(default_factory=_MessageUsage)
    _calls: dict[int, int] = field(default_factory=dict)  # the block's index -> the call's
    _thinking: int | None = None  # the block that is being thought
    _inputs: dict[int, str] = field(default_factory=dict)  # by block: the input of a call as it began
    _blocks: dict[int, JsonObject] = field(default_factory=dict)  # the content, each block as it came, or as it began
    _grown: dict[int, dict[str, list[str]]] = field(default_factory=dict)  # by block and field: what it grew by

    @property
    def enough(self) -> bool:
        """Some gateways leave out ``message_stop``; a reason to stop and a proper end say as much."""
        return self.tally.finish_reason is not None

    def take(self, message: SSEMessage) -> list[StreamChunk]:
        """See ``WireFold``."""
        event = exactly(message.data, _MessageEvent)
        if event is None or event.type not in _TAKES or "error" in (event.object, message.event):
            return self._take_other(message)
        return self._take_event(event, message.data)

    def _take_event(self, event: _MessageEvent, data: str) -> list[StreamChunk]:
        if event.type == "content_block_delta":
            self._grow(event, data)
        elif event.type == "content_block_start":
            self._blocks[event.index] = _object(loose(data).get("content_block"))
        return _TAKES[event.type](self, event)

    def _grow(self, event: _MessageEvent, data: str) -> None:
        delta = event.delta or _BlockDelta()
        if (name := _GROWING.get(delta.type)) is not None:
            self._grown.setdefault(event.index, {}).setdefault(name, []).append(getattr(delta, name) or "")
        elif delta.type == "citations_delta" and (block := self._blocks.get(event.index)) is not None:
            found = block.get("citations")
            block["citations"] = [
                *(found if isinstance(found, list) else ()),
                _object(loose(data).get("delta")).get("citation"),
            ]

    def _content(self) -> tuple[JsonObject, ...]:
        """The blocks of the message as the API wants them back, which knows more kinds than are read here."""
        for index, grown in self._grown.items():
            block = self._blocks.setdefault(index, {})
            for name, pieces in grown.items():
                if name == "partial_json":
                    with contextlib.suppress(ValueError):
                        block["input"] = loose("".join(pieces) or "{}")
                else:
                    block[name] = whole(f"{block.get(name) or ''}{''.join(pieces)}")
        self._grown.clear()
        return tuple(block for block in self._blocks.values() if block.get("type") != "text" or block.get("text"))

    def _take_other(self, message: SSEMessage) -> list[StreamChunk]:
        """Take what is no event as documented."""
        try:
            head = decoded(message.data, _Failure)
            if head.type == "error" or head.object == "error" or message.event == "error" or not head.type:
                words = loose(message.data)
                self.failure = confessed(words) or (failed(words) if head.type or message.event == "error" else None)
                if self.failure is not None:
                    self.over = True
                    return []
                if not isinstance(words, dict) or not isinstance(words.get("content"), list):
                    raise ValueError("It has no type.")
                head.type = "message"
            if head.type == "message":
                raw = loose(message.data)
                return self.take_message(fitted(raw, _Message), raw.get("content"))
            if head.type not in _TAKES:
                return []
            event = decoded(message.data, _MessageEvent)
        except ValueError as exc:
            if failure := _confessed(message.data):
                self.failure, self.over = failure, True
                return []
            raise StreamMalformed(f"An event of a message was expected, not {message.data[:200]!r}: {exc}.") from exc
        return self._take_event(event, message.data)

    def take_message(self, message: _Message, content: object) -> list[StreamChunk]:
        """Take a whole message; ``content`` is its own, as it came.

        Raises:
            StreamMalformed: it has no content.
        """
        if message.content is None:
            raise StreamMalformed("A message with content was expected.")
        self._blocks = dict(enumerate(map(_object, content if isinstance(content, list) else ())))
        chunks = self.take_head(message)
        for index, block in enumerate(message.content):
            chunks += self.take_block(index, block)
            chunks += self.end_block(index)
        chunks += self.take_end(message.stop_reason or "end_turn")
        self.finish()
        return chunks

    def _start(self, event: _MessageEvent) -> list[StreamChunk]:
        if event.message is None:
            raise StreamMalformed("A message started without saying which.")
        return self.take_head(event.message)

    def take_head(self, message: _Message) -> list[StreamChunk]:
        """Take what is known of a message besides its content."""
        self.tally.id, self.tally.model = message.id, message.model
        self._usage = (message.usage or _MessageUsage()).over(self._usage)
        # Also of an answer that is cut off, what it cost so far is known.
        self.tally.usage = self._usage.total()
        return []

    def _begin(self, event: _MessageEvent) -> list[StreamChunk]:
        if event.content_block is None:
            raise StreamMalformed("A part of a message started without saying which.")
        return self.take_block(event.index, event.content_block)

    def take_block(self, index: int, block: _Block) -> list[StreamChunk]:
        """Take a part of the content, or its beginning."""
        match block.type:
            case "text":
                return self.tally.text(block.text or "")
            case "thinking":
                return self._think(index, block.thinking)
            case "tool_use" | "server_tool_use" | "mcp_tool_use":
                self._calls[index] = self.tally.calls
                # In a stream, the input begins as {} and comes as text; of some it stands here, and may come again.
                self._inputs[index] = as_json(block.input) if block.input else "{}"
                hosted = block.type != "tool_use"
                return self.tally.begin_call(block.id or f"call_{self.tally.calls}", block.name, hosted=hosted)
            case kind if kind.endswith(_RESULT) and block.tool_use_id:
                return self._take_result(block)
        return []

    def _take_result(self, block: _Block) -> list[StreamChunk]:
        """Take what came of a call that the provider has made; it may have begun in the message that this one goes
        on with."""
        call = self.tally.hosted(block.tool_use_id)
        chunks: list[StreamChunk] = []
        if call is None:
            call = self.tally.calls
            chunks = self.tally.begin_call(block.tool_use_id, block.type.removesuffix(_RESULT), hosted=True)
        output, success = _came_of(block)
        return chunks + self.tally.answer(call, output, success=success)

    def _think(self, index: int, text: str | None) -> list[StreamChunk]:
        """Thinking, with a blank line where a new part begins."""
        if not text:
            return []
        if self.tally.thought and index != self._thinking:
            text = f"\n\n{text}"
        self._thinking = index
        return self.tally.think(text)

    def _add(self, event: _MessageEvent) -> list[StreamChunk]:
        delta = event.delta or _BlockDelta()
        match delta.type:
            case "text_delta":
                return self.tally.text(delta.text or "")
            case "thinking_delta":
                return self._think(event.index, delta.thinking)
            case "input_json_delta" if event.index in self._calls:
                return self.tally.add_arguments(self._calls[event.index], delta.partial_json or "")
        return []

    def _end_block(self, event: _MessageEvent) -> list[StreamChunk]:
        return self.end_block(event.index)

    def end_block(self, index: int) -> list[StreamChunk]:
        """Take the end of a part: a call whose input did not come as text has that with which it began."""
        call = self._calls.get(index)
        if call is None or self.tally.arguments(call).strip():
            return []
        return self.tally.add_arguments(call, self._inputs.get(index, "{}"))

    def _finish(self, event: _MessageEvent) -> list[StreamChunk]:
        self._usage = (event.usage or _MessageUsage()).over(self._usage)
        return self.take_end(event.delta.stop_reason if event.delta else None)

    def take_end(self, stop_reason: str | None) -> list[StreamChunk]:
        """Take the reason of the end, and the usage with it."""
        return self.tally.end(self._usage.total(), reason_of(stop_reason))

    def _stop(self, event: _MessageEvent) -> list[StreamChunk]:
        self.finish()
        return []

    def finish(self) -> None:
        """The message is whole."""
        self.over = True
        reason = self.tally.finish_reason
        content = self._content()
        self.tally.opaque = _pieces(content)
        if reason == "pause_turn":
            self.tally.content = content
        if reason in _STOPPED:
            self.failure = ResponseIncomplete(f"The model was stopped: {reason}.", reason=reason)

    def done(self) -> list[StreamChunk]:
        """See ``WireFold``. Only a reason to stop ends a message."""
        if self.enough:
            self.finish()
        return []

    def resume(self) -> HttpCall[object] | None:
        """See ``WireFold``. This API cannot continue an answer."""
        return None


_TAKES: Final = {
    "message_start": AnthropicFold._start,
    "content_block_start": AnthropicFold._begin,
    "content_block_delta": AnthropicFold._add,
    "content_block_stop": AnthropicFold._end_block,
    "message_delta": AnthropicFold._finish,
    "message_stop": AnthropicFold._stop,
}


def _confessed(data: str) -> ResponseFailed | None:
    try:
        return confessed(loose(data))
    except ValueError:
        return None


_GROWING: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


_RESULT: Final = "_tool_result"
"""What the type of a block ends with that says what came of a call which Anthropic has made."""


def _came_of(block: _Block) -> tuple[str, bool]:
    """What such a call gave, as text, and whether that is what was asked for."""
    if isinstance(block.content, dict) and isinstance(code := block.content.get("error_code"), str):
        return code, False
    return words_of(_legible(block.content)), not block.is_error


def _legible(value: object) -> object:
    """What came of a call without what only the provider can read."""
    if isinstance(value, list):
        return [_legible(each) for each in value]
    if isinstance(value, dict):
        return {name: _legible(each) for name, each in value.items() if not str(name).startswith("encrypted_")}
    return "" if value is None else value


def _object(value: object) -> JsonObject:
    return dict(value) if isinstance(value, dict) else {}


def _pieces(content: Sequence[JsonObject]) -> tuple[JsonObject, ...]:
    """What the API wants back of a message besides its texts and calls, in its place among them."""
    if all(block.get("type") in ("text", "tool_use") for block in content):
        return ()
    pieces: list[JsonObject] = []
    for block in content:
        match block.get("type"):
            case "text":
                pieces.append({"text": len(whole(str(block.get("text") or "")))})
            case "tool_use":
                pieces.append({"call": str(block.get("id") or "")})
            case "server_tool_use" | "mcp_tool_use":
                pieces.append({"block": block, "call": str(block.get("id") or "")})
            case kind if str(kind).endswith(_RESULT):
                pieces.append({"block": block, "call": str(block.get("tool_use_id") or "")})
            case _:
                pieces.append({"block": block})
    if "block" in pieces[-1] and "call" in pieces[-1]:
        pieces.append({"text": 0})  # what is said next, if the answer goes on, stands behind it
    return tuple(pieces)


class AnthropicWire:
    """Chats over the Messages API."""

    name = "messages"

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""
        key = {"x-api-key": api_key} if api_key else {}
        return {"anthropic-version": VERSION, **key}

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""
        return HttpCall("POST", "/messages", JsonObject, body={**_body(messages, options), "stream": False})

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""
        body = {**_body(messages, options), "stream": True}
        return FoldedCall(HttpCall("POST", "/messages", JsonObject, body=body, headers=STREAM_HEADERS), AnthropicFold)

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object.

        Raises:
            ProviderError: it was stopped before its end, or it is no answer.
        """
        try:
            if failure := confessed(raw):
                raise failure
            message = fitted(raw, _Message)
        except ValueError as exc:
            raise StreamMalformed(f"A message was expected, not {raw!r:.200}: {exc}.") from exc
        if message.content is None:
            raise StreamMalformed(f"A message with content was expected, not {raw!r:.200}.")
        fold = AnthropicFold()
        fold.take_message(message, raw.get("content"))
        if fold.failure is not None:
            fold.failure.partial = fold.tally.result()
            raise fold.failure
        return fold.tally.result()


def _body(messages: Sequence[JsonObject], options: Mapping[str, object]) -> JsonObject:
    made = with_tools(options, _tool)
    max_tokens = made.pop("max_tokens", None)
    system = "\n\n".join(as_text(message.get("content")) for message in messages if message.get("role") in _SYSTEM)
    told = _messages(messages)
    if system and not told:  # this API wants something to answer
        system, told = "", [{"role": "user", "content": [{"type": "text", "text": system}]}]
    thinking = made.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "enabled" and _unsigned(told):
        del made["thinking"]  # for this step; the next turn begins with it again
    return {
        "max_tokens": MAX_TOKENS if max_tokens is None else max_tokens,
        "system": system or None,
        **made,
        "messages": told,
    }


_SYSTEM: Final = ("system", "developer")
_THOUGHT: Final = ("thinking", "redacted_thinking")


def _messages(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages in their form; neighbours of one role become one, since roles have to alternate."""
    merged: list[JsonObject] = []
    for message in messages:
        if message.get("role") in _SYSTEM:
            continue
        role, content = _message(message)
        if not content:
            continue
        if not merged and role == "assistant":
            merged.append({"role": "user", "content": [{"type": "text", "text": EARLIER}]})
        if not merged or merged[-1]["role"] != role:
            merged.append({"role": role, "content": []})
        merged[-1]["content"].extend(content)
    if merged and merged[-1]["role"] == "assistant":  # to be continued
        last = merged[-1]["content"][-1]
        if isinstance(last, dict) and last.get("type") == "text":
            merged[-1]["content"][-1] = {**last, "text": last["text"].rstrip()}
    return merged


def _unsigned(messages: Sequence[JsonObject]) -> bool:
    """Whether the model is in the middle of a turn that it did not begin, or not thinking: it cannot go on so."""
    begun = 0
    for place, message in enumerate(messages):
        if message["role"] == "user" and any(_type(part) != "tool_result" for part in message["content"]):
            begun = place
    turn = [message["content"] for message in messages[begun:] if message["role"] == "assistant"]
    called = any(_type(part) == "tool_use" for content in turn for part in content)
    return called and _type(turn[0][0]) not in _THOUGHT


def _type(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else None


def _message(message: JsonObject) -> tuple[str, list[object]]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        return "user", [
            {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": as_text(content)}
        ]
    if role not in ("user", "assistant"):
        raise InvalidInput(f"A message's role is system, user, assistant or tool, not {role!r:.64}.")
    if role == "assistant" and isinstance(content, str | None):
        return role, _said(message)
    if isinstance(content, str) or content is None:
        content = [{"type": "text", "text": content}] if content and not content.isspace() else []
    calls = [_call(call.id, call.name, call.arguments) for call in tool_calls(message)]
    return role, [_part(part) for part in content if not _is_blank(part)] + calls


def _said(message: JsonObject) -> list[object]:
    """What an assistant said, with its thinking where it stood; not behind all else, where none may stand."""
    parts: list[object] = []
    for kind, piece in arranged(message):
        if kind == "call":
            parts.append(_call(piece["id"], piece["name"], piece["arguments"]))
        elif kind == "block":
            parts.append(piece)
        elif not piece["text"].isspace():
            parts.append({"type": "text", "text": piece["text"]})
    while parts and _type(parts[-1]) in _THOUGHT:
        parts.pop()
    return parts


def _call(id: str, name: str, arguments: str) -> JsonObject:
    return {"type": "tool_use", "id": id, "name": name, "input": _arguments(arguments)}


def _is_blank(part: object) -> bool:
    """Whether it is a text that the API refuses."""
    return isinstance(part, dict) and part.get("type") == "text" and not str(part.get("text") or "").strip()


def _arguments(arguments: str) -> object:
    try:
        return msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise InvalidInput(f"The arguments of a tool call are JSON, unlike {arguments[:200]!r}.") from exc


def _part(part: object) -> object:
    """A part of a message, from the form that Chat Completions has for it; others stay as they are."""
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            head, comma, data = url.partition(";base64,")
            if comma and head.startswith("data:"):
                source = {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
            else:
                source = {"type": "url", "url": url}
            return {"type": "image", "source": source}
    return part


def _tool(tool: FunctionTool) -> JsonObject:
    described = {"description": tool.description} if tool.description is not None else {}
    return {"name": tool.name, **described, "input_schema": tool.parameters or {"type": "object", "properties": {}}}
