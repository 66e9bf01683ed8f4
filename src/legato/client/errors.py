"""What the SDK raises.

    LegatoError
    `-- ClientError             anything that went wrong between this program and the server
        |-- ConnectionFailed    the server could not be reached: nothing was sent
        |-- ConnectionLost      sent, but no whole answer came (cut off, silent): it may have been done or not
        |-- APIError            the server answered with an error status
        |   `-- ErrorResponse   ... in the documented form: ``code`` says why, for programs
        |-- ResponseInvalid     the server answered with success, in a form nobody can use
        `-- CursorReset         what was read here is not in the server's log (it was restored, or is another's)

What is wrong before anything is sent (an empty id, a line end in a header) is ``legato.errors.InvalidInput``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import LegatoError

__all__ = [
    "APIError",
    "ClientError",
    "ConnectionFailed",
    "ConnectionLost",
    "CursorReset",
    "ErrorBody",
    "ErrorDetail",
    "ErrorResponse",
    "ResponseInvalid",
]


class ClientError(LegatoError):
    """The root of all errors that the SDK raises about a request or a stream."""

    code = "client_error"


class ConnectionFailed(ClientError):
    """The server could not be reached; nothing was sent, so trying again is safe."""

    code = "connection_failed"


class ConnectionLost(ClientError):
    """The request was sent, but its whole answer did not come; the server may have carried it out or not."""

    code = "connection_lost"


class APIError(ClientError):
    """The server answered with an error status.

    Attributes:
        status_code: the HTTP status.
        code: the machine-readable reason, or ``"http_<status>"`` when the body does not give one.
        body: the answer's text.
        headers: the answer's headers, by lower-case name.
        retry_after: seconds that the server asked to wait; None when it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        **detail: Any,
    ) -> None:
        super().__init__(message, **detail)
        self.status_code = status_code
        self.code = code or f"http_{status_code}"
        self.body = body
        self.headers = dict(headers or {})
        self.retry_after = retry_after


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
    detail: dict[str, Any] = {}


class ErrorBody(msgspec.Struct, frozen=True):
    """The documented error body."""

    error: ErrorDetail


class ErrorResponse(APIError):
    """The server answered with an error in the documented form.

    Attributes:
        data: the decoded body: ``data.error.code``, ``.message``, ``.type`` and ``.reason``.
    """

    def __init__(self, data: ErrorBody, **more: Any) -> None:
        super().__init__(data.error.message, code=data.error.reason or data.error.type, **more)
        self.data = data
        self.detail = data.error.detail


class ResponseInvalid(ClientError):
    """A success answer or an event that is not of the documented form."""

    code = "response_invalid"


class CursorReset(ClientError):
    """The server's log does not hold what was read before, so what was read cannot be continued."""

    code = "cursor_reset"
