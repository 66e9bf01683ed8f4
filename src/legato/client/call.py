"""What a Legato server's refusals mean, and how a client's methods look to ``help()``. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import msgspec

from ..http import call
from ..http.packages import httpx2
from ..json import known
from .errors import APIError, ErrorBody, ErrorResponse, ForeignResponse

__all__ = ["refusal", "signature"]


def refusal(response: httpx2.Response) -> APIError:
    """The error that a response (its body read) stands for that has no success status, or not the documented one."""
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
        return ForeignResponse(
            f"{plain.message} That is no answer of a Legato server: {_advice(response)}",
            status_code=plain.status_code,
            body=plain.body,
            headers=plain.headers,
            retry_after=plain.retry_after,
        )


def _advice(response: httpx2.Response) -> str:
    if response.has_redirect_location:
        where = response.headers["location"]
        return f"it leads to {where[:200]!r}. Sign in again, or give the client the address that the server has now."
    if response.status_code in (401, 403, 407):
        return "somebody before the server wants to know who asks. Sign in again."
    return "perhaps a proxy has no server behind it now, or the address is another server's."


def signature(operation: Callable[..., object], returns: str | None = None) -> inspect.Signature:
    """The signature, for ``help()``, of a method that carries out an operation and so returns what that answers."""
    made = inspect.signature(operation)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    answered = str(made.return_annotation).removeprefix("HttpCall[").removesuffix("]")
    return made.replace(parameters=[own, *made.parameters.values()], return_annotation=returns or answered)
