"""The Chat Completions API: its requests, and what its chunks add up to. No I/O.

Ollama, llama.cpp, vLLM and most gateways speak it, each with its own accent: ids and indexes may be missing, thinking
has two names, usage comes before or after the end, and an error may stand inside any chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..check import whole
from ..http.call import HttpCall
from ..json import JsonObject
from ..sse import SSEMessage
from .assembly import Assembly, CallPiece, as_json
from .errors import ProviderError, ResponseFailed, ResponseIncomplete, StreamMalformed, confessed, failed
from .loose import exactly, fitted, loose
from .prompt import FunctionTool, as_text, with_tools
from .result import ChatResult, StreamChunk, Tally, TokenUsage, spent
from .stream import STREAM_HEADERS, FoldedCall

__all__ = ["STOPPED", "ChatCompletionsFold", "ChatCompletionsWire", "Completion", "reason_of"]

STOPPED: Final = ("length", "content_filter")
"""Reasons of an end that is not the model's own."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: object = None  # JSON text, by the documentation; some give the object


class _Call(msgspec.Struct):
    function: _Function | None = None
    index: int | None = None
    id: str | None = None
    extra_content: object = None  # Google
    provider_specific_fields: object = None  # LiteLLM


class _ChoiceDelta(msgspec.Struct, gc=False):
    content: str | list[object] | None = None  # a list: Mistral's models that think
    refusal: str | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, vLLM
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    reasoning_details: object = None  # OpenRouter
    thinking_blocks: object = None  # LiteLLM
    extra_content: object = None  # Google
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None  # as it was before there could be several


class _Choice(msgspec.Struct, gc=False):
    delta: _ChoiceDelta | None = None
    message: _ChoiceDelta | None = None
    finish_reason: str | None = None
    index: int | None = None
    error: object = None  # OpenRouter


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
    _whole: bool = False  # it came in one piece
    _calls: Assembly = field(default_factory=Assembly)
    _thought: dict[str, list[str]] = field(default_factory=dict)  # by the name of its field
    _fields: JsonObject = field(default_factory=dict)  # what is wanted back in the message, as it came

    @property
    def enough(self) -> bool:
        """Some servers send no ``[DONE]``; a reason to finish and a proper end say as much."""
        return self._whole or self.tally.finish_reason is not None or bool(self._calls.lost)

    def take(self, message: SSEMessage) -> list[StreamChunk]:
        """See ``WireFold``."""
        try:
            chunk = exactly(message.data, Completion) or fitted(loose(message.data), Completion)
            if chunk.choices is None or message.event == "error":
                words = loose(message.data)
                self.failure = confessed(words) or (failed(words) if message.event == "error" else None)
                if self.failure is None and not (isinstance(words, dict) and words.keys() & _CHUNKS):
                    raise ValueError("It has no choices.")
        except ValueError as exc:
            if failure := _confessed(message.data):
                self.failure = failure
                return []
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
                if choice.delta is not None:
                    chunks += self._take_delta(choice.delta)
                elif choice.message is not None:
                    self._whole = True
                    chunks += self._take_delta(choice.message, entire=True)
                if choice.finish_reason is not None and tally.finish_reason is None:  # some repeat it with the usage
                    reason = reason_of(choice.finish_reason)
                if choice.error or reason == "error":
                    self.failure = failed({"error": choice.error or chunk.error})
                    reason = None
        if reason is not None:
            chunks += self._calls.end(tally)
        if chunk.usage is not None or reason is not None:
            chunks += tally.end(_usage(chunk.usage), reason)
        if chunk.error and self.failure is None:
            self.failure = failed({"error": chunk.error})
        return chunks

    def _take_delta(self, delta: _ChoiceDelta, *, entire: bool = False) -> list[StreamChunk]:
        chunks: list[StreamChunk] = []
        # A gateway may send the same thinking under both names.
        if thinking := delta.reasoning_content or delta.reasoning:
            chunks += self.tally.think(thinking)
            for name in ("reasoning_content", "reasoning"):
                if piece := getattr(delta, name):
                    self._thought.setdefault(name, []).append(piece)
        if delta.reasoning_details or delta.thinking_blocks or delta.extra_content:
            self._keep(delta)
        if isinstance(delta.content, list):
            chunks += self._take_parts(delta.content)
        elif delta.content:
            chunks += self.tally.text(delta.content)
        if delta.refusal:
            chunks += self.tally.refuse(delta.refusal)
        calls = delta.tool_calls or ([_Call(delta.function_call, 0)] if delta.function_call else ())
        for place, call in enumerate(calls):
            function = call.function or _Function()
            fields = _given(call, "extra_content", "provider_specific_fields")
            piece = CallPiece(
                call.index, call.id or "", function.name or "", as_json(function.arguments), entire, fields, place > 0
            )
            chunks += self._calls.take(self.tally, piece)
        return chunks

    def _take_parts(self, parts: list[object]) -> list[StreamChunk]:
        thinking = [part.get("thinking") for part in parts if isinstance(part, dict)]
        return self.tally.think(as_text(thinking)) + self.tally.text(as_text(parts))

    def _keep(self, delta: _ChoiceDelta) -> None:
        """Take note of what is wanted back besides the thinking's text; of lists, entries that belong together are
        joined, as their pieces came."""
        for name in ("reasoning_details", "thinking_blocks"):
            entries = getattr(delta, name)
            for entry in entries if isinstance(entries, list) else ():
                _extend(self._fields.setdefault(name, []), entry)
        if isinstance(extra := delta.extra_content, dict):
            self._fields["extra_content"] = _merged(self._fields.get("extra_content"), extra)

    def _opaque(self) -> tuple[JsonObject, ...]:
        """What is wanted back, as pieces; see ``last_pass``."""
        pieces: list[JsonObject] = []
        for name, texts in self._thought.items():
            text = whole("".join(texts))
            pieces.append({"thinking": name} if text == self.tally.thinking else {"fields": {name: text}})
        if self._fields:
            pieces.append({"fields": self._fields})
        for number, fields in self._calls.fields.items():
            pieces.append({"call": self.tally.given(number)[0], "fields": fields})
        return tuple(pieces)

    def done(self) -> list[StreamChunk]:
        """See ``WireFold``. That the model was stopped is said only here: the usage comes behind the reason."""
        self.over = self._begun
        chunks = self._calls.end(self.tally)
        self.tally.opaque = self._opaque()
        reason = self.tally.finish_reason
        if reason in STOPPED:
            self.failure = self.failure or ResponseIncomplete(f"The model was stopped: {reason}.", reason=reason)
        elif self.over and (lost := self._calls.lost):
            self.failure = self.failure or StreamMalformed(f"Arguments of a tool call without a name: {lost[:200]!r}.")
        return chunks

    def resume(self) -> HttpCall[object] | None:
        """See ``WireFold``. This API cannot continue an answer."""
        return None


def _given(call: _Call, *names: str) -> JsonObject:
    return {name: value for name in names if isinstance(value := getattr(call, name), dict) and value}


def _merged(old: object, new: JsonObject) -> JsonObject:
    """An object with what a later piece of it adds."""
    made: JsonObject = dict(old) if isinstance(old, dict) else {}
    for name, value in new.items():
        made[name] = _merged(made.get(name), value) if isinstance(value, dict) else value
    return made


_GROWS: Final = ("text", "summary", "data", "thinking")
"""Fields of an entry whose text comes in pieces."""


def _extend(entries: list[object], piece: object) -> None:
    """Add an entry, or a piece of the last one: of the same type, place and id."""
    last = entries[-1] if entries else None
    if not isinstance(piece, dict) or not isinstance(last, dict) or not _same(last, piece):
        entries.append(dict(piece) if isinstance(piece, dict) else piece)
        return
    for name, value in piece.items():
        if name in _GROWS and isinstance(value, str):
            last[name] = f"{last.get(name) or ''}{value}"
        elif value is not None:
            last[name] = value


def _same(last: JsonObject, piece: JsonObject) -> bool:
    if "signature" in last and last["signature"] and not piece.get("signature"):
        return False  # what is signed is whole
    names = ("type", "index", "id")
    return all(last.get(name) == piece.get(name) or None in (last.get(name), piece.get(name)) for name in names)


# Fields of a chunk without choices that is none the worse for it.
_CHUNKS: Final = frozenset({"id", "object", "created", "model", "usage"})


def _confessed(data: str) -> ResponseFailed | None:
    try:
        return confessed(loose(data))
    except ValueError:
        return None


# What servers call the reasons of an end, in small letters with "_" for "-" and blanks.
_REASONS: Final = {
    **dict.fromkeys(
        ["stop", "eos", "eos_token", "end", "end_turn", "end_of_turn", "end_of_text", "stop_sequence", "stop_token",
         "stop_word", "stop_str", "stopped", "complete", "completed", "finish", "finished", "finish_reason_stop",
         "normal", "done"],
        "stop",
    ),
    **dict.fromkeys(
        ["tool_calls", "tool_call", "tool_use", "tools", "tool", "toolcalls", "tooluse", "function_call",
         "function_calls", "functioncall", "function", "call_tool"],
        "tool_calls",
    ),
    **dict.fromkeys(
        ["length", "max_tokens", "max_token", "max_length", "max_output_tokens", "max_completion_tokens",
         "model_length", "token_limit", "tokens_limit", "max_new_tokens", "finish_reason_max_tokens", "maxtokens",
         "model_context_window_exceeded", "context_length", "context_length_exceeded", "context_window"],
        "length",
    ),
    **dict.fromkeys(
        ["content_filter", "content_filtered", "contentfilter", "filtered", "safety", "recitation", "blocklist",
         "prohibited_content", "spii", "sensitive", "refusal", "language", "image_safety", "guardrail_intervened"],
        "content_filter",
    ),
    **dict.fromkeys(["error", "failed", "failure", "network_error", "server_error", "internal_error"], "error"),
}  # fmt: skip
_NONE: Final = ("", "null", "none", "unspecified", "finish_reason_unspecified")


def reason_of(word: str | None) -> str | None:
    """Why the answer ended, in our word for a provider's; an unknown one stays as it is. None: it has not ended."""
    if word is None or word in ("stop", "tool_calls"):
        return word
    folded = word.strip().lower().replace("-", "_").replace(" ", "_")
    return None if folded in _NONE else _REASONS.get(folded, word)


def _usage(usage: _CompletionUsage | None) -> TokenUsage | None:
    if usage is None:
        return None
    cached = usage.prompt_tokens_details or _Details()
    thought = usage.completion_tokens_details or _Details()
    return spent(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached.cached_tokens,
        thought.reasoning_tokens,
    )


class ChatCompletionsWire:
    """Chats over the Chat Completions API."""

    name = "chat"

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""
        body = {**with_tools(options, _function), "messages": list(messages), "stream": False}
        return HttpCall("POST", "/chat/completions", JsonObject, body=body)

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""
        ours = {"stream_options": {"include_usage": True}}
        body = {**ours, **with_tools(options, _function), "messages": list(messages), "stream": True}
        spare = tuple(name for name in ours if name not in options)
        call = HttpCall("POST", "/chat/completions", JsonObject, body=body, spare=spare, headers=STREAM_HEADERS)
        return FoldedCall(call, ChatCompletionsFold)

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object.

        Raises:
            ProviderError: it failed, or it is no answer.
        """
        fold = ChatCompletionsFold()
        try:
            answer = fitted(raw, Completion)
            fold.failure = confessed(raw)
            fold.take_chunk(answer)
        except ValueError as exc:
            if failure := confessed(raw):
                raise failure from None
            raise StreamMalformed(f"An answer of a chat was expected, not {raw!r:.200}: {exc}.") from exc
        fold.done()
        if fold.failure is not None:
            fold.failure.partial = fold.tally.result()
            raise fold.failure
        if not fold.over:
            raise StreamMalformed(f"An answer with a choice was expected, not {raw!r:.200}.")
        return fold.tally.result()


def _function(tool: FunctionTool) -> JsonObject:
    return {"type": "function", "function": tool.fields()}
