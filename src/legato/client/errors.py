"""What the SDK raises.

    LegatoError
    `-- ClientError             anything that went wrong between this program and the server
        |-- ConnectionFailed    the server could not be reached: nothing was sent
        |-- ConnectionLost      sent, but no whole answer came (cut off, silent): it may have been done or not
        |-- APIError            the server answered with an error status
        |   |-- ErrorResponse   ... in the documented form: ``code`` says why, for programs
        |   `-- ForeignResponse ... in another: a gateway's, a page to sign in, a redirect; it may pass
        |-- ResponseInvalid     the server answered with success, in a form nobody can use
        `-- CursorReset         what was read here is not in the server's log (it was restored, or is another's)

What is wrong before anything is sent (an empty id, a line end in a header) is ``legato.errors.InvalidInput``.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..http.errors import APIError, ClientError, ConnectionFailed, ConnectionLost, ResponseInvalid
from ..json import JsonObject

__all__ = [
    "APIError",
    "ClientError",
    "ConnectionFailed",
    "ConnectionLost",
    "CursorReset",
    "ErrorBody",
    "ErrorDetail",
    "ErrorResponse",
    "ForeignResponse",
    "ResponseInvalid",
]


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of an error body.

    Attributes:
        code: the HTTP status, once more.
        message: for a person.
        type: ``bad_request``, ``not_found``, ``internal_error``, ``unauthorized`` or ``validation_error``.
        reason: for a program, for example ``"session_not_found"``; servers other than Legato send none.
        detail: the data behind the message, for example ``limit``.
    """

    code: int
    message: str
    type: str
    reason: str | None = None
    detail: JsonObject = {}


class ErrorBody(msgspec.Struct, frozen=True):
    """The documented error body."""

    error: ErrorDetail


class ErrorResponse(APIError):
    """The server answered with an error in the documented form.

    Attributes:
        data: the decoded body: ``data.error.code``, ``.message``, ``.type`` and ``.reason``.
    """

    def __init__(
        self,
        data: ErrorBody,
        *,
        status_code: int,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            data.error.message,
            status_code=status_code,
            body=body,
            headers=headers,
            code=data.error.reason or data.error.type,
            retry_after=retry_after,
        )
        self.data = data
        self.detail = data.error.detail


class ForeignResponse(APIError):
    """Somebody else answered in the server's place, whatever the status: a gateway without a server behind it, a page
    to sign in, a redirect. It says nothing of what was asked for, so it is waited for and asked again."""

    @property
    def passing(self) -> bool:
        """Always: the server itself has not answered."""
        return True


class CursorReset(ClientError):
    """The server's log does not hold what was read before, so what was read cannot be continued."""

    code = "cursor_reset"
