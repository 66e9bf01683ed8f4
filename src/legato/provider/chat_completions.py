"""The Chat Completions API: its requests, and what its chunks add up to. No I/O.

Ollama, llama.cpp, vLLM and most gateways speak it, each with its own accent: ids and indexes may be missing, thinking
has two names, usage comes before or after the end, and an error may stand inside any chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..http.call import HttpCall
from ..json import JsonObject, known
from ..sse import SSEMessage
from .errors import ProviderError, ResponseIncomplete, StreamMalformed, failed
from .prompt import FunctionTool, as_text, read_tool
from .result import ChatResult, StreamChunk, Tally, TokenUsage
from .stream import STREAM_HEADERS, FoldedCall

__all__ = ["STOPPED", "ChatCompletionsFold", "ChatCompletionsWire", "Completion"]

STOPPED: Final = ("length", "content_filter")
"""Reasons of an end that is not the model's own."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None
    index: int | None = None
    id: str | None = None


class _ChoiceDelta(msgspec.Struct, gc=False):
    content: str | list[object] | None = None  # a list: Mistral's models that think
    refusal: str | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, vLLM
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _ChoiceDelta | None = None
    message: _ChoiceDelta | None = None
    finish_reason: str | None = None
    index: int | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _CompletionUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class Completion(msgspec.Struct, gc=False):
    """A chunk, or a whole answer, in the fields that are used here."""

    choices: list[_Choice] | None = None
    usage: _CompletionUsage | None = None
    error: object = None
    id: str | None = None
    model: str | None = None


@dataclass(slots=True)
class ChatCompletionsFold:
    """What the chunks of one answer add up to. Of several choices the first counts."""

    tally: Tally = field(default_factory=Tally)
    over: bool = False
    failure: ProviderError | None = None
    impatient: bool = True
    last: int | None = None
    _begun: bool = False
    _calls: dict[int, int] = field(default_factory=dict)  # the provider's index -> ours
    _ids: dict[int, str] = field(default_factory=dict)  # ours -> the call's id

    @property
    def enough(self) -> bool:
        """Some servers send no ``[DONE]``; a reason to finish and a proper end say as much."""
        return self.tally.finish_reason is not None

    def take(self, message: SSEMessage) -> list[StreamChunk]:
        """See ``WireFold``."""
        try:
            chunk = msgspec.json.decode(message.data, type=known(Completion))
        except (msgspec.MsgspecError, UnicodeError) as exc:
            raise StreamMalformed(f"A chunk of a chat was expected, not {message.data[:200]!r}: {exc}.") from exc
        return self.take_chunk(chunk)

    def take_chunk(self, chunk: Completion) -> list[StreamChunk]:
        """The chunks, as ours, that one of theirs adds."""
        tally = self.tally
        tally.id = chunk.id or tally.id
        tally.model = chunk.model or tally.model
        chunks: list[StreamChunk] = []
        reason = None
        for choice in chunk.choices or ():
            if not choice.index:
                self._begun = True
                chunks += self._take_delta(choice.delta or choice.message or _ChoiceDelta())
                # Some repeat the reason with the usage.
                reason = choice.finish_reason if tally.finish_reason is None else None
        if chunk.usage is not None or reason is not None:
            chunks += tally.end(_usage(chunk.usage), _REASONS.get(reason or "", reason))
        if chunk.error:
            self.failure = failed({"error": chunk.error})
        return chunks

    def _take_delta(self, delta: _ChoiceDelta) -> list[StreamChunk]:
        chunks: list[StreamChunk] = []
        # A gateway may send the same thinking under both names.
        if thinking := delta.reasoning_content or delta.reasoning:
            chunks += self.tally.think(thinking)
        if isinstance(delta.content, list):
            chunks += self._take_parts(delta.content)
        elif delta.content:
            chunks += self.tally.text(delta.content)
        if delta.refusal:
            chunks += self.tally.refuse(delta.refusal)
        for call in delta.tool_calls or ():
            chunks += self._take_call(call)
        return chunks

    def _take_parts(self, parts: list[object]) -> list[StreamChunk]:
        thinking = [part.get("thinking") for part in parts if isinstance(part, dict)]
        return self.tally.think(as_text(thinking)) + self.tally.text(as_text(parts))

    def _take_call(self, call: _Call) -> list[StreamChunk]:
        function = call.function or _Function()
        name, arguments = function.name or "", function.arguments or ""
        ours = self._find(call, name)
        if ours is not None:
            return self.tally.add_arguments(ours, arguments)
        ours = self.tally.calls
        if not name:
            raise StreamMalformed(f"Arguments of a tool call came that had not begun: {arguments[:200]!r}.")
        self._calls[ours if call.index is None else call.index] = ours
        self._ids[ours] = call.id or f"call_{ours}"
        return self.tally.begin_call(self._ids[ours], name, arguments)

    def _find(self, call: _Call, name: str) -> int | None:
        """Our index of the call that this is a piece of; None when it begins a new one."""
        if call.index is None:
            # Without an index, only a new id or a name tells that a call begins.
            begins = name if call.id is None else call.id not in self._ids.values()
            return None if begins or not self._ids else self._last(call.id)
        ours = self._calls.get(call.index)
        # Some number all calls with 0.
        other = ours is not None and call.id and name and self._ids[ours] != call.id
        return None if other else ours

    def _last(self, id: str | None) -> int:
        return next((ours for ours, known in self._ids.items() if known == id), self.tally.calls - 1)

    def done(self) -> None:
        """See ``WireFold``. That the model was stopped is said only here: the usage comes behind the reason."""
        self.over = self._begun
        reason = self.tally.finish_reason
        if reason in STOPPED:
            self.failure = self.failure or ResponseIncomplete(f"The model was stopped: {reason}.", reason=reason)

    def resume(self) -> HttpCall[object] | None:
        """See ``WireFold``. This API cannot continue an answer."""
        return None


# The old name, for one function that was called.
_REASONS: Final = {"function_call": "tool_calls"}


def _usage(usage: _CompletionUsage | None) -> TokenUsage | None:
    if usage is None:
        return None
    read, written = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached = usage.prompt_tokens_details or _Details()
    thought = usage.completion_tokens_details or _Details()
    return TokenUsage(
        read, written, usage.total_tokens or read + written, cached.cached_tokens or 0, thought.reasoning_tokens or 0
    )


class ChatCompletionsWire:
    """Chats over the Chat Completions API."""

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""
        body = {**_options(options), "messages": list(messages), "stream": False}
        return HttpCall("POST", "/chat/completions", JsonObject, body=body)

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""
        body = {"stream_options": {"include_usage": True}, **_options(options), "messages": list(messages)}
        call = HttpCall("POST", "/chat/completions", JsonObject, body={**body, "stream": True}, headers=STREAM_HEADERS)
        return FoldedCall(call, ChatCompletionsFold())

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object.

        Raises:
            ProviderError: it failed, or it is no answer.
        """
        fold = ChatCompletionsFold()
        try:
            fold.take_chunk(msgspec.convert(raw, known(Completion)))
        except msgspec.ValidationError as exc:
            raise StreamMalformed(f"An answer of a chat was expected, not {raw!r:.200}: {exc}.") from exc
        fold.done()
        if fold.failure is not None:
            fold.failure.partial = fold.tally.result()
            raise fold.failure
        if not fold.over:
            raise StreamMalformed(f"An answer with a choice was expected, not {raw!r:.200}.")
        return fold.tally.result()


def _options(options: Mapping[str, object]) -> JsonObject:
    made: JsonObject = dict(options)
    if made.get("tools") is not None:
        made["tools"] = [_tool(read_tool(tool)) for tool in made["tools"]]
    return made


def _tool(tool: FunctionTool | JsonObject) -> JsonObject:
    if isinstance(tool, dict):
        return tool
    more = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    function = {"name": tool.name, **{name: value for name, value in more.items() if value is not None}}
    return {"type": "function", "function": function}
