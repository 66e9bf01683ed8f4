"""What is asked of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from ..errors import InvalidInput
from ..http.call import HttpCall
from ..json import JsonObject
from .stream import STREAM_HEADERS

__all__ = ["cancel", "create", "resume", "retrieve", "stream"]


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
