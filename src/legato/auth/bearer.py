"""The token of a request: ``Authorization: Bearer ...``, once; and who is told of whom it was found to be."""

from __future__ import annotations

from contextvars import ContextVar

from starlette.requests import HTTPConnection

from ..caller import Caller

TOKEN_CHARACTERS = 16_384
"""Of a token at most: more is none."""

ASKED: ContextVar[list[tuple[object, Caller | None]] | None] = ContextVar("legato.asked", default=None)
"""While it is found out who asks: what was asked for it, and whom that knew."""


def noted(auth: object, caller: Caller | None) -> Caller | None:
    """Let the server know that ``auth`` was asked, as by an application's own function, and whom it knew."""
    asked = ASKED.get()
    if asked is not None:
        asked.append((auth, caller))
    return caller


def bearer(request: HTTPConnection) -> str | None:
    """The token that a request brings; None if there is none, or more than one."""
    values = request.headers.getlist("authorization")
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not 0 < len(token) <= TOKEN_CHARACTERS or not token.isascii():
        return None
    return token
