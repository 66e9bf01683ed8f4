"""What a client was told at its creation, as far as that is the same for all servers. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ..addresses import server_of
from ..errors import InvalidInput
from .backoff import ReconnectBackoff
from .packages import httpx2
from .retry import DEFAULT_RETRIES, UNSET, Attempts, RetryConfig, Unset, retrying

__all__ = ["EXCHANGE", "HttpSettings", "address", "limits", "naming_the_proxy"]


def limits() -> httpx2.Limits:
    """The bounds of a client's connections."""
    # Each stream holds one for hours, so a limit on them would only be a hang that is hard to explain.
    return httpx2.Limits(max_connections=None, max_keepalive_connections=20)


@contextmanager
def naming_the_proxy() -> Iterator[None]:
    """Say of a proxy that cannot be used which variable of the environment names it. httpx2 makes what reaches it at
    once, also for a server that NO_PROXY excepts.

    Raises:
        InvalidInput: there is one.
    """
    try:
        yield
    except (ImportError, ValueError, httpx2.InvalidURL) as exc:
        from urllib.request import getproxies  # loads what no client needs otherwise

        names = [f"{name.upper()}_PROXY" for name in ("http", "https", "all") if name in getproxies()]
        if not names:
            raise
        why = "a SOCKS proxy needs pip install 'httpx2[socks]'" if isinstance(exc, ImportError) else str(exc)
        raise InvalidInput(f"{' or '.join(names)} names a proxy that cannot be used: {why}.", names=names) from exc


EXCHANGE: Final = "legato.exchange"
"""The extension of a response in which our transport gives its body, without the layers that httpx2 puts around it."""


def address(base_url: str, *, of: str) -> str:
    """The address without a slash at the end of its path; a query stays. ``of`` says whose it is.

    Raises:
        InvalidInput: it is not an http or https URL of a host.
    """
    base_url = str(base_url)
    if not base_url.startswith(("http://", "https://")):
        raise InvalidInput(f"A {of}'s address starts with http:// or https://, unlike {server_of(base_url)!r}.")
    try:
        named = bool((parts := urlsplit(base_url)).hostname) and parts.port != 0
    except ValueError:  # no port at all, or half of an IPv6 address
        named = False
    if not named:
        begins = server_of(base_url)  # a password may stand where the port would
        raise InvalidInput(
            f"A {of}'s address names a host, and a port from 1 to 65535 if any; that of {begins!r} does not."
        )
    path, mark, query = base_url.partition("?")
    return path.rstrip("/") + mark + query


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The settings of a client.

    Attributes:
        base_url: without a slash at the end of its path; the query that it may have belongs to each request.
        headers: of each request.
        retry_config: how a request is repeated; None: not at all.
        reconnect_backoff: how long a stream waits before it is connected again.
        random: gives a float from 0 to 1, for the jitter of that.
    """

    base_url: str
    headers: Mapping[str, str]
    retry_config: RetryConfig | Unset | None
    reconnect_backoff: ReconnectBackoff | None
    random: Callable[[], float]

    def retrying(self, retries: RetryConfig | Unset | None = UNSET, *, repeatable: bool = True) -> Attempts:
        """The attempts of a request; ``retries`` is the caller's wish for this one."""
        config = self.retry_config if isinstance(retries, Unset) else retries
        return retrying(DEFAULT_RETRIES if isinstance(config, Unset) else config, repeatable=repeatable)
