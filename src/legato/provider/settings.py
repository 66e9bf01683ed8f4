"""What a client of a provider was told at its creation. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..figures import ProviderFigures
from ..http.call import HttpCall, RequestArguments, request
from ..http.errors import APIError
from ..http.packages import httpx2
from ..http.retry import DEFAULT_RETRIES, Attempts, Unset, retrying
from ..http.settings import HttpSettings
from .stream import FoldedCall, StreamState

__all__ = ["ProviderSettings", "Timeouts"]

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings(HttpSettings):
    """The settings of a client; ``headers`` has the key.

    Attributes:
        unwanted: fields that nobody asked for, and that the provider has refused.
        figures: where requests are counted.
    """

    timeouts: Timeouts
    unwanted: set[str] = field(default_factory=set)
    figures: ProviderFigures = field(default_factory=ProviderFigures)

    def attempts(self) -> Attempts:
        """The attempts of a request. A provider that asks for more time than there is, is not asked again."""
        self.figures.asked += 1
        config = DEFAULT_RETRIES if isinstance(self.retry_config, Unset) else self.retry_config
        return retrying(config, repeatable=True, patient=False)

    def request(self, call: HttpCall[object]) -> RequestArguments:
        """What ``build_request`` of httpx2 takes."""
        self.figures.requests += 1
        timeouts = self.timeouts
        return request(call, self.base_url, self.headers, httpx2.Timeout(timeouts.first_byte, connect=timeouts.connect))

    def wanted(self, call: HttpCall[T]) -> HttpCall[T]:
        """The request without what the provider is known to refuse."""
        fields = self.unwanted.intersection(call.spare)
        return replace(call, body={**(call.body or {}), **dict.fromkeys(fields)}) if fields else call

    def learn(self, call: HttpCall[object], refusal: APIError) -> bool:
        """Whether what refuses ``call`` names a field of it that nobody asked for; from now on it is left out."""
        if refusal.status_code not in (400, 422):
            return False
        words = refusal.body
        sent = [name for name in call.spare if (call.body or {}).get(name) is not None]
        named = {name for name in sent if re.search(rf"\b{name}\b", words)}
        self.unwanted.update(named)
        return bool(named)

    def opened(self, response: httpx2.Response) -> None:
        """After the head of an answer, wait for its body by the other timeout. httpx2 reads it when the body begins."""
        timeout = dict(response.request.extensions.get("timeout", {}))
        timeout["read"] = self.timeouts.silence
        response.request.extensions["timeout"] = timeout

    def state(self, asked: FoldedCall[T]) -> StreamState[T]:
        """The state of a new stream."""
        return StreamState(asked, backoff=self.reconnect_backoff, random=self.random)
