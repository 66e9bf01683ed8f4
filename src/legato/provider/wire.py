"""What both faces ask of a wire. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..client.call import Call
from . import responses
from .events import ResponseEvent
from .responses import RawFold, ResponsesFold
from .result import ChatResult, StreamChunk, Tally
from .stream import StreamCall

__all__ = ["Wire", "chat_options", "chat_resume", "raw_stream", "resume_raw", "with_headers"]

Json = dict[str, Any]


class Wire(Protocol):
    """One API over which to chat."""

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""

    def chat(self, messages: Sequence[Json], options: Mapping[str, Any]) -> Call[Json]:
        """The request for a whole answer."""

    def chat_stream(self, messages: Sequence[Json], options: Mapping[str, Any]) -> StreamCall[StreamChunk]:
        """The request for an answer as it comes."""

    def result(self, raw: Json) -> ChatResult:
        """The answer in a JSON object; raises ``ProviderError`` when it is none, or not whole."""


def chat_options(
    model: str,
    max_tokens: int | None,
    tools: Sequence[Json] | None,
    temperature: float | None,
    options: Mapping[str, Any],
) -> Json:
    """The arguments of a chat, without those that were not given."""
    asked = {"model": model, "max_tokens": max_tokens, "tools": tools, "temperature": temperature, **options}
    return {name: value for name, value in asked.items() if value is not None}


def with_headers(asked: StreamCall[StreamChunk], headers: Mapping[str, str] | None) -> StreamCall[StreamChunk]:
    """The request with further headers."""
    return replace(asked, call=replace(asked.call, headers={**asked.call.headers, **(headers or {})}))


def raw_stream(
    message: str | Sequence[Json], model: str | None, options: Mapping[str, Any]
) -> StreamCall[ResponseEvent]:
    """A response, as its events."""
    fold = RawFold(resumable=options.get("background") is True)
    return StreamCall(responses.stream(message, model, options), fold)


def resume_raw(id: str, starting_after: int | None) -> StreamCall[ResponseEvent]:
    """The rest of a response, as its events."""
    return StreamCall(responses.resume(id, starting_after), RawFold(**_joined(id, starting_after)))


def chat_resume(id: str, starting_after: int | None) -> StreamCall[StreamChunk]:
    """The rest of a response, as chunks; it is read from its first event on, so that it can be put together."""
    return StreamCall(responses.resume(id, None), ResponsesFold(hidden=starting_after, **_joined(id, None)))


def _joined(id: str, last: int | None) -> dict[str, Any]:
    tally = Tally()
    tally.id = id
    return {"tally": tally, "last": last, "resumable": True, "joined": True}
