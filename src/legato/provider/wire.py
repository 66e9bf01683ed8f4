"""What both faces ask of a wire. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import msgspec

from ..http.call import HttpCall
from ..json import JsonObject
from . import responses_requests
from .events import ResponseEvent
from .responses_fold import RawFold, ResponsesFold
from .result import ChatResult, StreamChunk, Tagged
from .stream import FoldedCall, WireFold

__all__ = [
    "Wire",
    "chat_options",
    "chat_resume",
    "raw_stream",
    "resume_raw",
    "tagged",
    "untagged",
    "with_headers",
]


class Wire(Protocol):
    """One API over which to chat.

    Attributes:
        name: ``responses``, ``chat`` or ``messages``.
    """

    name: str

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object; raises ``ProviderError`` when it is none, or not whole."""


def chat_options(
    model: str,
    max_tokens: int | None,
    tools: Sequence[JsonObject] | None,
    temperature: float | None,
    options: Mapping[str, object],
) -> JsonObject:
    """The arguments of a chat, without those that were not given; an option that is None takes a default out."""
    asked = {"model": model, "max_tokens": max_tokens, "tools": tools, "temperature": temperature}
    return {**{name: value for name, value in asked.items() if value is not None}, **options}


def with_headers(asked: FoldedCall[StreamChunk], headers: Mapping[str, str] | None) -> FoldedCall[StreamChunk]:
    """The request with further headers."""
    return replace(asked, call=replace(asked.call, headers={**asked.call.headers, **(headers or {})}))


def tagged(asked: FoldedCall[StreamChunk], tag: str | None) -> FoldedCall[StreamChunk]:
    """The request, of whose answer's text thinking between tags of this name is no part."""
    return asked if tag is None else replace(asked, fold=partial(_tagged, asked.fold, tag))


def _tagged(make: Callable[[], WireFold[StreamChunk]], tag: str) -> WireFold[StreamChunk]:
    fold = make()
    fold.tally.tagged = Tagged(tag)
    return fold


def untagged(result: ChatResult, tag: str | None) -> ChatResult:
    """The answer with its thinking out of its text, see ``tagged``."""
    if tag is None:
        return result
    read = Tagged(tag)
    (thought, text), (more, rest) = read.split(result.text), read.end()
    thinking = "\n\n".join(part for part in (result.thinking, thought + more) if part)
    return msgspec.structs.replace(result, text=text + rest, thinking=thinking)


def raw_stream(
    message: str | Sequence[JsonObject], model: str | None, options: Mapping[str, object]
) -> FoldedCall[ResponseEvent]:
    """A response, as its events."""
    fold = partial(RawFold, resumable=options.get("background") is True)
    return FoldedCall(responses_requests.stream(message, model, options), fold)


def resume_raw(id: str, starting_after: int | None) -> FoldedCall[ResponseEvent]:
    """The rest of a response, as its events."""
    return FoldedCall(responses_requests.resume(id, starting_after), partial(RawFold.joining, id, starting_after))


def chat_resume(id: str, starting_after: int | None) -> FoldedCall[StreamChunk]:
    """The rest of a response, as chunks; it is read from its first event on, so that it can be put together."""
    return FoldedCall(responses_requests.resume(id, None), partial(_hiding, id, starting_after))


def _hiding(id: str, hidden: int | None) -> ResponsesFold:
    fold = ResponsesFold.joining(id, None)
    fold.hidden = hidden
    return fold
