"""What a Legato server's refusals mean, and how a client's methods look to ``help()``. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import msgspec

from ..http import call
from ..http.packages import httpx2
from ..json import known
from .errors import APIError, ErrorBody, ErrorResponse

__all__ = ["refusal", "signature"]


def refusal(response: httpx2.Response) -> APIError:
    """The error that a response with an error status (its body read) stands for."""
    plain = call.refusal(response)
    try:
        return ErrorResponse(
            msgspec.json.decode(response.content, type=known(ErrorBody)),
            status_code=plain.status_code,
            body=plain.body,
            headers=plain.headers,
            retry_after=plain.retry_after,
        )
    except (msgspec.MsgspecError, UnicodeError):
        return plain


def signature(operation: Callable[..., object], returns: str | None = None) -> inspect.Signature:
    """The signature, for ``help()``, of a method that carries out an operation and so returns what that answers."""
    made = inspect.signature(operation)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    answered = str(made.return_annotation).removeprefix("HttpCall[").removesuffix("]")
    return made.replace(parameters=[own, *made.parameters.values()], return_annotation=returns or answered)
