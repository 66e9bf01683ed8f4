"""What a client was told at its creation, and what both faces make of it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..http.call import HttpCall, RequestArguments, request
from ..http.packages import httpx2
from ..http.settings import HttpSettings
from .reader import EventReader, StreamCall

__all__ = ["DEFAULT_URL", "TIMEOUT", "ClientSettings"]

DEFAULT_URL: Final = "http://localhost:8088"

CONNECT_TIMEOUT: Final = 10.0
TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings(HttpSettings):
    """The settings of a client.

    Attributes:
        timeout: seconds for each wait on the network in a plain request.
        heartbeat_timeout: seconds of silence after which a stream's connection counts as dead.
    """

    timeout: float
    heartbeat_timeout: float

    def request(self, call: HttpCall[object]) -> RequestArguments:
        """What ``build_request`` of httpx2 takes for a plain call."""
        return request(call, self.base_url, self.headers, httpx2.Timeout(self.timeout, connect=CONNECT_TIMEOUT))

    def stream_request(self, call: HttpCall[object]) -> RequestArguments:
        """The same for a stream: the read timeout is the watchdog that notices a dead connection."""
        timeout = httpx2.Timeout(self.timeout, connect=CONNECT_TIMEOUT, read=self.heartbeat_timeout)
        return request(call, self.base_url, self.headers, timeout)

    def reader(self, call: StreamCall) -> EventReader:
        """The state of a new stream."""
        return EventReader(
            call, heartbeat_timeout=self.heartbeat_timeout, backoff=self.reconnect_backoff, random=self.random
        )
