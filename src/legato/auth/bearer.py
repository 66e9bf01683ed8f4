"""The token of a request: ``Authorization: Bearer ...``, once."""

from __future__ import annotations

from starlette.requests import HTTPConnection

TOKEN_CHARACTERS = 16_384
"""Of a token at most: more is none."""


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
