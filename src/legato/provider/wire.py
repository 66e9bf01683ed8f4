"""What both faces ask of a wire. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ..http.call import HttpCall
from ..json import JsonObject
from . import responses
from .events import ResponseEvent
from .responses import RawFold, ResponsesFold
from .result import ChatResult, StreamChunk
from .stream import FoldedCall

__all__ = ["Wire", "chat_options", "chat_resume", "raw_stream", "resume_raw", "with_headers"]


class Wire(Protocol):
    """One API over which to chat."""

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
    """The arguments of a chat, without those that were not given."""
    asked = {"model": model, "max_tokens": max_tokens, "tools": tools, "temperature": temperature, **options}
    return {name: value for name, value in asked.items() if value is not None}


def with_headers(asked: FoldedCall[StreamChunk], headers: Mapping[str, str] | None) -> FoldedCall[StreamChunk]:
    """The request with further headers."""
    return replace(asked, call=replace(asked.call, headers={**asked.call.headers, **(headers or {})}))


def raw_stream(
    message: str | Sequence[JsonObject], model: str | None, options: Mapping[str, object]
) -> FoldedCall[ResponseEvent]:
    """A response, as its events."""
    fold = RawFold(resumable=options.get("background") is True)
    return FoldedCall(responses.stream(message, model, options), fold)


def resume_raw(id: str, starting_after: int | None) -> FoldedCall[ResponseEvent]:
    """The rest of a response, as its events."""
    return FoldedCall(responses.resume(id, starting_after), RawFold.joining(id, starting_after))


def chat_resume(id: str, starting_after: int | None) -> FoldedCall[StreamChunk]:
    """The rest of a response, as chunks; it is read from its first event on, so that it can be put together."""
    fold = ResponsesFold.joining(id, None)
    fold.hidden = starting_after
    return FoldedCall(responses.resume(id, None), fold)
