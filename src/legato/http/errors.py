"""What goes wrong between this program and a server.

LegatoError
`-- ClientError             the root
    |-- ConnectionFailed    the server could not be reached: nothing was sent
    |-- ConnectionLost      sent, but no whole answer came (cut off, silent): it may have been done or not
    |-- APIError            the server answered with an error status
    `-- ResponseInvalid     the server answered with success, in a form nobody can use
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LegatoError
from ..logs import outline
from .backoff import is_final

__all__ = ["APIError", "ClientError", "ConnectionFailed", "ConnectionLost", "ResponseInvalid"]


class ClientError(LegatoError):
    """The root of all errors that the SDK raises about a request or a stream."""

    code = "client_error"

    def __repr__(self) -> str:
        """Without what the server has said: stamina writes it into the log for each request that it repeats."""
        return outline(self)

    @property
    def passing(self) -> bool:
        """Whether it may pass by itself, so that asking again is of use. All that decides about it asks here."""
        return True


class ConnectionFailed(ClientError):
    """The server could not be reached; nothing was sent, so trying again is safe."""

    code = "connection_failed"
    loggable = True


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
        **detail: object,
    ) -> None:
        super().__init__(message, **detail)
        self.status_code = status_code
        self.code = code or f"http_{status_code}"
        self.body = body
        self.headers = dict(headers or {})
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the status says that it may pass."""
        return not is_final(self.status_code)


class ResponseInvalid(ClientError):
    """A success answer or an event that is not of the documented form."""

    code = "response_invalid"
