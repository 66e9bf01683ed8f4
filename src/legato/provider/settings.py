"""What a client of a provider was told at its creation. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from ..client.call import Call, Request, request
from ..client.resume import ReconnectBackoff
from ..client.retry import DEFAULT_RETRIES, RetryConfig, Unset, retrying
from ..errors import InvalidInput
from .stream import StreamCall, StreamState

__all__ = ["Settings", "Timeouts"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a provider, in seconds.

    Attributes:
        connect: for a connection.
        first_byte: for the answer to begin; of an answer that is not streamed, for the whole of it.
        silence: between two pieces of a stream. Comments count as a sign of life; models that think in silence do so
            for minutes.
    """

    connect: float = 10.0
    first_byte: float = 300.0
    silence: float = 300.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a client; ``headers`` has the key."""

    base_url: str
    headers: Mapping[str, str]
    timeouts: Timeouts
    retry_config: RetryConfig | Unset | None
    reconnect_backoff: ReconnectBackoff | None
    random: Callable[[], float]

    @classmethod
    def checked(cls, base_url: str, headers: Mapping[str, str], **more: Any) -> Settings:
        """The settings, when the address is one.

        Raises:
            InvalidInput: it is not an http or https URL.
        """
        if not base_url.startswith(("http://", "https://")):
            raise InvalidInput(f"A provider's address starts with http:// or https://, unlike {base_url[:128]!r}.")
        return cls(base_url.rstrip("/"), headers, **more)

    def request(self, call: Call[Any]) -> Request:
        """What ``build_request`` of httpx2 takes."""
        timeouts = self.timeouts
        return request(call, self.base_url, self.headers, httpx2.Timeout(timeouts.first_byte, connect=timeouts.connect))

    def opened(self, response: httpx2.Response) -> None:
        """After the head of an answer, wait for its body by the other timeout. httpx2 reads it when the body begins."""
        timeout = dict(response.request.extensions.get("timeout", {}))
        timeout["read"] = self.timeouts.silence
        response.request.extensions["timeout"] = timeout

    def retrying(self) -> Any:
        """The attempts of a request: until the first byte of an answer, trying again does no harm."""
        config = DEFAULT_RETRIES if isinstance(self.retry_config, Unset) else self.retry_config
        return retrying(config, repeatable=True)

    def state(self, asked: StreamCall[Any]) -> StreamState[Any]:
        """The state of a new stream."""
        return StreamState(asked, backoff=self.reconnect_backoff, random=self.random)
