"""What a client was told at its creation, and what both faces make of it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from ..errors import InvalidInput
from .call import Call, Request, request
from .reader import Reader, StreamCall
from .resume import ReconnectBackoff
from .retry import DEFAULT_RETRIES, RetryConfig, Unset, retrying

__all__ = ["DEFAULT_URL", "LIMITS", "Settings"]

DEFAULT_URL: Final = "http://localhost:8088"

CONNECT_TIMEOUT: Final = 10.0
TIMEOUT: Final = 60.0

# Each stream holds a connection for hours, so a limit on them would only be a hang that is hard to explain.
LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=20)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a client.

    Attributes:
        base_url: without a slash at its end.
        headers: of each request.
        timeout: seconds for each wait on the network in a plain request.
        heartbeat_timeout: seconds of silence after which a stream's connection counts as dead.
    """

    base_url: str
    headers: Mapping[str, str]
    timeout: float
    heartbeat_timeout: float
    retry_config: RetryConfig | Unset | None
    reconnect_backoff: ReconnectBackoff | None
    random: Callable[[], float]

    @classmethod
    def checked(cls, base_url: str, headers: Mapping[str, str] | None, **more: Any) -> Settings:
        """The settings, when the address is one.

        Raises:
            InvalidInput: it is not an http or https URL.
        """
        if not base_url.startswith(("http://", "https://")):
            raise InvalidInput(f"A server's address starts with http:// or https://, unlike {base_url[:128]!r}.")
        return cls(base_url.rstrip("/"), dict(headers or {}), **more)

    def request(self, call: Call[Any]) -> Request:
        """What ``build_request`` of httpx2 takes for a plain call."""
        return request(call, self.base_url, self.headers, httpx2.Timeout(self.timeout, connect=CONNECT_TIMEOUT))

    def stream_request(self, call: Call[Any]) -> Request:
        """The same for a stream: the read timeout is the watchdog that notices a dead connection."""
        timeout = httpx2.Timeout(self.timeout, connect=CONNECT_TIMEOUT, read=self.heartbeat_timeout)
        return request(call, self.base_url, self.headers, timeout)

    def retrying(self, retries: RetryConfig | Unset | None, *, repeatable: bool = True) -> Any:
        """The attempts of a request; ``retries`` is the caller's wish."""
        config = self.retry_config if isinstance(retries, Unset) else retries
        return retrying(DEFAULT_RETRIES if isinstance(config, Unset) else config, repeatable=repeatable)

    def reader(self, call: StreamCall) -> Reader:
        """The state of a new stream."""
        return Reader(
            call, heartbeat_timeout=self.heartbeat_timeout, backoff=self.reconnect_backoff, random=self.random
        )
